"""Reads what scenes are made of: a folder of captioned clips (`clips.csv`, `groups.csv`) and a folder of backgrounds.

Folder format. `clips.csv` has the column `file_name` and, where wanted, `group`, `extend`, any columns that begin with `caption`,
and `license`, `license_url`, `author`, `title`, `source`; other columns are ignored, so Clotho's own captions CSV is accepted as it is.
`group` is a path such as `speech/man` (default: the file's stem). `groups.csv` (`group,caption`) holds further captions. A caption of group
G is about every clip whose group is G or lies below G. `attribution.csv` (`file` or `file_name`, and the licence columns) is merged in, in
the backgrounds folder too, which needs no table.

Where there is no `clips.csv`, each clip is captioned by the subfolder that it lies in, or else by its own file name without numbers:
`dog barking/01.wav` and `dog_barking_2.wav` are both "dog barking".
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from qamdetr.audio import AUDIO_SUFFIXES, Sound
from qamdetr.data.manifest import is_within
from qamdetr.errors import DataError, QamDetrError

Samples = npt.NDArray[np.float32]
Window = tuple[float, float]  # `qamdetr.types` has it too, but imports torch, which would cost each worker process seconds

SOURCE_COLUMNS = ("license", "license_url", "author", "title", "source")
COLUMN_ALIASES = {"licence": "license", "licenses": "license", "licences": "license", "source_id": "source", "file": "file_name"}

FRAME_SECONDS = 0.01  # step of the energy curve that decides what sounds
SOUNDING_DB = {"no": -30.0, "loop": -40.0, "repeat": -30.0}
"""A frame sounds when its RMS is no further than this below the clip's loudest frame. Textures (`loop`) get the lower threshold: a single
crackle of a fire must not turn the rest of the fire into silence."""
FAINT_STRETCH_DB = -20.0
"""A separate stretch whose loudest frame lies below this (relative to the clip's loudest) is handling noise or an echo: left out."""
SHORT_SILENCE_SECONDS = 0.1  # silences up to this length belong to the sound around them
LONG_SILENCE_SECONDS = 1.0  # longer ones separate two soundings of a clip; ticks of a clock, one a second, stay one sounding
LEVELS_DB = tuple(range(-27, 1, 3))
"""Levels, relative to a clip's active RMS, for which is noted where it is at least as loud."""
MIN_STRETCH_SECONDS = 0.03  # shorter separate stretches are clicks, not sounds that a caption is about


@dataclass(frozen=True)
class Clip:
    """One captioned clip, as the planner sees it."""

    file: str  # relative to the clips folder
    group: str  # what sounds, as a path such as `speech/man`
    extend: str  # how longer events are made: `no` (as it is), `loop` (a texture), `repeat` (a single event, played again)
    duration_seconds: float = 0.0
    active: tuple[Window, ...] = ()  # where the file sounds, in seconds; sorted, silences over `SHORT_SILENCE_SECONDS` apart
    source: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)  # licence, author and so on, as far as known
    louder: tuple[tuple[Window, ...], ...] = field(default=(), repr=False)  # where it sounds at least as loudly as each of `LEVELS_DB`

    def above(self, level_db: float) -> tuple[Window, ...]:
        """Where the file sounds and is no further than this from its active RMS, to the next of `LEVELS_DB`."""
        return next((w for level, w in zip(LEVELS_DB, self.louder, strict=False) if level >= level_db > LEVELS_DB[0] - 3), self.active)

    @property
    def stretches(self) -> tuple[Window, ...]:
        """The soundings of the clip: `active` with silences up to `LONG_SILENCE_SECONDS` closed."""
        return tuple(merge_windows(self.active, LONG_SILENCE_SECONDS))


@dataclass(frozen=True)
class Background:
    """One background recording: path relative to the backgrounds folder, length, source as of a `Clip`."""

    file: str
    duration_seconds: float
    source: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class Library:
    """Everything a plan is drawn from, sorted; plain data, in an order that does not depend on the file system."""

    clips: tuple[Clip, ...]
    captions: Mapping[str, tuple[str, ...]]  # group -> its captions; without captions it only ever serves as a distractor
    backgrounds: tuple[Background, ...] = ()


