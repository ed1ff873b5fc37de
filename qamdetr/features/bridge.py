"""Stands for `audio.Sound` until that lands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Protocol

import numpy as np

from qamdetr.audio_blocks import mono_blocks
from qamdetr.progress import tell
from qamdetr.sample_stream import PeakEnvelope, StreamResampler


class Listener(Protocol):
    """Takes a recording in while it is read."""

    rate_hz: int

    def begin(self) -> None:
        """Forget what was heard: the recording starts."""
        ...

    def feed(self, samples: np.ndarray) -> None:
        """Take the next samples."""
        ...


class Sound:
    """A recording on disk."""

    def __init__(self, source: str | Path) -> None:
        self.path = str(source)
        self.name = Path(source).name
        self.duration_seconds = 0.0
        self.notes: tuple[str, ...] = ()
        self.peaks = np.zeros((2, 0), dtype=np.float32)

    def reading(self, listeners: Sequence[Listener] = (), peak_columns: int = 0) -> Iterator[float | None]:
        """Read it once."""
        peaks = PeakEnvelope()
        resamplers: dict[int, StreamResampler] = {}
        for listener in listeners:
            listener.begin()
        with closing(mono_blocks(self.path)) as blocks:
            for block in blocks:
                self.duration_seconds = block.end_frame / block.sample_rate_hz
                peaks.add(block.samples)
                for rate in {listener.rate_hz for listener in listeners} - set(resamplers):
                    resamplers[rate] = StreamResampler(block.sample_rate_hz, rate)
                fed = {rate: resampler.add(block.samples) for rate, resampler in resamplers.items()}
                for listener in listeners:
                    listener.feed(fed[listener.rate_hz])
                tell(block.share)
                yield block.share
        fed = {rate: resampler.finish() for rate, resampler in resamplers.items()}
        for listener in listeners:
            listener.feed(fed[listener.rate_hz])
        self.peaks = peaks.columns(peak_columns)
