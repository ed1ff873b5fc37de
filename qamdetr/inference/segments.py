"""Reads segments straight off a per-clip curve: threshold, contiguous runs, mean value. The plain baseline is this and no more."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def segments_above(curve: ArrayLike, threshold: float, duration_seconds: float) -> list[tuple[float, float, float]]:
    """Return the runs of clips whose value reaches `threshold`, best mean value first.

    Args:
        curve: `(clips,)`, one value per second.
        threshold: In the curve's own unit.
        duration_seconds: Ends of segments are cut here.

    Returns:
        `(start, end, mean value)` in seconds; when no clip reaches the threshold, the one best clip, so that there always is an answer.
    """
    values: NDArray[np.float64] = np.asarray(curve, dtype=np.float64)
    above = values >= threshold
    if not above.any():
        above[int(values.argmax())] = True
    edges = np.flatnonzero(np.diff(np.concatenate([[False], above, [False]]).astype(np.int8)))
    runs = [(float(a), min(float(b), duration_seconds), float(values[a:b].mean())) for a, b in edges.reshape(-1, 2)]
    return sorted(runs, key=lambda run: -run[2])
