"""Parity with the official evaluator, hand-made cases, and scores by window length."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.evaluation import invent_predictions, invent_truth
from qamdetr.data.manifest import PredictionEntry, QueryEntry, read_manifest, read_predictions
from qamdetr.evaluation.metrics import METRICS, evaluate, match, query_scores, score, score_by_length


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


WRONG = [(30.0 + i, 30.5 + i, 0.9) for i in range(10)]
ONE, TWO = [(0, 10)], [(0, 10), (20, 30)]


@pytest.mark.parametrize(
    ("windows", "truths", "threshold", "recall", "precision"),
    [
        ([(20, 30, 0.1), (0, 10, 0.9)], ONE, 0.5, 0, 100),  # R1 takes the first listed, AP the score order
        ([(20, 30, 0.5), (0, 10, 0.5)], ONE, 0.5, 0, 50),  # ties keep list order
        ([(0, 10, 0.9), (0, 10, 0.8), (20, 30, 0.7)], TWO, 0.5, 100, 100 * (1 / 2 + 1 / 2 * 2 / 3)),  # each truth is claimed once
        ([(0, 10, 0.9), (0, 10, 0.8)], [(0, 10), (0, 8)], 0.5, 100, 100),  # the second claims its best free one
        ([(0, 10, 0.9), (0, 10, 0.8)], [(0, 10), (0, 8)], 0.9, 100, 50),
        ([(0, 10, 0.9), (2, 10, 0.8)], [(0, 8), (2, 10)], 0.8, 100, 50),  # of equal IoUs the last is claimed, as officially
        ([(0, 10, 0.9), (0, 8, 0.8)], [(0, 8), (2, 10)], 0.8, 100, 100),
        ([(0, 7, 1.0)], ONE, 0.7, 100, 100),  # an IoU equal to the threshold counts
        ([(0, 6.99, 1.0)], ONE, 0.7, 0, 0),
        ([*WRONG[:9], (0, 10, 1.0)], ONE, 0.5, 0, 100),  # only the first ten listed count
        ([*WRONG, (0, 10, 1.0)], ONE, 0.5, 0, 0),
        ([], ONE, 0.5, 0, 0),
        ([(5, 5, 1.0)], ONE, 0.5, 0, 0),
    ],
)
def test_one_query(windows, truths, threshold, recall, precision):
    scores = score([predicted("a", *windows)], [truth("a", *truths)])
    assert scores.recall_at_1[threshold] == recall
    assert scores.average_precision[threshold] == pytest.approx(precision)


def test_queries_without_windows_are_left_out_and_counted():
    entries = [truth("a", (0, 10)), truth("absent"), QueryEntry("unknown", "q", "v", 60.0, None)]
    predictions = [predicted("a", (0, 10, 1.0)), predicted("absent", (0, 1, 1.0)), predicted("unknown"), predicted("extra", (0, 1, 1.0))]
    scores = score(predictions, entries)
    assert (scores.num_queries, scores.num_without_windows) == (1, 2)
    assert scores.recall_at_1[0.5] == 100


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


def buckets(*pairs):
    """Score (true windows, ranked windows) pairs; bucket name -> scores."""
    truth = [QueryEntry(str(i), "q", f"v{i}", 300.0, tuple(windows)) for i, (windows, _) in enumerate(pairs)]
    predictions = [PredictionEntry(str(i), "q", f"v{i}", tuple(ranked)) for i, (_, ranked) in enumerate(pairs)]
    return {bucket.name: bucket for bucket in score_by_length(match(predictions, truth))}


def test_upper_ends_belong_to_a_bucket_also_when_subtraction_is_not_exact():
    scores = buckets(([(0, 2), (10.3, 12.3), (0, 2.5), (20, 25), (30, 40), (50, 80), (100, 131)], []))
    names = ["<= 2 s", "2-5 s", "5-10 s", "10-30 s", "> 30 s"]
    assert {name: bucket.num_windows for name, bucket in scores.items()} == dict(zip(names, (2, 2, 1, 1, 1), strict=True))
    assert all(bucket.num_queries == 1 for bucket in scores.values())


def test_a_hit_of_another_length_is_neither_right_nor_wrong():
    short, long = (0, 2), (10, 50)
    scores = buckets(([short, long], [(*long, 0.9), (*short, 0.8)]), ([short], [(*short, 0.9)]), ([short], [(200, 201, 0.9)]))
    assert scores["<= 2 s"].num_queries == 3
    assert scores["<= 2 s"].recall_at_1[0.7] == 50, "the first query is left out: one right, one wrong remain"
    assert scores["<= 2 s"].average_precision[0.7] == pytest.approx(100 * 2 / 3), "its short window ranks first once the long one is out"
    assert (scores["> 30 s"].recall_at_1[0.7], scores["> 30 s"].average_precision[0.7]) == (100, 100)


def test_what_hits_nothing_is_wrong_in_every_bucket_of_its_query():
    scores = buckets(([(0, 2), (10, 50)], [(100, 110, 0.9), (0, 2, 0.8), (10, 50, 0.7)]))
    for name in ("<= 2 s", "> 30 s"):
        assert scores[name].recall_at_1[0.5] == 0
        assert scores[name].average_precision[0.5] == 50


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_a_perfect_answer_scores_100_everywhere(seed):
    truth = invent_truth(6, np.random.default_rng(seed))
    truth = [QueryEntry(e.qid, e.query, e.vid, e.duration_seconds, tuple(sorted(set(e.relevant_windows)))[:10]) for e in truth]
    answers = [PredictionEntry(e.qid, e.query, e.vid, tuple((*window, 1.0) for window in e.relevant_windows)) for e in truth]
    assert evaluate(answers, truth) == {**dict.fromkeys(METRICS, 100.0), "num_queries": 6}
    for bucket in score_by_length(match(answers, truth)):
        table = bucket.table()
        assert {table["mAP"], table["mAP@0.5"]} <= {100.0, None}
        assert table["R1@0.7"] in (100.0, None)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_with_windows_of_one_length_a_bucket_is_the_whole(seed):
    rng = np.random.default_rng(seed)
    starts = rng.integers(0, 20, size=(5, 3)) * 12.0
    truth = [QueryEntry(str(i), "q", "v", 300.0, tuple((s, s + 8.0) for s in row)) for i, row in enumerate(starts.tolist())]
    predictions = invent_predictions(truth, rng)
    by_name = {bucket.name: bucket.table() for bucket in score_by_length(match(predictions, truth))}
    whole = evaluate(predictions, truth)
    assert {name: by_name["5-10 s"][name] for name in whole} == whole
