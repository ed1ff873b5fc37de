"""Runs `python -m qamdetr extract` in a process of its own that is killed at a chosen moment.

A moment is the n-th time that something is about to change in the feature folder (Python's audit events, which come before the deed),
that half of a file is written, or that a recording was encoded but not stored.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

import numpy as np
import torch

import qamdetr.features.base
from qamdetr import cli
from qamdetr.audio import Sound
from qamdetr.features.base import AudioStream, EncoderOptions, Step, Streams
from qamdetr.types import Recording

_EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.link")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["killed_extraction", "qamdetr.features.base", "qamdetr.features.extract", "qamdetr.data.manifest"])


class LoggingEncoder(Streams):
    """Encodes a file to its first bytes, and notes in a log, that a kill cannot undo, what it encoded."""

    def __init__(self, log: Path, reached: Callable[[str], None] = lambda moment: None) -> None:
        named = AudioStream(Path(), EncoderOptions())
        named.name, named.fingerprint = "bytes", "v1"
        super().__init__("logging", {"bytes": named}, {})
        self._log, self._reached = log, reached

    def encoding(self, sound: Sound, only: Sequence[str] = ()) -> Generator[Step, None, Recording]:
        yield Step("bytes", 0.0)
        with self._log.open("a") as log:
            log.write(f"{os.environ.get('RANK', '0')} {Path(sound.path).stem}\n")
        self._reached(f"encoded {sound.path}")
        rows = torch.frombuffer(bytearray(Path(sound.path).read_bytes()[:64]), dtype=torch.uint8).float().reshape(-1, 4)
        return Recording(sound.name, sound.path, float(len(rows)), {"bytes": rows}, np.zeros((2, 1)))


def run_extract(audio_dir: Path, feature_dir: Path, log: Path, *, kill_at: int = -1) -> tuple[int, list[str], int]:
    """Extract a folder; returns exit status (negative: signal), the recordings that were encoded, and how many moments the run came to."""
    log.write_text("")
    moments = log.with_suffix(".moments")
    process = _context.Process(target=_child, args=(audio_dir, feature_dir, log, moments, kill_at))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode, [line.split()[1] for line in log.read_text().splitlines()], len(moments.read_text().splitlines())


def _child(audio_dir: Path, feature_dir: Path, log: Path, moments: Path, kill_at: int) -> None:
    with moments.open("w", buffering=1) as file, log.with_suffix(".err").open("w") as errors, contextlib.redirect_stderr(errors):
        seen = 0

        def reached(moment: str) -> None:
            nonlocal seen
            file.write(f"{moment}\n")
            if seen == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1

        def hook(event: str, arguments: tuple) -> None:
            if event in _EVENTS and str(arguments[0]).startswith(str(feature_dir)) and (event != "open" or arguments[2] & _WRITES):
                reached(f"{event} {arguments[0]}")

        def write_in_two(self: Path, data: bytes) -> int:
            with self.open("wb") as target:
                target.write(data[: len(data) // 2])
                target.flush()
                reached(f"half of {self}")
                return target.write(data[len(data) // 2 :])

        Path.write_bytes = write_in_two  # type: ignore[method-assign]
        qamdetr.features.base.open_streams = lambda *streams, name, **options: LoggingEncoder(log, reached)  # type: ignore[assignment,return-value]
        sys.addaudithook(hook)
        status = cli.main(["extract", "--audio-dir", str(audio_dir), "--feature-dir", str(feature_dir)])
    os._exit(status)
