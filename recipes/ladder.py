"""Trains the ladder of Table 1, and what is better than the report, over several seeds; run by run, so it can be stopped any time.

    python -m recipes.ladder --test MANIFEST [--plan ladder|switches|all] [--seeds 0 1 2] [--output runs/ladder]

Every run is one of `train.py`, in `OUTPUT/<variant>-s<seed>`. Runs that are done are skipped and interrupted ones resumed, so the same
command continues after a stop. Then the run's best checkpoint is scored on its validation set and on the test manifest
(`results.json`), read in the ways that its row names. `recipes.ladder_report` makes tables and figure of the results.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, islice
from pathlib import Path

import torch
from accelerate.utils import set_seed
from torch import nn
from tqdm import tqdm

import train
from qamdetr.config import Config, load_config
from qamdetr.data.dataset import LabelledBatch
from qamdetr.errors import QamDetrError
from qamdetr.inference.checkpoint import CONFIG_FILE, load_checkpoint
from qamdetr.model.losses import compute_losses
from qamdetr.model.qam_detr import QamDetr
from qamdetr.training.data import TrainingData, load_data
from qamdetr.training.run import replace_text
from qamdetr.training.validation import validate
from qamdetr.types import DecoderOutput, ModelOutput

RESULTS_FILE = "results.json"


@dataclass(frozen=True)
class Variant:
    """One row of a table.

    Attributes:
        name: Part of its runs' folders.
        label: What the table calls it.
        config: Name in `qamdetr/configs`.
        overrides: `section.key=value` on it.
        readings: Ways of reading the same trained model: name -> overrides of the inference section. `segments` reads those of the
            saliency curve alone; `probe` a dense decoder that learned for `PROBE_STEPS` what can be read off the memory as it is.
    """

    name: str
    label: str
    config: str
    overrides: tuple[str, ...] = ()
    readings: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: {"decoder": ()})


PROBE_STEPS = 400

_ROW: Mapping[str, tuple[str, ...]] = {"decoder": (), "probe": ()}


LADDER = (
    Variant("1_baseline", "DETR-style baseline", "ladder_1_baseline", readings=_ROW),
    Variant("2_bimamba", "+ BiMamba encoder", "ladder_2_bimamba", readings=_ROW),
    Variant("3_quality", "+ Quality regression loss", "ladder_3_quality", readings=_ROW),
    Variant("4_multiscale", "+ Multi-scale temporal fusion", "ladder_4_multiscale", readings=_ROW),
    Variant("5_three_way", "+ 3-way cross-attention", "ladder_5_three_way", readings=_ROW),
    Variant("6_multi_feature", "+ Multi-feature integration", "ladder_6_multi_feature", readings=_ROW),
)
"""The cumulative rows of the report's Table 1."""

FULL = LADDER[-1]

_POOLED = ("inference.segment_threshold=0.3", "inference.nms_iou=0.7")

_POSTERIOR = ("loss.saliency_clip=1", "loss.saliency_negative=mean")

SWITCHES = (
    Variant(
        "posterior",
        "saliency trained as a posterior per clip",
        FULL.config,
        _POSTERIOR,
        {"decoder": (), "pooled": _POOLED, "segments": _POOLED},
    ),
    Variant("dense", "the dense decoder in the place of moment queries", FULL.config, ("model.decoder=dense",)),
    Variant(
        "chosen",
        "dense decoder, posterior, one BiMamba layer: as shipped",
        FULL.config,
        ("model.decoder=dense", "model.encoder_layers=1", "loss.quality_targets=all", *_POSTERIOR),
    ),
)
"""Changes to the full model; `posterior` is what segments can be read off, and is read with and without them, and by them alone."""

CHOSEN = SWITCHES[-1]

PLANS = {"ladder": LADDER, "switches": SWITCHES, "all": (*LADDER, *SWITCHES)}


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
        results = {name: score_run(directory, test_manifest, name, reading) for name, reading in variant.readings.items()}
        text = json.dumps({"variant": variant.name, "seed": seed, "readings": results}, indent=2) + "\n"
        replace_text(directory / RESULTS_FILE, text)


def score_run(directory: Path, test_manifest: Path, name: str, reading: Sequence[str]) -> dict[str, dict[str, float]]:
    """Score the best checkpoint of a run by the reading `name`, whose overrides of its inference section are `reading`: set -> metrics."""
    model, _ = load_checkpoint(directory / "best")
    config = load_config(directory / "best" / CONFIG_FILE, reading)
    sets = {"val": config.data.val_manifest, "test": str(test_manifest)}
    data = {part: load_data(replace(config, data=replace(config.data, val_manifest=manifest))) for part, manifest in sets.items()}
    if name == "probe":
        model = probe(model, config, data["val"])
    elif name == "segments":
        model.register_forward_hook(_silence_decoder)
    return {part: validate(model, each.val_loader, each.val.entries, config.inference).metrics for part, each in data.items()}


def _silence_decoder(_model: nn.Module, _inputs: object, output: ModelOutput) -> ModelOutput:
    """Leave no slots of the decoder, so that the saliency's segments are all there is to read."""
    logits, spans_cxw, quality = output.decoder.logits, output.decoder.spans_cxw, output.decoder.quality_logits
    return replace(output, decoder=DecoderOutput(logits[:, :0], spans_cxw[:, :0], None if quality is None else quality[:, :0]))


def probe(model: QamDetr, config: Config, data: TrainingData) -> QamDetr:
    """Return the model with a dense decoder that learned on its frozen memory: what a row's encoder holds, however far its decoder came."""
    set_seed(config.train.seed)
    probed = QamDetr(replace(config.model, decoder="dense", quality=True))
    probed.load_state_dict(
        {name: value for name, value in model.state_dict().items() if not name.startswith(("decoder.", "heads."))}, strict=False
    )
    probed.eval().requires_grad_(False)
    probed.decoder.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(probed.decoder.parameters(), lr=1e-3, weight_decay=config.train.weight_decay)
    for batch in islice(endless(data), PROBE_STEPS):
        output = probed(batch.batch, batch.targets.negative_index)
        losses = compute_losses(output, batch.batch, batch.targets, config.loss)
        optimizer.zero_grad()
        losses["total"].backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return probed


def endless(data: TrainingData) -> Iterator[LabelledBatch]:
    """Yield the batches of the training set, pass after pass."""
    for epoch in count():
        for part in (data.sampler, data.train):
            part.set_epoch(epoch)
        yield from data.train_loader


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
