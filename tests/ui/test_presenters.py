from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from qamdetr.types import Moment, Recording, Result
from qamdetr.ui import presenters
from qamdetr.ui.lane_results import LaneResult


def moment(start, end, score, verifier_score=None):
    return Moment(start, end, score, 1.0, score, verifier_score, score)


def result(*moments, found=True, query="a dog barks"):
    return Result("yard.wav", 60.0, query, found, "pocket", "none", 0.0, moments, tuple([0.25] * 60))


def verified_result(*moments, found=True):
    return Result("yard.wav", 60.0, "a dog barks", found, "pocket", "pocket", 0.35, moments, tuple([0.25] * 60))


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


def test_a_model_without_a_threshold_says_so_where_it_names_something():
    answer = result(moment(1, 2, 0.01))
    assert "no threshold" in presenters.answer_message(answer, None, can_refuse=False)["detail"]
    assert "no threshold" not in presenters.answer_message(answer, None)["detail"]
    shown = presenters.result_view({}, [LaneResult("a dog", "", answer, None, can_refuse=False)])
    assert presenters.NEVER_REFUSES in shown["lanes"][0]["message"]["detail"]


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
