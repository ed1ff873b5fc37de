"""A recording as a stream of mono samples at any rate, so that hours of it cost little memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import soxr

from qamdetr.audio import resampled_length
from qamdetr.audio_blocks import mono_blocks
from qamdetr.errors import AudioError
from qamdetr.progress import tell

_MAX_GROUPS = 1 << 21


class SampleStream(Protocol):
    """Mono float32 samples in blocks `(n,)` of any lengths; may be read again from the begin."""

    def __len__(self) -> int:
        """Count the samples in all blocks together."""
        ...

    def __iter__(self) -> Iterator[np.ndarray]: ...


class Listener(Protocol):
    """Takes a recording in while it is read for the first time."""

    sample_rate_hz: int

    def add(self, samples: np.ndarray) -> None:
        """Take the next samples, mono float32 `(n,)` at `sample_rate_hz`."""
        ...


@dataclass(frozen=True)
class Sound:
    """A recording on disk that was read once, so that its true length is known.

    Attributes:
        path: Of the file.
        sample_rate_hz: Of the file.
        num_samples: At that rate.
        peaks: The waveform to draw, as `PeakEnvelope.columns` gives it.
    """

    path: Path
    sample_rate_hz: int
    num_samples: int
    peaks: np.ndarray

    @property
    def duration_seconds(self) -> float:
        """Length in seconds."""
        return self.num_samples / self.sample_rate_hz

    def at(self, sample_rate_hz: int) -> SampleStream:
        """Return the samples at a rate, the same as `audio.load` gives; each iteration reads the file anew."""
        return _FileStream(self, sample_rate_hz)


def listen(path: str | Path, listeners: Sequence[Listener], *, peak_columns: int) -> Sound:
    """Read a recording from begin to end, once; the samples are dropped when all listeners had them.

    Args:
        path: The audio file.
        listeners: Each gets all samples at its rate, the same as `audio.load` gives.
        peak_columns: Columns of the waveform to draw.

    Raises:
        AudioError: As `audio.decode`.
    """
    peaks = PeakEnvelope()
    resamplers: dict[int, StreamResampler] = {}
    rate, frames = 0, 0
    with closing(mono_blocks(path)) as blocks:
        for block in blocks:
            rate, frames = block.sample_rate_hz, block.end_frame
            tell(block.share)
            peaks.add(block.samples)
            resamplers = resamplers or {wanted: StreamResampler(rate, wanted) for wanted in {at.sample_rate_hz for at in listeners}}
            _hand_out({wanted: resampler.add(block.samples) for wanted, resampler in resamplers.items()}, listeners)
    _hand_out({wanted: resampler.finish() for wanted, resampler in resamplers.items()}, listeners)
    return Sound(Path(path), rate, frames, peaks.columns(peak_columns))


class StreamResampler:
    """`audio.resample` block by block: all that it returns, put together, is the same samples bit by bit."""

    def __init__(self, from_hz: int, to_hz: int) -> None:
        self._from_hz, self._to_hz = from_hz, to_hz
        self._soxr = None if from_hz == to_hz else soxr.ResampleStream(from_hz, to_hz, 1, dtype="float32", quality="HQ")
        self._taken, self._given = 0, 0

    def add(self, samples: np.ndarray) -> np.ndarray:
        """Take the next samples `(n,)` float32; returns what can be told by now, less at first."""
        if self._soxr is None:
            return samples
        self._taken += len(samples)
        resampled: np.ndarray = self._soxr.resample_chunk(samples)
        self._given += len(resampled)
        return resampled

    def finish(self) -> np.ndarray:
        """Return the rest; nothing may be added after it."""
        rest = np.empty(0, dtype=np.float32)
        if self._soxr is None:
            return rest
        rest = self._soxr.resample_chunk(rest, last=True)
        wanted = resampled_length(self._taken, self._from_hz, self._to_hz) - self._given
        return np.pad(rest[:wanted], (0, max(wanted - len(rest), 0)))


class PeakEnvelope:
    """Lowest and highest sample of equal stretches of a recording, for drawing, without holding its samples.

    Up to two million samples are held one by one; of longer recordings, groups of 2, 4, 8 and so on, so that the begin of a stretch is
    off by no more than a millionth of the recording.
    """

    def __init__(self) -> None:
        self._lowest: list[np.ndarray] = []
        self._highest: list[np.ndarray] = []
        self._groups, self._group_samples = 0, 1
        self._rest = np.empty(0, dtype=np.float32)

    def add(self, samples: np.ndarray) -> None:
        """Take the next samples `(n,)`, float32."""
        samples = np.concatenate([self._rest, samples]) if len(self._rest) else samples
        whole = len(samples) // self._group_samples * self._group_samples
        self._rest = samples[whole:].copy()
        groups = samples[:whole].reshape(-1, self._group_samples)
        self._lowest.append(groups.min(axis=1))
        self._highest.append(groups.max(axis=1))
        self._groups += len(groups)
        while self._groups > _MAX_GROUPS:
            self._halve()

    def columns(self, columns: int) -> np.ndarray:
        """Return `(2, columns)` float32 in [-1, 1]: minima, then maxima; stretches repeat samples where there are fewer samples."""
        samples = self._groups * self._group_samples + len(self._rest)
        if samples == 0:
            return np.zeros((2, columns), dtype=np.float32)
        ends = [self._rest] if len(self._rest) else []
        lowest = np.concatenate([*self._lowest, *([end.min()] for end in ends)])
        highest = np.concatenate([*self._highest, *([end.max()] for end in ends)])
        starts = np.arange(columns, dtype=np.int64) * samples // columns // self._group_samples
        envelope = np.stack([np.minimum.reduceat(lowest, starts), np.maximum.reduceat(highest, starts)])
        return envelope.clip(-1, 1).astype(np.float32)

    def _halve(self) -> None:
        """Join groups by pairs; one that is left over waits for more samples."""
        lowest, highest = np.concatenate(self._lowest), np.concatenate(self._highest)
        if len(lowest) % 2:
            # Any samples with these two extremes do: only the extremes of a group are ever asked for.
            pair = np.full(self._group_samples, lowest[-1], dtype=np.float32)
            pair[-1] = highest[-1]
            self._rest = np.concatenate([pair, self._rest])
        pairs = len(lowest) // 2
        self._lowest = [lowest[: 2 * pairs].reshape(pairs, 2).min(axis=1)]
        self._highest = [highest[: 2 * pairs].reshape(pairs, 2).max(axis=1)]
        self._groups, self._group_samples = pairs, 2 * self._group_samples


class _FileStream:
    """The samples of a sound at a rate, from its file."""

    def __init__(self, sound: Sound, sample_rate_hz: int) -> None:
        self._sound = sound
        self._sample_rate_hz = sample_rate_hz

    def __len__(self) -> int:
        return resampled_length(self._sound.num_samples, self._sound.sample_rate_hz, self._sample_rate_hz)

    def __iter__(self) -> Iterator[np.ndarray]:
        resampler = StreamResampler(self._sound.sample_rate_hz, self._sample_rate_hz)
        frames = 0
        # What was read once may be as long as it is.
        with closing(mono_blocks(self._sound.path, max_seconds=math.inf)) as blocks:
            for block in blocks:
                frames = block.end_frame
                if block.sample_rate_hz != self._sound.sample_rate_hz or frames > self._sound.num_samples:
                    break
                yield resampler.add(block.samples)
        if frames != self._sound.num_samples:
            raise AudioError(f"{self._sound.path} was changed while it was read; open it again.")
        yield resampler.finish()


def _hand_out(samples: dict[int, np.ndarray], listeners: Sequence[Listener]) -> None:
    for listener in listeners:
        listener.add(samples[listener.sample_rate_hz])
