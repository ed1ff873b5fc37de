"""The feature cache: what goes in comes out; changed audio is not found; damage and gaps give one clear line."""

from __future__ import annotations

import json
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from safetensors.torch import save_file

from qamdetr.errors import AudioError, DataError
from qamdetr.features import cache_index, feature_files
from qamdetr.features.audio_key import content_key, quick_key
from qamdetr.features.cache import FeatureCache, count_names
from qamdetr.features.encoder_record import EncoderRecord
from qamdetr.types import TextFeatures

half_values = st.floats(-60000, 60000, width=16)


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
    vids = ("walk", "walk.1", "a/b [x]*", "caf\udce9", "犬" * 90, "犬" * 91)
    for vid in vids:
        cache.write_audio(vid, {"pocket": torch.full((2, 1), float(len(vid)))})
    fresh = FeatureCache(tmp_path, "pocket")
    assert [fresh.audio(vid)["pocket"][0].item() for vid in vids] == [4, 6, 8, 4, 90, 91]


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
    with pytest.raises(DataError, match=r"walk.*cannot be read .*extract --combo pocket .* --verify`"):
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


def test_the_key_sees_a_change_of_any_byte(tmp_path: Path) -> None:
    content = bytearray(3_000_000)
    path = make_audio(tmp_path, content=bytes(content))
    keys, quick_keys = {content_key(path)}, {quick_key(path)}
    for position in (0, 700_000, 1_500_000, 2_200_000, 2_999_999):
        content[position] ^= 1
        path.write_bytes(content)
        keys.add(content_key(path))
        quick_keys.add(quick_key(path))
    assert len(keys) == 6
    assert len(quick_keys) == 4  # it samples beginning, middle and end


def test_a_disk_that_refuses_gives_one_line(tmp_path: Path) -> None:
    (tmp_path / "pocket").write_text("a file where the folder should be")
    with pytest.raises(DataError, match="Cannot write"):
        FeatureCache(tmp_path, "pocket").write_audio("walk", {"pocket": torch.ones(2, 1)})


@settings(max_examples=40, deadline=None)
@given(
    vid=st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=200),
    streams=st.dictionaries(
        st.from_regex(r"[a-z_0-9]{1,12}", fullmatch=True),
        arrays(np.float16, st.tuples(st.just(7), st.integers(1, 5)), elements=half_values),
        min_size=1,
        max_size=4,
    ),
)
def test_any_audio_features_come_back_as_they_went_in(vid: str, streams: dict[str, np.ndarray]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        FeatureCache(Path(folder), "A").write_audio(vid, {name: torch.from_numpy(rows).float() for name, rows in streams.items()})
        cache = FeatureCache(Path(folder), "A")
        assert cache.has_audio(vid)
        assert cache.num_clips(vid) == 7
        read = cache.audio(vid)
        assert list(read) == list(streams)
        for name, rows in streams.items():
            assert np.array_equal(read[name].numpy(), rows.astype(np.float32))


@settings(max_examples=40, deadline=None)
@given(
    query=st.text(st.characters(codec="utf-8"), max_size=100),
    tokens=arrays(np.float16, array_shapes(min_dims=2, max_dims=2, max_side=6), elements=half_values),
    pooled=st.none() | arrays(np.float16, st.integers(1, 5), elements=half_values),
    offsets=st.lists(st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1)), max_size=6),
)
def test_any_text_features_come_back_as_they_went_in(
    query: str, tokens: np.ndarray, pooled: np.ndarray | None, offsets: list[tuple[int, int]]
) -> None:
    given_pooled = None if pooled is None else torch.from_numpy(pooled).float()
    with tempfile.TemporaryDirectory() as folder:
        features = TextFeatures(torch.from_numpy(tokens).float(), tuple(offsets), given_pooled)
        FeatureCache(Path(folder), "A").write_text(query, {"main": features})
        read = FeatureCache(Path(folder), "A").text(query)["main"]
        assert torch.equal(read.tokens, features.tokens)
        assert read.offsets == features.offsets
        assert (read.pooled is None) == (given_pooled is None)
        assert given_pooled is None or torch.equal(read.pooled, given_pooled)


