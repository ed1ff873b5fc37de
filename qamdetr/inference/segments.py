"""Reads segments off a per-clip curve: of the similarity curve, the plain baseline; of the saliency, more candidates.

A saliency trained as a posterior (`loss.saliency_clip`) says of each clip which share of it the query covers. So the clips at a segment's
ends tell where inside of them it begins and ends, finer than the one-second grid; and the curve as a whole says how much of a segment is
likely to be right, which is its quality.

Source: ours; the idea of pooling such segments with the decoder's candidates is the field's (see docs/decisions/0005-segments.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qamdetr.config import InferenceConfig
from qamdetr.inference.candidates import suppress
from qamdetr.types import Candidate, Window

Curve = NDArray[np.float64]

MIN_SECONDS = 0.3
"""Soft ends that leave less than this are not believed; the whole clips are taken."""


def segments_above(curve: ArrayLike, threshold: float, duration_seconds: float) -> list[tuple[float, float, float]]:
    """Return the runs of clips whose value reaches `threshold`, best mean value first.

    Args:
        curve: `(clips,)`, one value per second.
        threshold: In the curve's own unit.
        duration_seconds: Ends of segments are cut here.

    Returns:
        `(start, end, mean value)` in seconds; when no clip reaches the threshold, the one best clip, so that there always is an answer.
    """
    values: Curve = np.asarray(curve, dtype=np.float64)
    runs = [(float(a), min(float(b), duration_seconds), float(values[a:b].mean())) for a, b in _runs(values, threshold)]
    return sorted(runs, key=lambda run: -run[2])


def segment_candidates(saliency: ArrayLike, duration_seconds: float, threshold: float, *, by_quality: bool = True) -> list[Candidate]:
    """Return the runs of clips whose saliency reaches `threshold` as candidates, best decoder score first.

    Args:
        saliency: `(clips,)` posterior per clip in [0, 1].
        duration_seconds: Length of the recording, or of the section that `saliency` belongs to.
        threshold: In (0, 1).
        by_quality: Rank by quality, too; see `pool_segments`.

    Returns:
        Candidates (the one best clip when none reaches the threshold): `foreground` is the mean saliency inside, `quality` the overlap of
        the segment with what the curve says; 1 where quality does not rank.
    """
    values: Curve = np.asarray(saliency, dtype=np.float64)
    found = []
    for first, last in _runs(values, threshold):
        start, end = _soft_ends(values, first, last, duration_seconds)
        foreground = float(values[first:last].mean())
        quality = _agreement(values, (start, end))[1] if by_quality else 1.0
        found.append(Candidate(start, end, foreground=foreground, quality=quality, decoder_score=foreground * quality))
    return sorted(found, key=lambda candidate: -candidate.decoder_score)


def pool_segments(
    candidates: Sequence[Candidate],
    saliency: ArrayLike,
    duration_seconds: float,
    config: InferenceConfig,
    *,
    nms_iou: float,
    by_quality: bool = True,
) -> list[Candidate]:
    """Pool the decoder's candidates with the saliency's segments, where `config.segment_threshold` asks for it; doubles are dropped.

    The two kinds are made comparable: a decoder candidate's foreground is multiplied by the mean saliency inside it, its quality by the
    overlap that the curve expects, so that it ranks high when both heads agree on it.

    Without a quality head, or with it bypassed (`by_quality` false), there is no quality of either kind: it is 1 for all, and the score
    is the foreground.
    """
    if config.segment_threshold <= 0:
        return list(candidates)
    values: Curve = np.asarray(saliency, dtype=np.float64)
    weighed = []
    for candidate in candidates:
        mean, overlap = _agreement(values, candidate.window)
        foreground, quality = candidate.foreground * mean, candidate.quality * overlap if by_quality else 1.0
        weighed.append(replace(candidate, foreground=foreground, quality=quality, decoder_score=foreground * quality))
    threshold = min(config.segment_threshold, config.segment_peak_share * float(values.max()))
    return suppress([*segment_candidates(values, duration_seconds, threshold, by_quality=by_quality), *weighed], nms_iou)


def _runs(values: Curve, threshold: float) -> list[tuple[int, int]]:
    above = values >= threshold
    if not above.any():
        above[int(values.argmax())] = True
    edges = np.flatnonzero(np.diff(np.concatenate([[False], above, [False]]).astype(np.int8)))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def _soft_ends(values: Curve, first: int, last: int, duration_seconds: float) -> tuple[float, float]:
    """Shorten the run by what its end clips lack, and lengthen it by what the clips beyond them hold."""
    before = values[first - 1] if first > 0 else 0.0
    after = values[last] if last < len(values) else 0.0
    start = max(first + (1 - values[first]) - before, 0.0)
    end = min(last - (1 - values[last - 1]) + after, duration_seconds)
    if end - start < MIN_SECONDS:
        start, end = float(first), min(float(last), duration_seconds)
    return float(start), float(end)


def _agreement(values: Curve, window: Window) -> tuple[float, float]:
    """Return the mean of the curve inside a window, and overlap over union of both, looking as far beyond the window as it is long."""
    start, end = window
    clips = np.arange(len(values))
    covered = np.clip(np.minimum(clips + 1, end) - np.maximum(clips, start), 0, 1)
    first, last = math.floor(start), math.ceil(end)
    reach = max(last - first, 2)
    near = slice(max(first - reach, 0), min(last + reach, len(values)))
    union, length = float(np.maximum(covered, values)[near].sum()), float(covered.sum())
    if union <= 0 or length <= 0:  # the field's rounding can empty a window
        return 0.0, 0.0
    return float((covered * values).sum()) / length, float(np.minimum(covered, values)[near].sum()) / union
