"""Scores by window length: what belongs to a bucket, and what is neither right nor wrong in it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.evaluation import invent_predictions, invent_truth
from qamdetr.data.manifest import PredictionEntry, QueryEntry
from qamdetr.evaluation.lengths import score_by_length
from qamdetr.evaluation.matching import match
from qamdetr.evaluation.metrics import evaluate


def buckets(*pairs):
    """Score (true windows, ranked windows) pairs; bucket name -> scores."""
    truth = [QueryEntry(str(i), "q", f"v{i}", 300.0, tuple(windows)) for i, (windows, _) in enumerate(pairs)]
    predictions = [PredictionEntry(str(i), "q", f"v{i}", tuple(ranked)) for i, (_, ranked) in enumerate(pairs)]
    return {bucket.name: bucket for bucket in score_by_length(match(predictions, truth))}


def test_upper_ends_belong_to_a_bucket_also_when_subtraction_is_not_exact():
    scores = buckets(([(0, 2), (10.3, 12.3), (0, 2.5), (20, 25), (30, 40), (50, 80), (100, 131)], []))
    assert {name: bucket.num_windows for name, bucket in scores.items()} == {
        "<= 2 s": 2,
        "2-5 s": 2,
        "5-10 s": 1,
        "10-30 s": 1,
        "> 30 s": 1,
    }
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


def test_buckets_without_windows_have_no_scores():
    empty = buckets(([(0, 2)], [(0, 2, 0.9)]))["5-10 s"].table()
    assert (empty["R1@0.7"], empty["mAP"], empty["num_queries"], empty["num_windows"]) == (None, None, 0, 0)


@given(st.integers(0, 2**32 - 1))
def test_a_perfect_answer_scores_100_everywhere(seed):
    truth = invent_truth(6, np.random.default_rng(seed))
    truth = [QueryEntry(e.qid, e.query, e.vid, e.duration_seconds, tuple(sorted(set(e.relevant_windows)))[:10]) for e in truth]
    answers = [PredictionEntry(e.qid, e.query, e.vid, tuple((*window, 1.0) for window in e.relevant_windows)) for e in truth]
    for bucket in score_by_length(match(answers, truth)):
        table = bucket.table()
        assert {table["mAP"], table["mAP@0.5"]} <= {100.0, None}
        assert table["R1@0.7"] in (100.0, None)


@given(st.integers(0, 2**32 - 1))
def test_with_windows_of_one_length_a_bucket_is_the_whole(seed):
    rng = np.random.default_rng(seed)
    starts = rng.integers(0, 20, size=(5, 3)) * 12.0
    truth = [QueryEntry(str(i), "q", "v", 300.0, tuple((s, s + 8.0) for s in row)) for i, row in enumerate(starts.tolist())]
    predictions = invent_predictions(truth, rng)
    by_name = {bucket.name: bucket.table() for bucket in score_by_length(match(predictions, truth))}
    whole = evaluate(predictions, truth)
    assert {name: by_name["5-10 s"][name] for name in whole} == whole


def test_every_window_of_the_real_data_is_in_one_bucket(shared_dir):
    from qamdetr.data.manifest import read_manifest, read_predictions

    truth = read_manifest(shared_dir / "data" / "castella" / "val.jsonl", clamp=False)
    predictions = read_predictions(shared_dir / "data" / "official_baseline" / "castella_val_predictions.jsonl")
    scores = score_by_length(match(predictions, truth))
    assert sum(bucket.num_windows for bucket in scores) == sum(len(entry.relevant_windows) for entry in truth)
    assert scores[0].recall_at_1[0.7] < scores[3].recall_at_1[0.7], "the baseline's known weakness: short moments"
