from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from fake import FakeRetriever

from qamdetr.errors import AudioError
from qamdetr.progress import tell
from qamdetr.ui import encoding_progress
from qamdetr.ui.encoding_progress import DECODE, EncodingPace, EncodingRun, StoppedError
from qamdetr.ui.lines import Line


class Clock:
    """Time that moves when told."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def audio(tmp_path):
    path = tmp_path / "yard.wav"
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(100 * 1000), 1000)
    return path


def staged(clock, *seconds):
    """A retriever whose stages take so long: decoding, then each stream."""
    retriever = FakeRetriever()
    encode = retriever.encode

    def timed(path, on_stage=None):
        waits = iter(seconds)

        def stage(name, duration):
            clock.now += next(waits)
            on_stage(name, duration)

        recording = encode(path, stage)
        clock.now += next(waits)
        return recording

    retriever.encode = timed
    return retriever


def test_each_stage_is_measured(audio):
    clock, pace = Clock(), EncodingPace()
    recording = EncodingRun(staged(clock, 1.0, 8.0, 2.0), audio, pace, clock=clock).run()
    assert recording.duration_seconds == 100.0
    assert [pace.expected_seconds("fake", stage, 3600.0) for stage in (DECODE, "pocket", "mel_stats")] == pytest.approx([36, 288, 72])
    assert pace.expected_seconds("other", DECODE, 3600.0) is None


def test_the_pace_follows_the_machine_and_ignores_snippets():
    pace = EncodingPace()
    pace.note("fake", DECODE, 10.0, 100.0)
    pace.note("fake", DECODE, 30.0, 100.0)
    pace.note("fake", DECODE, 9.0, 3.0)
    assert pace.expected_seconds("fake", DECODE, 100.0) == pytest.approx(20.0)


def test_share_and_time_left_come_from_what_was_measured(audio):
    clock, pace = Clock(), EncodingPace()
    for stage, seconds in ((DECODE, 1.0), ("pocket", 8.0), ("mel_stats", 1.0)):
        pace.note("fake", stage, seconds, 100.0)
    told = []
    retriever = FakeRetriever()
    encode = retriever.encode

    def watched(path, on_stage=None):
        clock.now += 0.5
        told.append(run.view("yard.wav"))
        clock.now += 0.5

        def stage(name, duration):
            on_stage(name, duration)
            clock.now += 4.0
            told.append(run.view("yard.wav"))

        return encode(path, stage)

    retriever.encode = watched
    run = EncodingRun(retriever, audio, pace, clock=clock)
    run.run()
    reading, listening, last = told
    assert reading["busy"] == "Reading “yard.wav” …"
    assert reading["share"] == pytest.approx(0.05)
    assert reading["left"] == "about 10 s left"
    assert listening["busy"] == "Listening to “yard.wav”: stream pocket, 1 of 2 …"
    assert listening["share"] == pytest.approx(0.5)
    assert listening["left"] == "about 5 s left"
    assert (last["share"], last["left"]) == (None, ""), "later than ever before: nobody knows"


def test_without_measurements_nothing_is_made_up(audio):
    clock = Clock()
    run = EncodingRun(FakeRetriever(), audio, EncodingPace(), clock)
    first = next(run.views("yard.wav"))
    assert (first["share"], first["left"]) == (None, "")


def test_views_end_when_the_work_ends_and_failures_come_out(audio, tmp_path, monkeypatch):
    monkeypatch.setattr(encoding_progress, "POLL_SECONDS", 0.01)
    run = EncodingRun(FakeRetriever(), audio, EncodingPace())
    assert len(list(run.views("yard.wav"))) >= 1
    assert run.result().name == "yard.wav"
    broken = tmp_path / "broken.wav"
    broken.write_text("not audio")
    run = EncodingRun(FakeRetriever(), Path(broken), EncodingPace())
    list(run.views("broken.wav"))
    with pytest.raises(AudioError, match="is not audio"):
        run.result()


def test_an_hour_is_judged_by_what_is_nearest_to_an_hour():
    pace = EncodingPace()
    pace.note("fake", DECODE, 0.1, 20.0)
    pace.note("fake", DECODE, 40.0, 4000.0)
    assert pace.expected_seconds("fake", DECODE, 3600.0) == pytest.approx(36.0)
    assert pace.expected_seconds("fake", DECODE, 30.0) == pytest.approx(0.15)
    assert pace.expected_seconds("fake", DECODE, 1.0) == pytest.approx(0.005)


def test_a_stage_that_tells_its_share_is_judged_by_its_own_pace(audio):
    clock, pace = Clock(), EncodingPace()
    for stage in (DECODE, "pocket", "mel_stats"):
        pace.note("fake", stage, 1.0, 100.0)
    told = []
    retriever = FakeRetriever()

    def slow(path, on_stage=None):
        on_stage("pocket", 100.0)
        clock.now += 5.0  # what comes before the first share is not the pace of what follows
        for share in (0.0, 0.25, 0.5):
            tell(share)
            told.append(run.view("yard.wav"))
            clock.now += 10.0
        told.append(run.view("yard.wav"))
        return FakeRetriever().encode(path, on_stage)

    retriever.encode = slow
    run = EncodingRun(retriever, audio, pace, clock=clock)
    run.run()
    assert [view["left"] for view in told] == ["", "about 35 s left", "about 25 s left", "about 15 s left"]
    assert told[0]["share"] is None
    shares = [view["share"] for view in told[1:]]
    assert shares == sorted(shares), "the bar never goes back"


def test_a_run_that_two_watch_goes_on_until_both_have_left(audio, monkeypatch):
    monkeypatch.setattr(encoding_progress, "POLL_SECONDS", 0.01)
    retriever = FakeRetriever()

    def endless(path, on_stage=None):
        while True:
            tell(None)

    retriever.encode = endless
    run = EncodingRun(retriever, audio, EncodingPace())
    one, other = run.views("yard.wav"), run.views("yard.wav")
    next(one)
    next(other)
    one.close()
    next(other)
    assert not run.over
    other.close()
    assert run.over
    late = list(run.views("yard.wav"))
    assert late
    with pytest.raises(StoppedError):
        run.result()


def test_whoever_leaves_while_waiting_never_begins(audio, monkeypatch):
    monkeypatch.setattr(encoding_progress, "POLL_SECONDS", 0.01)
    retriever, line = FakeRetriever(), Line(1, 2)
    with line.ticket():
        run = EncodingRun(retriever, audio, EncodingPace(), line)
        views = run.views("yard.wav")
        while "waits for its turn" not in next(views)["busy"]:
            pass
        views.close()
        assert list(run.views("yard.wav"))
    assert retriever.encoded == []
    with line.ticket() as ticket:
        assert ticket.wait(5) == 0, "it has left the line"
