"""Opening the sets: all that is missing at once, public files alone, what is clamped and left out, fingerprints."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from stored_features import OwnFeatures, write_audio_file, write_text_file

from qamdetr.config import Config, DataConfig, ModelConfig, TrainConfig
from qamdetr.errors import ConfigError, DataError
from qamdetr.features.base import join_fingerprints
from qamdetr.training.data import load_data

ToyConfig = Callable[..., Config]
DURATION_SECONDS = 20
TRAIN_WINDOWS = {"a": [[1, 4], [6, 9]], "b": [[5, 25]], "c": [], "d": [[2, 3]]}
VAL_WINDOWS = {"e": [[1, 8]], "f": []}


def write_manifest(path: Path, windows: dict[str, list]) -> Path:
    lines = [
        {"qid": f"{vid}_1", "query": f"sound {vid}", "duration": DURATION_SECONDS, "vid": vid, "relevant_windows": value}
        for vid, value in windows.items()
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def public_config(tmp_path: Path) -> Config:
    """Two manifests with public files of one stream, and nothing else on the disk."""
    for name, windows in (("train", TRAIN_WINDOWS), ("val", VAL_WINDOWS)):
        write_manifest(tmp_path / f"{name}.jsonl", windows)
        for vid in windows:
            write_audio_file(tmp_path / "clap", vid, DURATION_SECONDS)
            write_text_file(tmp_path / "clap_text", f"{vid}_1", 3)
    return Config(
        model=ModelConfig(audio_streams={"ms_clap": 6}, text_streams={"ms_clap": 6}),
        data=DataConfig(
            train_manifest=str(tmp_path / "train.jsonl"),
            val_manifest=str(tmp_path / "val.jsonl"),
            feature_dir=str(tmp_path / "no cache"),
            combo="A",
            audio_features={"ms_clap": str(tmp_path / "clap")},
            text_features={"ms_clap": str(tmp_path / "clap_text")},
        ),
        train=TrainConfig(batch_size=4),
    )


def with_data(config: Config, **changes: object) -> Config:
    return replace(config, data=replace(config.data, **changes))


def test_public_files_alone_make_batches(public_config: Config, tmp_path: Path) -> None:
    data = load_data(public_config)
    (batch,) = data.train_loader
    assert {entry.vid for entry in batch.entries} == set(TRAIN_WINDOWS)
    assert batch.batch.audio["ms_clap"].shape == (4, DURATION_SECONDS, 6 + 2)
    assert batch.batch.text["ms_clap"].shape == (4, 3, 6)
    assert not (tmp_path / "no cache").exists()
    assert data.section.encoder.startswith("public-")


def test_gaps_of_both_sets_all_streams_and_all_places_are_one_line(public_config: Config, tmp_path: Path) -> None:
    streams = ModelConfig(audio_streams={"laion_clap": 4, "ms_clap": 6}, text_streams={"ms_clap": 6, "roberta": 3})
    for gone in ("clap/b.npz", "clap/e.npz", "clap_text/qida_1.npz", "clap_text/qidf_1.npz"):
        (tmp_path / gone).unlink()
    with pytest.raises(DataError) as caught:
        load_data(replace(public_config, model=streams))
    for told in (
        "no cache lacks features of 6 recordings ('a', 'b', 'c', 'd', 'e', 'f') and 6 queries ('sound a', ",
        *("data.audio_features.ms_clap", "lacks features of 2 recordings ('b', 'e')", "lacks features of 2 queries ('a_1', 'f_1')"),
    ):
        assert told in str(caught.value)


def test_a_query_whose_windows_the_features_do_not_reach_is_not_trained_on(
    public_config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_manifest(tmp_path / "train.jsonl", {**TRAIN_WINDOWS, "d": [[DURATION_SECONDS - 1, DURATION_SECONDS]]})
    write_audio_file(tmp_path / "clap", "d", DURATION_SECONDS - 2)
    with caplog.at_level(logging.WARNING):
        data = load_data(public_config)
    assert [entry.vid for entry in data.train.entries] == ["a", "b", "c"], "c is known to be absent and stays"
    assert "train.jsonl: 1 queries whose windows lie after the last clip" in caplog.text


def test_a_bad_value_in_the_validation_set_is_refused_before_anything_begins(public_config: Config, tmp_path: Path) -> None:
    rows = write_audio_file(tmp_path / "clap", "f", DURATION_SECONDS)
    rows[-1, 0] = np.nan
    np.savez(tmp_path / "clap" / "f.npz", features=rows)
    with pytest.raises(DataError, match=r"f\.npz.*NaN"):
        load_data(public_config)


def test_the_fingerprint_changes_with_what_is_read_alone(public_config: Config, tmp_path: Path) -> None:
    known = load_data(public_config).fingerprint
    assert load_data(replace(with_data(public_config, max_clips=40), train=TrainConfig(seed=3, batch_size=2))).fingerprint == known
    moved = {key: str((tmp_path / key).rename(tmp_path / f"moved {key}")) for key in ("clap", "clap_text")}
    config = with_data(public_config, audio_features={"ms_clap": moved["clap"]}, text_features={"ms_clap": moved["clap_text"]})
    assert load_data(config).fingerprint == known
    seen = {known}
    for change in (
        lambda: write_audio_file(tmp_path / "moved clap", "f", DURATION_SECONDS, seed=1),
        lambda: write_audio_file(tmp_path / "moved clap", "a", DURATION_SECONDS, seed=1),
        lambda: write_manifest(tmp_path / "val.jsonl", {**VAL_WINDOWS, "f": [[1, 2]]}),
        lambda: (tmp_path / "train.jsonl").write_text((tmp_path / "train.jsonl").read_text() + "\n"),
    ):
        change()
        seen.add(load_data(config).fingerprint)
    assert len(seen) == 5


def test_a_checkpoint_takes_over_the_encoders_of_the_cache_and_no_others(
    small_toy_config: ToyConfig, small_toy_folder: Path, tmp_path: Path
) -> None:
    """The cache notes encoders: `toy` from `clap` in bfloat16, `level` its default."""
    shutil.copytree(small_toy_folder / "features", tmp_path / "features")
    OwnFeatures(tmp_path / "features", models={"toy": "clap", "level": ""}, dtype="bfloat16")
    noted_config = with_data(small_toy_config(), feature_dir=str(tmp_path / "features"))
    narrower = replace(noted_config, model=replace(noted_config.model, audio_streams={"toy": 16}))
    assert load_data(narrower).fingerprint != load_data(noted_config).fingerprint
    same_folder = {"toy": f"../{Path.cwd().name}/clap"}
    taken = {"encoder": join_fingerprints({"toy": "v1", "level": "v1"}), "encoder_dtype": "bfloat16"}
    for settings, models in (
        ({}, {"toy": "clap"}),
        ({"encoder_models": same_folder}, same_folder),
        ({"encoder_models": {"public": "elsewhere"}}, {"toy": "clap", "public": "elsewhere"}),
    ):
        config = with_data(noted_config, **settings)
        assert load_data(config).section == replace(config.data, **taken, encoder_models=models)
    for settings, message in (
        ({"toy": "other"}, r"data\.encoder_models\.toy is other, the features in .*features were made with clap; "),
        ({"level": "own"}, r"data\.encoder_models\.level is own, .* were made with the default model; leave that"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_data(with_data(noted_config, encoder_models=settings))
