"""A recording, or a part of it, small enough to draw: lowest and highest sample and spectrum of some columns, read block by block."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from qamdetr.sound_file import blocks, open_part, open_sound

BANDS = 160
MAX_FRAMES_PER_COLUMN = 8
"""Spectra that are averaged in a column; an hour has hundreds that would fit, and they would not change the picture."""

_FFT_SECONDS = 0.04
_CHUNK_SAMPLES = 1 << 20
_POWER_FLOOR = 1e-12


@dataclass(frozen=True)
class Overview:
    """What a picture of a recording needs.

    Attributes:
        peaks: `(2, columns)` lowest and highest sample per column, full scale at [-1, 1].
        levels_db: `(BANDS, columns)` mean power per band, lowest band first.
        top_hz: Upper end of the bands; they are equally wide on the mel scale from 0 Hz on.
    """

    peaks: np.ndarray
    levels_db: np.ndarray
    top_hz: float


def hz_to_mel(frequency_hz: float | np.ndarray) -> float | np.ndarray:
    """Mel (HTK formula) of a frequency in Hz, at least 0."""
    return 2595.0 * np.log10(1.0 + np.asarray(frequency_hz) / 700.0)


def read_overview(path: str, duration_seconds: float, columns: int) -> Overview:
    """Read a recording once, from begin to end, with little memory whatever its length; channels are averaged.

    Args:
        path: Of the recording.
        duration_seconds: Its true length, above 0.
        columns: At least 1; fewer come back where there are fewer samples.

    Raises:
        AudioError: The file is gone or cannot be read.
    """
    with open_sound(path) as sound:
        rate = int(sound.samplerate)
        samples = max(1, round(duration_seconds * rate))
        columns = min(columns, samples)
        edges = np.arange(columns + 1, dtype=np.int64) * samples // columns
        fft_samples = max(64, 2 ** round(math.log2(_FFT_SECONDS * rate)))
        window, bands = np.hanning(fft_samples).astype(np.float32), _bands(rate, fft_samples)
        frames = min(MAX_FRAMES_PER_COLUMN, math.ceil(samples / columns / fft_samples))
        peaks = np.zeros((2, columns), dtype=np.float32)
        power = np.zeros((BANDS, columns), dtype=np.float32)
        for first, last, piece in _pieces(blocks(sound, 0, samples), edges, fft_samples // 2):
            begins = edges[first:last] - edges[first]
            inner = piece[fft_samples // 2 : len(piece) - fft_samples // 2]
            peaks[0, first:last] = np.minimum.reduceat(inner, begins)
            peaks[1, first:last] = np.maximum.reduceat(inner, begins)
            # The piece begins half a window early, so that a frame whose centre is at sample n of the columns starts at n.
            shares = (np.arange(frames) + 0.5) / frames
            starts = (begins[:, None] + shares * np.diff(edges[first : last + 1])[:, None]).astype(np.int64)
            frame = np.lib.stride_tricks.sliding_window_view(piece, fft_samples)[starts.ravel()] * window
            spectrum = np.square(np.abs(np.fft.rfft(frame))).reshape(last - first, frames, -1).mean(axis=1)
            power[:, first:last] = bands @ spectrum.T
    return Overview(peaks, 10.0 * np.log10(np.maximum(power, _POWER_FLOOR)), rate / 2)


def read_peaks(path: str, start_seconds: float, end_seconds: float, columns: int) -> np.ndarray:
    """Read a part of a recording and nothing else of it; channels are averaged.

    Args:
        path: Of the recording.
        start_seconds: Begin of the part, at least 0.
        end_seconds: Its end, after the begin; what lies after the recording's end is silent.
        columns: At least 1; fewer come back where there are fewer samples.

    Returns:
        `(2, columns)` float32: lowest and highest sample per column, full scale at [-1, 1].

    Raises:
        AudioError: The file is gone or cannot be read.
    """
    with open_part(path, start_seconds, end_seconds) as (sound, begin):
        samples = max(1, round(end_seconds * sound.samplerate) - round(start_seconds * sound.samplerate))
        columns = min(columns, samples)
        edges = np.arange(columns + 1, dtype=np.int64) * samples // columns
        peaks = np.zeros((2, columns), dtype=np.float32)
        for first, last, piece in _pieces(blocks(sound, begin, begin + samples), edges, 0):
            begins = edges[first:last] - edges[first]
            peaks[0, first:last] = np.minimum.reduceat(piece, begins)
            peaks[1, first:last] = np.maximum.reduceat(piece, begins)
    return peaks


def _pieces(stream: Iterator[np.ndarray], edges: np.ndarray, margin: int) -> Iterator[tuple[int, int, np.ndarray]]:
    """Columns `[first, last)` with their mono samples and `margin` more on both sides; zeros where the stream has none."""
    columns = len(edges) - 1
    step = max(1, _CHUNK_SAMPLES * columns // int(edges[-1]))
    held, begin = np.zeros(margin, dtype=np.float32), -margin
    for first in range(0, columns, step):
        last = min(first + step, columns)
        wanted = int(edges[last]) + margin - begin
        parts, length = [held], len(held)
        while length < wanted:
            block = next(stream, None)
            part = np.zeros(wanted - length, dtype=np.float32) if block is None else _mono(block)
            parts.append(part)
            length += len(part)
        held = np.concatenate(parts)
        yield first, last, held[:wanted]
        passed = int(edges[last]) - margin - begin
        held, begin = held[passed:], begin + passed


def _mono(block: np.ndarray) -> np.ndarray:
    mono: np.ndarray = block.mean(axis=1, dtype=np.float32)
    mono[~np.isfinite(mono)] = 0.0
    return mono


def _bands(rate_hz: int, fft_samples: int) -> np.ndarray:
    """Weights `(BANDS, bins)` that sum to 1; a band narrower than a bin takes its neighbours', so that no row stays empty."""
    bins = np.arange(fft_samples // 2 + 1) * rate_hz / fft_samples
    centres_mel = (np.arange(BANDS) + 0.5) / BANDS * hz_to_mel(rate_hz / 2)
    centres = 700.0 * (10.0 ** (centres_mel / 2595.0) - 1.0)
    widths = np.maximum(np.gradient(centres), rate_hz / fft_samples)
    weights: np.ndarray = np.maximum(0.0, 1.0 - np.abs(bins - centres[:, None]) / widths[:, None])
    weights /= weights.sum(axis=1, keepdims=True)
    return weights.astype(np.float32)
