"""Configuration is strict, in one line; shipped experiments build, and differ only in what their names say."""

from __future__ import annotations

import functools
import json
import math
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from stored_features import write_audio_file, write_text_file

from qamdetr.cli import main
from qamdetr.config import (
    CHECKPOINT_DIR,
    CONFIG_DIR,
    Config,
    ModelConfig,
    build,
    config_to_dict,
    load_config,
    save_config,
    switches,
)
from qamdetr.data.manifest import read_manifest, write_manifest
from qamdetr.errors import ConfigError
from qamdetr.evaluation.metrics import METRICS
from qamdetr.features.base import COMBOS
from qamdetr.model.qam_detr import QamDetr
from train import main as train_main

EXPERIMENTS = sorted(path.stem for path in CONFIG_DIR.glob("[!_]*.yaml"))
PRETRAININGS = [name for name in EXPERIMENTS if name.endswith("_pretrain")]
FINE_TUNINGS = [name for name in EXPERIMENTS if name.endswith("_finetune")]

OFFICIAL_PARAMETERS = 7_123_237
"""Of the official baseline, 8,704 of them in text positions that it never uses."""

ROWS: list[dict[str, Any]] = [
    {"model.encoder": "bimamba"},
    {"model.quality": True},
    {"model.multiscale": True},
    {"model.fusion": "three_way", "model.global_token": False},
]
"""What rows 2 to 5 of the report's Table 1 change; row 6 changes the streams and nothing else."""

STREAMS = {"model.audio_streams", "model.text_streams"}
PLACES = {f"data.{key}" for key in ("train_manifest", "val_manifest", "audio_dir", "val_audio_dir", "audio_features", "text_features")}


@functools.cache
def flat(name: str) -> dict[str, Any]:
    """A config's values, as `section.key`."""
    sections = config_to_dict(load_config(name))
    del sections["weights_sha256"]
    return {f"{section}.{key}": value for section, entries in sections.items() for key, value in entries.items()}


def changes(before: str, after: str) -> dict[str, Any]:
    """Keys that differ between two configs, with the second one's values."""
    return {key: value for key, value in flat(after).items() if value != flat(before)[key]}


def rows(ladder: str) -> list[str]:
    found = [name for name in EXPERIMENTS if re.match(rf"{ladder}_\d_", name) and name not in PRETRAININGS]
    assert [name.split("_")[1] for name in found] == list("123456")
    return found


def num_parameters(config: Config) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in QamDetr(config.model).parameters())


def write(folder: Path, **texts: str) -> Path:
    """Write YAML files; returns the last one's path."""
    for name, text in texts.items():
        path = folder / f"{name}.yaml"
        path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("path", [*CONFIG_DIR.glob("*.yaml"), *CHECKPOINT_DIR.glob("*/config.yaml")], ids=lambda path: path.parent.name)