def read_library(clips_dir: Path, backgrounds_dir: Path | None) -> Library:
    """Read both folders and find where each clip sounds; backgrounds are searched for in subfolders too, and none of them is a clip.

    A malformed table (file, line, field), missing files (all at once), unreadable or silent clips, no captions: `DataError`.
    """
    table = clips_dir / "clips.csv"
    named = clips_by_name(clips_dir) if clips_dir.is_dir() and not table.exists() else {}
    captioned = [(Clip(path.relative_to(clips_dir).as_posix(), name, "no"), [name]) for path, name in named.items()]
    captioned = sorted(captioned or _read_clips(table), key=lambda pair: pair[0].file)
    captions: dict[str, set[str]] = {clip.group: set() for clip, _ in captioned}
    about = [(clip.group, text) for clip, texts in captioned for text in texts]
    for group, caption in about + _read_groups(clips_dir / "groups.csv", set(captions)):
        captions.setdefault(group, set()).add(caption)
    if not any(captions.values()):
        raise DataError(f"{table} holds {len(captioned)} clips but 0 captions; at least 1 is needed: add a column caption_1 or groups.csv.")
    backgrounds = _read_backgrounds(backgrounds_dir, {(clips_dir / clip.file).resolve() for clip, _ in captioned})
    sources, measured, faults = _read_attribution(clips_dir), [], []
    for clip, _ in captioned:
        sound = Sound(clips_dir / clip.file)
        try:
            if active := find_active(samples := sound.samples(), sound.rate_hz, clip.extend):
                source = {**clip.source, **sources.get(clip.file, {})}
                louder = find_louder(samples, sound.rate_hz, active)
                measured.append(replace(clip, duration_seconds=sound.duration_seconds, active=active, source=source, louder=louder))
            else:
                faults.append(f"{clip.file} (silent throughout)")
        except QamDetrError as error:
            faults.append(f"{clip.file} ({error})")
    if faults:
        raise DataError(f"{table}: file_name: {len(faults)} clips cannot be used: {'; '.join(faults)}. Mend or remove them.")
    return Library(tuple(measured), {group: tuple(sorted(texts)) for group, texts in sorted(captions.items())}, backgrounds)


def merge_windows(windows: Iterable[Window], max_gap_seconds: float) -> list[Window]:
    """Sort windows and join those that overlap or lie at most `max_gap_seconds` apart."""
    merged: list[Window] = []
    for start, end in sorted(windows):
        if merged and start - merged[-1][1] <= max_gap_seconds:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def frame_rms(samples: Samples, sample_rate_hz: int) -> Samples:
    """RMS of consecutive frames of `FRAME_SECONDS`, shape `(frames,)`; the last frame may be cut short."""
    size = max(1, round(FRAME_SECONDS * sample_rate_hz))
    starts = np.arange(0, len(samples), size)
    counts = np.minimum(size, len(samples) - starts)
    return np.asarray(np.sqrt(np.add.reduceat(np.square(samples), starts) / counts), dtype=np.float32)


def find_active(samples: Samples, sample_rate_hz: int, extend: str = "no") -> tuple[Window, ...]:
    """Find where a clip of `(samples,)` sounds, relative to its own loudest frame: sorted windows in seconds, none when it is silent."""
    rms = frame_rms(samples - samples.mean(), sample_rate_hz)  # a constant offset would count as sound
    loudest = float(rms.max())
    if loudest < 1e-5:
        return ()
    step = max(1, round(FRAME_SECONDS * sample_rate_hz)) / sample_rate_hz
    active = _windows(rms >= loudest * 10 ** (SOUNDING_DB[extend] / 20), len(samples), sample_rate_hz)
    kept = []
    for start, end in merge_windows(active, LONG_SILENCE_SECONDS):
        peak = float(rms[int(start / step) : max(int(start / step) + 1, round(end / step))].max())
        if peak >= loudest * 10 ** (FAINT_STRETCH_DB / 20) and end - start >= MIN_STRETCH_SECONDS:
            kept.append((start, end))
    if not kept:
        # Nothing but clicks: the loudest one is the sound.
        peak_at = float(rms.argmax()) * step
        kept = [min(active, key=lambda window: abs(window[0] - peak_at))]
    return tuple(window for window in active if any(start <= window[0] and window[1] <= end for start, end in kept))


