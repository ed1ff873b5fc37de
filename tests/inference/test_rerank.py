"""Equation 3, that boundaries never change, and which moments are likely."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qamdetr.errors import QamDetrError
from qamdetr.inference.rerank import LIKELY_SCORE, mark_likely, rerank
from qamdetr.inference.retriever import MomentRetriever
from qamdetr.types import Candidate


def candidate(start, score):
    return Candidate(start, start + 2.5, score, 1.0, score)


def test_scores_blend_by_equation_3():
    moments = rerank([candidate(0.0, 0.8), candidate(10.0, 0.6)], [0.1, 0.9], beta=0.35)
    assert [moment.start_seconds for moment in moments] == [10.0, 0.0]
    assert [moment.score for moment in moments] == pytest.approx([0.65 * 0.6 + 0.35 * 0.9, 0.65 * 0.8 + 0.35 * 0.1])
    assert [moment.verifier_score for moment in moments] == [0.9, 0.1]
    assert [moment.decoder_score for moment in moments] == [0.6, 0.8]


def test_without_verifier_the_decoder_score_is_the_score():
    moments = rerank([candidate(0.0, 0.8), candidate(10.0, 0.6)], None, beta=0.35)
    assert [(moment.score, moment.verifier_score) for moment in moments] == [(0.8, None), (0.6, None)]


@pytest.mark.parametrize(("beta", "first"), [(0.0, 0.0), (1.0, 10.0)])
def test_the_ends_of_beta_are_each_judge_alone(beta, first):
    assert rerank([candidate(0.0, 0.8), candidate(10.0, 0.6)], [0.1, 0.9], beta)[0].start_seconds == first


@pytest.mark.parametrize("beta", [-0.01, 1.01, float("nan")])
def test_beta_out_of_range_is_refused(beta):
    with pytest.raises(QamDetrError, match="must lie between 0"):
        rerank([candidate(0.0, 0.8)], [0.5], beta)


def test_every_candidate_needs_a_verifier_score():
    with pytest.raises(ValueError, match="shorter"):
        rerank([candidate(0.0, 0.8), candidate(1.0, 0.8)], [0.5], 0.3)


unit = st.floats(0, 1)


@settings(deadline=None)  # a busy machine is no failure
@given(st.lists(st.tuples(st.floats(0, 1000), unit, unit), max_size=12), unit)
def test_boundaries_never_change_and_scores_stay_in_range(rows, beta):
    found = [candidate(start, score) for start, score, _ in rows]
    moments = rerank(found, [verified for _, _, verified in rows], beta)
    assert sorted(moment.window for moment in moments) == sorted(item.window for item in found)
    assert all(0 <= moment.score <= 1 for moment in moments)
    assert [moment.score for moment in moments] == sorted((moment.score for moment in moments), reverse=True)


def likely_places(rows, *, found=True, threshold=0.2):
    """Places of the likely ones among moments given as `(start, end, decoder score, verifier score)`."""
    moments = rerank([Candidate(start, end, score, 1.0, score) for start, end, score, _ in rows], None, 0.0)
    moments = [replace(moment, verifier_score=row[3]) for moment, row in zip(moments, rows, strict=True)]
    return [place for place, moment in enumerate(mark_likely(moments, found=found, threshold=threshold)) if moment.likely]


@pytest.mark.parametrize(
    ("rows", "options", "likely"),
    [
        ([(0, 5, 0.6, None), (10, 15, 0.5, None), (20, 25, 0.01, None)], {}, [0, 1]),
        ([(0, 5, 0.6, None), (10, 15, 0.5, None)], {"found": False}, []),
        ([(0, 5, 0.6, None), (10, 15, 0.23, None)], {}, [0]),  # far behind the best
        ([(0, 5, 0.3, None), (10, 15, 0.19, None)], {}, [0]),  # would not have been found by itself
        ([(0, 5, 0.3, None), (10, 15, 0.19, 0.8)], {}, [0, 1]),  # but the verifier says Yes
        ([(0, 5, 0.3, None), (10, 15, 0.19, 0.4)], {}, [0]),
        ([(0, 5, 0.19, None)], {}, [0]),  # found by the mean of several members
        ([(0, 5, 0.6, None), (1, 4, 0.5, None), (4, 9, 0.5, None)], {}, [0, 2]),  # a double; and a neighbour that shares a second
        ([(0, 5, 0.6, None), (1, 4, 0.5, None), (3.9, 4.1, 0.5, None)], {}, [0]),
        ([(0, 5, 0.001, None), (10, 15, 0.001, None)], {"threshold": 0.0}, []),  # near zero, in a checkpoint that was not calibrated
        ([], {}, []),
    ],
)
def test_which_moments_are_likely(rows, options, likely):
    assert likely_places(rows, **options) == likely


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 100), unit), max_size=12), st.booleans(), unit)
def test_likely_moments_are_of_found_sounds_never_near_zero_and_never_doubles(rows, found, threshold):
    ranked = rerank([candidate(start, score) for start, score in rows], None, 0.0)
    marked = mark_likely(ranked, found=found, threshold=threshold)
    assert [replace(moment, likely=True) for moment in marked] == list(ranked), "nothing else changes"
    likely = [moment for moment in marked if moment.likely]
    assert found or not likely
    assert all(moment.score >= LIKELY_SCORE for moment in likely)
    starts = sorted(moment.start_seconds for moment in likely)
    assert all(two - one >= 1.25 - 1e-9 for one, two in pairwise(starts)), "windows of 2.5 s share half at most"


ASSETS = Path(__file__).parents[2] / "assets"


@pytest.fixture(scope="module")
def shipped():
    return MomentRetriever.from_pretrained()


@pytest.fixture(scope="module")
def examples(shipped):
    """What the examples ask, and their recordings."""
    listed = json.loads((ASSETS / "examples.json").read_text())
    return [(example["queries"], shipped.encode(ASSETS / example["file"])) for example in listed]


def test_one_siren_is_one_likely_moment(shipped, examples):
    street = next(recording for _, recording in examples if recording.name == "street.ogg")
    result = shipped.retrieve(street, "a siren wails")
    assert [(m.start_seconds, m.end_seconds) for m in result.moments if m.likely] == [pytest.approx((13.27, 17.64), abs=0.1)]
    assert len(result.moments) > 5


@pytest.mark.parametrize("verifier", ["none", "pocket"])
def test_the_examples_have_as_many_likely_moments_as_there_are(shipped, examples, verifier):
    right, queries = 0, 0
    for asked, recording in examples:
        for truth, result in zip(asked, shipped.retrieve_many(recording, [one["query"] for one in asked], verifier=verifier), strict=True):
            likely = [moment.window for moment in result.moments if moment.likely]
            assert result.found or not likely
            assert all(any(start < b and a < end for a, b in truth["windows"]) for start, end in likely), "all are right"
            right += len(likely) == len(truth["windows"])
            queries += 1
    assert (right, queries) == (27, 28)
