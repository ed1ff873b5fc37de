"""A waveform's overview as the player draws it: thinned out, scaled, rounded. Pure."""

from __future__ import annotations

import numpy as np

MAX_COLUMNS = 4000
"""Columns of the drawn waveform: enough to zoom into, and still only some 40 kB."""

MAX_GAIN = 20.0
"""Quiet recordings are drawn larger, up to this factor, so that their shape can be seen; noise floors stay flat."""


def display_peaks(peaks: np.ndarray, max_columns: int = MAX_COLUMNS) -> list[list[float]]:
    """Thin out and scale a waveform overview for drawing.

    Args:
        peaks: `(2, columns)` minimum and maximum per column, in [-1, 1].
        max_columns: Most columns to return; neighbours are merged by minimum and maximum, so no peak is lost.

    Returns:
        `[low, high]`, two decimals, scaled so that the loudest peak is 1 or the gain is `MAX_GAIN`.
    """
    low, high = np.asarray(peaks, dtype=np.float64)
    if low.size > max_columns:
        starts = np.linspace(0, low.size, max_columns, endpoint=False).astype(int)
        low, high = np.minimum.reduceat(low, starts), np.maximum.reduceat(high, starts)
    return scaled_peaks(np.stack([low, high]), display_gain(peaks))


def display_gain(peaks: np.ndarray) -> float:
    """Factor by which a recording with these peaks is drawn larger: the loudest reaches 1, at most by `MAX_GAIN`."""
    loudest = float(np.abs(peaks).max(initial=0.0))
    return min(MAX_GAIN, 1.0 / loudest) if loudest > 0 else 1.0


def scaled_peaks(peaks: np.ndarray, gain: float) -> list[list[float]]:
    """Peaks `(2, columns)` as `[low, high]` for drawing: times the gain, cut to [-1, 1], two decimals."""
    low, high = np.round(np.clip(np.asarray(peaks, dtype=np.float64) * gain, -1.0, 1.0), 2).tolist()
    return [low, high]
