"""From what somebody filled in to checked commands that make scenes: every mistake is told before anything is started."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from qamdetr.errors import ConfigError, DataError
from qamdetr.synthesis.recipe import SceneRecipe
from qamdetr.ui.own_clips import divide, read_clips, write_clips
from qamdetr.ui.training_jobs import Step, check_name

SCENES = "scenes"
"""Folder of the sets of scenes, and the beginning of the names of their jobs."""

MAX_NAME = 60
MAX_SCENES = 20_000

_BYTES_PER_SECOND = 40_000
"""Of a FLAC file of 24 kHz, rather too much than too little."""

SPARE_BYTES = 500 * 1024**2


@dataclass(frozen=True)
class SceneOrder:
    """What scenes to make.

    Attributes:
        name: Of the set; becomes a folder.
        clips: Folder of clips.
        validation_clips: Folder of other clips for validation; empty to keep some of `clips` back.
        backgrounds: Folder of long recordings; empty for faint noise.
        num_scenes, num_validation: Recordings to learn from, and to validate on.
        shortest_seconds, longest_seconds: Their lengths.
        seed: The same seed gives the same scenes.
    """

    name: str
    clips: str
    validation_clips: str = ""
    backgrounds: str = ""
    num_scenes: int = 200
    num_validation: int = 40
    shortest_seconds: float = 40.0
    longest_seconds: float = 90.0
    seed: int = 0


def plan_scenes(order: SceneOrder, root: Path) -> tuple[Path, list[Step]]:
    """Check an order for scenes and write the tables of its clips.

    Returns:
        Folder of the scenes, and the steps that fill it.

    Raises:
        QamDetrError: One line for whatever is wrong.
    """
    target = root.resolve() / SCENES / check_name(order.name, MAX_NAME)
    if target.exists():
        raise ConfigError(f"Scenes called {order.name!r} are here already; choose another name, or press Resume where they are unfinished.")
    for name, value in (("training scenes", order.num_scenes), ("validation scenes", order.num_validation)):
        if not 1 <= value <= MAX_SCENES:
            raise ConfigError(f"The number of {name} is {value}; it must be from 1 to {MAX_SCENES}.")
    clips = read_clips(order.clips)
    learnt, kept = divide(clips)
    source = clips
    if order.validation_clips.strip():
        source = read_clips(order.validation_clips)
        learnt, kept = list(clips.rows), list(source.rows)
    if order.backgrounds.strip() and not Path(order.backgrounds.strip()).expanduser().is_dir():
        raise DataError(f"There is no folder {order.backgrounds.strip()!r} for backgrounds; give a whole path, or leave it empty.")
    recipes = {
        part: _recipe(order, f"{order.name}-{part}", number, seed, source=rows)
        for part, number, seed, rows in (
            ("train", order.num_scenes, order.seed, learnt),
            ("val", order.num_validation, order.seed + 1, kept),
        )
    }
    _check_space(root, (order.num_scenes + order.num_validation) * (order.shortest_seconds + order.longest_seconds) / 2)
    for part, rows, folder in (("train", learnt, clips.folder), ("val", kept, source.folder)):
        write_clips(rows, folder, target / f"clips-{part}")
    counts = {"train": order.num_scenes, "val": order.num_validation}
    steps = [_synthesize(target, part, recipe, order.backgrounds, counts[part]) for part, recipe in recipes.items()]
    return target, [*steps, *extract_steps(target, "pocket", counts)]


def offered_scenes(root: Path) -> list[str]:
    """List sets of scenes that are complete, the newest first."""
    manifests = sorted((root / SCENES).glob("*/val/manifest.jsonl"), key=lambda path: -path.stat().st_mtime)
    return [path.parent.parent.name for path in manifests if (path.parent.parent / "train" / "manifest.jsonl").is_file()]


def _recipe(order: SceneOrder, name: str, number: int, seed: int, source: Sequence[Mapping[str, str]]) -> SceneRecipe:
    groups = len({row["group"] for row in source})
    if groups < 2:
        raise DataError(
            f"{groups} sound in {'the validation clips' if name.endswith('-val') else order.clips}; at least 2 are needed, so that the "
            "model learns to tell them apart: add clips of another sound, in a subfolder of their own."
        )
    usual = SceneRecipe()
    return SceneRecipe(
        name=name,
        seed=seed,
        num_scenes=number,
        min_scene_seconds=order.shortest_seconds,
        max_scene_seconds=order.longest_seconds,
        min_groups=min(usual.min_groups, groups),
        max_groups=min(usual.max_groups, groups),
    )


def _synthesize(target: Path, part: str, recipe: SceneRecipe, backgrounds: str, number: int) -> Step:
    usual = SceneRecipe()
    options = [
        text
        for item in fields(SceneRecipe)
        if getattr(recipe, item.name) != getattr(usual, item.name)
        for text in (f"--{item.name.replace('_', '-')}", str(getattr(recipe, item.name)))
    ]
    if backgrounds.strip():
        options += ["--backgrounds", str(Path(backgrounds.strip()).expanduser().resolve())]
    output = target / part
    arguments = (sys.executable, "-m", "qamdetr", "synthesize", "--clips", str(target / f"clips-{part}"), "--output", str(output), *options)
    label = "Making scenes to learn from" if part == "train" else "Making scenes to validate on"
    return Step(label, arguments, done_when=str(output / "manifest.jsonl"), counted=str(output / "audio"), total=number)


def extract_steps(scenes: Path, combo: str, counts: Mapping[str, int]) -> list[Step]:
    """Encode what is not encoded yet.

    Args:
        scenes: Folder of the set.
        combo: Name of the encoders.
        counts: Recordings of each part, in the order of the steps.
    """
    steps, total = [], 0
    for part, number in counts.items():
        total += number
        manifest, features = scenes / part / "manifest.jsonl", scenes / "features"
        arguments = (
            *(sys.executable, "-m", "qamdetr", "extract", "--combo", combo),
            *("--manifest", str(manifest), "--feature-dir", str(features)),
        )
        label = f"Listening to the {'training' if part == 'train' else 'validation'} scenes"
        steps.append(Step(label, arguments, counted=str(features / combo / "audio"), total=total))
    return steps


def _check_space(root: Path, seconds: float) -> None:
    existing = next(folder for folder in (root.resolve(), *root.resolve().parents) if folder.exists())
    needed, free = seconds * _BYTES_PER_SECOND + SPARE_BYTES, shutil.disk_usage(existing).free
    if not needed < free:
        raise ConfigError(
            f"These scenes take some {needed / 1024**3:.1f} GB, but {free / 1024**3:.1f} GB are free; make fewer or shorter ones."
        )
