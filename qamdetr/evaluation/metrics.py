"""Recall and average precision of predicted windows, equal to the field's official evaluator to two decimals; also by window length.

`match` is a plain loop that can be held against the official evaluator; everything after it works on its arrays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qamdetr.data.manifest import PredictionEntry, QueryEntry
from qamdetr.errors import DataError

METRICS = ("R1@0.5", "R1@0.7", "mAP", "mAP@0.5", "mAP@0.75")  # in the order of the field's tables; R1@0.7 ranks the challenge
IOU_THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))  # 0.50:0.05:0.95
MAX_PREDICTIONS = 10  # the evaluator reads the first ten windows of each query
LENGTH_EDGES_SECONDS = (2.0, 5.0, 10.0, 30.0)  # upper ends of the buckets of window lengths, included; the last bucket has none

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Matching:
    """What every prediction hits. True windows are numbered through all queries; -1 means none."""

    vids: tuple[str, ...]  # recording of each counted query, as the truth has it
    true_query: IntArray  # (windows,) query of each true window
    true_seconds: FloatArray  # (windows,) its length
    first_iou: FloatArray  # (queries,) IoU of the first-listed window with its best true window
    first_truth: IntArray  # (queries,) that true window
    claimed: IntArray  # (MAX_PREDICTIONS, queries, thresholds) true window that the prediction at each rank (score order) claims
    is_prediction: BoolArray  # (MAX_PREDICTIONS, queries) True where there is a prediction at that rank
    num_without_windows: int  # queries that do not count: their sound is absent, or their windows are not known
    num_other_recordings: int  # predictions whose `vid` is not the one that the truth has for their query


def match(predictions: Sequence[PredictionEntry], truth: Sequence[QueryEntry]) -> Matching:
    """Match predictions, one entry per query, to true windows (read with `clamp=False` for parity) at every threshold.

    The first ten windows of a query are taken in score order (ties keep list order); each claims its best still-free true window at or
    above the threshold (of several with the same IoU the last listed). Entries of other queries are ignored; queries without true windows
    are left out and counted.

    Raises:
        DataError: A query of the truth has no prediction entry, a qid occurs twice, or no query has windows.

    Source: the official evaluator of DCASE 2026 Task 6 (Moment-DETR's, after ActivityNet); windows without length have IoU 0.
    """
    by_qid = {entry.qid: entry for entry in predictions}
    if len(by_qid) < len(predictions):
        raise DataError(f"{len(predictions) - len(by_qid)} qids occur twice in the predictions", "give one entry per query")
    missing = [entry.qid for entry in truth if entry.qid not in by_qid]
    if missing:
        what = f"{len(missing)} of {len(truth)} queries have no prediction, the first is qid {missing[0]!r}"
        raise DataError(what, "give one line for every query of the ground truth")
    counted = [entry for entry in truth if entry.relevant_windows]
    if not counted:
        raise DataError(f"None of the {len(truth)} queries of the ground truth has `relevant_windows`; there is nothing to score.")

    first_iou, first_truth = np.zeros(len(counted)), np.full(len(counted), -1)
    claimed = np.full((MAX_PREDICTIONS, len(counted), len(IOU_THRESHOLDS)), -1)
    is_prediction = np.zeros((MAX_PREDICTIONS, len(counted)), dtype=bool)
    offset = 0
    for query, entry in enumerate(counted):
        listed, windows = by_qid[entry.qid].pred_relevant_windows[:MAX_PREDICTIONS], entry.relevant_windows or ()
        ious = [[_iou(start, end, *window) for window in windows] for start, end, _ in listed]
        is_prediction[: len(listed), query] = True
        if listed:
            first_iou[query], best = max((value, index) for index, value in enumerate(ious[0]))
            first_truth[query] = offset + best
        ranked = sorted(range(len(listed)), key=lambda place: -listed[place][2])
        hopeful = [(rank, ious[place]) for rank, place in enumerate(ranked) if max(ious[place]) >= IOU_THRESHOLDS[0]]
        for column, threshold in enumerate(IOU_THRESHOLDS):
            free = set(range(len(windows)))
            for rank, row in hopeful:
                value, best = max(((row[index], index) for index in free), default=(0.0, -1))
                if value >= threshold:
                    free.remove(best)
                    claimed[rank, query, column] = offset + best
        offset += len(windows)
    return Matching(
        vids=tuple(entry.vid for entry in counted),
        true_query=np.array([query for query, entry in enumerate(counted) for _ in entry.relevant_windows or ()]),
        true_seconds=np.array([end - start for entry in counted for start, end in entry.relevant_windows or ()]),
        first_iou=first_iou,
        first_truth=first_truth,
        claimed=claimed,
        is_prediction=is_prediction,
        num_without_windows=len(truth) - len(counted),
        num_other_recordings=sum(entry.vid != by_qid[entry.qid].vid for entry in truth),
    )


def _iou(start: float, end: float, true_start: float, true_end: float) -> float:
    """In Python's floats and not by `spans.pairwise_iou`, so that IoUs which equal a threshold decide as in the official evaluator."""
    overlap = min(end, true_end) - max(start, true_start)
    return overlap / ((end - start) + (true_end - true_start) - overlap) if overlap > 0 else 0.0


@dataclass(frozen=True)
class QueryScores:
    """What each query adds to the metrics; every metric is the mean of its column over the queries."""

    vids: tuple[str, ...]  # recording of each query; queries of one recording are not independent
    recall_at_1: FloatArray  # (queries, thresholds) 1 where the first window reaches the threshold, else 0
    average_precision: FloatArray  # (queries, thresholds) in [0, 1]

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


def query_scores(matching: Matching) -> QueryScores:
    """Score each query by itself."""
    num_truths = np.bincount(matching.true_query, minlength=len(matching.vids))
    return QueryScores(
        vids=matching.vids,
        recall_at_1=(matching.first_iou[:, None] >= np.array(IOU_THRESHOLDS)).astype(np.float64),
        average_precision=_average_precision(matching.claimed >= 0, matching.is_prediction[:, :, None], num_truths),
    )


def _average_precision(hits: BoolArray, counts: BoolArray, num_truths: IntArray) -> FloatArray:
    """All-point interpolated AP, `(queries, thresholds)`: each hit adds 1 / truths times the best precision at its rank or later.

    `hits`, `(ranks, queries, thresholds)`, says whether the prediction at that rank claims a true window; `counts`, which broadcasts with
    it, is false where there is no prediction, or one that is neither right nor wrong. `num_truths` is `(queries,)`, at least 1.

    Source: the VOC 2011 development kit's definition.
    """
    precision = np.cumsum(hits, axis=0) / np.maximum(np.cumsum(counts, axis=0), 1)
    # A rank that does not count repeats the precision of the rank before, which the maximum does not notice.
    best_from_here_on = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    result: FloatArray = (best_from_here_on * hits).sum(axis=0) / num_truths[:, None]
    return result


@dataclass(frozen=True)
class Scores:
    """Metrics of a set of queries by IoU threshold, in percent and unrounded; NaN where nothing could be right or wrong."""

    recall_at_1: dict[float, float]
    average_precision: dict[float, float]
    num_queries: int
    num_without_windows: int = 0  # queries of the truth that could not count
    name: str = ""  # of a bucket of window lengths, such as `2-5 s`
    num_windows: int = 0  # in the bucket

    @property
    def mean_average_precision(self) -> float:
        """Mean of `average_precision` over the thresholds."""
        return float(np.mean(list(self.average_precision.values())))

    def table(self) -> dict[str, Any]:
        """Return `METRICS` in percent with two decimals (None where there is nothing to score), and the counts."""
        recall, precision = self.recall_at_1, self.average_precision
        values = (recall[0.5], recall[0.7], self.mean_average_precision, precision[0.5], precision[0.75])
        rounded = {name: None if math.isnan(value) else round(value, 2) for name, value in zip(METRICS, values, strict=True)}
        return {**rounded, "num_queries": self.num_queries, **({"num_windows": self.num_windows} if self.name else {})}


def evaluate(predictions: Sequence[PredictionEntry], truth: Sequence[QueryEntry]) -> dict[str, float]:
    """Return the field's five numbers, in percent with two decimals, and `num_queries`; errors as `match`."""
    return score(predictions, truth).table()


def score(predictions: Sequence[PredictionEntry], truth: Sequence[QueryEntry]) -> Scores:
    """Score predictions at every threshold: R1 of the first-listed window, AP of the first ten in score order; errors as `match`."""
    matching = match(predictions, truth)
    return summarise(query_scores(matching), matching.num_without_windows)


def summarise(scores: QueryScores, num_without_windows: int = 0) -> Scores:
    """Take the means over queries."""
    recall, precision = 100 * scores.recall_at_1.mean(axis=0), 100 * scores.average_precision.mean(axis=0)
    return Scores(_by_threshold(recall), _by_threshold(precision), scores.num_queries, num_without_windows)


def _by_threshold(values: FloatArray) -> dict[float, float]:
    return dict(zip(IOU_THRESHOLDS, values.tolist(), strict=True))


def score_by_length(matching: Matching) -> list[Scores]:
    """Score each bucket of window lengths; buckets without windows have NaN scores.

    A query belongs to every bucket that holds one of its true windows, and in a bucket only those windows are asked for. Predictions are
    matched once, against all windows. One that hits a window of another length is neither right nor wrong in the bucket: AP leaves it out
    of the ranking, and R1 leaves the query out at that threshold when it is the first window. One that hits nothing is wrong in every
    bucket of its query. So a perfect answer to at most ten windows scores 100 in every bucket.

    Source: the rule for objects out of range in the COCO evaluator, here with one matching for all buckets.
    """
    lowest, *_, highest = LENGTH_EDGES_SECONDS
    names = [f"<= {lowest:g} s", *(f"{low:g}-{high:g} s" for low, high in pairwise(LENGTH_EDGES_SECONDS)), f"> {highest:g} s"]
    # In whole milliseconds, so that 12.3 - 10.3 is 2 seconds.
    bucket_of_truth = np.searchsorted(LENGTH_EDGES_SECONDS, matching.true_seconds.round(3), side="left")
    buckets = []
    for bucket, name in enumerate(names):
        in_bucket = bucket_of_truth == bucket
        num_truths = np.bincount(matching.true_query[in_bucket], minlength=len(matching.vids))
        queries = np.flatnonzero(num_truths)
        asked = np.append(in_bucket, False)  # index -1 is "no window"
        reached = matching.first_iou[queries, None] >= np.array(IOU_THRESHOLDS)
        right = reached & asked[matching.first_truth[queries], None]
        claimed = matching.claimed[:, queries]
        counts = (asked[claimed] | (claimed < 0)) & matching.is_prediction[:, queries, None]
        precision = _average_precision(asked[claimed], counts, num_truths[queries])
        with np.errstate(invalid="ignore"):  # 0 / 0 where nothing could be right or wrong: NaN is what is meant
            recall = 100.0 * right.sum(axis=0) / (right | ~reached).sum(axis=0)
            mean_precision = 100.0 * precision.sum(axis=0) / len(queries)
        found = _by_threshold(recall), _by_threshold(mean_precision)
        buckets.append(Scores(*found, len(queries), name=name, num_windows=int(in_bucket.sum())))
    return buckets
