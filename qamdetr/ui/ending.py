"""How the app ends when it is told to: soon, whatever it is doing, and with nothing of the visitors left on the disk."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

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
