"""Finer peaks: for the holder of a token, of the recording it was given for, and of nothing else."""

from __future__ import annotations

import math

import numpy as np
import pytest
import soundfile

from qamdetr.types import Recording
from qamdetr.ui.player import MAX_COLUMNS, MAX_SECONDS, UNUSED_SECONDS, CloserLook


@pytest.fixture
def recording(tmp_path):
    """Two seconds: silent, then at some share of full scale."""

    def make(level=0.5):
        path = tmp_path / f"{level}.wav"
        soundfile.write(path, np.repeat([0.0, level], 8000), 8000)
        return Recording(path.name, str(path), 2.0, {}, np.array([[0.0, 0.0], [0.0, level]]))

    return make


def asked(token, start=0.5, end=1.5, columns=100):
    return {"token": token, "from": start, "to": end, "columns": columns}


def test_a_token_leads_to_its_own_recording_and_a_made_up_one_and_what_lies_outside_get_nothing(recording):
    closer, made = CloserLook(), recording()
    mine, quiet = (asked(closer.open(one)) for one in (made, recording(0.01)))
    assert [closer.look(sent)["peaks"][1] for sent in (mine, quiet)] == [[0.0] * 50 + [height] * 50 for height in (1.0, 0.2)]
    for token in ("", "made-up", None, 0, ["a"], {"path": "/etc/passwd"}, "/etc/passwd", made.path):
        for sent in (asked(token), {**asked(token), "path": made.path}, token):
            assert closer.look(sent) is None
    for other in (
        *({"from": value} for value in (-1.0, math.nan, "0", True)),
        *({"to": value} for value in (5.0, math.inf, None, 0.5)),
        *({"columns": value} for value in (0, MAX_COLUMNS + 1, 10.5)),
    ):
        assert closer.look({**mine, **other}) is None, other
    day = closer.open(Recording("day.wav", made.path, 86400.0, {}, np.zeros((2, 2))))
    assert closer.look(asked(day, 0.0, MAX_SECONDS + 1, 10)) is None, "it would take long to read"


def test_a_token_that_nobody_uses_is_forgotten_and_one_in_use_is_not(recording):
    now = [0.0]
    closer = CloserLook(lambda: now[0])
    used, unused = closer.open(recording()), closer.open(recording())
    for now[0] in (0.6 * UNUSED_SECONDS, 1.2 * UNUSED_SECONDS):
        assert closer.look(asked(used)) is not None
    assert closer.look(asked(unused)) is None
