"""Folders as `train.py` leaves them, without training."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from qamdetr.config import Config, ModelConfig, TrainConfig, save_config

SMALL = ModelConfig(dim=32, num_heads=4, ffn_dim=64, encoder="transformer", encoder_layers=1)


def row(epoch: int, r1: float, loss: float = 5.0) -> dict:
    """One line of `metrics.jsonl`."""
    val = {"R1@0.5": r1 + 5, "R1@0.7": r1, "mAP": r1 / 2, "mAP@0.5": r1, "mAP@0.75": r1 / 3}
    return {"epoch": epoch, "step": 10 * epoch, "seconds": 2.0, "learning_rate": 1e-4, "loss": {"total": loss}, "val": val, "gates": {}}


def write_run(
    folder: Path, rows: list[dict], *, epochs: int = 3, seed: int = 0, finished: bool = False, checkpoint: bool = False, **model
) -> Path:
    """Write a run's `config.yaml`, `run.json`, `metrics.jsonl` and, where asked for, a `best` that looks like one."""
    folder.mkdir(parents=True)
    config = Config(model=replace(SMALL, **model), train=TrainConfig(epochs=epochs, seed=seed))
    save_config(config, folder / "config.yaml")
    facts = {"seed": seed, "val_manifest": "aaaa", **({"finished": {"epoch": len(rows)}} if finished else {})}
    (folder / "run.json").write_text(json.dumps(facts))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rows))
    if checkpoint:
        best = folder / "best"
        best.mkdir()
        for name in ("model.safetensors", "config.yaml", "run.json"):
            (best / name).write_text("{}")
    return folder
