from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from qamdetr.types import Moment, Recording, Result
from qamdetr.ui import presenters


def moment(start, end, score, verifier_score=None):
    return Moment(start, end, score, 1.0, score, verifier_score, score)


def result(*moments, found=True, query="a dog barks"):
    return Result("yard.wav", 60.0, query, found, "pocket", "none", 0.0, moments, tuple([0.25] * 60))


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
    view = presenters.result_view(base, result(moment(1.23456, 2, 0.8), query=hostile), [(1.0, 2.0)])
    read_back = json.loads(json.dumps(view))
    assert read_back == view
    assert read_back["title"] == read_back["query"] == hostile
    assert read_back["moments"][0]["start"] == 1.235
    assert read_back["truth"] == [[1.0, 2.0]]
    assert read_back["state"] == "result"
    assert base["state"] == "ready"


def test_hearing_note_is_the_section_of_the_first_card_that_has_one():
    without = "# Card\n\nnothing of the kind\n"
    card = "# Card\n\n## What it can and cannot hear\n\nDogs.\n\n### Not\nBats.\n\n## Licence\nCC0\n"
    note = presenters.hearing_note([without, card])
    assert note.startswith("Dogs.")
    assert "Bats." in note
    assert "CC0" not in note
    assert presenters.hearing_note([without]) == presenters.HEARING_FALLBACK
