"""Features on disk: what goes in comes out; changed audio is not found; versions do not mix; damage and gaps give one clear line."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from stored_features import OwnFeatures, write_audio_file, write_text_file

from qamdetr.config import DataConfig, ModelConfig
from qamdetr.errors import ConfigError, DataError, QamDetrError
from qamdetr.features import store
from qamdetr.features.base import join_fingerprints
from qamdetr.features.store import FeatureStore, StreamFiles, require_features
from qamdetr.types import TextFeatures

half_values = st.floats(-60000, 60000, width=16)
VIDS, TEXTS = ["walk"], {"q1": "a dog"}


@settings(max_examples=30, deadline=None)
@given(
    vid=st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=200),
    rows=arrays(np.float16, array_shapes(min_dims=2, max_dims=2, max_side=6), elements=half_values),
    pooled=st.none() | arrays(np.float16, st.integers(1, 5), elements=half_values),
    offsets=st.lists(st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1)), max_size=6),
)
def test_any_features_come_back_as_they_went_in(vid: str, rows: np.ndarray, pooled: np.ndarray | None, offsets: list) -> None:
    values = torch.from_numpy(rows).float()
    with tempfile.TemporaryDirectory() as folder:
        own = OwnFeatures(Path(folder))
        own.write_audio(vid, {"main": values})
        own.write_text(vid, {"main": TextFeatures(values, tuple(offsets), None if pooled is None else torch.from_numpy(pooled).float())})
        read, text = OwnFeatures(Path(folder)).audio(vid)["main"], OwnFeatures(Path(folder)).text(vid)["main"]
        assert own.files("main", "audio").num_rows(vid) == len(rows)
    assert torch.equal(read, values)
    assert torch.equal(text.tokens, values)
    assert text.offsets == tuple(offsets)
    assert text.pooled is pooled is None or np.array_equal(text.pooled.numpy(), pooled.astype(np.float32))


def test_without_audio_the_only_features_of_a_name_are_taken(tmp_path: Path) -> None:
    vids = ("walk", "walk.1", "a/b [x]*", "caf\udce9", "犬" * 90, "犬" * 91)
    for vid in vids:
        OwnFeatures(tmp_path).write_audio(vid, {"pocket": torch.full((2, 1), float(len(vid)))})
    files = OwnFeatures(tmp_path).files("pocket", "audio")
    assert [files.audio(vid)[0].item() for vid in vids] == [4, 6, 8, 4, 90, 91]
    assert files.missing(["lost", "walk", "gone", "lost"]) == ["lost", "gone"]


def test_only_the_audio_that_was_encoded_is_found(tmp_path: Path) -> None:
    audio = tmp_path / "walk.wav"
    audio.write_bytes(bytes(500_000))
    own = OwnFeatures(tmp_path, recordings={"walk": audio})
    own.write_audio("walk", {"pocket": torch.ones(2, 1)})
    files, status = own.files("pocket", "audio"), audio.stat()
    os.utime(audio, ns=(1, 1))
    assert files.missing(["walk"]) == [], "only the time has changed"
    audio.write_bytes(bytes(100_000) + b"1" + bytes(399_999))
    os.utime(audio, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert files.missing(["walk"]) == ["walk"], "size and time are the same, a byte is not"
    audio.unlink()
    with pytest.raises(DataError, match="No features of the recording 'walk'"):
        files.audio("walk")


def test_two_sets_that_share_names_keep_their_own_features(tmp_path: Path) -> None:
    sets = [tmp_path / "train.wav", tmp_path / "val.wav"]
    for value, path in enumerate(sets):
        path.write_text(path.name)
        OwnFeatures(tmp_path, recordings={"walk": path}).write_audio("walk", {"pocket": torch.full((2, 1), float(value))})
    for value, path in enumerate(sets):
        assert OwnFeatures(tmp_path, recordings={"walk": path}).audio("walk")["pocket"].unique().tolist() == [value]
    with pytest.raises(DataError, match="2 versions of 'walk'"):
        OwnFeatures(tmp_path).audio("walk")


def test_what_cannot_be_stored_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(QamDetrError, match="not finite in float16; look at the encoder's output"):
        OwnFeatures(tmp_path).write_audio("loud", {"pocket": torch.tensor([[float("nan")]])})
    (tmp_path / "other-v1").write_text("a file where the folder should be")
    with pytest.raises(DataError, match="Cannot write"):
        OwnFeatures(tmp_path).write_audio("walk", {"other": torch.ones(2, 1)})


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"last_hidden_state": np.zeros((2, 3), np.float32)}, r"no array `features`, only last_hidden_state; name the folder"),
        ({"features": np.zeros((1, 2, 3), np.float32)}, r"shape \[1, 2, 3\].*shape \[rows, 3\]"),
        ({"features": np.zeros((0, 3), np.float32)}, r"shape \[0, 3\].*at least one row"),
        ({"features": np.zeros((2, 3), np.int64)}, r"int64.*floating point"),
        ({"features": np.zeros((2, 4), np.float32)}, r"shape \[2, 4\]; it must be .*shape \[rows, 3\].*correct the stream's width"),
        ({"features": np.array([[object()] * 3])}, r"cannot be read|object"),
        ({"features": np.array([[0, 1e300, 0]])}, r"`features` holds NaN or infinite values"),
        (b"\x93NUMPY not a zip", r"cannot be read .*; delete it and download it"),
        (None, "No features of the recording 'a' in .*; download it, or correct the folder"),
    ],
)
def test_a_file_with_other_contents_is_told_in_one_line(tmp_path: Path, content: dict | bytes | None, told: str) -> None:
    if isinstance(content, dict):
        np.savez(tmp_path / "a.npz", **content)
    elif content is not None:
        (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match=told) as caught:
        StreamFiles(tmp_path, "audio", 3).audio("a")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_flipped_byte_anywhere_is_either_harmless_or_told(tmp_path: Path, save) -> None:
    rows = np.random.default_rng(0).standard_normal((3, 2)).astype(np.float32)
    save(tmp_path / "a.npz", features=rows)
    whole, files, told = (tmp_path / "a.npz").read_bytes(), StreamFiles(tmp_path, "audio", 2), 0
    for position in range(len(whole)):
        (tmp_path / "a.npz").write_bytes(whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :])
        try:
            assert torch.equal(files.audio("a"), torch.from_numpy(rows))
        except DataError as error:
            told += 1
            assert "\n" not in str(error)
    assert told > rows.nbytes, "at the least every byte of the numbers"


def model(audio: dict[str, int], text: dict[str, int]) -> ModelConfig:
    return ModelConfig(audio_streams=audio, text_streams=text)


def test_each_stream_comes_from_its_own_place_in_the_model_s_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    public = torch.from_numpy(write_audio_file(tmp_path / "clap", "walk", 13))
    tokens = torch.from_numpy(write_text_file(tmp_path / "clap_text", "q1", 3))
    own = OwnFeatures(tmp_path / "own")
    own.write_audio("walk", {"loud": torch.ones(14, 2), "unread": torch.ones(14, 9)})
    own.write_text("a dog", {"words": TextFeatures(torch.ones(2, 4), ((0, 1), (2, 5)), torch.ones(3))})
    data = DataConfig(
        feature_dir=str(tmp_path / "own"),
        audio_features={"clap": str(tmp_path / "clap")},
        text_features={"clap": str(tmp_path / "clap_text")},
    )
    features_model = model({"clap": 6, "loud": 2}, {"words": 4, "clap": 6})
    features = FeatureStore(features_model, data)
    require_features([(features, VIDS, TEXTS)])
    assert features.num_clips("walk") == 13, "cut to the shortest"
    assert list(features.audio("walk")) == ["clap", "loud"]
    assert torch.equal(features.audio("walk")["clap"], public)
    assert features.audio("walk")["loud"].shape == (13, 2)
    text = features.text("a dog", "q1")
    assert (list(text), text["clap"].offsets, text["clap"].pooled) == (["words", "clap"], (), None)
    assert torch.equal(text["clap"].tokens, tokens)
    own_part, public_part = features.encoder_version(VIDS, TEXTS).split("+")
    assert own_part == join_fingerprints({"loud": "v1", "words": "v1"})
    assert public_part.startswith("public-")
    content = features.content(VIDS, TEXTS)
    write_audio_file(tmp_path / "clap", "walk", 13, seed=1)
    again = FeatureStore(features_model, data)
    assert again.content(VIDS, TEXTS) != content
    assert not again.encoder_version(VIDS, TEXTS).endswith(public_part)
    own.write_audio("walk", {"loud": torch.ones(20, 2)})
    with pytest.raises(DataError, match=r"streams of recording 'walk' differ by more than 2 clips \(clap 13, loud 20\)"):
        FeatureStore(features_model, data).audio("walk")
    assert features.audio("walk")["loud"].shape == (13, 2), "read once, while memory lasts"
    monkeypatch.setattr(store, "KEPT_BYTES", 0)
    forgetful = FeatureStore(features_model, data)
    forgetful.text("a dog", "q1")
    write_text_file(tmp_path / "clap_text", "q1", 4)
    assert len(forgetful.text("a dog", "q1")["clap"].tokens) == 4


def test_gaps_are_told_for_all_sets_at_once_with_the_command_that_fills_them(tmp_path: Path) -> None:
    own = OwnFeatures(tmp_path / "own", models={"clap": "/m/clap"}, dtype="bfloat16")
    own.write_audio("walk", {"clap": torch.ones(2, 3)})
    data = DataConfig(feature_dir=str(tmp_path / "own"), combo="B", text_features={"words": str(tmp_path / "nowhere")})
    features = FeatureStore(model({"clap": 3}, {"words": 4, "clap": 3}), data)
    assert features.settings == ({"clap": "/m/clap"}, "bfloat16")
    with pytest.raises(DataError) as caught:
        require_features([(features, ["walk", "gone"], {"q1": "a dog"}), (features, ["lost"], {"q2": "rain"})])
    own_line, public_line = str(caught.value).split("; ")
    assert own_line == (
        f"{tmp_path}/own lacks features of 2 recordings ('gone', 'lost') and 2 queries ('a dog', 'rain'): run `python -m qamdetr extract "
        f"--combo B --manifest JSONL --feature-dir {tmp_path}/own --dtype bfloat16 --encoder clap=/m/clap`"
    )
    assert public_line == (
        f"data.text_features.words ({tmp_path}/nowhere, which is no folder) lacks features of 2 queries ('q1', 'q2'): "
        "download them or correct the folder."
    )
    with pytest.raises(ConfigError, match=r"data\.audio_features names 'x'; model\.audio_streams has only clap\."):
        FeatureStore(model({"clap": 3}, {"clap": 3}), DataConfig(audio_features={"x": "y"}))


def test_versions_never_mix(tmp_path: Path) -> None:
    for version, dtype in (("aaaa", "float32"), ("bbbb", "bfloat16")):
        own = OwnFeatures(tmp_path, version, models={"clap": ""}, dtype=dtype)
        own.write_audio("walk", {"clap": torch.full((2, 1), float(dtype == "bfloat16"))})
        own.write_text("a dog", {"clap": TextFeatures(torch.ones(1, 1), ())})
    streams = model({"clap": 1}, {"clap": 1})
    for dtype in ("float32", "bfloat16"):
        features = FeatureStore(streams, DataConfig(feature_dir=str(tmp_path), encoder_dtype=dtype))
        assert features.audio("walk")["clap"].unique().tolist() == [float(dtype == "bfloat16")]
    OwnFeatures(tmp_path, "cccc", models={"clap": ""}, dtype="float32")
    with pytest.raises(DataError, match=r"holds 3 versions of stream 'clap' \(clap-aaaa, clap-bbbb, clap-cccc\); delete"):
        FeatureStore(streams, DataConfig(feature_dir=str(tmp_path)))
    OwnFeatures(tmp_path / "mixed", models={"clap": ""}, dtype="float32")
    OwnFeatures(tmp_path / "mixed", models={"words": ""}, dtype="bfloat16")
    with pytest.raises(DataError, match=r"of different types \(clap float32, words bfloat16\); extract all with one --dtype"):
        _ = FeatureStore(model({"clap": 3}, {"words": 3}), DataConfig(feature_dir=str(tmp_path / "mixed"))).settings