def find_louder(samples: Samples, sample_rate_hz: int, active: tuple[Window, ...]) -> tuple[tuple[Window, ...], ...]:
    """Find, for each of `LEVELS_DB`, the parts of a clip's `active` windows that reach it."""
    samples = samples - samples.mean()
    rms, reference = frame_rms(samples, sample_rate_hz), active_rms(samples, sample_rate_hz)
    found = []
    for level in LEVELS_DB:
        windows = _windows(rms >= reference * 10 ** (level / 20), len(samples), sample_rate_hz)
        parts = [(max(a, start), min(b, end)) for a, b in windows for start, end in active]
        found.append(tuple((a, b) for a, b in parts if a < b))
    return tuple(found)


def active_rms(samples: Samples, sample_rate_hz: int) -> float:
    """RMS over the frames that sound: those at most 30 dB below the loudest one. Never 0."""
    rms = frame_rms(samples, sample_rate_hz)
    sounding = rms[rms >= rms.max() * 10 ** (SOUNDING_DB["no"] / 20)]
    return max(float(np.sqrt(np.square(sounding).mean())), 1e-9)


def _windows(frames: npt.NDArray[np.bool_], num_samples: int, sample_rate_hz: int) -> list[Window]:
    """Windows in seconds of the frames that are True, short silences closed."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], frames, [False]])))
    step, length = max(1, round(FRAME_SECONDS * sample_rate_hz)) / sample_rate_hz, num_samples / sample_rate_hz
    # Rounded, so that plans (and with them manifests) do not hang on the last bits of a float.
    windows = [
        (round(a * step, 4), round(min(b * step, length), 4)) for a, b in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
    ]
    return merge_windows(windows, SHORT_SILENCE_SECONDS)


def spoken(name: str) -> str:
    """Make words of a file's name: `dog_barking-02` is "dog barking"."""
    words = re.sub(r"[\s_.,()\[\]/-]+", " ", name)
    without_numbers = " ".join(word for word in words.split() if not word.isdigit())
    return re.sub(r"(?<=[^\W\d])\d+$", "", without_numbers).strip().lower() or name.replace("/", " ")


def clips_by_name(folder: Path) -> dict[Path, str]:
    """Audio files of a folder and its subfolders, sorted -> what the name of the subfolder, or else of the file, says is heard."""
    paths = (path for pattern in ("*", "*/*") for path in folder.glob(pattern) if not path.name.startswith("."))
    clips = sorted(path for path in paths if path.suffix.lower() in AUDIO_SUFFIXES)
    return {path: spoken(path.stem if path.parent == folder else path.parent.name) for path in clips}


def _read_table(path: Path, *required: str) -> list[tuple[int, dict[str, str]]]:
    """Return (line number, column -> stripped value) per row; column names in lower case with aliases resolved."""
    rows = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            header = [COLUMN_ALIASES.get(name.strip().lower(), name.strip().lower()) for name in next(reader, [])]
            for name in (name for name in required if name not in header):
                raise DataError(f"{path}:1: no column {name!r} among {header}", "the first line must name the columns")
            for values in (values for values in reader if any(map(str.strip, values))):
                where = f"{path}:{reader.line_num}"
                if len(values) > len(header):
                    raise DataError(f"{where}: {len(values)} values for {len(header)} columns", "put values that hold commas in quotes")
                row = dict.fromkeys(header, "") | dict(zip(header, map(str.strip, values), strict=False))
                for name in (name for name in required if not row[name]):
                    raise DataError(f"{where}: {name} is empty", "fill it in or remove the line")
                rows.append((reader.line_num, row))
    except OSError as error:
        remedy = f"it must be a CSV table with the columns {', '.join(required)}"
        raise DataError(f"{path} cannot be read ({error.strerror})", remedy) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a CSV table in UTF-8 ({error})", "save it as UTF-8") from error
    return rows


