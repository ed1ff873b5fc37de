"""Finer peaks: for the holder of a token, of the recording it was given for, and of nothing else."""

from __future__ import annotations

import math

import numpy as np
import pytest
import soundfile

from qamdetr.types import Recording
from qamdetr.ui import closer_look
from qamdetr.ui.closer_look import MOST_COLUMNS, MOST_SECONDS, UNUSED_SECONDS, CloserLook


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def recording(tmp_path):
    """Two seconds: silent, then at half of full scale."""

    def make(name="walk.wav", level=0.5):
        path = tmp_path / name
        soundfile.write(path, np.repeat([0.0, level], 8000), 8000)
        return Recording(name, str(path), 2.0, {}, np.array([[0.0, 0.0], [0.0, level]]))

    return make


def asked(token, start=0.5, end=1.5, columns=100):
    return {"token": token, "from": start, "to": end, "columns": columns}


def test_the_part_that_is_asked_for_on_the_scale_of_the_overview(recording):
    closer = CloserLook()
    answer = closer.look(asked(closer.open(recording())))
    low, high = answer["peaks"]
    assert (answer["from"], answer["to"], len(low)) == (0.5, 1.5, 100)
    assert high == [0.0] * 50 + [1.0] * 50


def test_every_opening_has_a_token_of_its_own_that_leads_to_its_own_recording(recording):
    closer = CloserLook()
    loud, quiet = recording("loud.wav", 0.5), recording("quiet.wav", 0.01)
    tokens = [closer.open(one) for one in (loud, quiet, loud)]
    assert len(set(tokens)) == 3
    assert all(len(token) >= 32 for token in tokens)
    assert [max(closer.look(asked(token))["peaks"][1]) for token in tokens] == [1.0, pytest.approx(0.2), 1.0]


@pytest.mark.parametrize("token", ["", "made-up", None, 0, ["a"], {"path": "/etc/passwd"}, "/etc/passwd"])
def test_a_made_up_token_gets_nothing(recording, token):
    closer = CloserLook()
    made = recording()
    closer.open(made)
    assert closer.look(asked(token)) is None
    assert closer.look(asked(made.path)) is None
    assert closer.look({**asked(token), "path": made.path}) is None


@pytest.mark.parametrize(
    "other",
    [
        {"from": -1.0},
        {"to": 5.0},
        {"from": 1.5, "to": 0.5},
        {"from": 1.0, "to": 1.0},
        {"from": math.nan},
        {"to": math.inf},
        {"from": "0"},
        {"from": True},
        {"to": None},
        {"columns": 0},
        {"columns": MOST_COLUMNS + 1},
        {"columns": 10.5},
        {"columns": True},
    ],
)
def test_what_lies_outside_gets_nothing(recording, other):
    closer = CloserLook()
    assert closer.look({**asked(closer.open(recording())), **other}) is None


@pytest.mark.parametrize("sent", [None, [], "from", 3, {}])
def test_what_is_no_question_gets_nothing(sent):
    assert CloserLook().look(sent) is None


def test_a_part_that_takes_long_to_read_gets_nothing(recording):
    closer = CloserLook()
    token = closer.open(Recording("day.wav", recording().path, 86400.0, {}, np.zeros((2, 2))))
    assert closer.look(asked(token, 0.0, MOST_SECONDS, 10)) is not None
    assert closer.look(asked(token, 0.0, MOST_SECONDS + 1, 10)) is None


def test_a_token_that_nobody_uses_is_forgotten_and_one_in_use_is_not(recording):
    clock = Clock()
    closer = CloserLook(clock)
    used, unused = closer.open(recording()), closer.open(recording())
    clock.now = 0.6 * UNUSED_SECONDS
    assert closer.look(asked(used)) is not None
    clock.now = 1.2 * UNUSED_SECONDS
    assert closer.look(asked(unused)) is None
    assert closer.look(asked(used)) is not None


def test_only_so_many_are_remembered(recording, monkeypatch):
    monkeypatch.setattr(closer_look, "MOST_RECORDINGS", 3)
    closer = CloserLook()
    made = recording()
    tokens = [closer.open(made) for _ in range(5)]
    assert [closer.look(asked(token)) is not None for token in tokens] == [False, False, True, True, True]


def test_a_file_that_was_removed_gets_nothing(recording, tmp_path):
    closer = CloserLook()
    token = closer.open(recording())
    (tmp_path / "walk.wav").unlink()
    assert closer.look(asked(token)) is None


def test_a_busy_server_gives_up_and_reads_again_later(recording, monkeypatch):
    monkeypatch.setattr(closer_look, "_WAIT_SECONDS", 0.01)
    closer = CloserLook()
    token = closer.open(recording())
    for _ in range(2):
        closer._reading.acquire()
    assert closer.look(asked(token)) is None
    closer._reading.release()
    assert closer.look(asked(token)) is not None
