"""Trains the ladder of Table 1, and what may be better than the report, over several seeds; run by run, so it can be stopped any time.

    python -m recipes.ladder --test MANIFEST [--plan ladder|switches|chosen|all] [--seeds 0 1 2] [--output runs/ladder]

Every run is one of `train.py`, in `OUTPUT/<variant>-s<seed>`. Runs that are done are skipped and interrupted ones resumed, so the same
command continues after a stop. Then the run's best checkpoint is scored on its validation set and on the test manifest
(`results.json`). `recipes.ladder_report` makes tables and figure of the results.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tqdm import tqdm

import train
from qamdetr.config import Config, load_config
from qamdetr.errors import QamDetrError
from qamdetr.inference.checkpoint import CONFIG_FILE, load_checkpoint
from qamdetr.model.qam_detr import QamDetr
from qamdetr.training.data import load_data
from qamdetr.training.run import replace_text
from qamdetr.training.validation import validate

RESULTS_FILE = "results.json"


@dataclass(frozen=True)
class Variant:
    """One row of a table.

    Attributes:
        name: Part of its runs' folders.
        label: What the table calls it.
        config: Name in `qamdetr/configs`.
        overrides: `section.key=value` on it.
        readings: Ways of reading the same trained model: name -> overrides of the inference section.
    """

    name: str
    label: str
    config: str
    overrides: tuple[str, ...] = ()
    readings: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: {"decoder": ()})


LADDER = (
    Variant("1_baseline", "DETR-style baseline", "ladder_1_baseline"),
    Variant("2_bimamba", "+ BiMamba encoder", "ladder_2_bimamba"),
    Variant("3_quality", "+ Quality regression loss", "ladder_3_quality"),
    Variant("4_multiscale", "+ Multi-scale temporal fusion", "ladder_4_multiscale"),
    Variant("5_three_way", "+ 3-way cross-attention", "ladder_5_three_way"),
    Variant("6_multi_feature", "+ Multi-feature integration", "ladder_6_multi_feature"),
)
"""The cumulative rows of the report's Table 1."""

FULL = LADDER[-1]

_POOLED = ("inference.segment_threshold=0.3", "inference.nms_iou=0.7")

SWITCHES = (
    Variant("first_window", "saliency labels from the first window only", FULL.config, ("data.saliency_windows=first",)),
    Variant("quality_all", "quality targets for all slots", FULL.config, ("loss.quality_targets=all",)),
    Variant("one_layer", "one BiMamba layer instead of two", FULL.config, ("model.encoder_layers=1",)),
    Variant("no_ema", "no EMA of the weights", FULL.config, ("train.ema_decay=0",)),
    Variant(
        "posterior",
        "saliency trained as a posterior per clip",
        FULL.config,
        ("loss.saliency_clip=1", "loss.saliency_negative=mean"),
        {"decoder": (), "pooled": _POOLED},
    ),
)
"""Each changes one thing of the full model; `posterior` is what segments can be read off, and is read with and without them."""

CHOSEN = Variant(
    "chosen",
    "posterior, quality targets for all slots and one BiMamba layer: as shipped with version 0.2",
    FULL.config,
    ("loss.quality_targets=all", "model.encoder_layers=1", "loss.saliency_clip=1", "loss.saliency_negative=mean"),
    {"decoder": (), "pooled": _POOLED},
)
"""What `qamdetr/configs/pocket.yaml` has of the switches, together."""

PLANS = {"ladder": LADDER, "switches": SWITCHES, "chosen": (CHOSEN,), "all": (*LADDER, *SWITCHES, CHOSEN)}


def run_plan(variants: Sequence[Variant], seeds: Sequence[int], output: Path, test_manifest: Path, overrides: Sequence[str] = ()) -> None:
    """Train and score what is not there yet, all variants of one seed before the next seed, in folders of `output`.

    The features of the held-back scenes of `test_manifest` lie in the configuration's feature folder; `overrides` are for all runs. A run
    that fails is a `QamDetrError`; its own line on stderr says why.
    """
    runs = [(variant, seed) for seed in seeds for variant in variants]
    for variant, seed in tqdm(runs, desc="runs", unit="run"):
        directory = output / f"{variant.name}-s{seed}"
        if (directory / RESULTS_FILE).is_file():
            continue
        _train(variant, seed, directory, overrides)
        results = {name: score_run(directory, test_manifest, reading) for name, reading in variant.readings.items()}
        text = json.dumps({"variant": variant.name, "seed": seed, "readings": results}, indent=2) + "\n"
        replace_text(directory / RESULTS_FILE, text)


def score_run(directory: Path, test_manifest: Path, reading: Sequence[str] = ()) -> dict[str, dict[str, float]]:
    """Score the best checkpoint of a run: `{"val": metrics, "test": metrics}`; `reading` overrides its inference section."""
    model, _ = load_checkpoint(directory / "best")
    config = load_config(directory / "best" / CONFIG_FILE, reading)
    return {name: _score(model, config, manifest) for name, manifest in (("val", config.data.val_manifest), ("test", str(test_manifest)))}


def _score(model: QamDetr, config: Config, manifest: str) -> dict[str, float]:
    data = load_data(replace(config, data=replace(config.data, val_manifest=manifest)))
    return validate(model, data.val_loader, data.val.entries, config.inference).metrics


def _train(variant: Variant, seed: int, directory: Path, overrides: Sequence[str]) -> None:
    if (directory / CONFIG_FILE).is_file():
        arguments = ["--resume", str(directory)]
    else:
        changes = [*variant.overrides, *overrides, f"train.seed={seed}", f"train.output_dir={directory.parent}"]
        arguments = ["--config", variant.config, "--name", directory.name]
        arguments += [part for change in changes for part in ("--set", change)]
    status = train.main(arguments)
    if status:
        raise QamDetrError(f"{directory.name} stopped with exit status {status}; mend what it says above and run this again.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Train the ablation ladder over several seeds.")
    parser.add_argument("--plan", choices=sorted(PLANS), default="ladder")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("runs/ladder"))
    parser.add_argument("--test", type=Path, required=True, metavar="MANIFEST", help="held-back scenes")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="a.b=c", help="for all runs; repeatable")
    arguments = parser.parse_args(argv)
    try:
        run_plan(PLANS[arguments.plan], arguments.seeds, arguments.output, arguments.test, arguments.overrides)
    except QamDetrError as error:
        sys.stderr.write(f"ablation: error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
