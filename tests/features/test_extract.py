"""Extraction encodes what is lacking, stream by stream, tells what it cannot or not wholly read, and goes on wherever it was killed."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Generator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from killed_extraction import run_extract
from stored_features import OwnFeatures

from qamdetr.audio import Sound, find_recordings
from qamdetr.errors import AudioError, QamDetrError
from qamdetr.features.base import AudioStream, EncoderOptions, Step, Streams, TextStream
from qamdetr.features.extract import ExtractionReport, Share, extract
from qamdetr.types import Recording, TextFeatures


class Size(AudioStream, TextStream):
    """A query is encoded to its length; `Counting` does the audio."""

    def __init__(self, name: str) -> None:
        super().__init__(Path(), EncoderOptions())
        self.name, self.fingerprint = name, "v1"

    def encode_text(self, query: str) -> TextFeatures:
        if query == "too long":
            raise QamDetrError("the query is too long; shorten it.")
        return TextFeatures(torch.full((1, 1), 1e6 if query == "too loud" else float(len(query))), ((0, len(query)),))


class Counting(Streams):
    """Encodes a file to its size in every stream; remembers what it was asked for; cannot read files that begin with `bad`."""

    def __init__(self, *names: str) -> None:
        streams = {name: Size(name) for name in names or ("size",)}
        super().__init__("counting", streams, streams)
        self.asked: list[str] = []

    def encoding(self, sound: Sound, only: Sequence[str] = ()) -> Generator[Step, None, Recording]:
        yield Step("size", 0.0)
        path = Path(sound.path)
        self.asked.append(path.stem if len(self.audio) == 1 else f"{path.stem}: {', '.join(only)}")
        if path.stem.startswith("bad"):
            raise AudioError(f"{path} is corrupt; convert it again.")
        if path.stem == "grows":
            path.write_bytes(path.read_bytes() + b"more")
        rows = {name: torch.full((2, 1), float(path.stat().st_size)) for name in only}
        return Recording(path.name, str(path), 2.0, rows, np.zeros((2, 1)), ("the file ends early",) if path.stem == "two" else ())


@pytest.fixture
def recordings(tmp_path: Path) -> list[tuple[str, Path]]:
    for name in ("one", "bad", "two"):
        (tmp_path / f"{name}.wav").write_bytes(name.encode())
    return [(name, tmp_path / f"{name}.wav") for name in ("one", "bad", "two", "gone")]


def test_encodes_once_and_goes_on_past_what_it_cannot_read(recordings: list, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    told: list[str] = []
    queries = ["a dog", "too long", "too loud", "a cat", "a dog"]
    report = extract(recordings, queries, tmp_path / "features", Counting(), on_skip=told.append, show_progress=False)
    assert (report.recordings, report.queries, report.cached_recordings, report.cached_queries) == (2, 2, 0, 0)
    assert [name for name, _ in report.skipped] == ["too long", "too loud", "bad", "gone"]
    assert told == [reason for _, reason in report.skipped]
    assert told[0] == "query 'too long': the query is too long; shorten it."
    assert told[1].startswith("query 'too loud': Features for text/")
    assert "not finite in float16" in told[1]
    assert "gone.wav: No such file" in told[3]
    notes = [record.getMessage() for record in caplog.records]
    assert notes == [f"{tmp_path / 'two.wav'}: the file ends early"], "no lossy choice is silent"
    own = OwnFeatures(tmp_path / "features", recordings=dict(recordings))
    assert own.audio("two")["size"].unique().tolist() == [3.0]
    assert own.text("a cat")["size"].tokens.tolist() == [[5.0]]


def test_a_second_run_encodes_only_what_lacks_stream_by_stream(recordings: list, tmp_path: Path) -> None:
    extract(recordings[:1], ["a dog"], tmp_path / "features", Counting("size", "other"), show_progress=False)
    dict(recordings)["two"].write_bytes(b"changed")
    dict(recordings)["one"].touch()
    streams = Counting("other", "third")
    report = extract(recordings, ["a dog", "a cow"], tmp_path / "features", streams, show_progress=False)
    assert streams.asked == ["bad: other, third", "one: third", "two: other, third"]
    assert (report.recordings, report.cached_recordings, report.queries, report.cached_queries) == (2, 0, 2, 0)
    (broken,) = (tmp_path / "features" / "other-v1").glob("one.*.npz")
    broken.write_bytes(broken.read_bytes()[:30])
    streams = Counting("other", "third")
    report = extract(recordings, ["a dog", "a cow"], tmp_path / "features", streams, show_progress=False)
    assert streams.asked == ["bad: other, third", "one: other"], "a file that is not whole is made again"
    assert (report.cached_recordings, report.cached_queries) == (1, 2)


def test_a_recording_that_changes_while_it_is_read_is_not_stored(tmp_path: Path) -> None:
    (tmp_path / "grows.wav").write_bytes(b"1")
    report = extract([("grows", tmp_path / "grows.wav")], [], tmp_path / "features", Counting(), show_progress=False)
    assert "changed while it was read" in dict(report.skipped)["grows"]
    assert not list((tmp_path / "features").rglob("*.npz"))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_shares_are_disjoint_leave_nothing_out_and_do_not_depend_on_what_is_there(tmp_path: Path, count: int) -> None:
    paths = [(f"{number:02}", tmp_path / f"{number:02}.wav") for number in range(9)]
    for vid, path in paths:
        path.write_bytes(vid.encode())
    extract(paths[:4], [], tmp_path / "features", Counting(), show_progress=False)
    encoders, total = [Counting() for _ in range(count)], ExtractionReport()
    for index, encoder in enumerate(encoders):
        total += extract(reversed(paths), ["a", "b"], tmp_path / "features", encoder, share=Share(index, count), show_progress=False)
    assert sorted(vid for encoder in encoders for vid in encoder.asked) == [vid for vid, _ in paths[4:]]
    assert all(int(vid) % count == index for index, encoder in enumerate(encoders) for vid in encoder.asked)
    assert total == ExtractionReport(recordings=5, queries=2, cached_recordings=4)


NAMES = [f"r{number}" for number in range(2)]


def stored(feature_dir: Path, audio_dir: Path) -> set[str]:
    """Recordings whose features are there; reads and compares them all."""
    recordings = find_recordings(audio_dir)
    cache = OwnFeatures(feature_dir, recordings=recordings)
    found = {vid for vid in recordings if cache.audio(vid)}
    for vid in found:
        assert torch.equal(cache.audio(vid)["bytes"].flatten(), torch.tensor(list(recordings[vid].read_bytes()[:64])).float())
    return found


def test_killed_at_every_moment_it_goes_on_where_it_was(tmp_path: Path) -> None:
    audio_dir, log = tmp_path / "audio", tmp_path / "log"
    audio_dir.mkdir()
    for number, name in enumerate(NAMES):
        (audio_dir / f"{name}.wav").write_bytes(bytes(range(number, number + 64)) * 50)
    status, encoded, num_moments = run_extract(audio_dir, tmp_path / "whole", log)
    assert (status, encoded) == (0, NAMES)
    assert num_moments >= 5 * len(NAMES)  # encoded, opened, half-written, renamed, removed
    features, num_stored = tmp_path / "features", set()
    for moment in range(num_moments):
        shutil.rmtree(features, ignore_errors=True)
        status, first, _ = run_extract(audio_dir, features, log, kill_at=moment)
        assert status == -signal.SIGKILL
        before = stored(features, audio_dir)
        num_stored.add(len(before))
        assert before <= set(first)
        assert len(set(first) - before) <= 1, "only the recording under way is lost"
        status, second, _ = run_extract(audio_dir, features, log)
        assert (status, second) == (0, [name for name in NAMES if name not in before])
        assert stored(features, audio_dir) == set(NAMES)
    assert num_stored == set(range(len(NAMES) + 1))
    assert run_extract(audio_dir, features, log)[:2] == (0, [])
