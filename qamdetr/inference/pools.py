"""Merges the candidates that several models give for the same recording and query: pooled, suppressed, or fused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch

from qamdetr import spans
from qamdetr.inference.candidates import suppress
from qamdetr.types import Candidate, Window

MergeMethod = Literal["pool", "nms", "fusion"]


def merge_pools(
    pools: Sequence[Sequence[Candidate]], how: MergeMethod, *, iou: float = 0.7, weights: Sequence[float] | None = None
) -> list[Candidate]:
    """Merge the candidates of several members on the same recording and query; best decoder score first, equal ones as they come.

    - `pool` keeps all.
    - `nms` drops a candidate that overlaps a better one by more than `iou`.
    - `fusion` averages what overlaps: weighted window fusion. Candidates come best first (score times weight of the member); each joins
      the window that it overlaps most, if by `iou` at least and if its member has no candidate there yet, else it opens a new one. The
      window is the mean of its candidates' starts and of their ends, weighed by score times weight.

    `pool` and `nms` leave windows and qualities as they are, and scale `foreground` and `decoder_score` by the member's weight over the
    largest weight. After `fusion`, `decoder_score` is the sum of weight times score over the window's members, divided by the weights of
    all members: the mean score of those that found it, times the share of the weights that did. `foreground` is the same sum of the
    members' foregrounds, and `quality` the mean of their qualities, weighed by weight times foreground, so that
    `decoder_score = foreground * quality` (report, Eq. 2) still holds. `weights` are above 0, None = equal.

    Source: R. Solovyev, W. Wang, T. Gabruseva, "Weighted boxes fusion: Ensembling boxes from different object detection models", Image
    and Vision Computing 107, 2021, in one dimension. Differences: a member counts once per window; the best overlap wins, not the first;
    the share of the members is by weight; there are no classes.
    """
    weights = weights or [1.0] * len(pools)
    if how == "fusion":
        return _fuse(pools, iou, weights)
    shares = [weight / max(weights) for weight in weights]
    scaled = [
        replace(each, foreground=each.foreground * share, decoder_score=each.decoder_score * share)
        for pool, share in zip(pools, shares, strict=True)
        for each in pool
    ]
    return suppress(scaled, iou if how == "nms" else 1.0)


def _fuse(pools: Sequence[Sequence[Candidate]], iou: float, weights: Sequence[float]) -> list[Candidate]:
    ranked = [(member, candidate) for member, pool in enumerate(pools) for candidate in pool]
    ranked.sort(key=lambda item: -item[1].decoder_score * weights[item[0]])
    clusters: list[dict[int, Candidate]] = []  # of each fused window: member -> its candidate
    windows: list[Window] = []
    for member, candidate in ranked:
        free = [place for place, cluster in enumerate(clusters) if member not in cluster]
        best = _best_overlap(candidate.window, [windows[place] for place in free], iou)
        if best is None:
            clusters.append({member: candidate})
            windows.append(candidate.window)
        else:
            place = free[best]
            clusters[place][member] = candidate
            trust = _trust(clusters[place], weights, "decoder_score")
            start, end = (_mean([part.window[side] for part in clusters[place].values()], trust) for side in (0, 1))
            if start < end:  # members that differ by a rounding error must not make an empty window of it
                windows[place] = (start, end)
    fused = []
    for window, cluster in zip(windows, clusters, strict=True):
        foreground, score = (
            min(sum(weights[member] * getattr(part, name) for member, part in cluster.items()) / sum(weights), 1.0)
            for name in ("foreground", "decoder_score")
        )
        quality = _mean([part.quality for part in cluster.values()], _trust(cluster, weights, "foreground"))
        fused.append(Candidate(*window, foreground, quality, score))
    return sorted(fused, key=lambda candidate: -candidate.decoder_score)


def _trust(cluster: Mapping[int, Candidate], weights: Sequence[float], by: str) -> list[float]:
    """Weight times score of each member; where all scores are zero and say nothing, the weights alone."""
    scored = [weights[member] * float(getattr(part, by)) for member, part in cluster.items()]
    return scored if sum(scored) > 0 else [weights[member] for member in cluster]


def _best_overlap(window: Window, others: Sequence[Window], least_iou: float) -> int | None:
    """Index of the window with the largest IoU, the first among equals; None when it is 0 or under `least_iou`."""
    if not others:
        return None
    overlaps = spans.iou(torch.tensor([window], dtype=torch.float64), torch.tensor(others, dtype=torch.float64)).tolist()
    best = max(range(len(others)), key=overlaps.__getitem__)
    return best if overlaps[best] > 0 and overlaps[best] >= least_iou else None


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    """Weighted mean that never leaves the values' range, whatever the rounding."""
    return float(np.clip(np.average(values, weights=weights), min(values), max(values)))
