"""From what somebody filled in to a checked run: nothing is started here, and every mistake is told before anything is."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from qamdetr.config import CONFIG_DIR, Config, ModelConfig, load_config, save_config, switches
from qamdetr.data.manifest import read_manifest
from qamdetr.errors import ConfigError, DataError, QamDetrError
from qamdetr.features.base import COMBOS
from qamdetr.features.store import versions_of
from qamdetr.ui.train.clips import MAX_NAME, SCENES, extract_steps, offered_scenes
from qamdetr.ui.train.jobs import REPOSITORY, Step, check_name
from qamdetr.ui.train.runs import BEST

RUNS_VARIABLE = "QAMDETR_RUNS"

CONFIGS: tuple[tuple[str, str], ...] = (
    ("pocket: small, for a CPU", "pocket"),
    ("Ladder 1: baseline", "ladder_1_baseline"),
    ("Ladder 2: + BiMamba", "ladder_2_bimamba"),
    ("Ladder 3: + quality", "ladder_3_quality"),
    ("Ladder 4: + multi-scale", "ladder_4_multiscale"),
    ("Ladder 5: + 3-way fusion", "ladder_5_three_way"),
    ("Ladder 6: + second stream (full model)", "ladder_6_multi_feature"),
    ("Combo A (downloads, wants a GPU)", "combo_a_pretrain"),
    ("Combo B (downloads, wants a GPU)", "combo_b_pretrain"),
    ("Combo C (downloads, wants a GPU)", "combo_c_pretrain"),
)
"""What the page offers: label and name in `qamdetr/configs`."""

ENCODERS: tuple[tuple[str, str], ...] = (("BiMamba", "bimamba"), ("Transformer", "transformer"))

MAX_EPOCHS = 10_000
SAVE_EVERY_STEPS = 20
"""A stop loses this many optimiser steps at most."""


@dataclass(frozen=True)
class TrainOrder:
    """What to train.

    Attributes:
        name: Of the run; becomes a folder.
        scenes: A set of `offered_scenes`, or a folder with `train/manifest.jsonl` and `val/manifest.jsonl`.
        config: Name in `CONFIGS`.
        encoder: `bimamba` or `transformer`.
        components: Names of `config.switches()` that are on.
        streams: Auxiliary streams that are on, as `audio/mel_stats`; the main ones always are.
        seed, epochs: As in `TrainConfig`.
        init_from: Checkpoint to begin with; empty for fresh weights.
    """

    name: str
    scenes: str
    config: str = "pocket"
    encoder: str = "bimamba"
    components: tuple[str, ...] = ("three_way", "multiscale", "quality")
    streams: tuple[str, ...] = ("audio/mel_stats",)
    seed: int = 0
    epochs: int = 14
    init_from: str = ""


def runs_folder() -> Path:
    """Folder of runs, scenes and jobs: `runs` in the working folder unless the environment names another."""
    return Path(os.environ.get(RUNS_VARIABLE) or "runs")


def plan_training(order: TrainOrder, root: Path, job_folder: Path) -> tuple[Path, list[Step]]:
    """Check an order for training and write its configuration into `job_folder`.

    Returns:
        Folder of the run, and the steps: encode what is not encoded yet, then train.

    Raises:
        QamDetrError: One line for whatever is wrong.
    """
    target = root.resolve() / check_name(order.name, MAX_NAME)
    if order.name == SCENES or order.name.startswith(f"{SCENES}-"):
        raise ConfigError(f"The name is {order.name!r}; names that begin with {SCENES!r} are kept for sets of scenes: choose another.")
    if target.exists():
        raise ConfigError(f"{order.name!r} is taken; choose another name, or press Resume where that run is unfinished.")
    if not 1 <= order.epochs <= MAX_EPOCHS:
        raise ConfigError(f"The number of epochs is {order.epochs}; it must be from 1 to {MAX_EPOCHS}.")
    scenes = find_scenes(order.scenes, root)
    config = build_config(order, scenes, root)
    if order.init_from:
        _check_init(order.init_from, config.model)
    script = _script()
    path = job_folder / "config.yaml"
    try:
        job_folder.mkdir(parents=True, exist_ok=True)
        save_config(config, path)
    except OSError as error:
        raise ConfigError(f"Cannot write {path} ({error.strerror or error}); free some space there.") from error
    vids = {part: _vids(scenes / part / "manifest.jsonl") for part in ("train", "val")}
    encoded, counts = _is_encoded(scenes, config, vids), {part: len(known) for part, known in vids.items()}
    steps = [] if encoded else extract_steps(scenes, config.data.combo, counts, config.model.clip_seconds)
    arguments = (sys.executable, script, "--config", str(path), "--name", order.name)
    return target, [*steps, Step("Training", arguments)]


def resume_steps(run: Path) -> list[Step]:
    """Continue a run that was stopped."""
    return [Step("Training", (sys.executable, _script(), "--resume", str(run.resolve())))]


def build_config(order: TrainOrder, scenes: Path, root: Path) -> Config:
    """Put what was chosen over the named configuration.

    Raises:
        ConfigError: A value out of range, or a choice that is none of those offered.
    """
    base = _offered_config(order.config)
    unknown = sorted(set(order.components) - set(switches()))
    if unknown or order.encoder not in {name for _, name in ENCODERS}:
        raise ConfigError(f"{(unknown or [order.encoder])[0]!r} is no component of this model; choose among those on the page.")
    three_way = "three_way" in order.components
    model = replace(
        base.model,
        encoder=order.encoder,  # type: ignore[arg-type]  # checked above
        # The refined text is the query's representation; without it, the baseline's token is (rows 4 and 5 of Table 1).
        global_token=base.model.global_token if three_way == (base.model.fusion == "three_way") else not three_way,
        **{switch.field: switch.on if name in order.components else switch.off for name, switch in switches().items()},
        audio_streams=_chosen_streams("audio", base.model.audio_streams, order.streams),
        text_streams=_chosen_streams("text", base.model.text_streams, order.streams),
    )
    data = replace(
        base.data,
        train_manifest=str(scenes / "train" / "manifest.jsonl"),
        val_manifest=str(scenes / "val" / "manifest.jsonl"),
        audio_dir="",
        val_audio_dir="",
        feature_dir=str(scenes / "features"),
        audio_features={},
        text_features={},
    )
    train = replace(
        base.train,
        seed=order.seed,
        epochs=order.epochs,
        init_from=order.init_from,
        output_dir=str(root.resolve()),
        save_every_steps=base.train.save_every_steps or SAVE_EVERY_STEPS,
    )
    return replace(base, model=model, data=data, train=train)


def choices_of(config: str) -> tuple[str, list[str], list[str], int]:
    """Give what a configuration has switched on: encoder, components, auxiliary streams, epochs.

    Raises:
        ConfigError: Not one of `CONFIGS`.
    """
    found = _offered_config(config)
    on = [name for name, switch in switches().items() if switch.is_on(found.model)]
    return found.model.encoder, on, auxiliary_streams(found.model), found.train.epochs


def component_choices() -> list[tuple[str, str]]:
    """List the components that can be switched off in a model to train: `(label, name)`."""
    return [(f"{switch.label[:1].upper()}{switch.label[1:]}", name) for name, switch in switches().items()]


def auxiliary_streams(model: ModelConfig) -> list[str]:
    """Streams that can be left out, as `audio/mel_stats`."""
    return [f"audio/{name}" for name in list(model.audio_streams)[1:]] + [f"text/{name}" for name in list(model.text_streams)[1:]]


def find_scenes(name: str, root: Path) -> Path:
    """Return the folder of a set of scenes, by name or by path.

    Raises:
        DataError: It lacks a manifest.
    """
    name = name.strip()
    path = root / SCENES / name if name in offered_scenes(root) else Path(name).expanduser()
    missing = [part for part in ("train", "val") if not (path / part / "manifest.jsonl").is_file()]
    if not name:
        raise DataError("No scenes are chosen; make some above first, or give a folder with train/manifest.jsonl and val/manifest.jsonl.")
    if missing:
        raise DataError(
            f"{name!r} holds no scenes ({' and '.join(f'{part}/manifest.jsonl' for part in missing)} missing); "
            "make scenes first, or give a folder that has both."
        )
    return path.resolve()


def free_name(stem: str, taken: Sequence[Path]) -> str:
    """Return `stem`, or the first of `stem-2`, `stem-3`, … that lies in none of the folders `taken`."""
    number, name = 1, stem
    while any((folder / name).exists() for folder in taken):
        number += 1
        name = f"{stem}-{number}"
    return name


def _offered_config(name: str) -> Config:
    if name not in {offered for _, offered in CONFIGS} or not (CONFIG_DIR / f"{name}.yaml").is_file():
        raise ConfigError(f"{name!r} is no configuration that this page offers; choose one of {', '.join(known for _, known in CONFIGS)}.")
    return load_config(CONFIG_DIR / f"{name}.yaml")


def _chosen_streams(kind: str, offered: Mapping[str, int], chosen: Sequence[str]) -> dict[str, int]:
    main = next(iter(offered))
    return {name: width for name, width in offered.items() if name == main or f"{kind}/{name}" in chosen}


def _check_init(checkpoint: str, model: ModelConfig) -> None:
    """Refuse now what `train.py` would refuse in half a minute."""
    from qamdetr.inference.checkpoint import CONFIG_FILE, find_checkpoint

    folder = Path(checkpoint)
    shown = folder.parent.name if folder.name == BEST else folder.name
    try:
        source = load_config(find_checkpoint(checkpoint) / CONFIG_FILE).model
    except QamDetrError as error:
        what = f"{shown!r} cannot be the start of this model: {error.what}"
        raise type(error)(what, error.remedy) from error
    learnt = [item.name for item in fields(ModelConfig) if "dropout" not in item.name]
    different = [
        f"{name} is {getattr(source, name)} there and {getattr(model, name)} here"
        for name in learnt
        if getattr(source, name) != getattr(model, name)
    ]
    if different:
        raise ConfigError(
            f"{shown!r} cannot be the start of this model: {'; '.join(different[:2])}. Choose its configuration and its "
            "components, or begin with fresh weights."
        )


def _is_encoded(scenes: Path, config: Config, vids: Mapping[str, set[str]]) -> bool:
    """Whether features of every recording lie there; `train.py` checks each of them again."""
    features, main = scenes / "features", COMBOS[config.data.combo].audio_streams[0]
    versions = [each for each in versions_of(features, main) if each.clip_seconds == config.model.clip_seconds]
    names = {file.name.rsplit(".", 2)[0] for each in versions for file in (features / each.folder).glob("*.npz")}
    return all(part <= names for part in vids.values())


def _vids(manifest: Path) -> set[str]:
    return {entry.vid for entry in read_manifest(manifest)}


def _script() -> str:
    path = REPOSITORY / "train.py"
    if not path.is_file():
        raise QamDetrError(f"There is no {path}; run the page from a copy of the whole repository to train with it.")
    return str(path)
