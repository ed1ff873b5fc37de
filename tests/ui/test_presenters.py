from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from qamdetr.inference.rerank import rerank
from qamdetr.types import Candidate, Moment, Recording, Result
from qamdetr.ui import presenters
from qamdetr.ui.presenters import LaneResult


def moment(start, end, score, verifier_score=None):
    return Moment(start, end, score, 1.0, score, verifier_score, score)


def result(*moments, found=True, query="a dog barks"):
    return Result("yard.wav", 60.0, query, found, "pocket", "none", 0.0, moments, tuple([0.25] * 60))


def verified_result(*moments, found=True):
    return Result("yard.wav", 60.0, "a dog barks", found, "pocket", "pocket", 0.35, moments, tuple([0.25] * 60))


def test_display_peaks_keeps_every_peak_when_thinning():
    low, high = np.full(5000, -0.1), np.full(5000, 0.1)
    high[3333], low[17] = 1.0, -0.8
    shown_low, shown_high = presenters.display_peaks(np.stack([low, high]))
    assert len(shown_low) == len(shown_high) == presenters.MAX_COLUMNS
    assert max(shown_high) == 1.0
    assert min(shown_low) == -0.8
    assert shown_high.index(1.0) == pytest.approx(3333 / 5000 * presenters.MAX_COLUMNS, abs=1)


def test_display_peaks_enlarges_quiet_recordings_but_only_so_far():
    quiet = np.array([[-0.1, -0.05], [0.1, 0.05]])
    assert presenters.display_peaks(quiet) == [[-1.0, -0.5], [1.0, 0.5]]
    noise_floor = quiet / 1000
    assert max(presenters.display_peaks(noise_floor)[1]) == pytest.approx(1e-4 * presenters.MAX_GAIN, abs=0.005)
    assert presenters.display_peaks(np.zeros((2, 3))) == [[0.0] * 3, [0.0] * 3]


def test_finer_peaks_are_on_the_scale_of_the_overview_and_never_beyond_it():
    overview = np.array([[-0.1, -0.05], [0.1, 0.05]])
    gain = presenters.display_gain(overview)
    assert presenters.scaled_peaks(overview, gain) == presenters.display_peaks(overview)
    assert presenters.scaled_peaks(np.array([[-0.2], [0.03]]), gain) == [[-1.0], [0.3]]


def test_iou_is_against_the_best_true_window():
    windows = [(0.0, 10.0), (20.0, 30.0), (50.0, 51.0)]
    assert presenters.best_ious(windows, [(5.0, 10.0), (20.0, 30.0)]) == pytest.approx([0.5, 1.0, 0.0])
    assert presenters.best_ious(windows, []) == [0.0, 0.0, 0.0]
    assert presenters.best_ious(windows, None) == [None, None, None]


def test_message_counts_likely_moments_only():
    message = presenters.answer_message(result(moment(1, 2, 0.8), moment(3, 4, 0.5), moment(5, 6, 0.1)), None)
    assert message["kind"] == "found"
    assert message["title"] == "2 likely moments"
    assert presenters.answer_message(result(moment(1, 2, 0.8)), None)["title"] == "1 likely moment"


def test_message_of_an_absent_sound_names_the_query_and_the_guess():
    message = presenters.answer_message(result(moment(1, 2, 0.1), found=False), None)
    assert message["kind"] == "absent"
    assert message["title"] == "Not in this recording"
    assert "a dog barks" in message["detail"]
    assert "best guess" in message["detail"]


def test_message_tells_when_an_example_is_known_to_lack_the_sound():
    right = presenters.answer_message(result(moment(1, 2, 0.1), found=False), [])
    wrong = presenters.answer_message(result(moment(1, 2, 0.9)), [])
    assert "And indeed" in right["detail"]
    assert "mistake" in wrong["detail"]


def test_message_without_any_moment():
    assert presenters.answer_message(result(found=False), None)["kind"] == "none"


def test_views_are_json_and_carry_user_text_unchanged():
    hostile = "<img src=x onerror=alert(1)> ${7*7} {{value}}"
    recording = Recording("yard.wav", "/tmp/yard.wav", 60.0, {"pocket": torch.zeros(60, 2)}, np.zeros((2, 10)))
    base = presenters.recording_view(recording, {"path": "/tmp/yard.wav"}, hostile)
    lane = LaneResult(hostile, "", result(moment(1.23456, 2, 0.8), query=hostile), [(1.0, 2.0)])
    view = presenters.result_view(base, [lane])
    read_back = json.loads(json.dumps(view))
    assert read_back == view
    (shown,) = read_back["lanes"]
    assert read_back["title"] == shown["label"] == shown["query"] == hostile
    assert shown["moments"][0]["start"] == 1.235
    assert shown["truth"] == [[1.0, 2.0]]
    assert read_back["state"] == "result"
    assert base["state"] == "ready"


