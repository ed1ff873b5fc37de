"""Extraction: encodes what is new, skips what is there, reports what cannot be read."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from qamdetr.errors import AudioError, DataError, QamDetrError
from qamdetr.features import cache_index
from qamdetr.features.cache import FeatureCache
from qamdetr.features.extract import ExtractionReport, Share, _lengths, extract
from qamdetr.types import Recording, TextFeatures


class CountingEncoder:
    """Encodes a file to its size; remembers what it was asked for; cannot read files that begin with `bad`."""

    name = "counting"

    def __init__(self, fingerprint: str = "v1") -> None:
        self.fingerprint = fingerprint
        self.asked: list[str] = []

    def encode_recording(self, path: str | Path) -> Recording:
        path = Path(path)
        self.asked.append(path.stem)
        if path.stem.startswith("bad"):
            raise AudioError(f"{path} is corrupt; convert it again.")
        return Recording(path.name, str(path), 2.0, {"size": torch.full((2, 1), float(path.stat().st_size))}, np.zeros((2, 1)))

    def encode_query(self, query: str) -> dict[str, TextFeatures]:
        self.asked.append(query)
        if query == "too long":
            raise QamDetrError("the query is too long; shorten it.")
        return {"size": TextFeatures(torch.full((1, 1), float(len(query))), ((0, len(query)),))}


@pytest.fixture
def recordings(tmp_path: Path) -> list[tuple[str, Path]]:
    for name in ("one", "bad", "two"):
        (tmp_path / f"{name}.wav").write_bytes(name.encode())
    return [(name, tmp_path / f"{name}.wav") for name in ("one", "bad", "two", "gone")]


def test_encodes_once_and_goes_on_past_what_it_cannot_read(recordings: list[tuple[str, Path]], tmp_path: Path) -> None:
    encoder = CountingEncoder()
    told: list[str] = []
    queries = ["a dog", "too long", "a cat", "a dog"]
    report = extract(recordings, queries, tmp_path / "features", encoder, on_skip=told.append, show_progress=False)
    assert (report.recordings, report.queries, report.cached_recordings, report.cached_queries) == (2, 2, 0, 0)
    assert [name for name, _ in report.skipped] == ["too long", "bad", "gone"]
    assert told == [reason for _, reason in report.skipped]
    assert told[0] == "query 'too long': the query is too long; shorten it."
    assert "gone.wav: No such file" in told[2]
    cache = FeatureCache(tmp_path / "features", "counting", dict(recordings))
    assert cache.audio("two")["size"].unique().tolist() == [3.0]
    assert cache.text("a cat")["size"].tokens.tolist() == [[5.0]]


def test_a_second_run_encodes_only_what_is_new(recordings: list[tuple[str, Path]], tmp_path: Path) -> None:
    extract(recordings, ["a dog"], tmp_path / "features", CountingEncoder(), show_progress=False)
    dict(recordings)["two"].write_bytes(b"changed")
    dict(recordings)["one"].touch()
    encoder = CountingEncoder()
    report = extract(recordings, ["a dog", "a cow"], tmp_path / "features", encoder, show_progress=False)
    assert encoder.asked == ["a cow", "bad", "two"]
    assert (report.cached_recordings, report.cached_queries) == (1, 1)


def test_touched_audio_is_hashed_once_and_then_known_again(
    recordings: list[tuple[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract(recordings[:1], [], tmp_path / "features", CountingEncoder(), show_progress=False)
    os.utime(dict(recordings)["one"], ns=(1, 1))
    extract(recordings[:1], [], tmp_path / "features", CountingEncoder(), show_progress=False)
    monkeypatch.setattr(cache_index, "content_key", lambda path: pytest.fail(f"{path} was hashed again"))
    assert extract(recordings[:1], [], tmp_path / "features", CountingEncoder(), show_progress=False).cached_recordings == 1


def test_damaged_and_foreign_features_are_made_again(recordings: list[tuple[str, Path]], tmp_path: Path) -> None:
    extract(recordings, ["a dog"], tmp_path / "features", CountingEncoder(), show_progress=False)
    one, _ = sorted((tmp_path / "features" / "counting" / "audio").iterdir())
    one.write_bytes(one.read_bytes()[:30])
    (tmp_path / "features" / "counting" / "encoder.json").write_text('{"fingerprint": "v2"}')
    encoder = CountingEncoder("v2")
    extract(recordings, ["a dog"], tmp_path / "features", encoder, show_progress=False)
    assert encoder.asked == ["a dog", "bad", "one", "two"]
    cache = FeatureCache(tmp_path / "features", "counting", dict(recordings))
    assert cache.audio("one")["size"].shape == (2, 1)
    assert cache.audio("two")["size"].shape == (2, 1)
    assert cache.text("a dog")["size"].tokens.shape == (1, 1)
    assert len(list((tmp_path / "features").rglob("*.safetensors"))) == 3


def test_a_flipped_byte_is_found_and_mended_where_that_is_asked_for(recordings: list[tuple[str, Path]], tmp_path: Path) -> None:
    extract(recordings[:1], ["a dog", "a cat"], tmp_path / "features", CountingEncoder(), show_progress=False)
    cache_dir = tmp_path / "features" / "counting"
    damaged = [*(cache_dir / "audio").iterdir(), sorted((cache_dir / "text").iterdir())[0]]
    for path in damaged:
        path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))
    encoder = CountingEncoder()
    extract(recordings[:1], ["a dog", "a cat"], tmp_path / "features", encoder, show_progress=False)
    assert encoder.asked == [], "headers are whole"
    report = extract(recordings[:1], ["a dog", "a cat"], tmp_path / "features", encoder, verify=True, show_progress=False)
    assert (report.recordings, report.queries, report.cached_recordings, report.cached_queries) == (1, 1, 0, 1)
    cache = FeatureCache(tmp_path / "features", "counting", dict(recordings))
    assert cache.audio("one")["size"].unique().tolist() == [3.0]
    assert {cache.text(query)["size"].tokens.item() for query in ("a dog", "a cat")} == {5.0}
    again = extract(recordings[:1], ["a dog", "a cat"], tmp_path / "features", encoder, verify=True, show_progress=False)
    assert (again.cached_recordings, again.cached_queries, len(encoder.asked)) == (1, 2, 2)


def test_features_that_cannot_be_stored_cost_one_recording(recordings: list[tuple[str, Path]], tmp_path: Path) -> None:
    encoder = CountingEncoder()
    dict(recordings)["one"].write_bytes(bytes(70_000))  # its size does not fit float16
    report = extract(recordings, [], tmp_path / "features", encoder, show_progress=False)
    assert report.recordings == 1
    assert "not finite in float16" in dict(report.skipped)["one"]


def test_audio_that_grows_while_it_is_encoded_is_skipped(recordings: list[tuple[str, Path]], tmp_path: Path) -> None:
    class Growing(CountingEncoder):
        def encode_recording(self, path: str | Path) -> Recording:
            Path(path).write_bytes(Path(path).read_bytes() + b"more")
            return super().encode_recording(path)

    report = extract(recordings[:1], [], tmp_path / "features", Growing(), show_progress=False)
    assert "changed while it was read" in dict(report.skipped)["one"]
    assert not list((tmp_path / "features").rglob("*.safetensors"))


def test_another_version_of_the_encoder_is_refused(recordings: list[tuple[str, Path]], tmp_path: Path) -> None:
    extract(recordings[:1], [], tmp_path / "features", CountingEncoder(), show_progress=False)
    with pytest.raises(DataError, match=r"holds features of encoder version v1, the encoder here is v2; delete that folder"):
        extract(recordings[:1], [], tmp_path / "features", CountingEncoder("v2"), show_progress=False)


@given(items=st.sets(st.text(max_size=3)), count=st.integers(1, 5))
def test_shares_are_disjoint_and_leave_nothing_out(items: set[str], count: int) -> None:
    shares = [Share(index, count).of(sorted(items)) for index in range(count)]
    assert sorted(item for share in shares for item in share) == sorted(items)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_share_does_not_depend_on_what_is_in_the_cache(tmp_path: Path) -> None:
    paths = [(f"{number:02}", tmp_path / f"{number:02}.wav") for number in range(9)]
    for vid, path in paths:
        path.write_bytes(vid.encode())
    extract(paths[:4], [], tmp_path / "features", CountingEncoder(), show_progress=False)
    encoders = [CountingEncoder() for _ in range(2)]
    reports = [
        extract(reversed(paths), ["a", "b"], tmp_path / "features", encoder, share=Share(index, 2), show_progress=False)
        for index, encoder in enumerate(encoders)
    ]
    assert [encoder.asked for encoder in encoders] == [["a", "04", "06", "08"], ["b", "05", "07"]]
    assert sum(reports, ExtractionReport()) == ExtractionReport(recordings=5, queries=2, cached_recordings=4)


def test_time_left_goes_by_seconds_of_audio(tmp_path: Path) -> None:
    for name, seconds in (("short", 2), ("long", 90)):
        soundfile.write(tmp_path / f"{name}.wav", np.zeros(8000 * seconds, dtype=np.int16), 8000)
    (tmp_path / "video.m4a").write_bytes(bytes(16_000 * 10))
    paths = {path.stem: path for path in (*tmp_path.iterdir(), tmp_path / "gone.wav")}
    lengths = _lengths(paths, {"short": 2.5})
    assert (lengths["short"], lengths["long"], lengths["gone"]) == (2.5, 90.0, 0.0)
    assert lengths["video"] == pytest.approx(10, rel=0.05)  # by its size, at the rate of the others
    assert _lengths({"video": paths["video"]}, {}) == {"video": 10.0}


def test_the_bar_counts_recordings_and_seconds(recordings: list[tuple[str, Path]], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for name, seconds in (("one", 2), ("two", 90)):
        soundfile.write(tmp_path / f"{name}.wav", np.zeros(8000 * seconds, dtype=np.int16), 8000)
    encoder = CountingEncoder()
    encoder.encode_recording = lambda path: Recording("", "", 2.0, {"size": torch.ones(2, 1)}, np.zeros((2, 1)))
    pair = [item for item in recordings if item[0] in ("one", "two")]
    extract(pair, [], tmp_path / "features", encoder)
    told = capsys.readouterr().err
    assert "recordings 0/2:   0%" in told
    assert "recordings 2/2: 100%" in told
    assert "92/92 s of audio" in told
    assert extract(pair, [], tmp_path / "other", encoder, share=Share(1, 2)).recordings == 1
    assert capsys.readouterr().err == ""
    assert extract(pair, [], tmp_path / "other", encoder, share=Share(0, 2)).recordings == 1
    assert "recordings (process 1 of 2) 1/1: 100%" in capsys.readouterr().err
