"""Intervals and paired tests: against formulas where there are some, and as invariants."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from qamdetr.evaluation.compare import bootstrap, compare, compare_best
from qamdetr.evaluation.metrics import IOU_THRESHOLDS, METRICS, QueryScores


def scores_of(values, vids):
    """Scores whose every metric is `values` (in [0, 1])."""
    columns = np.repeat(np.asarray(values, dtype=float)[:, None], len(IOU_THRESHOLDS), axis=1)
    return QueryScores(tuple(vids), columns, columns)


def test_the_interval_is_that_of_the_mean():
    """With one query per recording the bootstrap's interval nears the normal one."""
    values = np.random.default_rng(0).random(400)
    interval = bootstrap(scores_of(values, map(str, range(400))), resamples=4000)["mAP"]
    low, high = stats.norm.interval(0.95, loc=100 * values.mean(), scale=100 * stats.sem(values))
    assert interval.value == pytest.approx(100 * values.mean())
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.2)


def test_queries_of_one_recording_do_not_count_as_independent():
    values = np.random.default_rng(0).random(50)
    alone = bootstrap(scores_of(values, map(str, range(50))), resamples=500)["R1@0.7"]
    repeated = bootstrap(scores_of(np.repeat(values, 9), map(str, np.repeat(range(50), 9))), resamples=500)["R1@0.7"]
    assert (repeated.low, repeated.high) == pytest.approx((alone.low, alone.high)), "copies add no evidence"


def test_recordings_weigh_by_their_queries_and_the_seed_decides_the_draws():
    scores = scores_of([1, 1, 1, 0], ["a", "a", "a", "b"])
    one, two = (bootstrap(scores, ["R1@0.5"], resamples=200)["R1@0.5"] for _ in range(2))
    assert one == two
    assert (one.value, one.low, one.high) == (75, 0, 100)


def test_a_clear_advantage_is_told_and_turns_round_with_the_order():
    rng = np.random.default_rng(0)
    vids = [str(i // 2) for i in range(80)]
    low = rng.random(80) * 0.5
    better, worse = scores_of(low + 0.3, vids), scores_of(low, vids)
    forward, backward = compare(better, worse, resamples=300), compare(worse, better, resamples=300)
    for name in METRICS:
        assert forward[name].difference.value == pytest.approx(30)
        assert (forward[name].verdict, backward[name].verdict) == ("better", "worse")
        assert forward[name].p_value == backward[name].p_value == pytest.approx(1 / 301)
        assert backward[name].difference.low == pytest.approx(-forward[name].difference.high)


@pytest.mark.parametrize("resamples", [255, 256])  # of 2 ** 8 coins: drawn at random, and all tried
def test_p_is_the_share_of_coins_that_give_any_of_those_tried_as_large_a_difference(resamples):
    rng = np.random.default_rng(3)
    tried, other, vids = rng.random((4, 8)), rng.random(8), list("abcdefgh")
    sums = tried - other
    best = int(np.abs(sums.sum(axis=1)).argmax())
    flipped = np.abs(np.array(list(itertools.product([-1, 1], repeat=8))) @ sums.T)
    as_large = flipped >= abs(sums[best].sum()) - 1e-12
    systems = [scores_of(values, vids) for values in tried]
    found = compare_best(systems, best, scores_of(other, vids), ["mAP", "R1@0.7"], resamples=resamples)
    plain = compare(systems[best], scores_of(other, vids), ["mAP", "R1@0.7"], resamples=resamples)
    for name in ("mAP", "R1@0.7"):
        assert found[name].p_value == pytest.approx(as_large.any(axis=1).mean(), abs=1e-12 if resamples == 256 else 0.1)
        assert plain[name].p_value == pytest.approx(as_large[:, best].mean(), abs=1e-12 if resamples == 256 else 0.1)
        assert found[name].difference == plain[name].difference


def test_the_best_of_many_that_differ_by_chance_is_rarely_called_better():
    rng = np.random.default_rng(0)
    vids = [str(i) for i in range(30)]
    called, naively = 0, 0
    for _ in range(100):
        tried = [scores_of(rng.random(30), vids) for _ in range(40)]
        other = scores_of(rng.random(30), vids)
        best = int(np.argmax([system.columns(["mAP"]).mean() for system in tried]))
        called += compare_best(tried, best, other, ["mAP"], resamples=200)["mAP"].verdict == "better"
        naively += compare(tried[best], other, ["mAP"], resamples=200)["mAP"].verdict == "better"
    assert called <= 8
    assert naively >= 15, "what the adjustment is for"
