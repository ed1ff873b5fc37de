"""Recall and average precision of predicted windows, equal to the field's official evaluator to two decimals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qamdetr.data.manifest import PredictionEntry, QueryEntry
from qamdetr.errors import DataError

IOU_THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
"""0.50:0.05:0.95."""

MAX_PREDICTIONS = 10
"""The evaluator reads the first ten windows of each query."""


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


def evaluate(predictions: Sequence[PredictionEntry], truth: Sequence[QueryEntry]) -> dict[str, float]:
    """Return the field's five numbers, in percent with two decimals, and `num_queries`; see `score`."""
    scores = score(predictions, truth)
    return {
        "R1@0.5": round(scores.recall_at_1[0.5], 2),
        "R1@0.7": round(scores.recall_at_1[0.7], 2),
        "mAP": round(scores.mean_average_precision, 2),
        "mAP@0.5": round(scores.average_precision[0.5], 2),
        "mAP@0.75": round(scores.average_precision[0.75], 2),
        "num_queries": scores.num_queries,
    }


def score(predictions: Sequence[PredictionEntry], truth: Sequence[QueryEntry]) -> Scores:
    """Score predictions at every threshold.

    R1 takes the first-listed window against the true window with the best IoU. AP takes the first ten in score order (ties keep
    list order); each claims its best still-free true window at or above the threshold; precision is interpolated at all points.

    Queries without true windows are left out and counted; predictions for queries that the truth does not hold are ignored.

    Args:
        predictions: One entry per query; more than ten windows are allowed, fewer too.
        truth: The ground truth, read with `clamp=False` for parity with the official evaluator.

    Raises:
        DataError: A query of the truth has no prediction entry, a qid occurs twice, or no query has windows.

    Source: the official evaluator of DCASE 2026 Task 6 (Moment-DETR's, after ActivityNet and VOC 2011), re-implemented for whole
        arrays; windows without length have IoU 0.
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

    listed = [by_qid[entry.qid].pred_relevant_windows[:MAX_PREDICTIONS] for entry in counted]
    true_windows, true_mask = _pad([entry.relevant_windows or () for entry in counted])
    first_windows, first_mask = _pad([windows[:1] for windows in listed])
    best_iou = _padded_iou(first_windows, first_mask, true_windows, true_mask).max(axis=(1, 2))

    ranked = [sorted(windows, key=lambda window: -window[2]) for windows in listed]
    pred_windows, pred_mask = _pad(ranked)
    iou = _padded_iou(pred_windows, pred_mask, true_windows, true_mask)
    precision = _average_precision(_claims(iou), pred_mask, true_mask.sum(axis=1))
    return Scores(
        recall_at_1={t: 100 * float((best_iou >= t).mean()) for t in IOU_THRESHOLDS},
        average_precision={t: 100 * float(value) for t, value in zip(IOU_THRESHOLDS, precision.mean(axis=0), strict=True)},
        num_queries=len(counted),
        num_without_windows=len(truth) - len(counted),
    )


def _pad(windows: Sequence[Sequence[Sequence[float]]]) -> tuple[np.ndarray, np.ndarray]:
    """Stack window lists to `(queries, most windows, 2)` and a mask, True = valid; at least one column."""
    width = max(1, *(len(item) for item in windows)) if windows else 1
    padded = np.zeros((len(windows), width, 2))
    mask = np.zeros((len(windows), width), dtype=bool)
    for row, item in enumerate(windows):
        for column, window in enumerate(item):
            padded[row, column] = window[:2]
            mask[row, column] = True
    return padded, mask


def _padded_iou(pred: np.ndarray, pred_mask: np.ndarray, true: np.ndarray, true_mask: np.ndarray) -> np.ndarray:
    """IoU `(queries, predictions, truths)`; 0 at padding.

    In float64 on padded arrays and not by `spans.pairwise_iou`, so that IoUs which equal a threshold decide as in the official evaluator.
    """
    start = np.maximum(pred[:, :, None, 0], true[:, None, :, 0])
    end = np.minimum(pred[:, :, None, 1], true[:, None, :, 1])
    intersection = (end - start).clip(min=0)
    lengths = (pred[..., 1] - pred[..., 0])[:, :, None] + (true[..., 1] - true[..., 0])[:, None, :]
    union = lengths - intersection
    iou = np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)
    return np.where(pred_mask[:, :, None] & true_mask[:, None, :], iou, 0.0)


def _claims(iou: np.ndarray) -> np.ndarray:
    """Let each prediction in turn claim its best still-free truth; returns `(queries, thresholds, predictions)` bool, True = a hit."""
    num_queries, num_predictions, num_truths = iou.shape
    thresholds = np.asarray(IOU_THRESHOLDS)[None, :, None]
    free = np.ones((num_queries, len(IOU_THRESHOLDS), num_truths), dtype=bool)
    hits = np.zeros((num_queries, len(IOU_THRESHOLDS), num_predictions), dtype=bool)
    for rank in range(num_predictions):
        eligible = np.where(free & (iou[:, None, rank] >= thresholds), iou[:, None, rank], -1.0)
        best = eligible.argmax(axis=2)[..., None]
        hit = np.take_along_axis(eligible, best, axis=2) >= 0
        hits[:, :, rank] = hit[..., 0]
        np.put_along_axis(free, best, np.take_along_axis(free, best, axis=2) & ~hit, axis=2)
    return hits


def _average_precision(hits: np.ndarray, pred_mask: np.ndarray, num_truths: np.ndarray) -> np.ndarray:
    """All-point interpolated AP `(queries, thresholds)`: each hit adds 1 / truths times the best precision at its rank or later."""
    rank = np.arange(1, hits.shape[2] + 1)
    precision = np.where(pred_mask[:, None, :], hits.cumsum(axis=2) / rank, 0.0)
    interpolated = np.maximum.accumulate(precision[:, :, ::-1], axis=2)[:, :, ::-1]
    result: np.ndarray = (interpolated * hits).sum(axis=2) / num_truths[:, None]
    return result