def make_wav(path: Path, value: int = 0) -> Path:
    """Ten seconds of noise with one sample, away from where a quick look samples the file, set to `value`."""
    samples = np.random.default_rng(0).integers(-9000, 9000, 160_000, dtype=np.int16)
    samples[40_000] = value
    soundfile.write(path, samples, 16_000, subtype="PCM_16")
    return path


@pytest.fixture
def stored(tmp_path: Path) -> tuple[Path, Path]:
    """A recording whose features are stored: its audio, and the file of its features."""
    audio = make_wav(tmp_path / "walk.wav")
    cache = FeatureCache(tmp_path, "pocket", {"walk": audio})
    cache.claim("v1")
    cache.write_audio("walk", {"pocket": torch.arange(20.0).reshape(10, 2), "levels": torch.ones(10, 1)})
    (features,) = (tmp_path / "pocket" / "audio").iterdir()
    return audio, features


def reopened(tmp_path: Path, audio: Path) -> FeatureCache:
    return FeatureCache(tmp_path, "pocket", {"walk": audio})


def test_an_edit_in_the_middle_of_a_wav_is_seen(stored: tuple[Path, Path], tmp_path: Path) -> None:
    audio, _ = stored
    size, sample = audio.stat().st_size, quick_key(audio)
    make_wav(audio, value=1)
    assert (audio.stat().st_size, quick_key(audio)) == (size, sample)
    assert not reopened(tmp_path, audio).has_audio("walk")
    with pytest.raises(DataError, match="No features of the recording 'walk'"):
        reopened(tmp_path, audio).audio("walk")
    make_wav(audio)
    assert reopened(tmp_path, audio).has_audio("walk")


