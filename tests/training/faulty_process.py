"""Runs train.py in a process of its own that dies, or whose disk is full, at a chosen moment.

A moment is the n-th time that Python changes something in the run's folder (Python's audit events, which come before the deed).
"""

from __future__ import annotations

import contextlib
import errno
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

Fault = Literal["", "kill", "full"]

_EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["train"])


def run_train(arguments: Sequence[str], directory: Path, *, fault: Fault = "", moment: int = -1) -> tuple[int, str, list[str]]:
    """Run `train.py` with `arguments` and let `fault` strike at a moment of the run's folder `directory`.

    Returns its exit status (negative: killed by that signal), what it wrote to stderr, and its moments, `event path-inside-the-run`.
    """
    log = directory.with_name(f"{directory.name}.moments")
    log.unlink(missing_ok=True)
    process = _context.Process(target=_child, args=(list(arguments), directory, fault, moment, log))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode, log.with_suffix(".err").read_text(), [json.loads(line) for line in log.read_text().splitlines()]


def _child(arguments: list[str], directory: Path, fault: Fault, moment: int, log: Path) -> None:
    with log.with_suffix(".err").open("w") as errors, log.open("w", buffering=1) as moments, contextlib.redirect_stderr(errors):
        sys.addaudithook(_Hook(directory, fault, moment, lambda line: moments.write(json.dumps(line) + "\n")))
        from train import main

        status = main([*arguments, "--threads", "1"])
    os._exit(status)


class _Hook:
    def __init__(self, directory: Path, fault: Fault, moment: int, note: Callable[[str], object]) -> None:
        self._places = (f"{directory}/", f"{directory.parent}/.{directory.name}.")
        self._fault, self._moment, self._note, self._seen, self._noting = fault, moment, note, 0, False

    def __call__(self, event: str, arguments: tuple) -> None:
        path = str(arguments[0]) if event in _EVENTS and arguments else ""
        if not path.startswith(self._places) or self._noting or (event == "open" and not arguments[2] & _WRITES):
            return
        self._noting = True
        self._note(f"{event} {path.removeprefix(self._places[0])}")
        self._noting = False
        reached = self._seen >= self._moment >= 0
        self._seen += 1
        if reached and self._fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        # A full disk still lets files be renamed and removed.
        if reached and self._fault == "full" and event in ("open", "os.mkdir"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
