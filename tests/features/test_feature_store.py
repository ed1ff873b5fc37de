"""Each stream from its own place: order, lengths, gaps and versions of public files and the project's own cache together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from public_files import write_audio_file, write_text_file

from qamdetr.config import DataConfig, ModelConfig
from qamdetr.data.manifest import QueryEntry
from qamdetr.errors import ConfigError, DataError
from qamdetr.features.cache import FeatureCache
from qamdetr.features.encoder_record import EncoderRecord
from qamdetr.features.feature_store import MAX_DIFFERENCE_CLIPS, FeatureStore, require_features
from qamdetr.types import TextFeatures

MIXED_AUDIO = {"laion": 4, "ms": 6, "wavlm": 3}
MIXED_TEXT = {"laion": 4, "ms": 6}


def entry(qid: str = "1", vid: str = "walk", query: str = "a dog") -> QueryEntry:
    return QueryEntry(qid, query, vid, 10.0, ((1.0, 2.0),))


def mixed_store(
    folder: Path, cached_clips: int = 10, public_clips: int = 10, widths: Mapping[str, int] | None = None, fill: bool = True
) -> FeatureStore:
    """`laion` and `wavlm` in the cache, `ms` in public files."""
    cache = FeatureCache(folder, "A")
    if fill:
        cache.write_audio("walk", {"wavlm": torch.randn(cached_clips, 3), "laion": torch.randn(cached_clips, 4)})
        cache.write_text("a dog", {"laion": TextFeatures(torch.randn(2, 4), ((0, 1), (2, 5)), torch.randn(4))})
        write_audio_file(folder / "clap", "walk", public_clips)
        write_text_file(folder / "clap_text", "1", 4)
    model = ModelConfig(audio_streams={**MIXED_AUDIO, **(widths or {})}, text_streams=MIXED_TEXT)
    data = DataConfig(
        feature_dir=str(folder), combo="A", audio_features={"ms": str(folder / "clap")}, text_features={"ms": str(folder / "clap_text")}
    )
    return FeatureStore(model, data)


def public_store(folder: Path) -> FeatureStore:
    """One public stream of each kind; the cache that the configuration names does not exist."""
    model = ModelConfig(audio_streams={"ms": 6}, text_streams={"ms": 6})
    data = DataConfig(
        feature_dir=str(folder / "no cache"),
        audio_features={"ms": str(folder / "clap")},
        text_features={"ms": str(folder / "clap_text")},
    )
    return FeatureStore(model, data)


def test_streams_come_from_their_places_in_the_models_order(tmp_path: Path) -> None:
    store = mixed_store(tmp_path)
    audio, text = store.audio("walk"), store.text(entry())
    assert [(name, tuple(rows.shape)) for name, rows in audio.items()] == [("laion", (10, 4)), ("ms", (10, 6)), ("wavlm", (10, 3))]
    assert [(name, tuple(features.tokens.shape)) for name, features in text.items()] == [("laion", (2, 4)), ("ms", (4, 6))]
    assert np.array_equal(audio["ms"].numpy(), np.load(tmp_path / "clap" / "walk.npz")["features"])
    assert np.array_equal(text["ms"].tokens.numpy(), np.load(tmp_path / "clap_text" / "qid1.npz")["last_hidden_state"])
    assert torch.equal(audio["wavlm"], FeatureCache(tmp_path, "A").audio("walk")["wavlm"])
    assert text["laion"].offsets == ((0, 1), (2, 5))
    assert text["laion"].pooled is not None
    assert (text["ms"].offsets, text["ms"].pooled) == ((), None)


@pytest.mark.parametrize("public_clips", range(7, 14))
def test_streams_are_cut_to_the_shortest_where_they_nearly_agree(tmp_path: Path, public_clips: int) -> None:
    store = mixed_store(tmp_path, cached_clips=10, public_clips=public_clips)
    if abs(public_clips - 10) > MAX_DIFFERENCE_CLIPS:
        for read in (store.num_clips, store.audio):
            with pytest.raises(DataError, match=rf"'walk' differ by more than 2 clips \(.*\bms {public_clips}\b.*\)"):
                read("walk")
        return
    audio = store.audio("walk")
    shortest = min(10, public_clips)
    assert store.num_clips("walk") == shortest
    assert {rows.shape[0] for rows in audio.values()} == {shortest}
    whole = np.load(tmp_path / "clap" / "walk.npz")["features"]
    assert np.array_equal(audio["ms"].numpy(), whole[:shortest]), "the end is cut, not the beginning"


def test_the_number_of_clips_is_remembered(tmp_path: Path) -> None:
    store = mixed_store(tmp_path)
    assert store.num_clips("walk") == 10
    (tmp_path / "clap" / "walk.npz").unlink()
    assert store.num_clips("walk") == 10


def test_public_files_alone_need_no_cache(tmp_path: Path) -> None:
    write_audio_file(tmp_path / "clap", "walk", 10)
    write_text_file(tmp_path / "clap_text", "1", 4)
    store = public_store(tmp_path)
    require_features([(store, [entry()])])
    store.check_widths(entry())
    assert list(store.audio("walk")) == list(store.text(entry())) == ["ms"]
    assert store.num_clips("walk") == 10
    assert store.encoder_version([entry()]).startswith("public-")


def test_everything_missing_is_named_at_once_place_by_place(tmp_path: Path) -> None:
    store = mixed_store(tmp_path)
    first = [entry(), *(entry(f"n{i}", f"gone{i}", f"sound {i}") for i in range(12))]
    second = [entry("n1", "gone1", "sound 1"), entry("m", "lost", "rain")]
    with pytest.raises(DataError) as caught:
        require_features([(store, first), (mixed_store(tmp_path, fill=False), second)])
    message = str(caught.value)
    cache, audio, text = message.split("; ")
    assert cache.startswith(f"{tmp_path / 'A'} lacks features of 13 recordings ('gone0', ")
    assert "and 13 queries ('sound 0', " in cache
    assert cache.endswith(f": run `python -m qamdetr extract --combo A --manifest JSONL --feature-dir {tmp_path}`")
    assert audio.startswith(f"data.audio_features.ms ({tmp_path / 'clap'}) lacks features of 13 recordings ('gone0', ")
    assert text.startswith(f"data.text_features.ms ({tmp_path / 'clap_text'}) lacks features of 13 queries ('n0', ")
    assert "'gone9'" in audio
    assert "'gone10'" not in message, "ten names are enough"
    assert "walk" not in message
    assert "\n" not in message


def test_a_folder_that_is_not_there_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"data\.audio_features\.ms \(.*clap, which is no folder\) lacks features of 1 recording \('walk'\)"
    ):
        require_features([(public_store(tmp_path), [entry()])])


def test_a_folder_for_a_stream_that_the_model_lacks_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.text_features names 'msclap'; model\.text_streams has only ms_clap, roberta"):
        FeatureStore(ModelConfig(text_streams={"ms_clap": 6, "roberta": 5}), DataConfig(text_features={"msclap": "x"}))


def test_widths_are_checked_in_both_places(tmp_path: Path) -> None:
    mixed_store(tmp_path).check_widths(entry())
    with pytest.raises(DataError, match=r"audio stream 'wavlm' in .*A is 3 wide, the model expects 768"):
        mixed_store(tmp_path, widths={"wavlm": 768}).check_widths(entry())
    with pytest.raises(DataError, match=r"walk\.npz: `features` is 6 wide, the model expects 1024"):
        mixed_store(tmp_path, widths={"ms": 1024}).check_widths(entry())


def test_the_version_follows_values_not_places(tmp_path: Path) -> None:
    entries = [entry(str(i), f"v{i}") for i in range(5)]

    def version(folder: str, seed: int = 0, save=np.savez) -> str:
        for line in entries:
            write_audio_file(tmp_path / folder / "clap", line.vid, 10, seed=seed)
            tokens = write_text_file(tmp_path / folder / "clap_text", line.qid, 4)
            save(tmp_path / folder / "clap_text" / f"qid{line.qid}.npz", last_hidden_state=tokens)
        return public_store(tmp_path / folder).encoder_version(entries)

    assert version("here") == version("there") == version("packed", save=np.savez_compressed)
    assert version("here") != version("others", seed=1)


def test_the_version_names_cache_and_public_files(tmp_path: Path) -> None:
    store = mixed_store(tmp_path)
    assert store.encoder_version([entry()]).startswith("public-"), "nobody claimed the cache"
    FeatureCache(tmp_path, "A").claim("abcd")
    assert store.encoder_version([entry()]).startswith("abcd+public-")
    cached = FeatureStore(
        ModelConfig(audio_streams={"laion": 4}, text_streams={"laion": 4}), DataConfig(feature_dir=str(tmp_path), combo="A")
    )
    assert cached.encoder_version([entry()]) == "abcd"


def test_the_command_for_what_is_missing_has_the_settings_of_the_rest(tmp_path: Path) -> None:
    model = ModelConfig(audio_streams={"laion_clap": 4}, text_streams={"laion_clap": 4})
    data = DataConfig(feature_dir=str(tmp_path), combo="B", encoder_dtype="bfloat16", encoder_models={"laion_clap": "my clap"})
    command = f"python -m qamdetr extract --combo B --manifest JSONL --feature-dir {tmp_path}"
    (gap,) = FeatureStore(model, data).missing([entry()])
    assert gap.remedy == f"run `{command} --dtype bfloat16 --encoder 'laion_clap=my clap'`"
    FeatureCache(tmp_path, "B").claim("v1", models={"laion_clap": "", "ms_clap": "theirs"}, dtype="float32")
    (gap,) = FeatureStore(model, data).missing([entry()])
    assert gap.remedy == f"run `{command} --encoder ms_clap=theirs`"


def test_public_files_have_no_record_of_encoders(tmp_path: Path) -> None:
    FeatureCache(tmp_path / "no cache", DataConfig.combo).claim("v1", models={"ms": "x"}, dtype="bfloat16")
    assert public_store(tmp_path).made_by == EncoderRecord()
    FeatureCache(tmp_path, "A").claim("v1", models={"laion": "x", "ms": ""}, dtype="bfloat16")
    assert mixed_store(tmp_path).made_by == EncoderRecord("v1", {"laion": "x", "ms": ""}, "bfloat16")
