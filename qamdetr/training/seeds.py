"""One experiment over several seeds: trains one after the other, continues what was stopped, and sums up with mean and deviation."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import PartialState

from qamdetr.config import Config
from qamdetr.errors import ConfigError
from qamdetr.training.loop import train
from qamdetr.training.run import CONFIG_FILE, Run, replace_text


def train_seeds(config: Config, name: str, seeds: Sequence[int], *, command: str = "") -> dict[str, Any]:
    """Train `config` with each seed in `train.output_dir`/`name`-s<seed>, and write `name`-seeds.json beside these folders.

    The same call continues after a stop: a finished run is left as it is, an unfinished one is resumed with its own configuration.

    Args:
        config: The experiment; its own seed is not looked at.
        name: Begins the names of the folders.
        seeds: Each once.
        command: How this was started, for the model cards.

    Returns:
        `{"name", "seeds", "runs": {seed: metrics of the best epoch}, "mean": {metric: …}, "std": {metric: …}}`; the deviation is the
        sample's (n - 1), None with one seed.

    Raises:
        ConfigError: A seed is named twice, or an unfinished run there was begun with another configuration.
        QamDetrError: As `loop.train`.
    """
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"--seeds are {' '.join(map(str, seeds))}; name each seed once.")
    parent = Path(config.train.output_dir)
    plan = [(replace(config, train=replace(config.train, seed=seed)), parent / f"{name}-s{seed}") for seed in seeds]
    # All folders are looked at before any process makes one, so that several processes come to the same plan.
    begun = [(directory / CONFIG_FILE).is_file() for _, directory in plan]
    for (wanted, directory), is_begun in zip(plan, begun, strict=True):
        if is_begun and Run(directory).config() != wanted:
            raise ConfigError(f"{directory} holds a run with another configuration; choose another --name.")
    runs = [train(wanted, directory, resume=resume, command=command) for (wanted, directory), resume in zip(plan, begun, strict=True)]
    PartialState().wait_for_everyone()
    best = {seed: run.facts()["finished"]["best"] for seed, run in zip(seeds, runs, strict=True)}
    summary = {"name": name, "seeds": list(seeds), "runs": best, **_spread(list(best.values()))}
    if PartialState().is_main_process:
        replace_text(parent / f"{name}-seeds.json", json.dumps(summary, indent=2) + "\n")
    return summary


def seeds_table(summary: Mapping[str, Any]) -> str:
    """Put what `train_seeds` returned into a table: one line per seed, then mean and standard deviation."""
    metrics = list(summary["mean"])
    lines = [("seed", *metrics)]
    lines += [(str(seed), *(f"{values[metric]:.2f}" for metric in metrics)) for seed, values in summary["runs"].items()]
    spread = [(summary["mean"][metric], summary["std"][metric]) for metric in metrics]
    lines.append(("mean", *(f"{mean:.2f}" if std is None else f"{mean:.2f} ± {std:.2f}" for mean, std in spread)))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def _spread(rows: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float | None]]:
    """Mean and sample standard deviation of each metric that all rows have."""
    shared = [metric for metric in rows[0] if all(metric in row and math.isfinite(row[metric]) for row in rows)]
    values = {metric: [row[metric] for row in rows] for metric in shared}
    return {
        "mean": {metric: round(statistics.mean(found), 4) for metric, found in values.items()},
        "std": {metric: round(statistics.stdev(found), 4) if len(found) > 1 else None for metric, found in values.items()},
    }
