"""Recall and average precision of predicted windows, equal to the field's official evaluator to two decimals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qamdetr.data.manifest import PredictionEntry, QueryEntry
from qamdetr.evaluation.matching import IOU_THRESHOLDS, BoolArray, FloatArray, IntArray, Matching, match

METRICS = ("R1@0.5", "R1@0.7", "mAP", "mAP@0.5", "mAP@0.75")
"""The field's five numbers, in the order of its tables; R1@0.7 ranks the challenge."""


@dataclass(frozen=True)
class QueryScores:
    """What each query adds to the metrics; every metric is the mean of its column over the queries.

    Attributes:
        vids: Recording of each query; queries of one recording are not independent.
        recall_at_1: `(queries, thresholds)` 1 where the first window reaches the threshold, else 0.
        average_precision: `(queries, thresholds)` in [0, 1].
    """

    vids: tuple[str, ...]
    recall_at_1: FloatArray
    average_precision: FloatArray

    @property
    def num_queries(self) -> int:
        """Queries that count."""
        return len(self.vids)

    def columns(self, names: Sequence[str] = METRICS) -> FloatArray:
        """Percentages `(queries, names)` whose means are the metrics; also `R1@t` and `mAP@t` of any of `IOU_THRESHOLDS`."""
        values = {"mAP": self.average_precision.mean(axis=1)}
        for column, threshold in enumerate(IOU_THRESHOLDS):
            values[f"R1@{threshold:g}"] = self.recall_at_1[:, column]
            values[f"mAP@{threshold:g}"] = self.average_precision[:, column]
        return 100 * np.stack([values[name] for name in names], axis=1)


@dataclass(frozen=True)
class Scores:
    """Every number of one evaluation, in percent and unrounded.

    Attributes:
        recall_at_1: IoU threshold -> share of queries whose first window reaches it.
        average_precision: IoU threshold -> mean over queries.
        num_queries: Queries that counted.
        num_without_windows: Queries of the ground truth that could not count: their sound is absent, or their windows are not known.
    """

    recall_at_1: dict[float, float]
    average_precision: dict[float, float]
    num_queries: int
    num_without_windows: int

    @property
    def mean_average_precision(self) -> float:
        """Mean of `average_precision` over the thresholds."""
        return float(np.mean(list(self.average_precision.values())))

    def table(self) -> dict[str, float]:
        """Return `METRICS` in percent with two decimals, and `num_queries`."""
        return {
            "R1@0.5": round(self.recall_at_1[0.5], 2),
            "R1@0.7": round(self.recall_at_1[0.7], 2),
            "mAP": round(self.mean_average_precision, 2),
            "mAP@0.5": round(self.average_precision[0.5], 2),
            "mAP@0.75": round(self.average_precision[0.75], 2),
            "num_queries": self.num_queries,
        }


def evaluate(predictions: Sequence[PredictionEntry], truth: Sequence[QueryEntry]) -> dict[str, float]:
    """Return the field's five numbers, in percent with two decimals, and `num_queries`; see `score`."""
    return score(predictions, truth).table()


def score(predictions: Sequence[PredictionEntry], truth: Sequence[QueryEntry]) -> Scores:
    """Score predictions at every threshold.

    R1 takes the first-listed window against the true window with the best IoU. AP takes the first ten in score order, matched as in
    `matching.match`; precision is interpolated at all points.

    Queries without true windows are left out and counted; predictions for queries that the truth does not hold are ignored.

    Args:
        predictions: One entry per query; more than ten windows are allowed, fewer too.
        truth: The ground truth, read with `clamp=False` for parity with the official evaluator.

    Raises:
        DataError: A query of the truth has no prediction entry, a qid occurs twice, or no query has windows.

    Source: the official evaluator of DCASE 2026 Task 6 (Moment-DETR's, after ActivityNet and VOC 2011).
    """
    matching = match(predictions, truth)
    return summarise(query_scores(matching), matching.num_without_windows)


def summarise(scores: QueryScores, num_without_windows: int = 0) -> Scores:
    """Take the means over queries."""
    recall, precision = 100 * scores.recall_at_1.mean(axis=0), 100 * scores.average_precision.mean(axis=0)
    return Scores(
        recall_at_1=dict(zip(IOU_THRESHOLDS, recall.tolist(), strict=True)),
        average_precision=dict(zip(IOU_THRESHOLDS, precision.tolist(), strict=True)),
        num_queries=scores.num_queries,
        num_without_windows=num_without_windows,
    )


def query_scores(matching: Matching) -> QueryScores:
    """Score each query by itself."""
    return QueryScores(
        vids=matching.vids,
        recall_at_1=(matching.first_iou[:, None] >= np.array(IOU_THRESHOLDS)).astype(np.float64),
        average_precision=average_precision(
            matching.claimed >= 0, matching.is_prediction[:, :, None], np.bincount(matching.true_query, minlength=matching.num_queries)
        ),
    )


def average_precision(hits: BoolArray, counts: BoolArray, num_truths: IntArray) -> FloatArray:
    """All-point interpolated AP: each hit adds 1 / truths times the best precision at its rank or later.

    Args:
        hits: `(ranks, queries, thresholds)` True where the prediction at that rank claims a true window.
        counts: Broadcasts with `hits`; False where there is no prediction, or one that is neither right nor wrong.
        num_truths: `(queries,)` at least 1.

    Returns:
        `(queries, thresholds)` in [0, 1].

    Source: the VOC 2011 development kit's definition.
    """
    places = np.maximum(np.cumsum(counts, axis=0), 1)
    hits_so_far = hits.sum(axis=0)
    best_precision, total = np.zeros(hits_so_far.shape), np.zeros(hits_so_far.shape)
    for rank in reversed(range(len(hits))):
        # A rank that does not count repeats the precision of the rank before, which the maximum does not notice.
        np.maximum(best_precision, hits_so_far / places[rank], out=best_precision)
        total += best_precision * hits[rank]
        hits_so_far -= hits[rank]
    result: FloatArray = total / num_truths[:, None]
    return result
