"""From model output to candidates: decoder scores (report, Eq. 2), windows in seconds, segments of the saliency, overlap suppression.

A saliency trained as a posterior (`loss.saliency_clip`) says of each clip which share of it the query covers. So the clips at a segment's
ends tell where inside of them it begins and ends, finer than the one-second grid, and the curve as a whole says how much of it is likely
to be right, which is its quality.

Source: report section 2.3; segments are ours, the idea of pooling them is the field's (see docs/decisions/0005-segments.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from qamdetr import spans
from qamdetr.config import InferenceConfig
from qamdetr.types import Candidate, ModelOutput, Window

Curve = NDArray[np.float64]

DecodeProtocol = Literal["exact", "official"]

MOST_SLOTS = 200
"""Of an item, the best that become candidates. A dense decoder has thousands, nearly all of them on silence or on the same moments."""

DENSE_NMS_IOU = 0.6
"""Cells beside each other find the same moment: of a dense decoder's candidates none that overlap by more are ever kept."""

MIN_SECONDS = 0.3
"""Soft ends of a segment that leave less than this are not believed; the whole clips are taken."""

MIN_REACH_SECONDS = 2.0
"""How far beyond a window the curve is looked at, where the window is shorter."""


class Decoded(NamedTuple):
    """What the network, or several, say to one query on one recording, before a verifier looks."""

    candidates: list[Candidate]
    """Best decoder score first."""
    saliency: Tensor
    """`(clips,)` in [0, 1], on the CPU."""

    @property
    def best_score(self) -> float:
        """0 without candidates."""
        return max((candidate.decoder_score for candidate in self.candidates), default=0.0)


def answers(
    output: ModelOutput,
    durations_seconds: Sequence[float],
    num_clips: Sequence[int],
    settings: InferenceConfig,
    *,
    protocol: DecodeProtocol = "exact",
    clip_seconds: float = 1.0,
) -> list[Decoded]:
    """Read the answer to each item of a batch off the last decoder layer; serving and validation both do it here.

    `durations_seconds` are the true length of each item, to which windows are clamped; `num_clips` its valid clips of `clip_seconds`, to
    which spans are relative. Equal scores keep the order of the slots. The protocol `official` keeps doubles, as the field does; nothing
    is rounded yet.
    """
    max_iou = overlap_limit(settings, protocol, dense=output.decoder.cells is not None)
    foreground = output.decoder.logits.detach().float().softmax(dim=-1)[..., 0]
    logits = output.decoder.quality_logits
    quality = torch.ones_like(foreground) if logits is None else logits.detach().float().sigmoid()
    # In float64, so that clamping to the duration is exact.
    spans_of = output.decoder.spans_cxw.detach().double().cpu()
    curves = output.saliency.detach().float().sigmoid().cpu()
    valid = output.decoder.valid(torch.as_tensor(num_clips, device=foreground.device)).cpu()
    items = zip(spans_of, foreground.cpu(), quality.cpu(), valid, curves, durations_seconds, num_clips, strict=True)
    decoded = []
    for spans_cxw, p, q, usable, row, duration_seconds, clips in items:
        order = (p * q).where(usable, -1.0).argsort(descending=True, stable=True)
        best = order[: min(int(usable.sum()), MOST_SLOTS)]
        windows = spans.spans_cxw_to_windows(spans_cxw[best], clips * clip_seconds, duration_seconds).tolist()
        rows = zip(windows, p[best].tolist(), q[best].tolist(), strict=True)
        found = suppress([Candidate(start, end, p, q, decoder_score=p * q) for (start, end), p, q in rows], max_iou)
        curve = row[:clips]
        how: dict[str, Any] = {"nms_iou": max_iou, "by_quality": logits is not None, "clip_seconds": clip_seconds}
        pooled = pool_segments(found, curve.numpy(), duration_seconds, settings, **how)
        decoded.append(Decoded(pooled, curve))
    return decoded


def overlap_limit(settings: InferenceConfig, protocol: DecodeProtocol, *, dense: bool) -> float:
    """Return the IoU above which the worse of two candidates is dropped.

    The field keeps doubles; but segments of the saliency repeat what the decoder found, and so do the cells of a `dense` decoder among
    themselves: with either, doubles are always dropped.
    """
    if dense:
        return min(settings.nms_iou, DENSE_NMS_IOU)
    return 1.0 if protocol == "official" and settings.segment_threshold <= 0 else settings.nms_iou


