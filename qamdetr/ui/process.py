"""The app's process: a folder of its own for what visitors upload, and how it ends: soon, with nothing of the visitors left on the disk.

Nothing here imports gradio, which reads the name of the folder when it is imported, shares it with all its programs on the machine, and
forgets what an earlier program left there.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from qamdetr.errors import ConfigError

TEMP_VARIABLE = "GRADIO_TEMP_DIR"
PREFIX = "qamdetr-uploads-"
LEFT_SECONDS = 7 * 24 * 3600.0
"""Upload folders in which nothing changed for so long are of programs that were killed, and deleted when the next one starts."""

UNFINISHED = "tmp*"
"""Names of uploads under way, beside the folders of whole ones; gradio leaves those that broke off or were too large."""

UNFINISHED_SECONDS = 7200.0
SWEEP_SECONDS = 3600.0


class UploadFolder:
    """`<temporary files>/qamdetr-uploads-<random>`, readable for nobody else; it ends with the process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._owner = os.getpid()

    @classmethod
    def make(cls) -> UploadFolder:
        """Make the folder, where `GRADIO_TEMP_DIR` says or among the system's temporary files, and delete what killed programs left there.

        Raises:
            ConfigError: Nothing can be written there.
        """
        named = os.environ.get(TEMP_VARIABLE, "").strip()
        try:
            base = Path(named or tempfile.gettempdir()).absolute()
            base.mkdir(parents=True, exist_ok=True)
            _sweep(base)
            return cls(Path(tempfile.mkdtemp(prefix=PREFIX, dir=base)))
        except OSError as error:
            where = (
                f"{TEMP_VARIABLE} is {named!r} in the environment" if named else "The system's folder for temporary files is full or locked"
            )
            raise ConfigError(
                f"{where}, and uploads cannot be kept there ({error.strerror or error})",
                f"let {TEMP_VARIABLE} name a folder that can be written",
            ) from error

    def use(self) -> None:
        """Let gradio and all temporary files of this process go there; before gradio is imported."""
        os.environ[TEMP_VARIABLE] = str(self.path)
        # Uploads under way and decoded sound lie among the temporary files, which a process that is killed leaves behind.
        tempfile.tempdir = str(self.path)
        threading.Thread(target=self._sweep_unfinished_for_ever, name="qamdetr-uploads", daemon=True).start()

    def remove(self) -> None:
        """Delete the folder with all that is in it; does nothing in a process that was forked from its owner."""
        if os.getpid() != self._owner:
            return
        for _ in range(5):  # a request may write while it goes
            shutil.rmtree(self.path, ignore_errors=True)
            if not self.path.exists():
                break

    def sweep_unfinished(self, older_than_seconds: float = UNFINISHED_SECONDS) -> None:
        """Delete uploads that broke off."""
        for path in self.path.glob(UNFINISHED):
            with contextlib.suppress(OSError):
                status = path.lstat()
                if stat.S_ISREG(status.st_mode) and time.time() - status.st_mtime > older_than_seconds:
                    path.unlink()

    def _sweep_unfinished_for_ever(self) -> None:
        while True:
            time.sleep(SWEEP_SECONDS)
            os.utime(self.path)  # a sign of life
            self.sweep_unfinished()


def _sweep(base: Path) -> None:
    """Delete the upload folders in `base` in which there was no sign of life for `LEFT_SECONDS`."""
    for path in base.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            status = path.lstat()
            if stat.S_ISDIR(status.st_mode) and time.time() - status.st_mtime > LEFT_SECONDS:
                shutil.rmtree(path, ignore_errors=True)


SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Ctrl-C, and what `kill`, systemd and containers send."""


def end_on_signals(clean_up: Callable[[], None]) -> None:
    """End this process with status 0 at Ctrl-C and SIGTERM, after `clean_up`; processes that are forked from it end as usual."""
    owner = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        del frame
        if os.getpid() != owner:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        for later in SIGNALS:
            signal.signal(later, signal.SIG_IGN)
        with contextlib.suppress(Exception):
            clean_up()
        end_now(0, b"Stopped; the uploads are deleted.\n")

    for number in SIGNALS:
        signal.signal(number, end)


def end_now(status: int, last_words: bytes = b"") -> None:
    """End this process without waiting for anybody.

    The usual way out frees the native thread pools of PyTorch and numba while threads are computing in them, which aborts the process.
    Encoding cannot be told to stop within a block, or while a model is loaded, and nothing that it would still do is wanted.
    """
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    with contextlib.suppress(OSError):  # the terminal may be gone; in a handler of signals the usual streams must not be written
        os.write(2, last_words)
    os._exit(status)
