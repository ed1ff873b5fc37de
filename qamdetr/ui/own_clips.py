"""A folder of one's own clips, made ready for `synthesize`: read as it is, and divided into clips to learn from and clips kept back.

Where the folder has a `clips.csv`, its table counts. Where it has none, each clip is named by the subfolder that it lies in, or else by its
own file name without numbers: `dog barking/01.wav` and `dog_barking_2.wav` are both "dog barking".
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qamdetr.audio import AUDIO_SUFFIXES
from qamdetr.errors import DataError
from qamdetr.files import write_whole
from qamdetr.synthesis.sources import COLUMN_ALIASES, SOURCE_COLUMNS, clips_by_name

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
