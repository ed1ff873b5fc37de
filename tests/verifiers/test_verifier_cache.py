"""Answers are asked for once."""

from __future__ import annotations

import multiprocessing
import sqlite3
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from tiny_system import TinyEncoder, write_sound

from qamdetr.errors import QamDetrError
from qamdetr.types import Candidate
from qamdetr.verifiers.base import PartialAnswersError
from qamdetr.verifiers.cache import CachedVerifier, default_cache_dir


def candidate(start, end):
    return Candidate(float(start), float(end), 0.5, 0.5, 0.25)


CANDIDATES = [candidate(1, 3), candidate(4, 9), candidate(12, 13)]


@dataclass
class Counting:
    """Scores by start time, and remembers what it was asked."""

    identity: str = "counting 1"
    name: str = "counting"
    needs_audio: bool = True
    asked: list = field(default_factory=list)

    def check(self):
        self.asked.append("check")

    def verify(self, recording, query, text, candidates):
        self.asked.append((query, [c.window for c in candidates]))
        return [c.start_seconds / 100 for c in candidates]


@pytest.fixture
def recording(tmp_path):
    return TinyEncoder().encode_recording(write_sound(tmp_path / "walk.wav", 30))


def test_what_was_answered_is_not_asked_again(recording, tmp_path):
    inner = Counting()
    scores = CachedVerifier(inner, tmp_path / "cache").verify(recording, "a dog", {}, CANDIDATES[:2])
    assert scores == [0.01, 0.04]
    again = CachedVerifier(inner, tmp_path / "cache")
    assert (again.name, again.identity, again.needs_audio) == ("counting", "counting 1", True)
    assert again.verify(recording, "a dog", {}, CANDIDATES[::-1]) == [0.12, 0.04, 0.01]
    assert inner.asked == [("a dog", [(1, 3), (4, 9)]), ("a dog", [(12, 13)])]
    assert again.verify(recording, " a\ndog ", {}, CANDIDATES) == [0.01, 0.04, 0.12], "the prompt would be the same"
    assert again.verify(recording, "a dog", {}, []) == []
    assert len(inner.asked) == 2


def test_other_queries_windows_verifiers_and_recordings_are_asked(recording, tmp_path):
    inner = Counting()
    cached = CachedVerifier(inner, tmp_path / "cache")
    cached.verify(recording, "a dog", {}, CANDIDATES[:1])
    cached.verify(recording, "a cat", {}, CANDIDATES[:1])
    cached.verify(recording, "a dog", {}, [candidate(1, 3.002)])
    inner.identity = "counting 2"
    cached.verify(recording, "a dog", {}, CANDIDATES[:1])
    inner.identity = "counting 1"
    write_sound(Path(recording.path), 30, seed=1)
    cached.verify(recording, "a dog", {}, CANDIDATES[:1])
    assert len(inner.asked) == 5
    copy = TinyEncoder().encode_recording(write_sound(tmp_path / "copy.wav", 30, seed=1))
    cached.verify(copy, "a dog", {}, CANDIDATES[:1])
    assert len(inner.asked) == 5, "the same sound under another name"


def test_a_broken_cache_is_noted_and_done_without(recording, tmp_path, caplog):
    (tmp_path / "answers.sqlite").write_bytes(b"this is no database" * 100)
    inner = Counting()
    for _ in range(2):
        assert CachedVerifier(inner, tmp_path).verify(recording, "a dog", {}, CANDIDATES) == [0.01, 0.04, 0.12]
    assert len(inner.asked) == 2
    assert "cannot be read" in caplog.text
    assert "delete that file, or choose verifier.cache_dir" in caplog.text


def test_a_folder_that_cannot_be_made_is_done_without(recording, tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    assert CachedVerifier(Counting(), tmp_path / "file" / "cache").verify(recording, "a dog", {}, CANDIDATES[:1]) == [0.01]
    assert "cannot be kept" in caplog.text


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


def test_errors_pass_and_leave_nothing_behind(recording, tmp_path):
    class Failing(Counting):
        def verify(self, *_):
            raise QamDetrError("the server is gone")

    with pytest.raises(QamDetrError, match="the server is gone"):
        CachedVerifier(Failing(), tmp_path).verify(recording, "a dog", {}, CANDIDATES)
    inner = Counting()
    CachedVerifier(inner, tmp_path).verify(recording, "a dog", {}, CANDIDATES)
    assert len(inner.asked) == 1


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


def test_the_check_is_that_of_the_verifier_inside(tmp_path):
    inner = Counting()
    CachedVerifier(inner, tmp_path).check()
    assert inner.asked == ["check"]


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
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    inner = Counting()
    windows = [candidate(start / 2, start / 2 + 1) for start in range(40)]
    assert CachedVerifier(inner, tmp_path / "cache").verify(recording, "a dog", {}, windows) == [c.start_seconds / 100 for c in windows]
    assert inner.asked == []


def test_the_default_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("QAMDETR_CACHE", str(tmp_path))
    assert default_cache_dir() == tmp_path / "verifier"
    monkeypatch.delenv("QAMDETR_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache_dir() == tmp_path / "xdg" / "qamdetr" / "verifier"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / ".cache" / "qamdetr" / "verifier"