def test_shipped_configs_build_and_come_back_the_same(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config == build(Config, config_to_dict(config))
    assert num_parameters(config) > 0


MISTAKES = {
    "modle: {dim: 128}": "Unknown key 'modle'; known here: model, loss",
    "1: 2": "Unknown key '1'",
    "model: {dim: wide, dmi: 1}": "Unknown key 'model.dmi'",
    "model: {dim: true}": "model.dim is True; expected int",
    "model: {dim: null}": "model.dim is None; expected int",
    "model: {quality: 1}": "model.quality is 1; expected bool",
    "model: {audio_streams: {pocket: big}}": "model.audio_streams.pocket is 'big'; expected int",
    "model: {audio_streams: 3}": "model.audio_streams is 3; expected dict",
    "model: {multiscale_strides: 2}": "model.multiscale_strides is 2; expected tuple",
    "data: {combo: 3}": "data.combo is 3; expected str",
    "train: {learning_rate: true}": "train.learning_rate is 'True'; expected float",
    "model: " + "[" * 3000: "not valid YAML",
    "model: {dim: 8}\nloss: {}\nmodel: {dim: 9}": "bad.yaml is not valid YAML: the key 'model' stands twice, in lines 1 and 3; remove one.",
    "extends: [pocket, {base: 3}]": "No config \"{'base': 3}\"",
    # As strict in overrides, also about sizes that would fill the memory before anything else is looked at.
    "train.learning_rate=.nan": "train.learning_rate is nan; it must be from 0 to 1.",
    "inference.beta_by_verifier={pocket: 2}": "inference.beta_by_verifier.pocket is 2.0; it must be from 0.0 to 1.0.",
    "model.dim=100000": "model.dim is 100000; it must be from 1 to 4096.",
    "model.num_moment_queries=1000000000": "model.num_moment_queries is 1000000000; it must be from 1 to 1000.",
    "model.audio_streams={pocket: 1000000000}": "model.audio_streams.pocket is 1000000000",
    "model.multiscale_strides=[2, 1000]": "model.multiscale_strides.1 is 1000; it must be from 1 to 256.",
    "train.epochs.more=3": "'epochs' is a value, not a section",
    "data.encoder_models={a: x, a: y}": "the value is not valid YAML",
}


@pytest.mark.parametrize(("text", "message"), MISTAKES.items(), ids=[message[:40] for message in MISTAKES.values()])
def test_mistakes_name_key_and_value(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("pocket", [text]) if "=" in text else load_config(write(tmp_path, bad=text))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_number_has_a_range_in_files_and_in_code() -> None:
    sections = {name: values for name, values in config_to_dict(Config()).items() if isinstance(values, dict)}
    numbers = [f"{name}.{key}" for name, values in sections.items() for key, value in values.items() if type(value) in (int, float)]
    assert len(numbers) > 40
    for key in numbers:
        with pytest.raises(ConfigError, match=rf"{key} is -?\d.*; it must be (from|1\.0 or)"):
            build(Config, {key.split(".")[0]: {key.split(".")[1]: -1}})
    with pytest.raises(ConfigError, match=r"^train\.seed is -1; it must be from 0 to 4294967295\.$"):
        replace(Config().train, seed=-1)
    with pytest.raises(ConfigError, match=r"Unknown key 'model\.dmi'"):
        ModelConfig(dmi=3)


def test_overrides_set_single_values_also_those_that_yaml_takes_for_something_else() -> None:
    overrides = ["model.dim=32", "train.learning_rate=1e-3", "model.multiscale_strides=[2]", "data.combo=B", "loss.auxiliary=false"]
    config = load_config("pocket", [*overrides, "train.tracker=", "train.mixed_precision=no"])
    assert (config.model.dim, config.train.learning_rate, config.model.multiscale_strides) == (32, 1e-3, (2,))
    assert (config.data.combo, config.loss.auxiliary, config.train.tracker, config.train.mixed_precision) == ("B", False, "", "no")


def test_extends_takes_several_and_later_ones_win(tmp_path: Path) -> None:
    write(tmp_path, root="model: {dim: 64, ffn_dim: 128}",
          small="extends: root\nmodel: {dim: 32, audio_streams: {x: 3, y: 4}}\ntrain: {epochs: 5, seed: 1}",
          data="extends: root\nmodel: {audio_streams: {z: 5}}\ntrain: {epochs: 9}\ndata: {combo: B}")  # fmt: skip
    leaf = load_config(write(tmp_path, leaf="extends: [small, data]\ntrain: {seed: 7}"))
    # The last parent brings its whole chain, `root` included.
    assert (leaf.model.dim, leaf.model.ffn_dim, leaf.train.epochs, leaf.train.seed, leaf.data.combo) == (64, 128, 9, 7, "B")
    # Sections merge; a mapping inside a section is one value.
    assert leaf.model.audio_streams == {"z": 5}
    other = load_config(write(tmp_path, other="extends: [data, small]"))
    assert (other.train.epochs, other.train.seed, other.model.audio_streams) == (5, 1, {"x": 3, "y": 4})


def test_switches_are_what_the_network_can_bypass() -> None:
    small = ModelConfig(audio_streams={"pocket": 8}, dim=16, num_heads=2, ffn_dim=16)
    named = {name: switch for name, switch in switches().items() if switch.bypassable}
    assert set(named) == {"three_way", "multiscale", "quality"} == set(QamDetr(small).bypassable)
    for name, switch in named.items():
        off = replace(small, **{switch.field: switch.off})
        assert switch.is_on(small)
        assert not switch.is_on(off)
        assert QamDetr(off).bypassable == set(named) - {name}


@pytest.mark.parametrize("ladder", ["table1", "ladder"])
def test_each_row_of_a_ladder_adds_what_it_is_named_after(ladder: str) -> None:
    names = rows(ladder)
    assert [changes(before, after) for before, after in pairwise(names[:5])] == ROWS
    assert set(changes(*names[4:])) <= STREAMS
    before, after = (load_config(name).model for name in names[4:])
    assert set(before.audio_streams) < set(after.audio_streams)
    assert set(before.text_streams) <= set(after.text_streams)
    # The main stream stays the main one.
    assert next(iter(before.audio_streams)) == next(iter(after.audio_streams))
    assert next(iter(before.text_streams)) == next(iter(after.text_streams))


def test_baseline_is_the_official_one() -> None:
    config = load_config("castella_baseline")
    official = {
        "model": {
            "audio_streams": {"ms_clap": 768}, "text_streams": {"ms_clap": 768}, "dim": 256, "num_heads": 8, "ffn_dim": 1024,
            "dropout": 0.1, "input_dropout": 0.5, "similarity": False, "fusion": "text_to_audio", "fusion_layers": 2,
            "encoder": "transformer", "encoder_layers": 2, "global_token": True, "multiscale": False,
            "decoder_layers": 2, "num_moment_queries": 10, "quality": False,
        },
        "loss": {
            "span": 10.0, "giou": 1.0, "label": 4.0, "label_loss": "cross_entropy", "saliency": 1.0, "background_weight": 0.1,
            "saliency_margin": 0.2, "saliency_temperature": 0.5, "saliency_contrast": pytest.approx(1 / 12),
            "saliency_negative": "sum", "saliency_clip": 0.0, "auxiliary": True, "match_span": 10.0, "match_giou": 1.0, "match_label": 4.0,
        },
        "data": {
            "max_clips": 300, "crop_probability": 0.0, "text_noise": 0.0, "saliency_windows": "first", "negative_share": 1.0,
            "negative_similarity": 1.0,
        },
        "train": {
            "epochs": 200, "batch_size": 32, "learning_rate": 1e-4, "weight_decay": 1e-4, "warmup_fraction": 0.0, "schedule": "constant",
            "clip_norm": 0.1, "ema_decay": 0.0, "accumulate_batches": 1, "early_stop_epochs": 0, "mixed_precision": "no",
        },
        "inference": {"nms_iou": 1.0, "segment_threshold": 0.0},
    }  # fmt: skip
    ours = config_to_dict(config)
    assert {section: {key: ours[section][key] for key in entries} for section, entries in official.items()} == official
    assert num_parameters(config) == pytest.approx(OFFICIAL_PARAMETERS, rel=0.01)


@pytest.mark.parametrize("combo", ["A", "B", "C"])
def test_combos_are_the_full_model_on_the_streams_of_table_2_and_fine_tuning_begins_with_pretraining(combo: str) -> None:
    pretraining, finetuning = f"combo_{combo.lower()}_pretrain", f"combo_{combo.lower()}_finetune"
    config = load_config(pretraining)
    assert config.data.combo == combo
    # In the order of the table: the first stream of each modality is the main one.
    assert (tuple(config.model.audio_streams), tuple(config.model.text_streams)) == (
        COMBOS[combo].audio_streams,
        COMBOS[combo].text_streams,
    )
    assert set(changes(rows("table1")[-1], pretraining)) <= STREAMS | PLACES | {"data.combo"}
    assert set(changes(pretraining, finetuning)) <= PLACES | {"train.init_from"}


def test_stages_are_the_same_system_on_other_data() -> None:
    for name in FINE_TUNINGS:
        # Where `train.py --config PRETRAINING --seeds 0` puts it.
        output_dir, run, best = Path(load_config(name).train.init_from).parts
        pretraining, seed = run.rsplit("-s", 1)
        assert (output_dir, seed, best) == (load_config(name).train.output_dir, "0", "best")
        assert set(changes(pretraining, name)) <= PLACES | {"train.init_from"}
        assert load_config(pretraining).train.init_from == ""
    for name in [*rows("table1"), "castella_baseline"]:
        pretraining = "clotho_moment_baseline" if name == "castella_baseline" else f"{name}_pretrain"
        assert set(changes(name, pretraining)) <= PLACES


def test_no_stage_reads_the_other_stages_data() -> None:
    for name in EXPERIMENTS:
        text = str({key: value for key, value in flat(name).items() if key in PLACES})
        assert not ("castella" in text and "clotho" in text), name
        assert ("clotho" in text) == (name in PRETRAININGS or name == "clotho_moment_baseline"), name


def test_baseline_trains_and_predicts_on_field_data(
    shared_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands of docs/reproduce.md, on real annotations with made-up features: one epoch, predictions, scores."""
    for split, num_recordings in (("train", 6), ("val", 3)):
        entries = read_manifest(shared_dir / "data" / "castella" / f"{split}.jsonl", clamp=False)
        vids = list(dict.fromkeys(entry.vid for entry in entries))[:num_recordings]
        entries = [entry for entry in entries if entry.vid in vids]
        write_manifest(tmp_path / "data" / "castella" / f"{split}.jsonl", entries)
        for entry in entries:
            write_audio_file(tmp_path / "features" / "castella" / "clap", entry.vid, math.ceil(entry.duration_seconds))
            write_text_file(tmp_path / "features" / "castella" / "clap_text", entry.qid, 1 + len(entry.query.split()))
    monkeypatch.chdir(tmp_path)
    sizes = ["audio_streams={ms_clap: 6}", "text_streams={ms_clap: 6}", "dim=16", "num_heads=2", "ffn_dim=32"]
    changes = [*(f"model.{size}" for size in sizes), "train.epochs=1", "train.batch_size=4", "data.num_workers=0", "train.tracker=''"]
    arguments = ["--config", "castella_baseline", "--name", "tiny", *(part for change in changes for part in ("--set", change))]
    assert train_main(arguments) == 0

    answer = ["--checkpoint", "runs/tiny/best", "--manifest", "data/castella/val.jsonl", "--from-features", "--protocol", "official"]
    assert main(["predict", *answer, "--output", "val.jsonl"]) == 0
    capsys.readouterr()
    assert main(["evaluate", "val.jsonl", "data/castella/val.jsonl", "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    truth = read_manifest("data/castella/val.jsonl", clamp=False)
    assert scores["num_queries"] == len(truth) > 0
    assert all(0 <= scores[name] <= 100 for name in METRICS)
