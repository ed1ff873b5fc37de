"""Equation 3, and that boundaries never change."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qamdetr.errors import QamDetrError
from qamdetr.inference.rerank import rerank
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
