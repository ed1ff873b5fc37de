"""How verifiers are registered and made, what they hear, and that they are asked once."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_system import TinyEncoder, candidate, recording_of, tiny_retriever, write_sound

from qamdetr.audio import Sound
from qamdetr.config import VerifierConfig
from qamdetr.errors import QamDetrError
from qamdetr.verifiers import VERIFIERS, Verifier, base, make_verifier, verifier_names
from qamdetr.verifiers.base import CachedVerifier, crop_bounds, read_crops

CANDIDATES = [candidate(1, 3), candidate(4, 9), candidate(12, 13)]

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
        assert (VERIFIERS["flamingo"].label, VERIFIERS["flamingo"].needs_audio) == ("Audio Flamingo", False)
        assert verifier_names()[-1] == "flamingo", "command line and page list these"
        retriever = tiny_retriever(nms_iou=1.0)
        result = retriever.retrieve(recording_of(torch.randn(30, 8)), "a dog", verifier="flamingo", beta=1.0)
        assert (result.verifier, result.notes) == ("flamingo", ())
        assert [m.start_seconds for m in result.moments] == sorted((m.start_seconds for m in result.moments), reverse=True)
    finally:
        VERIFIERS.pop("flamingo", None)


def test_answers_of_those_that_listen_are_kept_where_it_is_said(tmp_path, monkeypatch):
    monkeypatch.delenv("QAMDETR_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    settings = VerifierConfig(url="http://localhost:8000/v1")
    assert make_verifier("none") is None
    for name in ("pocket", "qwen2.5-omni", "server"):
        made = make_verifier(name, replace(settings, cache_dir=str(tmp_path)))
        assert made.name == name
        assert (made.folder == tmp_path) if made.needs_audio else not isinstance(made, CachedVerifier)
    for variable, folder in (("HOME", ".cache/qamdetr/verifier"), ("XDG_CACHE_HOME", "qamdetr/verifier"), ("QAMDETR_CACHE", "verifier")):
        monkeypatch.setenv(variable, str(tmp_path / variable))
        assert base.cache_dir(settings) == tmp_path / variable / folder


@pytest.mark.parametrize(
    ("window", "duration", "most", "bounds"),
    [
        ((10, 20), 60, 300, (5, 25)),  # half a length more on both sides
        ((1, 5), 60, 300, (0, 7)),  # ends with the recording
        ((50, 59), 60, 300, (45.5, 60)),
        ((10, 110), 1000, 130, (10 - 10 * 30 / 60, 110 + 50 * 30 / 60)),  # where the model hears less, the context shrinks
    ],
)
def test_the_crop_is_the_window_with_its_context(window, duration, most, bounds):
    assert crop_bounds(window, duration, most) == pytest.approx(bounds)


@given(st.floats(0.1, 2000), st.floats(0, 1), st.floats(0, 1))
def test_the_window_always_lies_whole_in_its_crop(duration, one, two):
    start, end = sorted((one * duration, two * duration))
    if end - start > 300:
        with pytest.raises(QamDetrError, match=r"s; the verifier can listen to 300 s"):
            crop_bounds((start, end), duration)
        return
    begin, stop = crop_bounds((start, end), duration)
    assert -1e-9 <= begin <= start + 1e-9
    assert end - 1e-9 <= stop <= duration + 1e-9
    assert base.MIN_CROP_SECONDS - 1e-9 <= stop - begin <= base.MAX_CROP_SECONDS + 1e-9


def test_crops_are_the_samples_around_the_candidate_at_16_khz_on_the_files_clock(recording):
    whole = Sound(recording.path).samples(16_000)
    middle, first = read_crops(recording, [candidate(10, 14), candidate(1, 5)])
    assert (middle.window, middle.duration_seconds, first.window) == ((2, 6), 8, (1, 5))
    assert middle.samples == pytest.approx(whole[8 * 16_000 : 16 * 16_000], abs=1e-4)
    choice = {"start_seconds": 8.0, "end_seconds": 20.0}
    part = replace(TinyEncoder().encode(Sound(recording.path, **choice)), choice=choice)
    assert np.array_equal(read_crops(part, [candidate(2, 6)])[0].samples, middle.samples)
    # A manifest may state a few tenths of a second more than the file has.
    (last,) = read_crops(replace(recording, duration_seconds=30.6), [candidate(30.2, 30.6)])
    assert len(last.samples) >= 1599
    assert 0 <= last.window[0] <= last.window[1] <= last.duration_seconds + 1e-9


def test_recordings_that_cannot_be_heard_say_why(recording):
    for change, message in (
        ({"path": ""}, "'walk.wav' has no file to listen to"),
        ({"duration_seconds": 40.0}, "lasts 30.0 s, but 40.0 s were encoded"),
    ):
        with pytest.raises(QamDetrError, match=message):
            read_crops(replace(recording, **change), CANDIDATES)


class Counting(Verifier):
    """Scores by start time, and remembers what it was asked."""

    name, needs_audio, identity = "counting", True, "counting 1"

    def __init__(self):
        super().__init__()
        self.asked = []

    def verify(self, recording, query, text, candidates):
        self.asked.append((query, [c.window for c in candidates]))
        return [c.start_seconds / 100 for c in candidates]


def test_what_was_answered_is_not_asked_again_and_all_else_is(recording, tmp_path):
    inner = Counting()
    assert CachedVerifier(inner, tmp_path / "cache").verify(recording, "a dog", {}, CANDIDATES[:2]) == [0.01, 0.04]
    again = CachedVerifier(inner, tmp_path / "cache")
    assert (again.name, again.identity, again.needs_audio) == ("counting", "counting 1", True)
    assert again.verify(recording, "a dog", {}, CANDIDATES[::-1]) == [0.12, 0.04, 0.01]
    assert again.verify(recording, " a\ndog ", {}, CANDIDATES) == [0.01, 0.04, 0.12], "the prompt would be the same"
    copy = TinyEncoder().encode(Sound(write_sound(tmp_path / "copy.wav", 30)))
    copy = replace(copy, choice={"max_seconds": 7200.0})
    assert again.verify(copy, "a dog", {}, CANDIDATES[:1]) == [0.01], "the same sound under another name, opened by the page"
    assert inner.asked == [("a dog", [(1, 3), (4, 9)]), ("a dog", [(12, 13)])]
    again.verify(recording, "a cat", {}, CANDIDATES[:1])
    again.verify(recording, "a dog", {}, [candidate(1, 3.002)])
    again.verify(replace(recording, choice={"channel": 2, "max_seconds": 60.0}), "a dog", {}, CANDIDATES[:1])
    inner.identity = "counting 2"
    again.verify(recording, "a dog", {}, CANDIDATES[:1])
    write_sound(Path(recording.path), 30, seed=1)
    os.utime(recording.path, ns=(0, 0))
    again.verify(recording, "a dog", {}, CANDIDATES[:1])
    assert len(inner.asked) == 2 + 5, "other queries, windows, parts, verifiers and recordings"


def test_a_cache_that_cannot_be_used_is_noted_and_done_without(recording, tmp_path, caplog):
    (tmp_path / "answers.sqlite").write_bytes(b"this is no database" * 100)
    inner = Counting()
    for folder in (tmp_path, tmp_path / "answers.sqlite" / "cache"):
        assert CachedVerifier(inner, folder).verify(recording, "a dog", {}, CANDIDATES) == [0.01, 0.04, 0.12]
    assert len(inner.asked) == 2
    assert "delete that file, or choose verifier.cache_dir" in caplog.text


def _fill(folder, recording, begin):
    for start in range(begin, begin + 20):
        CachedVerifier(Counting(), folder).verify(recording, "a dog", {}, [candidate(start, start + 1)])


def test_processes_share_a_cache(recording, tmp_path):
    fork = multiprocessing.get_context("fork")
    workers = [fork.Process(target=_fill, args=(tmp_path, recording, begin)) for begin in (0, 5, 10)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    inner = Counting()
    CachedVerifier(inner, tmp_path).verify(recording, "a dog", {}, [candidate(start, start + 1) for start in range(30)])
    assert inner.asked == []
