"""What the verifiers hear."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from tiny_system import TinyEncoder, recording_of, write_sound

from qamdetr import audio
from qamdetr.errors import QamDetrError
from qamdetr.types import Candidate
from qamdetr.verifiers import crops


def candidate(start, end):
    return Candidate(float(start), float(end), 0.5, 0.5, 0.25)


@pytest.fixture
def recording(tmp_path):
    return TinyEncoder().encode_recording(write_sound(tmp_path / "walk.wav", 30))


def test_crops_are_the_samples_around_the_candidate_at_16_khz(recording):
    whole = audio.load(recording.path, 16_000).samples
    middle, first = crops.read_crops(recording, [candidate(10, 14), candidate(1, 5)])
    assert middle.window == (2, 6)
    assert middle.duration_seconds == 8
    assert np.array_equal(middle.samples, whole[8 * 16_000 : 16 * 16_000])
    assert first.window == (1, 5)
    assert np.array_equal(first.samples, whole[: 7 * 16_000])


def test_the_file_is_decoded_once_until_it_changes(recording, monkeypatch):
    decoded = []
    decode = audio.decode
    monkeypatch.setattr(audio, "decode", lambda path, **limits: decoded.append(path) or decode(path, **limits))
    for _ in range(3):
        before = crops.read_crops(recording, [candidate(1, 5)])[0]
    digest = crops.recording_digest(recording)
    assert len(decoded) == 1
    write_sound(Path(recording.path), 30, seed=1)
    os.utime(recording.path, ns=(0, 0))
    after = crops.read_crops(recording, [candidate(1, 5)])[0]
    assert len(decoded) == 2
    assert not np.array_equal(before.samples, after.samples)
    assert crops.recording_digest(recording) != digest


def test_context_shrinks_where_the_crop_would_be_longer_than_the_model_hears():
    assert crops.crop_bounds((100, 200), 1000, 300) == (50, 250)
    assert crops.crop_bounds((100, 200), 1000, 150) == (75, 225)
    assert crops.crop_bounds((10, 110), 1000, 130) == pytest.approx((10 - 10 * 30 / 60, 110 + 50 * 30 / 60))
    assert crops.crop_bounds((0, 300), 300, 300) == (0, 300)
    with pytest.raises(QamDetrError, match=r"lasts 301\.0 s; the verifier can listen to 300 s"):
        crops.crop_bounds((0, 301), 400, 300)


@given(st.floats(0.1, 2000), st.floats(0, 1), st.floats(0, 1))
def test_the_window_always_lies_whole_in_its_crop(duration, one, two):
    start, end = sorted((one * duration, two * duration))
    if end - start > 300:
        return
    begin, stop = crops.crop_bounds((start, end), duration)
    assert -1e-9 <= begin <= start + 1e-9
    assert end - 1e-9 <= stop <= duration + 1e-9
    assert crops.MIN_CROP_SECONDS - 1e-9 <= stop - begin <= crops.MAX_CROP_SECONDS + 1e-9


def test_crops_of_windows_at_the_very_end_hold_sound(recording):
    (crop,) = crops.read_crops(recording, [candidate(29.9999, 30)])
    assert len(crop.samples) == pytest.approx(1600, abs=1)
    # A manifest may state a few tenths of a second more than the file has.
    (crop,) = crops.read_crops(replace(recording, duration_seconds=30.6), [candidate(30.2, 30.6)])
    assert len(crop.samples) >= 1599
    assert 0 <= crop.window[0] <= crop.window[1] <= crop.duration_seconds + 1e-9


def test_recordings_that_cannot_be_heard_say_why(recording, tmp_path):
    with pytest.raises(QamDetrError, match=r"'a\.wav' has no file to listen to"):
        crops.read_crops(recording_of(recording.streams["pocket"]), [candidate(0, 1)])
    with pytest.raises(QamDetrError, match=r"gone\.wav cannot be listened to \(No such file"):
        crops.read_crops(replace(recording, path=str(tmp_path / "gone.wav")), [candidate(0, 1)])
    with pytest.raises(QamDetrError, match=r"lasts 30\.0 s, but 40\.0 s were encoded"):
        crops.read_crops(replace(recording, duration_seconds=40.0), [candidate(0, 1)])
    soundfile.write(tmp_path / "other.wav", np.zeros(8000), 8000)
    with pytest.raises(QamDetrError, match=r"lasts 1\.0 s"):
        crops.read_crops(replace(recording, path=str(tmp_path / "other.wav")), [candidate(0, 1)])
