"""How verifiers are registered and made, what they hear, and that they are asked once."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import sqlite3
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from tiny_system import TinyEncoder, recording_of, tiny_config, tiny_model, write_sound

from qamdetr.audio import Sound
from qamdetr.config import VerifierConfig
from qamdetr.errors import QamDetrError
from qamdetr.inference.retriever import Member, MomentRetriever
from qamdetr.types import Candidate
from qamdetr.verifiers import VERIFIERS, Verifier, base, make_verifier, verifier_names
from qamdetr.verifiers.base import CachedVerifier, PartialAnswersError, crop_bounds, crop_window, read_crops


def candidate(start, end):
    return Candidate(float(start), float(end), 0.5, 0.5, 0.25)


CANDIDATES = [candidate(1, 3), candidate(4, 9), candidate(12, 13)]


@pytest.fixture
def recording(tmp_path):
    return TinyEncoder().encode(Sound(write_sound(tmp_path / "walk.wav", 30)))


ONE_FILE = """
from qamdetr.verifiers import Verifier, verifier


@verifier("flamingo", label="Audio Flamingo", hears=False)
class Flamingo(Verifier):
    def verify(self, recording, query, text, candidates):
        return [candidate.start_seconds / recording.duration_seconds for candidate in candidates]
"""


def test_a_verifier_is_one_file_outside_the_package(tmp_path):
    (tmp_path / "flamingo.py").write_text(ONE_FILE)
    spec = importlib.util.spec_from_file_location("flamingo", tmp_path / "flamingo.py")
    try:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
        assert (VERIFIERS["flamingo"].label, VERIFIERS["flamingo"].hears) == ("Audio Flamingo", False)
        assert verifier_names()[-1] == "flamingo", "command line and page list these"
        config = tiny_config(nms_iou=1.0)
        retriever = MomentRetriever([Member(tiny_model(config), config)], TinyEncoder())
        result = retriever.retrieve(retriever.encode(write_sound(tmp_path / "walk.wav", 30)), "a dog", verifier="flamingo", beta=1.0)
        assert (result.verifier, result.notes) == ("flamingo", ())
        assert [m.start_seconds for m in result.moments] == sorted((m.start_seconds for m in result.moments), reverse=True)
    finally:
        VERIFIERS.pop("flamingo", None)


def test_names_and_where_answers_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("QAMDETR_CACHE", str(tmp_path / "default"))
    monkeypatch.delenv("QAMDETR_VERIFIER_URL", raising=False)
    assert verifier_names() == ("none", "pocket", "qwen2.5-omni", "server")
    assert make_verifier("none") is None
    settings = VerifierConfig(url="http://localhost:8000/v1")
    for name in verifier_names()[1:]:
        made = make_verifier(name, settings)
        assert (made.name, made.needs_audio) == (name, VERIFIERS[name].hears)
        assert isinstance(made, CachedVerifier) == made.needs_audio
        if made.needs_audio:
            assert made.folder == tmp_path / "default" / "verifier"
            assert make_verifier(name, replace(settings, cache_dir=str(tmp_path / "own"))).folder == tmp_path / "own"
    monkeypatch.delenv("QAMDETR_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert base.cache_dir(settings) == tmp_path / "xdg" / "qamdetr" / "verifier"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert base.cache_dir(settings) == tmp_path / ".cache" / "qamdetr" / "verifier"
    with pytest.raises(QamDetrError, match=r"Verifier 'x' is not known; choose one of none, pocket, qwen2\.5-omni, server"):
        make_verifier("x")
    with pytest.raises(QamDetrError, match=r"Verifier 'server' has no address; set verifier\.url"):
        make_verifier("server")


def test_the_crop_is_half_a_length_wider_on_both_sides_and_ends_with_the_recording():
    assert crop_window((10, 20), 60) == (5, 25)
    assert crop_window((1, 5), 60) == (0, 7)
    assert crop_window((50, 59), 60.0) == (45.5, 60)


def test_crops_are_the_samples_around_the_candidate_at_16_khz(recording):
    whole = Sound(recording.path).samples(16_000)
    middle, first = read_crops(recording, [candidate(10, 14), candidate(1, 5)])
    assert (middle.window, middle.duration_seconds, first.window) == ((2, 6), 8, (1, 5))
    assert middle.samples == pytest.approx(whole[8 * 16_000 : 16 * 16_000], abs=1e-4)
    assert first.samples == pytest.approx(whole[: 7 * 16_000], abs=1e-4)


def test_of_a_part_of_a_recording_crops_are_on_the_files_clock(recording):
    choice = {"start_seconds": 8.0, "end_seconds": 20.0}
    part = replace(TinyEncoder().encode(Sound(recording.path, **choice)), choice=choice)
    (of_part,) = read_crops(part, [candidate(4, 6)])
    (of_whole,) = read_crops(recording, [candidate(12, 14)])
    assert np.array_equal(of_part.samples, of_whole.samples)


def test_context_shrinks_where_the_crop_would_be_longer_than_the_model_hears():
    assert crop_bounds((100, 200), 1000, 300) == (50, 250)
    assert crop_bounds((100, 200), 1000, 150) == (75, 225)
    assert crop_bounds((10, 110), 1000, 130) == pytest.approx((10 - 10 * 30 / 60, 110 + 50 * 30 / 60))
    assert crop_bounds((0, 300), 300, 300) == (0, 300)
    with pytest.raises(QamDetrError, match=r"lasts 301\.0 s; the verifier can listen to 300 s"):
        crop_bounds((0, 301), 400, 300)


@given(st.floats(0.1, 2000), st.floats(0, 1), st.floats(0, 1))
def test_the_window_always_lies_whole_in_its_crop(duration, one, two):
    start, end = sorted((one * duration, two * duration))
    if end - start > 300:
        return
    begin, stop = crop_bounds((start, end), duration)
    assert -1e-9 <= begin <= start + 1e-9
    assert end - 1e-9 <= stop <= duration + 1e-9
    assert base.MIN_CROP_SECONDS - 1e-9 <= stop - begin <= base.MAX_CROP_SECONDS + 1e-9


def test_crops_of_windows_at_the_very_end_hold_sound(recording):
    (crop,) = read_crops(recording, [candidate(29.9999, 30)])
    assert len(crop.samples) == pytest.approx(1600, abs=1)
    # A manifest may state a few tenths of a second more than the file has.
    (crop,) = read_crops(replace(recording, duration_seconds=30.6), [candidate(30.2, 30.6)])
    assert len(crop.samples) >= 1599
    assert 0 <= crop.window[0] <= crop.window[1] <= crop.duration_seconds + 1e-9


def test_recordings_that_cannot_be_heard_say_why(recording, tmp_path):
    with pytest.raises(QamDetrError, match=r"'a\.wav' has no file to listen to"):
        read_crops(recording_of(recording.streams["pocket"]), [candidate(0, 1)])
    with pytest.raises(QamDetrError, match=r"gone\.wav cannot be listened to \(No such file"):
        read_crops(replace(recording, path=str(tmp_path / "gone.wav")), [candidate(0, 1)])
    with pytest.raises(QamDetrError, match=r"lasts 30\.0 s, but 40\.0 s were encoded"):
        read_crops(replace(recording, duration_seconds=40.0), [candidate(0, 1)])
    soundfile.write(tmp_path / "other.wav", np.zeros(8000), 8000)
    with pytest.raises(QamDetrError, match=r"lasts 1\.0 s"):
        read_crops(replace(recording, path=str(tmp_path / "other.wav")), [candidate(0, 1)])


class Counting(Verifier):
    """Scores by start time, and remembers what it was asked."""

    name, needs_audio = "counting", True
    identity = "counting 1"

    def __init__(self):
        super().__init__()
        self.asked = []

    def check(self):
        self.asked.append("check")

    def verify(self, recording, query, text, candidates):
        self.asked.append((query, [c.window for c in candidates]))
        return [c.start_seconds / 100 for c in candidates]


def test_what_was_answered_is_not_asked_again(recording, tmp_path):
    inner = Counting()
    assert CachedVerifier(inner, tmp_path / "cache").verify(recording, "a dog", {}, CANDIDATES[:2]) == [0.01, 0.04]
    again = CachedVerifier(inner, tmp_path / "cache")
    assert (again.name, again.identity, again.needs_audio) == ("counting", "counting 1", True)
    assert again.verify(recording, "a dog", {}, CANDIDATES[::-1]) == [0.12, 0.04, 0.01]
    assert inner.asked == [("a dog", [(1, 3), (4, 9)]), ("a dog", [(12, 13)])]
    assert again.verify(recording, " a\ndog ", {}, CANDIDATES) == [0.01, 0.04, 0.12], "the prompt would be the same"
    assert again.verify(recording, "a dog", {}, []) == []
    assert len(inner.asked) == 2
    again.check()
    assert inner.asked[-1] == "check"


def test_other_queries_windows_verifiers_parts_and_recordings_are_asked(recording, tmp_path):
    inner = Counting()
    cached = CachedVerifier(inner, tmp_path / "cache")
    cached.verify(recording, "a dog", {}, CANDIDATES[:1])
    cached.verify(recording, "a cat", {}, CANDIDATES[:1])
    cached.verify(recording, "a dog", {}, [candidate(1, 3.002)])
    cached.verify(replace(recording, choice={"channel": 2}), "a dog", {}, CANDIDATES[:1])
    inner.identity = "counting 2"
    cached.verify(recording, "a dog", {}, CANDIDATES[:1])
    inner.identity = "counting 1"
    write_sound(Path(recording.path), 30, seed=1)
    os.utime(recording.path, ns=(0, 0))
    cached.verify(recording, "a dog", {}, CANDIDATES[:1])
    assert len(inner.asked) == 6
    copy = TinyEncoder().encode(Sound(write_sound(tmp_path / "copy.wav", 30, seed=1)))
    cached.verify(copy, "a dog", {}, CANDIDATES[:1])
    assert len(inner.asked) == 6, "the same sound under another name"


@pytest.mark.parametrize("place", ["answers.sqlite", "file"])
def test_a_cache_that_cannot_be_used_is_noted_and_done_without(recording, tmp_path, caplog, place):
    (tmp_path / place).write_bytes(b"this is no database" * 100)
    folder = tmp_path if place == "answers.sqlite" else tmp_path / place / "cache"
    inner = Counting()
    for _ in range(2):
        assert CachedVerifier(inner, folder).verify(recording, "a dog", {}, CANDIDATES) == [0.01, 0.04, 0.12]
    assert len(inner.asked) == 2
    assert "cannot be read" in caplog.text
    assert "delete that file, or choose verifier.cache_dir" in caplog.text


@pytest.mark.parametrize("stored", ["'high'", "7.0", "-0.5", "9e999"])
def test_scores_that_are_none_are_asked_anew(recording, tmp_path, stored):
    inner = Counting()
    cached = CachedVerifier(inner, tmp_path)
    cached.verify(recording, "a dog", {}, CANDIDATES[:1])
    with sqlite3.connect(tmp_path / "answers.sqlite") as database:
        database.execute(f"UPDATE answers SET score = {stored}")
    database.close()
    assert cached.verify(recording, "a dog", {}, CANDIDATES[:1]) == [0.01]
    assert len(inner.asked) == 2


def test_what_was_answered_before_a_failure_is_kept(recording, tmp_path):
    class OneBad(Counting):
        def verify(self, recording, query, text, candidates):
            self.asked.append([c.window for c in candidates])
            raise PartialAnswersError("one crop is bad", {place: 0.5 for place, c in enumerate(candidates) if c.start_seconds != 4})

    bad = OneBad()
    for _ in range(2):
        with pytest.raises(QamDetrError, match="one crop is bad"):
            CachedVerifier(bad, tmp_path).verify(recording, "a dog", {}, CANDIDATES)
    assert bad.asked == [[(1, 3), (4, 9), (12, 13)], [(4, 9)]]
    assert CachedVerifier(Counting(), tmp_path).verify(recording, "a dog", {}, CANDIDATES) == [0.5, 0.04, 0.5]


def _fill(recording, folder, begin):
    cached = CachedVerifier(Counting(), folder)
    for start in range(begin, begin + 20):
        cached.verify(recording, "a dog", {}, [candidate(start / 2, start / 2 + 1)])


@pytest.mark.slow
def test_processes_share_a_cache(recording, tmp_path):
    spawn = multiprocessing.get_context("spawn")
    plain = replace(recording, streams={})
    workers = [spawn.Process(target=_fill, args=(plain, tmp_path / "cache", begin)) for begin in (0, 10, 20)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    inner = Counting()
    windows = [candidate(start / 2, start / 2 + 1) for start in range(40)]
    assert CachedVerifier(inner, tmp_path / "cache").verify(recording, "a dog", {}, windows) == [c.start_seconds / 100 for c in windows]
    assert inner.asked == []
