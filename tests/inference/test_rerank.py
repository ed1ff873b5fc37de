"""Equation 3, that boundaries never change, and which moments are likely."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_system import candidate

from qamdetr.inference.rerank import LIKELY_SCORE, calibrated, mark_likely, rerank, round_officially

BOTH = [candidate(0, 2.5, 0.8), candidate(10, 12.5, 0.6)]
unit = st.floats(0, 1)


@pytest.mark.parametrize(
    ("verifier_scores", "beta", "ranked"),
    [
        ([0.1, 0.9], 0.35, [(10, 0.65 * 0.6 + 0.35 * 0.9), (0, 0.65 * 0.8 + 0.35 * 0.1)]),
        ([0.1, 0.9], 0.0, [(0, 0.8), (10, 0.6)]),
        ([0.1, 0.9], 1.0, [(10, 0.9), (0, 0.1)]),
        (None, 0.35, [(0, 0.8), (10, 0.6)]),
    ],
)
def test_scores_blend_by_equation_3(verifier_scores, beta, ranked):
    moments = rerank(BOTH, verifier_scores, beta)
    assert [(moment.start_seconds, moment.score) for moment in moments] == [(start, pytest.approx(score)) for start, score in ranked]
    assert {m.start_seconds: m.verifier_score for m in moments} == dict(zip((0, 10), verifier_scores or (None, None), strict=True))


@given(st.lists(unit, min_size=1, max_size=12), unit)
def test_calibrated_scores_are_probabilities_in_the_same_order(scores, beta):
    found = sorted((candidate(0, 2.5 + place, score) for place, score in enumerate(scores)), key=lambda each: -each.decoder_score)
    known = calibrated(found, [(0.0, 0.0), (0.2, 0.7), (1.0, 0.9)])
    moments = rerank(known, None, beta)
    assert [(m.window, m.decoder_score) for m in moments] == [(each.window, each.decoder_score) for each in found]
    line = [3.5 * x if x < 0.2 else 0.7 + 0.25 * (x - 0.2) for x in (each.decoder_score for each in found)]
    assert [moment.score for moment in moments] == pytest.approx(line)
    (blended,) = rerank(known[:1], [0.5], beta)
    assert blended.score == pytest.approx((1 - beta) * line[0] + beta * 0.5)
    assert calibrated(found, ()) == found


@given(st.lists(st.tuples(st.floats(0, 1000), unit, unit), max_size=12), unit)
def test_boundaries_never_change_and_scores_stay_in_range(rows, beta):
    found = [candidate(start, start + 2.5, score) for start, score, _ in rows]
    moments = rerank(found, [verified for _, _, verified in rows], beta)
    assert sorted(moment.window for moment in moments) == sorted(item.window for item in found)
    assert all(0 <= moment.score <= 1 for moment in moments)
    assert [moment.score for moment in moments] == sorted((moment.score for moment in moments), reverse=True)


@pytest.mark.parametrize(
    ("window", "duration", "rounded"),
    [
        ((119.8, 180.4), 299.6, (120, 180)),
        ((29.9, 30.2), 299.6, (30, 30)),
        ((253.8, 299.6), 299.6, (254, 300)),
        ((280, 640), 1000, (280, 300)),
    ],
)
def test_the_official_rounding_is_the_fields(window, duration, rounded):
    (moment,) = rerank([candidate(*window, 0.123456)], None, 0.0)
    moment = round_officially(moment, duration)
    assert (moment.window, moment.score, moment.decoder_score) == (rounded, 0.1235, 0.1235)


@pytest.mark.parametrize(
    ("rows", "options", "likely"),  # rows: start, end, decoder score, verifier score
    [
        ([(0, 5, 0.6, None), (10, 15, 0.5, None), (20, 25, 0.01, None)], {}, [0, 1]),
        ([(0, 5, 0.6, None), (10, 15, 0.5, None)], {"found": False}, []),
        ([(0, 5, 0.6, None), (10, 15, 0.23, None)], {}, [0]),  # far behind the best
        ([(0, 5, 0.3, None), (10, 15, 0.19, None)], {}, [0]),  # would not have been found by itself
        ([(0, 5, 0.3, None), (10, 15, 0.19, 0.8)], {}, [0, 1]),  # but the verifier says Yes
        ([(0, 5, 0.3, None), (10, 15, 0.19, 0.4)], {}, [0]),
        ([(0, 5, 0.19, None)], {}, [0]),  # found by the mean of several members
        ([(0, 5, 0.6, None), (1, 4, 0.5, None), (4, 9, 0.5, None)], {}, [0, 2]),  # a double; and a neighbour that shares a second
        ([(0, 5, 0.001, None), (10, 15, 0.001, None)], {"threshold": 0.0}, []),  # near zero, in a checkpoint that was not calibrated
        ([], {}, []),
    ],
)
def test_which_moments_are_likely(rows, options, likely):
    moments = rerank([candidate(*row[:3]) for row in rows], None, 0.0)
    moments = [replace(moment, verifier_score=row[3]) for moment, row in zip(moments, rows, strict=True)]
    marked = mark_likely(moments, **{"found": True, "threshold": 0.2, **options})
    assert [place for place, moment in enumerate(marked) if moment.likely] == likely


@given(st.lists(st.tuples(st.floats(0, 100), unit), max_size=12), st.booleans(), unit)
def test_likely_moments_are_of_found_sounds_never_near_zero_and_never_doubles(rows, found, threshold):
    ranked = rerank([candidate(start, start + 2.5, score) for start, score in rows], None, 0.0)
    marked = mark_likely(ranked, found=found, threshold=threshold)
    assert [replace(moment, likely=True) for moment in marked] == list(ranked), "nothing else changes"
    likely = [moment for moment in marked if moment.likely]
    assert found or not likely
    assert all(moment.score >= LIKELY_SCORE for moment in likely)
    starts = sorted(moment.start_seconds for moment in likely)
    assert all(two - one >= 1.25 - 1e-9 for one, two in pairwise(starts)), "windows of 2.5 s share half at most"


@pytest.mark.parametrize(("verifier", "as_many"), [("none", 24), ("pocket", 24)])
def test_the_examples_have_as_many_likely_moments_as_there_are(shipped, examples, verifier, as_many):
    right = []
    for example in json.loads((Path(__file__).parents[2] / "assets" / "examples.json").read_text()):
        queries = [one["query"] for one in example["queries"]]
        results = shipped.retrieve_many(examples[example["file"]], queries, verifier=verifier)
        for truth, result in zip(example["queries"], results, strict=True):
            likely = [moment.window for moment in result.moments if moment.likely]
            assert result.found or not likely
            assert all(any(start < b and a < end for a, b in truth["windows"]) for start, end in likely), "all are right"
            right.append(len(likely) == len(truth["windows"]))
    assert (sum(right), len(right)) == (as_many, 28)