def test_audio_that_looks_as_it_did_is_not_hashed(stored: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    audio, _ = stored

    def hashed(path: Path) -> str:
        raise AssertionError(f"{path} was hashed")

    monkeypatch.setattr(cache_index, "content_key", hashed)
    assert reopened(tmp_path, audio).has_audio("walk")
    os.utime(audio, ns=(1, 1))
    with pytest.raises(AssertionError, match="was hashed"):
        reopened(tmp_path, audio).has_audio("walk")


def test_an_edit_whose_time_was_set_back_is_seen(stored: tuple[Path, Path], tmp_path: Path) -> None:
    audio, _ = stored
    status, sample = audio.stat(), quick_key(audio)
    make_wav(audio, value=1)
    os.utime(audio, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (audio.stat().st_size, audio.stat().st_mtime_ns, quick_key(audio)) == (status.st_size, status.st_mtime_ns, sample)
    assert not reopened(tmp_path, audio).has_audio("walk")


def test_a_stamp_without_the_time_of_change_costs_a_hash_and_no_features(
    stored: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Caches of earlier versions, and of other machines, whose audio has the same times but for this one."""
    audio, features = stored
    with feature_files.FeatureFile(features) as file:
        tensors, facts = file.contents()
    del facts["audio_changed_ns"]
    features.write_bytes(feature_files.save(tensors, facts))
    hashed = []
    monkeypatch.setattr(cache_index, "content_key", lambda path: hashed.append(path) or content_key(path))
    cache = reopened(tmp_path, audio)
    assert cache.has_audio("walk")
    assert cache.audio("walk")["pocket"].shape == (10, 2)
    assert hashed == [audio]
    cache.note_stamp("walk")
    assert reopened(tmp_path, audio).has_audio("walk")
    assert hashed == [audio]


def test_a_cache_that_cannot_be_written_is_still_read(stored: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, content: bytes) -> None:
        raise OSError(30, "Read-only file system", path)

    audio, features = stored
    content = features.read_bytes()
    os.utime(audio, ns=(1, 1))
    monkeypatch.setattr(feature_files, "write_whole", refuse)
    cache = reopened(tmp_path, audio)
    assert cache.has_audio("walk")
    cache.note_stamp("walk")
    assert cache.has_audio("walk")
    assert features.read_bytes() == content


def test_touched_audio_is_recognised_and_its_new_time_noted(
    stored: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audio, features = stored
    checksum, before = reopened(tmp_path, audio).audio_checksum("walk"), reopened(tmp_path, audio).audio("walk")
    os.utime(audio, ns=(1, 1))
    cache = reopened(tmp_path, audio)
    assert cache.has_audio("walk")
    cache.note_stamp("walk")
    monkeypatch.setattr(cache_index, "content_key", lambda path: pytest.fail(f"{path} was hashed again"))
    fresh = reopened(tmp_path, audio)
    assert fresh.has_audio("walk")
    assert fresh.audio_checksum("walk") == checksum
    assert all(torch.equal(rows, before[name]) for name, rows in fresh.audio("walk").items())
    assert list(features.parent.iterdir()) == [features]


def test_other_audio_of_the_same_name_size_and_time_is_told_apart(stored: tuple[Path, Path], tmp_path: Path) -> None:
    audio, _ = stored
    other = tmp_path / "other" / "walk.wav"
    other.parent.mkdir()
    soundfile.write(other, np.zeros(160_000, dtype=np.int16), 16_000, subtype="PCM_16")
    times = audio.stat().st_mtime_ns
    os.utime(other, ns=(times, times))
    assert other.stat().st_size == audio.stat().st_size
    assert not reopened(tmp_path, other).has_audio("walk")


def test_audio_that_changes_while_it_is_encoded_is_refused(stored: tuple[Path, Path], tmp_path: Path) -> None:
    audio, features = stored
    cache = reopened(tmp_path, audio)
    identity = cache.identify("walk")
    make_wav(audio, value=1)
    with pytest.raises(AudioError, match="changed while it was read"):
        cache.write_audio("walk", {"pocket": torch.ones(10, 2)}, identity)
    assert list(features.parent.iterdir()) == [features]


@pytest.mark.parametrize("part", [0, 8, 60, -1, -30])
def test_a_flipped_bit_never_goes_unseen(part: int, stored: tuple[Path, Path], tmp_path: Path) -> None:
    audio, features = stored
    content = bytearray(features.read_bytes())
    before = reopened(tmp_path, audio).audio("walk")
    content[part] ^= 4
    features.write_bytes(content)
    cache = reopened(tmp_path, audio)
    try:
        read = cache.audio("walk")
    except DataError as error:
        command = f"python -m qamdetr extract --combo pocket --manifest JSONL --feature-dir {tmp_path} --verify"
        assert str(error).endswith(f"; run `{command}`, which makes damaged files again.")
        assert not reopened(tmp_path, audio).has_audio("walk", verify=True)
    else:
        assert part > 0, "values were damaged"
        assert cache.has_audio("walk", verify=True) == cache.has_audio("walk")
        assert all(torch.equal(rows, before[name]) for name, rows in read.items())


def test_files_of_other_encoders_are_not_mixed_in(stored: tuple[Path, Path], tmp_path: Path) -> None:
    audio, features = stored
    queries = FeatureCache(tmp_path, "pocket")
    queries.write_text("a dog", {"pocket": TextFeatures(torch.ones(1, 1), ())})
    (tmp_path / "pocket" / "encoder.json").write_text(json.dumps({"fingerprint": "v2"}))
    cache = reopened(tmp_path, audio)
    assert not cache.has_audio("walk")
    assert not cache.has_text("a dog")
    with pytest.raises(DataError, match=rf"{features.name} holds features of encoder version v1, .* are of v2; run `"):
        cache.audio("walk")
    with pytest.raises(DataError, match=r"encoder version v1"):
        cache.text("a dog")


def test_files_from_before_headers_held_facts_are_read(tmp_path: Path) -> None:
    audio = make_wav(tmp_path / "walk.wav")
    folder = tmp_path / "pocket" / "audio"
    folder.mkdir(parents=True)
    path = folder / f"walk.{content_key(audio)}.safetensors"
    save_file({"pocket": torch.ones(10, 2).half()}, path, {"vid": "walk", "streams": json.dumps(["pocket"])})
    content = path.read_bytes()
    cache = reopened(tmp_path, audio)
    cache.claim("v1")
    assert cache.has_audio("walk")
    cache.note_stamp("walk")
    assert cache.audio("walk")["pocket"].shape == (10, 2)
    assert cache.audio_checksum("walk") == quick_key(path)
    assert path.read_bytes() == content
    save_file({"pocket": torch.tensor([[float("nan")]]).half()}, path, {"vid": "walk", "streams": json.dumps(["pocket"])})
    with pytest.raises(DataError, match=r"walk\..*'pocket' holds NaN or infinite values; run .* --verify`"):
        reopened(tmp_path, audio).audio("walk")


def test_the_checksum_of_features_tells_values_not_times(tmp_path: Path) -> None:
    audio = make_wav(tmp_path / "walk.wav")
    checksums = []
    for number, value in enumerate((1.0, 1.0, 2.0)):
        os.utime(audio, ns=(number + 1, number + 1))
        cache = FeatureCache(tmp_path / str(number), "pocket", {"walk": audio})
        cache.write_audio("walk", {"pocket": torch.full((3, 2), value)})
        cache.write_text("a dog", {"pocket": TextFeatures(torch.full((3, 2), value), ())})
        checksums.append((cache.audio_checksum("walk"), cache.text_checksum("a dog")))
    assert checksums[0] == checksums[1]
    assert not set(checksums[0]) & set(checksums[2])


def test_of_many_claims_at_once_one_version_wins(tmp_path: Path) -> None:
    def claim(version: str) -> str:
        try:
            FeatureCache(folder, "pocket").claim(version)
        except DataError:
            return ""
        return version

    for number in range(20):
        folder = tmp_path / str(number)
        with ThreadPoolExecutor(6) as pool:
            winners = list(pool.map(claim, ["v1", "v2", "v3", "v1", "v2", "v3"]))
        owner = FeatureCache(folder, "pocket").fingerprint
        assert {winner for winner in winners if winner} == {owner}
        assert winners.count(owner) == 2


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"fingerprint": "v1", "models": 5}'])
def test_a_damaged_encoder_json_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "pocket").mkdir()
    (tmp_path / "pocket" / "encoder.json").write_text(content)
    with pytest.raises(DataError, match=r"encoder\.json cannot be read .* delete the folder"):
        FeatureCache(tmp_path, "pocket").claim("v1")


def test_the_cache_notes_what_made_it(tmp_path: Path) -> None:
    models = {"laion_clap": "my/clap", "ms_clap": ""}
    FeatureCache(tmp_path, "B").claim("v1", models=models, dtype="bfloat16")
    noted = EncoderRecord("v1", models, "bfloat16")
    assert FeatureCache(tmp_path, "B").made_by == noted
    FeatureCache(tmp_path, "B").claim("v1")
    assert FeatureCache(tmp_path, "B").made_by == noted, "who does not know it leaves it as it is"
    with pytest.raises(
        DataError, match=r"version v1 \(bfloat16, laion_clap=my/clap, ms_clap=default\), the encoder here is v2 \(float32\)"
    ):
        FeatureCache(tmp_path, "B").claim("v2", dtype="float32")
    moved = {**models, "laion_clap": "elsewhere"}
    cache = FeatureCache(tmp_path, "B")
    cache.claim("v1", models=moved, dtype="bfloat16")
    assert cache.made_by == FeatureCache(tmp_path, "B").made_by == EncoderRecord("v1", moved, "bfloat16")


def test_a_cache_of_an_earlier_version_is_read_and_its_encoders_are_noted(tmp_path: Path) -> None:
    (tmp_path / "B").mkdir()
    (tmp_path / "B" / "encoder.json").write_text('{"fingerprint": "v1"}')
    assert FeatureCache(tmp_path, "B").made_by == EncoderRecord("v1")
    FeatureCache(tmp_path, "B").claim("v1", models={"ms_clap": ""}, dtype="float32")
    assert FeatureCache(tmp_path, "B").made_by == EncoderRecord("v1", {"ms_clap": ""}, "float32")