def test_a_view_has_one_lane_per_answer_and_the_weight_of_the_first_verified_one():
    lanes = [
        LaneResult("Baseline", "trained this way: ladder-1-baseline", result(moment(1, 2, 0.8)), None),
        LaneResult("Full", "", verified_result(), None),
    ]
    view = presenters.result_view({}, lanes)
    assert [lane["label"] for lane in view["lanes"]] == ["Baseline", "Full"]
    assert view["lanes"][0]["how"] == "trained this way: ladder-1-baseline"
    assert (view["verifier"], view["beta"]) == ("pocket", 0.35)
    assert presenters.result_view({}, lanes[:1])["verifier"] == "none"


def test_what_all_lanes_would_say_of_their_model_is_said_once():
    one, other, bypassed = "trained this way: BiMamba", "trained this way: Transformer", "bypassed in the full model: quality"
    assert presenters.shared_how([one]) == ("", [one])
    assert presenters.shared_how([one, bypassed]) == ("", [one, bypassed])
    assert presenters.shared_how(["", ""]) == ("", ["", ""])
    said, left = presenters.shared_how([one, one])
    assert (said.count(one), left) == (1, ["", ""])
    said, left = presenters.shared_how([one, other])
    assert "trained this way" in said
    assert left == ["BiMamba", "Transformer"]


def test_a_view_says_it_once_too():
    lanes = [LaneResult(query, "trained this way: BiMamba", result(moment(1, 2, 0.8), query=query), None) for query in ("a dog", "a cat")]
    view = presenters.result_view({}, lanes)
    assert "BiMamba" in view["shared_how"]
    assert [lane["how"] for lane in view["lanes"]] == ["", ""]
    assert presenters.result_view({}, lanes[:1])["lanes"][0]["how"] == "trained this way: BiMamba"


def test_truth_is_one_lane_only_where_all_answers_share_query_and_windows():
    truth = [(1.0, 2.0)]
    dog, cat = (LaneResult(query, "", result(moment(1, 2, 0.8), query=query), truth) for query in ("a dog", "a cat"))
    unknown = LaneResult("a dog", "", dog.result, None)
    absent = LaneResult("a dog", "", dog.result, [])
    shared = {name: presenters.result_view({}, lanes)["shared_truth"] for name, lanes in {
        "same": [dog, dog], "queries": [dog, cat], "half known": [dog, unknown], "unknown": [unknown, unknown], "absent": [absent, dog],
    }.items()}  # fmt: skip
    assert shared == {"same": True, "queries": False, "half known": False, "unknown": True, "absent": False}


def test_reranked_is_the_servers_own_ranking_at_another_weight():
    rng = np.random.default_rng(0)
    candidates = [Candidate(float(i), i + 1.0, s, 1.0, s) for i, s in enumerate(sorted(rng.random(10).tolist(), reverse=True))]
    verified = rng.random(10).tolist()
    for beta in (0.0, 0.35, 1.0):
        shown = presenters.reranked(verified_result(*rerank(candidates, verified, 0.6)), beta)
        assert shown.moments == rerank(candidates, verified, beta)
        assert shown.beta == beta
    plain = result(moment(1, 2, 0.8))
    assert presenters.reranked(plain, 0.7) is plain


def test_chosen_at_first_is_what_is_likely_at_the_shown_weight_and_nothing_of_an_absent_sound():
    moments = (moment(1, 2, 0.9, 0.1), moment(3, 4, 0.5, 0.9), moment(5, 6, 0.1, 0.1))
    lanes = [
        LaneResult("found", "", verified_result(*moments), None),
        LaneResult("absent", "", verified_result(*moments, found=False), None),
    ]
    assert presenters.default_choice(lanes, 0.0) == [(0, 0), (0, 1)]
    assert presenters.default_choice(lanes, 1.0) == [(0, 1)]


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
    assert presenters.checked_choice(sent, lanes) == read


def test_busy_says_stage_share_and_time_left():
    assert presenters.busy_view("Listening …") == {"state": "busy", "busy": "Listening …", "share": None, "left": "", "cancel": False}
    assert presenters.busy_view("Listening …", cancel=True)["cancel"] is True
    assert presenters.busy_view("Listening …", 1.2, 37)["share"] == 1.0
    assert presenters.busy_view("Listening …", 0.4, 37)["left"] == "about 40 s left"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.5, "almost done"),
        (2, "about 5 s left"),
        (51, "about 55 s left"),
        (60, "about 1 minute left"),
        (200, "about 3 minutes left"),
        (5400, "about 1.5 hours left"),
    ],
)
def test_time_left_is_no_finer_than_it_can_be_known(seconds, words):
    assert presenters.time_left(seconds) == words


def test_hearing_note_is_the_section_of_the_first_card_that_has_one():
    without = "# Card\n\nnothing of the kind\n"
    card = "# Card\n\n## What it can and cannot hear\n\nDogs.\n\n### Not\nBats.\n\n## Licence\nCC0\n"
    note = presenters.hearing_note([without, card])
    assert note.startswith("Dogs.")
    assert "Bats." in note
    assert "CC0" not in note
    assert presenters.hearing_note([without]) == presenters.HEARING_FALLBACK
