"""A folder of one's own clips, made ready for `synthesize`: read as it is, and divided into clips to learn from and clips kept back.

Where the folder has a `clips.csv`, its table counts. Where it has none, each clip is named by the subfolder that it lies in, or else by its
own file name without numbers: `dog barking/01.wav` and `dog_barking_2.wav` are both "dog barking".
"""

from __future__ import annotations

import csv
import io
import shutil
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from qamdetr.audio import AUDIO_SUFFIXES
from qamdetr.config import CONFIG_DIR, load_config
from qamdetr.errors import ConfigError, DataError
from qamdetr.features.base import COMBOS
from qamdetr.files import write_whole
from qamdetr.synthesis import SceneRecipe
from qamdetr.synthesis.sources import COLUMN_ALIASES, SOURCE_COLUMNS, clips_by_name
from qamdetr.ui.train.jobs import Step, check_name

KEPT_BACK = 5
"""One clip in so many of a sound is kept back for validation."""

GROUPS_FILE = "groups.csv"


@dataclass(frozen=True)
class OwnClips:
    """What a folder holds.

    Attributes:
        folder: Where it lies.
        rows: One per clip: the columns of `clips.csv`, with `file_name` made absolute and `group` filled in.
        has_table: Whether `clips.csv` said so, or the names of files and folders.
    """

    folder: Path
    rows: tuple[Mapping[str, str], ...]
    has_table: bool

    @property
    def groups(self) -> dict[str, list[Mapping[str, str]]]:
        """Sound -> its clips."""
        found: dict[str, list[Mapping[str, str]]] = defaultdict(list)
        for row in self.rows:
            found[row["group"]].append(row)
        return dict(sorted(found.items()))


def read_clips(folder: str) -> OwnClips:
    """Find the clips of a folder, without decoding them.

    Raises:
        DataError: No such folder, no clips in it, or a table that cannot be read.
    """
    path = Path(folder.strip()).expanduser()
    if not folder.strip():
        raise DataError("There is no folder of clips yet; give the whole path of one on the machine that runs this page.")
    if not path.is_dir():
        raise DataError(
            f"There is no folder {folder.strip()!r} on the machine that runs this page; give the whole path, such as /home/me/clips."
        )
    path = path.resolve()
    table = path / "clips.csv"
    rows = (
        _read_table(table)
        if table.is_file()
        else [{"file_name": str(file), "group": name, "caption_1": name} for file, name in clips_by_name(path).items()]
    )
    if not rows:
        kinds = ", ".join(sorted(AUDIO_SUFFIXES))
        raise DataError(f"{path} holds 0 clips; at least 2 sounds are needed: put audio files there ({kinds}).")
    return OwnClips(path, tuple(rows), table.is_file())


def divide(clips: OwnClips) -> tuple[list[Mapping[str, str]], list[Mapping[str, str]]]:
    """Divide clips into those to learn from and those kept back: every `KEPT_BACK`th of each sound, at least one.

    A sound with a single clip is in both: without it validation could not ask for it.
    """
    learnt: list[Mapping[str, str]] = []
    kept: list[Mapping[str, str]] = []
    for rows in clips.groups.values():
        if len(rows) == 1:
            learnt += rows
            kept += rows
            continue
        number = max(1, len(rows) // KEPT_BACK)
        # Spread over the group, whose neighbours in name often come from one recording.
        places = {(2 * index + 1) * len(rows) // (2 * number) for index in range(number)}
        learnt += [row for place, row in enumerate(rows) if place not in places]
        kept += [row for place, row in enumerate(rows) if place in places]
    return learnt, kept


def write_clips(rows: Sequence[Mapping[str, str]], source: Path, folder: Path) -> None:
    """Write a table that `synthesize` reads; the audio stays where it is.

    Args:
        rows: Of `OwnClips`.
        source: Folder that they come from; captions of its `groups.csv` come along where they are about these clips.
        folder: Where `clips.csv` goes.

    Raises:
        DataError: A table cannot be read or written.
    """
    try:
        write_whole(folder / "clips.csv", _table(rows))
        if (source / GROUPS_FILE).is_file():
            groups = {row["group"] for row in rows}
            about = [
                row
                for row in _rows_of(source / GROUPS_FILE)
                if any(group == row.get("group") or group.startswith(f"{row.get('group')}/") for group in groups)
            ]
            write_whole(folder / GROUPS_FILE, _table(about) if about else "group,caption\n")
    except OSError as error:
        raise DataError(f"Cannot write {folder} ({error.strerror or error}); free some space there.") from error


def _read_table(table: Path) -> list[dict[str, str]]:
    rows = []
    attribution = table.parent / "attribution.csv"
    sources = {
        row.get("file_name", ""): {name: row[name] for name in SOURCE_COLUMNS if row.get(name)}
        for row in (_rows_of(attribution) if attribution.is_file() else ())
    }
    for row in _rows_of(table):
        file = row.get("file_name", "").strip()
        if not file:
            raise DataError(f"{table} has a line without file_name; it needs a column file_name, and captions in a column caption_1.")
        # The file's stem where the table names no group, as in `synthesize`.
        group = row.get("group", "").strip().strip("/") or Path(file).stem
        rows.append({**row, **sources.get(file, {}), "file_name": str(table.parent / file), "group": group})
    return rows


def _rows_of(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            names = {name: COLUMN_ALIASES.get(name.strip().lower(), name.strip().lower()) for name in reader.fieldnames or () if name}
            found = [{names[key]: value or "" for key, value in row.items() if key in names} for row in reader]
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}); give a folder that this program may read.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a CSV table in UTF-8 ({error}); save it as UTF-8.") from error
    return [row for row in found if any(value.strip() for value in row.values())]


def _table(rows: Sequence[Mapping[str, str]]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


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
    # As the shipped model hears, which most trainings follow; another hop is encoded when it is asked for.
    return target, [*steps, *extract_steps(target, "pocket", counts, load_config(CONFIG_DIR / "pocket.yaml").model.clip_seconds)]


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


def extract_steps(scenes: Path, combo: str, counts: Mapping[str, int], clip_seconds: float) -> list[Step]:
    """Encode what is not encoded yet."""
    steps, total = [], 0
    for part, number in counts.items():
        total += number
        manifest, features = scenes / part / "manifest.jsonl", scenes / "features"
        arguments = (
            *(sys.executable, "-m", "qamdetr", "extract", "--combo", combo, "--clip-seconds", f"{clip_seconds:g}"),
            *("--manifest", str(manifest), "--feature-dir", str(features)),
        )
        label = f"Listening to the {'training' if part == 'train' else 'validation'} scenes"
        main = COMBOS[combo].audio_streams[0]
        steps.append(Step(label, arguments, counted=str(features / f"{main}-*"), total=total))
    return steps


def _check_space(root: Path, seconds: float) -> None:
    existing = next(folder for folder in (root.resolve(), *root.resolve().parents) if folder.exists())
    needed, free = seconds * _BYTES_PER_SECOND + SPARE_BYTES, shutil.disk_usage(existing).free
    if not needed < free:
        raise ConfigError(
            f"These scenes take some {needed / 1024**3:.1f} GB, but {free / 1024**3:.1f} GB are free; make fewer or shorter ones."
        )
