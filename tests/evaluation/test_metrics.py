"""Parity with the official evaluator, hand-made cases, and agreement with a plain loop on random data."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.evaluation import invent_predictions, invent_truth, plain_scores
from qamdetr.data.manifest import PredictionEntry, QueryEntry, read_manifest, read_predictions
from qamdetr.errors import DataError
from qamdetr.evaluation.matching import IOU_THRESHOLDS, match
from qamdetr.evaluation.metrics import METRICS, evaluate, query_scores, score


def truth(qid, *windows):
    return QueryEntry(qid, "q", "v", 60.0, tuple(windows))


def predicted(qid, *windows):
    return PredictionEntry(qid, "q", "v", tuple(windows))


def test_parity_with_the_official_evaluator(shared_dir):
    folder = shared_dir / "data" / "official_baseline"
    official = json.loads((folder / "castella_val_metrics.json").read_text())
    predictions = read_predictions(folder / "castella_val_predictions.jsonl")
    entries = read_manifest(shared_dir / "data" / "castella" / "val.jsonl", clamp=False)
    assert set(official) == {"brief", "full"}
    assert set(official["full"]) == {"MR-R1", "MR-mAP"}
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


numbers = st.integers(0, 12)
windows = st.tuples(numbers, numbers).map(sorted)
true_windows = windows.filter(lambda window: window[0] < window[1]).map(lambda window: tuple(map(float, window)))
ranked_windows = st.tuples(windows, st.sampled_from([0.1, 0.5, 0.9])).map(lambda item: (float(item[0][0]), float(item[0][1]), item[1]))
queries = st.tuples(st.lists(true_windows, max_size=14), st.lists(ranked_windows, max_size=13))


@given(st.lists(queries, min_size=1, max_size=5).filter(lambda items: any(truths for truths, _ in items)))
def test_arrays_agree_with_the_plain_loop(items):
    """Few whole numbers, so that equal IoUs, equal scores, empty predictions and identical windows come up all the time."""
    entries = [truth(str(i), *truths) for i, (truths, _) in enumerate(items)]
    predictions = [predicted(str(i), *ranked) for i, (_, ranked) in enumerate(items)]
    scores = score(predictions, entries)
    plain = plain_scores(predictions, entries)
    for threshold in IOU_THRESHOLDS:
        assert scores.recall_at_1[threshold] == pytest.approx(plain[f"R1@{threshold:g}"])
        assert scores.average_precision[threshold] == pytest.approx(plain[f"mAP@{threshold:g}"])


def test_of_true_windows_with_the_same_iou_the_last_is_claimed():
    """As in the official evaluator; it decides what later predictions find free."""
    entries = [truth("a", (0, 8), (2, 10))]
    scores = score([predicted("a", (0, 10, 0.9), (2, 10, 0.8))], entries)
    assert scores.average_precision[0.8] == pytest.approx(50)
    scores = score([predicted("a", (0, 10, 0.9), (0, 8, 0.8))], entries)
    assert scores.average_precision[0.8] == 100


def test_query_scores_average_to_the_metrics():
    rng = np.random.default_rng(0)
    entries = invent_truth(20, rng)
    predictions = invent_predictions(entries, rng)
    per_query = query_scores(match(predictions, entries))
    assert per_query.vids == tuple(entry.vid for entry in entries)
    means = dict(zip(METRICS, per_query.columns().mean(axis=0).round(2).tolist(), strict=True))
    assert {**means, "num_queries": 20} == evaluate(predictions, entries)
    one = evaluate(predictions[3:4], entries[3:4])
    assert per_query.columns(["mAP"])[3, 0] == pytest.approx(one["mAP"], abs=0.005)
