"""The feature cache: what goes in comes out; changed audio is not found; damage and gaps give one clear line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qamdetr.errors import DataError
from qamdetr.features.cache import FeatureCache, content_key, count_names, list_recordings
from qamdetr.types import TextFeatures


def make_audio(folder: Path, vid: str = "walk", content: bytes = b"sound") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{vid}.flac"
    path.write_bytes(content)
    return path


def test_audio_comes_back_in_order_and_to_half_precision(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, "pocket", {"walk": make_audio(tmp_path / "audio")})
    streams = {"pocket": torch.randn(7, 5), "levels": 30 * torch.randn(7, 2)}
    cache.write_audio("walk", streams)
    read = cache.audio("walk")
    assert list(read) == ["pocket", "levels"]
    assert all(read[name].dtype == torch.float32 for name in read)
    assert all(torch.allclose(read[name], streams[name], rtol=2**-10, atol=1e-6) for name in streams)
    assert cache.num_clips("walk") == 7


def test_text_comes_back_with_offsets_and_pooled(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, "B")
    features = {
        "main": TextFeatures(torch.randn(3, 4), ((0, 0), (0, 1), (2, 5)), torch.randn(4)),
        "other": TextFeatures(torch.randn(2, 6), ()),
    }
    cache.write_text("a dog", features)
    read = cache.text("a dog")
    assert list(read) == ["main", "other"]
    assert read["main"].offsets == ((0, 0), (0, 1), (2, 5))
    assert torch.allclose(read["main"].pooled, features["main"].pooled, rtol=2**-10, atol=1e-4)
    assert read["other"].pooled is None
    assert read["other"].offsets == ()


def test_chosen_streams_come_in_the_order_asked_for(tmp_path: Path) -> None:
    FeatureCache(tmp_path, "A").write_audio("x", {"one": torch.ones(2, 1), "two": torch.ones(2, 2), "three": torch.ones(2, 3)})
    assert list(FeatureCache(tmp_path, "A", audio_streams=("three", "one")).audio("x")) == ["three", "one"]
    with pytest.raises(DataError, match="no stream 'four', only one, two, three"):
        FeatureCache(tmp_path, "A", audio_streams=("four",)).audio("x")


def test_changed_audio_counts_as_not_extracted(tmp_path: Path) -> None:
    audio = make_audio(tmp_path / "audio")
    FeatureCache(tmp_path, "pocket", {"walk": audio}).write_audio("walk", {"pocket": torch.ones(2, 1)})
    assert FeatureCache(tmp_path, "pocket", {"walk": audio}).has_audio("walk")
    audio.write_bytes(b"other")
    assert not FeatureCache(tmp_path, "pocket", {"walk": audio}).has_audio("walk")


def test_two_sets_that_share_names_keep_their_own_features(tmp_path: Path) -> None:
    sets = [make_audio(tmp_path / name, content=name.encode()) for name in ("train", "val")]
    for value, path in enumerate(sets):
        FeatureCache(tmp_path, "pocket", {"walk": path}).write_audio("walk", {"pocket": torch.full((2, 1), float(value))})
    for value, path in enumerate(sets):
        assert FeatureCache(tmp_path, "pocket", {"walk": path}).audio("walk")["pocket"].unique().tolist() == [value]
    with pytest.raises(DataError, match="2 versions of 'walk'"):
        FeatureCache(tmp_path, "pocket").audio("walk")


def test_without_audio_the_only_features_of_a_name_are_taken(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, "pocket")
    for vid in ("walk", "walk.1", "a/b [x]*"):
        cache.write_audio(vid, {"pocket": torch.full((2, 1), float(len(vid)))})
    fresh = FeatureCache(tmp_path, "pocket")
    assert [fresh.audio(vid)["pocket"][0].item() for vid in ("walk", "walk.1", "a/b [x]*")] == [4, 6, 8]


def test_what_is_missing_comes_once_and_in_order(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, "pocket")
    cache.write_audio("here", {"pocket": torch.ones(2, 1)})
    cache.write_text("a cat", {"pocket": TextFeatures(torch.ones(1, 1), ())})
    assert cache.missing_audio(["lost", "here", "gone", "lost"]) == ["lost", "gone"]
    assert cache.missing_text(["a dog", "a cat", "a dog"]) == ["a dog"]


@pytest.mark.parametrize(
    ("names", "noun", "text"),
    [
        ([], "recording", ""),
        (["a"], "recording", "1 recording ('a')"),
        (["a dog", "rain"], "query", "2 queries ('a dog', 'rain')"),
        ([str(i) for i in range(12)], "query", "12 queries ('0', '1', '2', '3', '4', '5', '6', '7', '8', '9', …)"),
    ],
)
def test_names_are_counted_whole_and_shown_in_part(names: list[str], noun: str, text: str) -> None:
    assert count_names(names, noun) == text


def test_values_that_are_not_finite_are_refused_both_ways(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, "pocket")
    with pytest.raises(DataError, match="not finite"):
        cache.write_audio("loud", {"pocket": torch.tensor([[70000.0]])})  # float16 ends at 65504
    with pytest.raises(DataError, match="not finite"):
        cache.write_audio("broken", {"pocket": torch.tensor([[float("nan")]])})
    assert not cache.has_audio("loud")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, "pocket")
    cache.write_audio("walk", {"pocket": torch.ones(2, 1)})
    (path,) = (tmp_path / "pocket" / "audio").iterdir()
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(DataError, match=r"walk.*delete it"):
        cache.audio("walk")


def test_streams_of_different_lengths_are_refused(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, "A")
    cache.write_audio("walk", {"one": torch.ones(3, 1), "two": torch.ones(2, 1)})
    with pytest.raises(DataError, match="differ in clips"):
        cache.audio("walk")


def test_two_versions_of_an_encoder_never_mix(tmp_path: Path) -> None:
    FeatureCache(tmp_path, "pocket").claim("aaaa")
    FeatureCache(tmp_path, "pocket").claim("aaaa")
    with pytest.raises(DataError, match=r"version aaaa.*bbbb.*delete"):
        FeatureCache(tmp_path, "pocket").claim("bbbb")
    assert FeatureCache(tmp_path, "pocket").fingerprint == "aaaa"


def test_the_key_sees_a_change_anywhere_it_samples(tmp_path: Path) -> None:
    content = bytearray(400_000)
    path = make_audio(tmp_path, content=bytes(content))
    keys = {content_key(path)}
    for position in (0, 210_000, 399_999):
        content[position] ^= 1
        path.write_bytes(content)
        keys.add(content_key(path))
    assert len(keys) == 4


def test_recordings_are_listed_by_stem(tmp_path: Path) -> None:
    for name in ("a.flac", "b.1.wav", ".hidden"):
        (tmp_path / name).write_bytes(b"")
    assert list_recordings(tmp_path) == {"a": tmp_path / "a.flac", "b.1": tmp_path / "b.1.wav"}
    assert list_recordings(tmp_path / "nowhere") == {}


def test_a_disk_that_refuses_gives_one_line(tmp_path: Path) -> None:
    (tmp_path / "pocket").write_text("a file where the folder should be")
    with pytest.raises(DataError, match="Cannot write"):
        FeatureCache(tmp_path, "pocket").write_audio("walk", {"pocket": torch.ones(2, 1)})
