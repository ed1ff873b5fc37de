"""Answers in three tiers, words that are not known, what is heard in a recording, and more like a window of it."""

from __future__ import annotations

import pytest
import torch
from tiny_system import recording_of, tiny_retriever

from qamdetr.errors import ConfigError, QamDetrError


@pytest.mark.parametrize(
    ("found_at", "perhaps_at", "tier"), [(0.0, 1.0, "found"), (0.99, 1.0, "nothing found"), (0.99, 0.0, "perhaps"), (0.0, 0.0, "found")]
)
def test_the_tier_is_that_of_the_best_decoder_score(found_at, perhaps_at, tier):
    retriever = tiny_retriever(found_threshold=found_at, perhaps_threshold=perhaps_at)
    result = retriever.retrieve(_recording(), "a dog")
    assert (result.tier, result.found, result.understood) == (tier, tier == "found", True)
    assert result.found or not any(moment.likely for moment in result.moments)


def test_calibrated_scores_keep_moments_and_their_order():
    plain = tiny_retriever().retrieve(_recording(), "a dog")
    result = tiny_retriever(score_calibration=((0.0, 0.5), (1.0, 0.9))).retrieve(_recording(), "a dog")
    assert [(m.window, m.decoder_score) for m in result.moments] == [(m.window, m.decoder_score) for m in plain.moments]
    assert [m.score for m in result.moments] == pytest.approx([0.5 + 0.4 * m.decoder_score for m in plain.moments])


def test_words_that_are_not_known_are_not_found_and_what_comes_nearest_is_still_listed(shipped, examples):
    street = examples["street.ogg"]
    siren, letters = shipped.retrieve_many(street, ["a siren wails", "xqzvbn kkjh"])
    assert (siren.tier, siren.understood, siren.notes) == ("found", True, ())
    assert (letters.tier, letters.understood, len(letters.moments) > 0) == ("nothing found", False, True)
    assert letters.notes[0].startswith("I do not know these words; nearest: ")


def test_what_is_heard_are_the_kinds_that_are_found_when_they_are_asked_for(shipped, examples):
    rows = shipped.heard(examples["street.ogg"])
    kinds = {row.kind: row for row in rows}
    assert {"alarm/siren", "vehicle/horn"} <= kinds.keys(), "which are there"
    assert [row.score for row in rows] == sorted((row.score for row in rows), reverse=True)
    for kind in ("alarm/siren", "vehicle/horn"):
        asked = shipped.retrieve(examples["street.ogg"], kinds[kind].wording, top_k=100)
        assert (asked.tier, asked.moments[0].score) == (kinds[kind].tier, pytest.approx(kinds[kind].score, abs=1e-5))
        assert sum(moment.likely for moment in asked.moments) == kinds[kind].count


def test_silence_holds_no_kind(shipped):
    assert shipped.heard(shipped.encode((torch.zeros(5 * 8000).numpy(), 8000))) == []


def test_more_like_a_window_finds_the_others(shipped, examples):
    street = examples["street.ogg"]
    horn = shipped.retrieve(street, "a car honks").moments[0]
    like = shipped.retrieve_like(street, horn.window, top_k=5)
    assert like.query.startswith(f"like {horn.start_seconds:g}-{horn.end_seconds:g} s (")
    others = [(24.3, 31.34), (37.2, 47.86), (49.21, 64.81)]
    best = like.moments[0]
    assert any(start < best.end_seconds and best.start_seconds < end for start, end in others)
    with pytest.raises(
        QamDetrError, match=r"nothing to hear from 500 to 501 s of street.ogg; choose a window with sound between 0 and 90 s"
    ):
        shipped.retrieve_like(street, (500, 501))
    for window in ((20.0, 10.0), (float("nan"), 3.0)):
        with pytest.raises(QamDetrError, match="the end after the start"):
            shipped.retrieve_like(street, window)


def test_other_encoders_have_no_known_sounds():
    retriever = tiny_retriever()
    assert retriever.retrieve(_recording(), "xqzvbn").understood, "nobody judges the words"
    for ask in (lambda: retriever.heard(_recording()), lambda: retriever.retrieve_like(_recording(), (1, 2))):
        with pytest.raises(ConfigError, match=r"come without a table of known sounds; take a checkpoint on the pocket encoders"):
            ask()


def _recording():
    torch.manual_seed(0)
    return recording_of(torch.randn(12, tiny_retriever().encoder.audio["pocket"].dim))
