"""Parity with the official evaluator, hand-made cases, and agreement with a plain loop on random data."""

from __future__ import annotations

import json

import numpy as np
import pytest

from qamdetr.data.manifest import PredictionEntry, QueryEntry, read_manifest, read_predictions
from qamdetr.errors import DataError
from qamdetr.evaluation.metrics import IOU_THRESHOLDS, evaluate, score


def truth(qid, *windows):
    return QueryEntry(qid, "q", "v", 60.0, tuple(windows))


def predicted(qid, *windows):
    return PredictionEntry(qid, "q", "v", tuple(windows))


def test_parity_with_the_official_evaluator(shared_dir):
    folder = shared_dir / "data" / "official_baseline"
    official = json.loads((folder / "castella_val_metrics.json").read_text())
    predictions = read_predictions(folder / "castella_val_predictions.jsonl")
    entries = read_manifest(shared_dir / "data" / "castella" / "val.jsonl", clamp=False)
    brief = {key.removeprefix("MR-full-"): value for key, value in official["brief"].items()}
    assert evaluate(predictions, entries) == {**brief, "num_queries": 352}
    scores = score(predictions, entries)
    assert {f"{t:g}": round(value, 2) for t, value in scores.recall_at_1.items()} == official["full"]["MR-R1"]
    average = {"average": round(scores.mean_average_precision, 2)}
    assert {f"{t:g}": round(value, 2) for t, value in scores.average_precision.items()} | average == official["full"]["MR-mAP"]


def test_a_perfect_answer_scores_100():
    entries = [truth("a", (0, 5), (10, 12)), truth("b", (3, 4))]
    predictions = [predicted("b", (3, 4, 0.1)), predicted("a", (10, 12, 0.9), (0, 5, 0.8))]
    assert evaluate(predictions, entries) == {
        "R1@0.5": 100.0,
        "R1@0.7": 100.0,
        "mAP": 100.0,
        "mAP@0.5": 100.0,
        "mAP@0.75": 100.0,
        "num_queries": 2,
    }


def test_recall_takes_the_first_listed_window_but_precision_the_score_order():
    entries = [truth("a", (0, 10))]
    listed_first_is_wrong = score([predicted("a", (20, 30, 0.1), (0, 10, 0.9))], entries)
    assert listed_first_is_wrong.recall_at_1[0.5] == 0
    assert listed_first_is_wrong.average_precision[0.5] == 100
    tied = score([predicted("a", (20, 30, 0.5), (0, 10, 0.5))], entries)
    assert tied.average_precision[0.5] == 50, "ties keep list order"


def test_each_truth_is_claimed_once_and_the_best_free_one_is_taken():
    twice = score([predicted("a", (0, 10, 0.9), (0, 10, 0.8), (20, 30, 0.7))], [truth("a", (0, 10), (20, 30))])
    assert twice.average_precision[0.5] == pytest.approx(100 * (1 / 2 + 1 / 2 * 2 / 3))
    # Both overlap (0, 10) best; the second may still claim (0, 8), which it reaches at 0.5.
    second_best = score([predicted("a", (0, 10, 0.9), (0, 10, 0.8))], [truth("a", (0, 10), (0, 8))])
    assert second_best.average_precision[0.5] == 100
    assert second_best.average_precision[0.9] == 50


def test_an_iou_equal_to_the_threshold_counts():
    assert score([predicted("a", (0, 7, 1.0))], [truth("a", (0, 10))]).recall_at_1[0.7] == 100
    assert score([predicted("a", (0, 6.99, 1.0))], [truth("a", (0, 10))]).recall_at_1[0.7] == 0


def test_only_the_first_ten_windows_count_and_empty_ones_score_nothing():
    wrong = [(30.0 + i, 30.5 + i, 0.9) for i in range(10)]
    entries = [truth("a", (0, 10))]
    assert score([predicted("a", *wrong[:9], (0, 10, 1.0))], entries).average_precision[0.5] == 100
    assert score([predicted("a", *wrong, (0, 10, 1.0))], entries).average_precision[0.5] == 0
    assert evaluate([predicted("a")], entries)["mAP"] == 0
    assert evaluate([predicted("a", (5, 5, 1.0))], entries)["mAP"] == 0


def test_queries_without_windows_are_left_out_and_counted():
    entries = [truth("a", (0, 10)), truth("absent"), QueryEntry("unknown", "q", "v", 60.0, None)]
    predictions = [predicted("a", (0, 10, 1.0)), predicted("absent", (0, 1, 1.0)), predicted("unknown"), predicted("extra", (0, 1, 1.0))]
    scores = score(predictions, entries)
    assert (scores.num_queries, scores.num_without_windows) == (1, 2)
    assert scores.recall_at_1[0.5] == 100
    with pytest.raises(DataError, match="None of the 1 queries"):
        evaluate(predictions, entries[1:2])


def test_missing_predictions_are_counted_and_the_first_named():
    with pytest.raises(DataError, match="2 of 3 queries have no prediction, the first is qid 'b'"):
        evaluate([predicted("a", (0, 1, 1.0))], [truth("a", (0, 1)), truth("b", (0, 1)), truth("c", (0, 1))])
    with pytest.raises(DataError, match="1 qids occur twice"):
        evaluate([predicted("a"), predicted("a")], [truth("a", (0, 1))])


def plain_average_precision(windows, true_windows, threshold):
    """The definition, one query at a time: greedy claims, then the area under the interpolated precision-recall steps."""

    def iou(a, b):
        intersection = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
        union = (a[1] - a[0]) + (b[1] - b[0]) - intersection
        return intersection / union if union > 0 else 0.0

    free, hits = list(true_windows), []
    for window in sorted(windows[:10], key=lambda w: -w[2]):
        best = max(free, key=lambda t: iou(window, t), default=None)
        hits.append(best is not None and iou(window, best) >= threshold)
        if hits[-1]:
            free.remove(best)
    recall = [0.0, *np.cumsum(hits) / len(true_windows), 1.0]
    precision = [0.0, *np.cumsum(hits) / np.arange(1, len(hits) + 1), 0.0]
    for i in reversed(range(len(precision) - 1)):
        precision[i] = max(precision[i], precision[i + 1])
    return sum((recall[i] - recall[i - 1]) * precision[i] for i in range(1, len(recall)))


def test_arrays_agree_with_the_plain_loop():
    rng = np.random.default_rng(0)

    def windows(count):
        starts = rng.uniform(0, 40, count)
        return [(float(s), float(s + w)) for s, w in zip(starts, rng.uniform(1, 30, count), strict=True)]

    entries, predictions = [], []
    for number in range(60):
        entries.append(truth(str(number), *windows(rng.integers(1, 6))))
        predictions.append(predicted(str(number), *((*w, float(rng.random())) for w in windows(rng.integers(0, 14)))))
    scores = score(predictions, entries)
    for threshold in IOU_THRESHOLDS:
        expected = np.mean(
            [
                plain_average_precision(p.pred_relevant_windows, e.relevant_windows, threshold)
                for p, e in zip(predictions, entries, strict=True)
            ]
        )
        assert scores.average_precision[threshold] == pytest.approx(100 * expected)