def suppress(candidates: Sequence[Candidate], nms_iou: float) -> list[Candidate]:
    """Drop candidates that overlap a better one by more than `nms_iou`; returns best decoder score first."""
    if nms_iou >= 1.0 or len(candidates) < 2:
        return sorted(candidates, key=lambda candidate: -candidate.decoder_score)
    kept = spans.nms([candidate.window for candidate in candidates], [candidate.decoder_score for candidate in candidates], nms_iou)
    return [candidates[index] for index in kept]


def pool_segments(
    candidates: Sequence[Candidate],
    saliency: ArrayLike,
    duration_seconds: float,
    settings: InferenceConfig,
    *,
    nms_iou: float,
    by_quality: bool = True,
    clip_seconds: float = 1.0,
) -> list[Candidate]:
    """Pool the decoder's candidates with the saliency's segments, where `settings.segment_threshold` asks for it; doubles are dropped.

    The two kinds are made comparable: a decoder candidate's foreground is multiplied by the mean saliency inside it, its quality by the
    overlap that the curve expects, so that it ranks high when both heads agree on it. Without a quality head, or with it bypassed
    (`by_quality` false), there is no quality of either kind: it is 1 for all, and the score is the foreground.
    """
    if settings.segment_threshold <= 0:
        return list(candidates)
    values: Curve = np.asarray(saliency, dtype=np.float64)
    weighed = []
    for candidate in candidates:
        mean, overlap = _agreement(values, candidate.window, clip_seconds)
        foreground, quality = candidate.foreground * mean, candidate.quality * overlap if by_quality else 1.0
        weighed.append(replace(candidate, foreground=foreground, quality=quality, decoder_score=foreground * quality))
    threshold = min(settings.segment_threshold, settings.segment_peak_share * float(values.max()))
    segments = segment_candidates(values, duration_seconds, threshold, by_quality=by_quality, clip_seconds=clip_seconds)
    return suppress([*segments, *weighed], nms_iou)


def segment_candidates(
    saliency: ArrayLike, duration_seconds: float, threshold: float, *, by_quality: bool = True, clip_seconds: float = 1.0
) -> list[Candidate]:
    """Return the runs of clips whose saliency, `(clips,)` in [0, 1], reaches `threshold` as candidates, best decoder score first.

    Where no clip does, the best one is the only run. `foreground` is the mean saliency inside, `quality` the overlap of the segment with
    what the curve says; 1 where quality does not rank.
    """
    values: Curve = np.asarray(saliency, dtype=np.float64)
    found = []
    for first, last in runs_above(values, threshold):
        start, end = _soft_ends(values, first, last, duration_seconds, clip_seconds)
        foreground = float(values[first:last].mean())
        quality = _agreement(values, (start, end), clip_seconds)[1] if by_quality else 1.0
        found.append(Candidate(start, end, foreground=foreground, quality=quality, decoder_score=foreground * quality))
    return sorted(found, key=lambda candidate: -candidate.decoder_score)


def runs_above(values: Curve, threshold: float) -> list[tuple[int, int]]:
    """Return the runs `[first, last)` of clips whose value reaches `threshold`; when none does, the one best clip."""
    above = values >= threshold
    if not above.any():
        above[int(values.argmax())] = True
    edges = np.flatnonzero(np.diff(np.concatenate([[False], above, [False]]).astype(np.int8)))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def _soft_ends(values: Curve, first: int, last: int, duration_seconds: float, clip_seconds: float) -> Window:
    """Shorten the run by what its end clips lack, and lengthen it by what the clips beyond them hold."""
    before = values[first - 1] if first > 0 else 0.0
    after = values[last] if last < len(values) else 0.0
    start = max(first + (1 - values[first]) - before, 0.0) * clip_seconds
    end = min((last - (1 - values[last - 1]) + after) * clip_seconds, duration_seconds)
    if end - start < MIN_SECONDS:
        start, end = first * clip_seconds, min(last * clip_seconds, duration_seconds)
    return float(start), float(end)


def _agreement(values: Curve, window: Window, clip_seconds: float) -> tuple[float, float]:
    """Return the mean of the curve inside a window, and overlap over union of both, looking as far beyond the window as it is long."""
    start, end = (seconds / clip_seconds for seconds in window)
    clips = np.arange(len(values))
    covered = np.clip(np.minimum(clips + 1, end) - np.maximum(clips, start), 0, 1)
    first, last = math.floor(start), math.ceil(end)
    reach = max(last - first, round(MIN_REACH_SECONDS / clip_seconds))
    near = slice(max(first - reach, 0), min(last + reach, len(values)))
    union, length = float(np.maximum(covered, values)[near].sum()), float(covered.sum())
    if union <= 0 or length <= 0:  # the field's rounding can empty a window
        return 0.0, 0.0
    return float((covered * values).sum()) / length, float(np.minimum(covered, values)[near].sum()) / union
