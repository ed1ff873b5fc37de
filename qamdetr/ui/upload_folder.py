"""A folder of this process's own for what visitors upload and what is made from it; it ends with the process.

Gradio keeps uploads below one folder that all its programs on the machine share, and forgets what an earlier program left there.
Nothing here imports gradio, which reads the name of the folder when it is imported.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from qamdetr.errors import ConfigError

if sys.platform != "win32":
    import fcntl

TEMP_VARIABLE = "GRADIO_TEMP_DIR"
PREFIX = "qamdetr-uploads-"
LOCK_FILE = ".in-use"
"""Locked as long as the process lives, whichever way it ends, also where process numbers say nothing: in containers that share a folder."""

UNFINISHED = "tmp*"
"""Names of uploads under way, beside the folders of whole ones; gradio leaves those that broke off or were too large."""

UNFINISHED_SECONDS = 7200.0
SWEEP_SECONDS = 3600.0


class UploadFolder:
    """`<temporary files>/qamdetr-uploads-<random>`, readable for nobody else."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock
        self._owner = os.getpid()

    @classmethod
    def make(cls) -> UploadFolder:
        """Make the folder, where `GRADIO_TEMP_DIR` says or among the system's temporary files, and sweep what ended processes left there.

        Raises:
            ConfigError: Nothing can be written there.
        """
        named = os.environ.get(TEMP_VARIABLE, "").strip()
        try:
            base = Path(named or tempfile.gettempdir()).absolute()
            base.mkdir(parents=True, exist_ok=True)
            sweep(base)
            # Under another name until it is locked, lest a process that starts at the same moment takes it for left behind.
            new = Path(tempfile.mkdtemp(prefix=f".{PREFIX}", dir=base))
            lock = os.open(new / LOCK_FILE, os.O_CREAT | os.O_RDWR, 0o600)
            _try_lock(lock)
            path = new.with_name(new.name[1:])
            new.rename(path)
        except OSError as error:
            where = (
                f"{TEMP_VARIABLE} is {named!r} in the environment" if named else "The system's folder for temporary files is full or locked"
            )
            reason = error.strerror or error
            raise ConfigError(
                f"{where}, and uploads cannot be kept there ({reason}); let {TEMP_VARIABLE} name a folder that can be written."
            ) from error
        return cls(path, lock)

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
            self.sweep_unfinished()


def sweep(base: Path) -> None:
    """Delete the upload folders in `base` whose process has ended, and no other: by name, owner, lock file, and that nobody holds it."""
    for path in base.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError), _left_behind(path) as is_left:
            if is_left:
                shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _left_behind(path: Path) -> Iterator[bool]:
    status = path.lstat()
    if sys.platform == "win32" or not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        yield False
        return
    lock = os.open(path / LOCK_FILE, os.O_RDWR | os.O_NOFOLLOW)
    try:
        yield _try_lock(lock)
    finally:
        os.close(lock)


def _try_lock(lock: int) -> bool:
    """Lock a file for as long as it is open; False where another process has it, or the disk knows no locks."""
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
