"""The shipped experiments: each loads and builds, and tables, combos and stages differ only in what their names say."""

from __future__ import annotations

import functools
import json
import math
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from stored_features import write_audio_file, write_text_file

from qamdetr.cli import main
from qamdetr.config import CONFIG_DIR, Config, config_from_dict, config_to_dict
from qamdetr.config import load_config as load_config_anew
from qamdetr.data.manifest import read_manifest, write_manifest
from qamdetr.evaluation.metrics import METRICS
from qamdetr.features.base import COMBOS
from qamdetr.model.qam_detr import QamDetr
from train import main as train_main

load_config = functools.cache(load_config_anew)

NAMES = sorted(path.stem for path in CONFIG_DIR.glob("*.yaml"))
# Names that begin with an underscore are parts of others.
EXPERIMENTS = [name for name in NAMES if not name.startswith("_")]
PRETRAININGS = [name for name in EXPERIMENTS if name.endswith("_pretrain")]
FINE_TUNINGS = [name for name in EXPERIMENTS if name.endswith("_finetune")]
LADDERS = ("table1", "ladder")

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


def flat(config: Config) -> dict[str, Any]:
    return {
        f"{section}.{key}": value
        for section, entries in config_to_dict(config).items()
        if section != "weights_sha256"
        for key, value in entries.items()
    }


def changes(before: str, after: str) -> dict[str, Any]:
    """Keys that differ between two configs, with the second one's values."""
    old, new = flat(load_config(before)), flat(load_config(after))
    return {key: value for key, value in new.items() if value != old[key]}


def rows(ladder: str) -> list[str]:
    found = [name for name in EXPERIMENTS if re.match(rf"{ladder}_\d_", name) and name not in PRETRAININGS]
    assert [name.split("_")[1] for name in found] == list("123456")
    return found


@functools.cache
def size_of(model: str) -> int:
    """Parameters of the network that `model`, a section as text, describes; many experiments share one."""
    config = config_from_dict({"model": json.loads(model)})
    return sum(parameter.numel() for parameter in QamDetr(config.model).parameters())


def num_parameters(config: Config) -> int:
    return size_of(json.dumps(config_to_dict(config)["model"]))


@pytest.mark.parametrize("name", NAMES)
def test_every_config_says_what_it_is_and_builds(name: str) -> None:
    first_line = (CONFIG_DIR / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
    assert first_line.startswith("# ")
    assert num_parameters(load_config(name)) > 0


@pytest.mark.parametrize("ladder", LADDERS)
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
        "data": {"max_clips": 300, "crop_probability": 0.0, "text_noise": 0.0, "saliency_windows": "first"},
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
        text = str({key: value for key, value in flat(load_config(name)).items() if key in PLACES})
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
