"""Scores by the length of the true windows: which moments, short or long, a system finds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from qamdetr.evaluation.matching import IOU_THRESHOLDS, BoolArray, FloatArray, Matching
from qamdetr.evaluation.metrics import METRICS, average_precision

LENGTH_EDGES_SECONDS = (2.0, 5.0, 10.0, 30.0)
"""Upper ends of the buckets, included; the last bucket has none."""


@dataclass(frozen=True)
class LengthScores:
    """Scores of one bucket of lengths.

    Attributes:
        above_seconds, up_to_seconds: Lengths `above < length <= up_to`.
        num_queries: Queries with a true window of such a length.
        num_windows: Those windows.
        recall_at_1, average_precision: IoU threshold -> percent; NaN where nothing could be right or wrong.
    """

    above_seconds: float
    up_to_seconds: float
    num_queries: int
    num_windows: int
    recall_at_1: dict[float, float]
    average_precision: dict[float, float]

    @property
    def name(self) -> str:
        """Such as `2-5 s`."""
        if self.above_seconds == 0:
            return f"<= {self.up_to_seconds:g} s"
        return f"> {self.above_seconds:g} s" if math.isinf(self.up_to_seconds) else f"{self.above_seconds:g}-{self.up_to_seconds:g} s"

    def table(self) -> dict[str, Any]:
        """Return `METRICS` in percent with two decimals (None where there is nothing to score), and the counts."""
        values = {
            "R1@0.5": self.recall_at_1[0.5],
            "R1@0.7": self.recall_at_1[0.7],
            "mAP": float(np.mean(list(self.average_precision.values()))),
            "mAP@0.5": self.average_precision[0.5],
            "mAP@0.75": self.average_precision[0.75],
        }
        rounded = {name: None if math.isnan(values[name]) else round(values[name], 2) for name in METRICS}
        return {**rounded, "num_queries": self.num_queries, "num_windows": self.num_windows}


def score_by_length(matching: Matching) -> list[LengthScores]:
    """Score each bucket of window lengths; buckets without windows have NaN scores.

    A query belongs to every bucket that holds one of its true windows, and in a bucket only those windows are asked for. Predictions are
    matched once, against all windows. One that hits a window of another length is neither right nor wrong in the bucket: AP leaves it out
    of the ranking, and R1 leaves the query out at that threshold when it is the first window. One that hits nothing is wrong in every
    bucket of its query. So a perfect answer to at most ten windows scores 100 in every bucket, and R1
    has as many queries as hit the bucket or miss everything.

    Source: the rule for objects out of range in the COCO evaluator, here with one matching for all buckets.
    """
    edges = (0.0, *LENGTH_EDGES_SECONDS, math.inf)
    bucket_of_truth = np.searchsorted(LENGTH_EDGES_SECONDS, _whole_milliseconds(matching.true_seconds), side="left")
    return [_score_bucket(matching, bucket_of_truth == bucket, (edges[bucket], edges[bucket + 1])) for bucket in range(len(edges) - 1)]


def _whole_milliseconds(seconds: FloatArray) -> FloatArray:
    """So that 12.3 - 10.3 is 2 seconds."""
    rounded: FloatArray = seconds.round(3)
    return rounded


def _score_bucket(matching: Matching, in_bucket: BoolArray, edges: tuple[float, float]) -> LengthScores:
    """`in_bucket` is `(windows,)` over the true windows."""
    num_truths = np.bincount(matching.true_query[in_bucket], minlength=matching.num_queries)
    queries = np.flatnonzero(num_truths)
    asked = np.append(in_bucket, False)  # index -1 is "no window"

    reached = matching.first_iou[queries, None] >= np.array(IOU_THRESHOLDS)
    right = reached & asked[matching.first_truth[queries], None]
    considered = right | ~reached

    claimed = matching.claimed[:, queries]
    hits = asked[claimed]
    counts = (hits | (claimed < 0)) & matching.is_prediction[:, queries, None]
    precision = average_precision(hits, counts, num_truths[queries])
    return LengthScores(
        above_seconds=edges[0],
        up_to_seconds=edges[1],
        num_queries=len(queries),
        num_windows=int(in_bucket.sum()),
        recall_at_1=_percent(right.sum(axis=0), considered.sum(axis=0)),
        average_precision=_percent(precision.sum(axis=0), np.full(len(IOU_THRESHOLDS), len(queries))),
    )


def _percent(part: FloatArray, whole: FloatArray) -> dict[float, float]:
    values = np.divide(100.0 * part, whole, out=np.full(len(IOU_THRESHOLDS), np.nan), where=whole > 0)
    return dict(zip(IOU_THRESHOLDS, values.tolist(), strict=True))
