"""Makes a shipped checkpoint of a run: float16 weights, scores and tiers calibrated anew, metrics, card.

    python -m recipes.publish RUN_DIR --output checkpoints/NAME

Takes the run's `best`. Inference settings may be changed with `--set inference.key=value`; metrics and threshold are then those of the
changed settings, on the run's own validation set. Refuses when float16 costs more than `MAX_LOSS` of R1@0.7.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import yaml

from qamdetr.config import Config, load_config
from qamdetr.errors import CheckpointError, QamDetrError
from qamdetr.inference.checkpoint import load_checkpoint, save_checkpoint
from qamdetr.training.data import TrainingData, load_data
from qamdetr.training.run import Run, model_card
from qamdetr.training.validation import Validation, validate

MAX_LOSS = 0.5
"""Percentage points of R1@0.7 that float16 may cost."""


def publish(run_dir: Path, output: Path, overrides: Sequence[str] = ()) -> dict[str, float]:
    """Write the checkpoint; returns its validation metrics.

    Raises:
        CheckpointError: The run has no `best`, or float16 costs too much.
        QamDetrError: The validation set or its features are gone.
    """
    best = run_dir / "best"
    model, config = load_checkpoint(best)
    config = load_config(best / "config.yaml", overrides)
    data = load_data(config)
    full = _validate(best, config, data)
    save_checkpoint(output, model, config, half=True)
    halved = _validate(output, config, data)
    if full.metrics["R1@0.7"] - halved.metrics["R1@0.7"] > MAX_LOSS:
        raise CheckpointError(
            f"float16 lowers R1@0.7 from {full.metrics['R1@0.7']} to {halved.metrics['R1@0.7']}, more than {MAX_LOSS}; "
            f"ship {best} as it is, or train without such large weights."
        )
    calibrated = replace(config, data=data.section, inference=halved.inference)
    card = model_card(output.name, model, calibrated, Run(run_dir).facts(), halved.metrics, data, _best_epoch(run_dir))
    save_checkpoint(output, model, calibrated, card, half=True)
    return halved.metrics


def _validate(checkpoint: Path, config: Config, data: TrainingData) -> Validation:
    model, _ = load_checkpoint(checkpoint)
    with torch.inference_mode():
        return validate(model, data.val_loader, data.val.entries, config.inference)


def _best_epoch(run_dir: Path) -> int:
    """Epoch of the run with the best R1@0.7, ties by mAP, as the run itself chose it."""
    rows = [yaml.safe_load(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    best = max(rows, key=lambda row: (row["val"]["R1@0.7"], row["val"]["mAP"], -row["epoch"]))
    return int(best["epoch"])


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Make a shipped checkpoint of a run.")
    parser.add_argument("run", type=Path, metavar="RUN_DIR")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="a.b=c")
    arguments = parser.parse_args(argv)
    try:
        metrics = publish(arguments.run, arguments.output, arguments.overrides)
    except QamDetrError as error:
        sys.stderr.write(f"publish: error: {error}\n")
        return 2
    sys.stdout.write("\n".join(f"{name:<16}{value:g}" for name, value in metrics.items()) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