def _read_clips(path: Path) -> list[tuple[Clip, list[str]]]:
    """Read `clips.csv`: clips, not yet measured, and their captions; checks fields and that every file is there."""
    lines: dict[str, int] = {}
    captioned = []
    for line, values in _read_table(path, "file_name"):
        file = PurePosixPath(values["file_name"]).as_posix()
        if file in lines:
            raise DataError(f"{path}:{line}: file_name {file!r} stands already on line {lines[file]}", "keep one of the two")
        lines[file] = line
        extend = values.get("extend") or "no"
        if extend not in SOUNDING_DB:
            raise DataError(f"{path}:{line}: extend is {extend!r}; it must be one of {', '.join(SOUNDING_DB)}.")
        group = _clean_group(values.get("group") or PurePosixPath(file).stem, path, line)
        captions = [value for name, value in values.items() if name.startswith("caption") and value]
        captioned.append((Clip(file, group, extend, source=_source_of(values)), captions))
    if not lines:
        raise DataError(f"{path} lists 0 clips; at least 1 is needed: add one line per clip.")
    if missing := [f"{file} (line {line})" for file, line in lines.items() if not (path.parent / file).is_file()]:
        what = f"{path}: file_name: {len(missing)} of {len(lines)} files are not in {path.parent}: {', '.join(missing)}."
        raise DataError(f"{what} Add them or remove the lines.")
    return captioned


def _read_groups(path: Path, known: set[str]) -> list[tuple[str, str]]:
    """Read `groups.csv` when there is one; each group must be, or contain, a group of a clip."""
    rows = []
    for line, values in _read_table(path, "group", "caption") if path.is_file() else ():
        group = _clean_group(values["group"], path, line)
        if not any(is_within(name, group) for name in known):
            raise DataError(f"{path}:{line}: group {group!r} holds no clip of clips.csv", "correct the name or remove the line")
        rows.append((group, values["caption"]))
    return rows


def _clean_group(text: str, path: Path, line: int) -> str:
    parts = [part.strip() for part in text.strip().strip("/").split("/")]
    if not all(parts):
        raise DataError(f"{path}:{line}: group {text!r} has an empty part", "write it like speech/man")
    return "/".join(parts)


def _read_attribution(folder: Path) -> dict[str, dict[str, str]]:
    """Read what the folder's `attribution.csv`, where there is one, says of each file."""
    path = folder / "attribution.csv"
    rows = _read_table(path, "file_name") if path.is_file() else ()
    return {PurePosixPath(values["file_name"]).as_posix(): _source_of(values) for _, values in rows}


def _source_of(values: Mapping[str, str]) -> dict[str, str]:
    return {name: values[name] for name in SOURCE_COLUMNS if values.get(name)}


def _read_backgrounds(folder: Path | None, clip_paths: set[Path]) -> tuple[Background, ...]:
    if folder is None:
        return ()
    if not folder.is_dir():
        raise DataError(f"Backgrounds folder {folder} does not exist", "give an existing folder, or none for synthesised pink noise")
    # A clip that is also a background would sound outside its own truth.
    files = {
        path.relative_to(folder).as_posix(): path
        for path in folder.rglob("*")
        if path.suffix.lower() in AUDIO_SUFFIXES and path.is_file() and path.resolve() not in clip_paths
    }
    sources = _read_attribution(folder)
    return tuple(Background(file, Sound(files[file]).duration_seconds, sources.get(file, {})) for file in sorted(files))
