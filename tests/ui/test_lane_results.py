from __future__ import annotations

import numpy as np
import pytest

from qamdetr.inference.rerank import rerank
from qamdetr.types import Candidate, Moment, Result
from qamdetr.ui import lane_results
from qamdetr.ui.lane_results import LaneResult


def moment(start, end, score, verifier_score=None):
    return Moment(start, end, score, 1.0, score, verifier_score, score)


def result(*moments, found=True, query="a dog barks"):
    return Result("yard.wav", 60.0, query, found, "pocket", "none", 0.0, moments, tuple([0.25] * 60))


def verified_result(*moments, found=True):
    return Result("yard.wav", 60.0, "a dog barks", found, "pocket", "pocket", 0.35, moments, tuple([0.25] * 60))


def test_iou_is_against_the_best_true_window():
    windows = [(0.0, 10.0), (20.0, 30.0), (50.0, 51.0)]
    assert lane_results.best_ious(windows, [(5.0, 10.0), (20.0, 30.0)]) == pytest.approx([0.5, 1.0, 0.0])
    assert lane_results.best_ious(windows, []) == [0.0, 0.0, 0.0]
    assert lane_results.best_ious(windows, None) == [None, None, None]


def test_reranked_is_the_servers_own_ranking_at_another_weight():
    rng = np.random.default_rng(0)
    candidates = [Candidate(float(i), i + 1.0, s, 1.0, s) for i, s in enumerate(sorted(rng.random(10).tolist(), reverse=True))]
    verified = rng.random(10).tolist()
    for beta in (0.0, 0.35, 1.0):
        shown = lane_results.reranked(verified_result(*rerank(candidates, verified, 0.6)), beta)
        assert shown.moments == rerank(candidates, verified, beta)
        assert shown.beta == beta
    plain = result(moment(1, 2, 0.8))
    assert lane_results.reranked(plain, 0.7) is plain


def test_chosen_at_first_is_what_is_likely_at_the_shown_weight_and_nothing_of_an_absent_sound():
    moments = (moment(1, 2, 0.9, 0.1), moment(3, 4, 0.5, 0.9), moment(5, 6, 0.1, 0.1))
    lanes = [
        LaneResult("found", "", verified_result(*moments), None),
        LaneResult("absent", "", verified_result(*moments, found=False), None),
    ]
    assert lane_results.default_choice(lanes, 0.0) == [(0, 0), (0, 1)]
    assert lane_results.default_choice(lanes, 1.0) == [(0, 1)]


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        ([[0, 1], [0, 0], [0, 1]], [(0, 0), (0, 1)]),
        ([], []),
        ([[5, 0], [0, 9], [-1, 0], ["0", "1"], [0], [0, [1]], None, {"a": 1}], []),
        ("[[0, 1]]", []),
        (None, []),
    ],
)
def test_what_the_browser_sends_as_chosen_is_checked(sent, read):
    lanes = [LaneResult("a dog barks", "", result(moment(1, 2, 0.9), moment(3, 4, 0.5)), None)]
    assert lane_results.checked_choice(sent, lanes) == read
