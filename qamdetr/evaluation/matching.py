"""Which predictions hit which true windows: greedy matching of all queries at all IoU thresholds at once.

Windows of all queries lie one after the other in flat arrays, and only pairs of a prediction and a true window that reach the lowest
threshold are followed, so that the work grows with the number of plausible pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from qamdetr.data.manifest import PredictionEntry, QueryEntry
from qamdetr.errors import DataError

IOU_THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
"""0.50:0.05:0.95."""

MAX_PREDICTIONS = 10
"""The evaluator reads the first ten windows of each query."""

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Matching:
    """What every prediction hits. True windows are numbered through all queries; -1 means none.

    Attributes:
        vids: Recording of each counted query, as the truth has it.
        true_query: `(windows,)` query of each true window.
        true_seconds: `(windows,)` length of each true window.
        first_iou: `(queries,)` IoU of the first-listed window with its best true window; 0 where it is below the lowest threshold.
        first_truth: `(queries,)` that true window.
        claimed: `(MAX_PREDICTIONS, queries, thresholds)` true window that the prediction at each rank (score order) claims.
        is_prediction: `(MAX_PREDICTIONS, queries)` True where there is a prediction at that rank.
        num_without_windows: Queries of the truth that do not count: their sound is absent, or their windows are not known.
        num_other_recordings: Predictions whose `vid` is not the one that the truth has for their query.
    """

    vids: tuple[str, ...]
    true_query: IntArray
    true_seconds: FloatArray
    first_iou: FloatArray
    first_truth: IntArray
    claimed: IntArray
    is_prediction: BoolArray
    num_without_windows: int
    num_other_recordings: int

    @property
    def num_queries(self) -> int:
        """Queries that count."""
        return len(self.vids)


def match(predictions: Sequence[PredictionEntry], truth: Sequence[QueryEntry]) -> Matching:
    """Match predictions to true windows at every threshold.

    The first ten windows of a query are taken in score order (ties keep list order); each claims its best still-free true window at or
    above the threshold (of several with the same IoU the last listed, as the official evaluator does).

    Args:
        predictions: One entry per query; more than ten windows are allowed, fewer too. Entries of other queries are ignored.
        truth: The ground truth; queries without windows are left out and counted.

    Raises:
        DataError: A query of the truth has no prediction entry, a qid occurs twice, or no query has windows.

    Source: the official evaluator of DCASE 2026 Task 6 (Moment-DETR's, after ActivityNet), re-implemented for whole arrays; windows
        without length have IoU 0.
    """
    by_qid = {entry.qid: entry for entry in predictions}
    if len(by_qid) < len(predictions):
        raise DataError(f"{len(predictions) - len(by_qid)} qids occur twice in the predictions; give one entry per query.")
    missing = [entry.qid for entry in truth if entry.qid not in by_qid]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(truth)} queries have no prediction, the first is qid {missing[0]!r}; "
            "give one line for every query of the ground truth."
        )
    counted = [entry for entry in truth if entry.relevant_windows]
    if not counted:
        raise DataError(f"None of the {len(truth)} queries of the ground truth has `relevant_windows`; there is nothing to score.")

    pred, pred_query, pred_rank = _flatten([by_qid[entry.qid].pred_relevant_windows[:MAX_PREDICTIONS] for entry in counted], columns=3)
    true, true_query, _ = _flatten([entry.relevant_windows or () for entry in counted], columns=2)
    pair_pred, pair_truth, pair_iou = _plausible_pairs(pred, pred_query, true, num_truths=np.bincount(true_query))

    first_iou, first_truth = np.zeros(len(counted)), np.full(len(counted), -1)
    best = np.flatnonzero(np.diff(pair_pred, prepend=-1) != 0)
    best = best[pred_rank[pair_pred[best]] == 0]
    first_iou[pred_query[pair_pred[best]]] = pair_iou[best]
    first_truth[pred_query[pair_pred[best]]] = pair_truth[best]

    is_prediction = np.zeros((len(counted), MAX_PREDICTIONS), dtype=bool)
    is_prediction[pred_query, pred_rank] = True
    score_rank = _score_ranks(pred[:, 2], is_prediction)
    claimed = np.full((MAX_PREDICTIONS, len(counted), len(IOU_THRESHOLDS)), -1)
    claimed[score_rank, pred_query] = _claim(score_rank, pair_pred, pair_truth, pair_iou, num_truths=len(true))
    return Matching(
        vids=tuple(entry.vid for entry in counted),
        true_query=true_query,
        true_seconds=true[:, 1] - true[:, 0],
        first_iou=first_iou,
        first_truth=first_truth,
        claimed=claimed,
        is_prediction=is_prediction.T,
        num_without_windows=len(truth) - len(counted),
        num_other_recordings=sum(entry.vid != by_qid[entry.qid].vid for entry in truth),
    )


def _flatten(lists: Sequence[Sequence[Sequence[float]]], columns: int) -> tuple[FloatArray, IntArray, IntArray]:
    """Join the windows of all queries: `(total, columns)`, and the query and the place in its list of each."""
    counts = np.fromiter(map(len, lists), dtype=np.int64, count=len(lists))
    total = int(counts.sum())
    numbers = chain.from_iterable(chain.from_iterable(lists))
    values = np.fromiter(numbers, dtype=np.float64, count=total * columns).reshape(total, columns)
    return values, np.repeat(np.arange(len(lists)), counts), _count_up(counts)


def _count_up(counts: IntArray) -> IntArray:
    """`0, 1, … count - 1` for each count, one after the other."""
    starts = np.cumsum(counts) - counts
    result: IntArray = np.arange(int(counts.sum())) - np.repeat(starts, counts)
    return result


def _plausible_pairs(
    pred: FloatArray, pred_query: IntArray, true: FloatArray, num_truths: IntArray
) -> tuple[IntArray, IntArray, FloatArray]:
    """Pairs of one query at or above the lowest threshold: prediction, true window, IoU; by prediction, best true window first.

    In float64 and not by `spans.pairwise_iou`, so that IoUs which equal a threshold decide as in the official evaluator.
    """
    partners = num_truths[pred_query]
    pair_pred = np.repeat(np.arange(len(pred)), partners)
    pair_truth = np.repeat((np.cumsum(num_truths) - num_truths)[pred_query], partners) + _count_up(partners)
    pred_start, pred_end = np.repeat(pred[:, 0], partners), np.repeat(pred[:, 1], partners)
    true_start, true_end = true[:, 0][pair_truth], true[:, 1][pair_truth]
    overlap = np.minimum(pred_end, true_end) - np.maximum(pred_start, true_start)
    union = (pred_end - pred_start) + (true_end - true_start) - overlap
    # By product, so that nothing is divided by zero; a hair's breadth is given away, the division below decides.
    near = np.flatnonzero((overlap > 0) & (overlap >= (IOU_THRESHOLDS[0] - 1e-9) * union))
    iou = overlap[near] / union[near]
    near, iou = near[iou >= IOU_THRESHOLDS[0]], iou[iou >= IOU_THRESHOLDS[0]]
    order = np.lexsort((-pair_truth[near], -iou, pair_pred[near]))
    return pair_pred[near][order], pair_truth[near][order], iou[order]


def _score_ranks(scores: FloatArray, is_prediction: BoolArray) -> IntArray:
    """Rank of each prediction among those of its query by score, best first; equal scores keep list order."""
    padded = np.full(is_prediction.shape, np.inf)
    padded[is_prediction] = -scores
    ranks = np.argsort(np.argsort(padded, axis=1, kind="stable"), axis=1)
    return ranks[is_prediction]


def _claim(pred_rank: IntArray, pair_pred: IntArray, pair_truth: IntArray, pair_iou: FloatArray, num_truths: int) -> IntArray:
    """Let predictions claim true windows in the order of `pred_rank`: `(predictions, thresholds)`, -1 = claims none.

    One round serves the n-th choice of the predictions of one rank in all queries: no two of its pairs share a query.
    """
    claimed = np.full((len(pred_rank), len(IOU_THRESHOLDS)), -1)
    if not len(pair_pred):
        return claimed
    free = np.ones((num_truths, len(IOU_THRESHOLDS)), dtype=bool)
    reaches = pair_iou[:, None] >= np.array(IOU_THRESHOLDS)
    choice = _count_up(np.unique(pair_pred, return_counts=True)[1])
    rounds = pred_rank[pair_pred] * (int(choice.max()) + 1) + choice
    order = np.argsort(rounds, kind="stable")
    for pairs in np.split(order, np.flatnonzero(np.diff(rounds[order])) + 1):
        prediction, window = pair_pred[pairs], pair_truth[pairs]
        takes = reaches[pairs] & free[window] & (claimed[prediction] < 0)
        free[window] &= ~takes
        claimed[prediction] = np.where(takes, window[:, None], claimed[prediction])
    return claimed
