"""The field's JSONL files: manifests of queries on recordings, and predictions. Reading is strict; errors name file, line and field."""

from __future__ import annotations

import functools
import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from qamdetr.errors import DataError
from qamdetr.files import replacing
from qamdetr.types import Window

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class QueryEntry:
    """One line of a manifest: a query on a recording."""

    qid: str
    query: str
    vid: str  # the recording: the stem of its audio file
    duration_seconds: float  # as the manifest states it (the field's data rounds it to whole seconds)
    relevant_windows: tuple[Window, ...] | None  # ground truth; empty where the sound is absent, None where it is not known
    numeric_qid: bool = False  # the file holds the qid as a number; `write_manifest` writes it back as one
    groups: tuple[str, ...] = ()  # what the query is about, as paths such as `animal/dog`; empty where that is not known, as in the field


@dataclass(frozen=True)
class PredictionEntry:
    """One line of a predictions file: `(start, end, score)` windows in seconds, best first; `numeric_qid` as in `QueryEntry`."""

    qid: str
    query: str
    vid: str
    pred_relevant_windows: tuple[tuple[float, float, float], ...]
    numeric_qid: bool = False


def read_manifest(path: str | Path, *, clamp: bool = True) -> list[QueryEntry]:
    """Read a manifest, by default with windows clamped to the duration (see `clamp_windows`); changes are logged as a warning.

    Evaluation and prediction read with `clamp=False`: the official evaluator takes the windows as they are.
    """
    entries = _read_lines(Path(path), _parse_query)
    clamped, changed = clamp_windows(entries)
    if clamp and changed:
        logger.warning("%s: %d windows end after their recording's `duration` and were clamped to it.", path, changed)
    return clamped if clamp else entries


def is_within(group: str, ancestor: str) -> bool:
    """Tell whether `group` is `ancestor` or lies below it: a sound of the one is a sound of the other."""
    return f"{group}/".startswith(f"{ancestor}/")


def are_related(group: str, other: str) -> bool:
    """Tell whether either is within the other."""
    return is_within(group, other) or is_within(other, group)


def names_in(entries: Iterable[QueryEntry]) -> tuple[list[str], dict[str, str]]:
    """Return the recordings (`vid`) and the queries (`qid` -> wording) of entries, as `features.store` takes them."""
    entries = list(entries)
    return list(dict.fromkeys(entry.vid for entry in entries)), {entry.qid: entry.query for entry in entries}


def clamp_windows(entries: Iterable[QueryEntry]) -> tuple[list[QueryEntry], int]:
    """Cut windows at the end of their recording; return the entries and how many windows changed.

    A window that starts at or after the end is left out. An entry that loses all its windows so gets None ("not known"), never
    the empty tuple, which would claim that the sound is absent.

    Source: CASTELLA holds such windows, mostly [x, 300] in recordings of 299 s, one [299, 4800].
    """
    clamped: list[QueryEntry] = []
    changed = 0
    for entry in entries:
        past = sum(end > entry.duration_seconds for _, end in entry.relevant_windows or ())
        cut = ((start, min(end, entry.duration_seconds)) for start, end in entry.relevant_windows or () if start < entry.duration_seconds)
        clamped.append(replace(entry, relevant_windows=tuple(cut) or None) if past else entry)
        changed += past
    return clamped, changed


def write_manifest(path: str | Path, entries: Iterable[QueryEntry]) -> None:
    """Write entries in the field's JSONL; `relevant_windows` is left out where it is None. The file appears whole or not at all."""

    def line(entry: QueryEntry) -> dict[str, Any]:
        windows = entry.relevant_windows
        fields: dict[str, Any] = {"qid": raw_qid(entry), "query": entry.query, "duration": short(entry.duration_seconds), "vid": entry.vid}
        if entry.groups:
            fields["groups"] = list(entry.groups)
        return fields if windows is None else {**fields, "relevant_windows": [[short(start), short(end)] for start, end in windows]}

    _write_lines(Path(path), (line(entry) for entry in entries))


def read_predictions(path: str | Path, *, allow_pairs: bool = False) -> list[PredictionEntry]:
    """Read a predictions file, each window `[start, end, score]`.

    With `allow_pairs`, a line may also hold `[start, end]`, best first, as submissions do; n such windows get the scores n/n, … 1/n.
    """
    return _read_lines(Path(path), functools.partial(_parse_prediction, allow_pairs=allow_pairs))


def write_predictions(path: str | Path, entries: Iterable[PredictionEntry]) -> None:
    """Write predictions in the field's JSONL. The file appears whole or not at all."""

    def line(entry: PredictionEntry) -> dict[str, Any]:
        windows = [list(window) for window in entry.pred_relevant_windows]
        return {"qid": raw_qid(entry), "query": entry.query, "vid": entry.vid, "pred_relevant_windows": windows}

    _write_lines(Path(path), (line(entry) for entry in entries))


class _Line:
    """One JSON object of a file, whose fields are checked as they are read; a wrong one names the line."""

    def __init__(self, where: str, text: str) -> None:
        self._where = where
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:  # JSON's own errors, and integers of thousands of digits
            raise DataError(f"{where}: not valid JSON ({error}); each line must be one JSON object.") from error
        if not isinstance(values, Mapping):
            raise DataError(f"{where}: holds {type(values).__name__}; each line must be one JSON object.")
        self.values: Mapping[str, Any] = values
        self.numeric_qid = isinstance(values.get("qid"), int) and not isinstance(values["qid"], bool)

    def fail(self, name: str, problem: str) -> NoReturn:
        raise DataError(f"{self._where}: field `{name}` {problem}")

    def get(self, name: str, is_right: Callable[[Any], bool], must_be: str) -> Any:  # noqa: ANN401 - any JSON value
        if name not in self.values:
            self.fail(name, f"is missing; the line has {', '.join(map(str, self.values)) or 'no fields'}.")
        if not is_right(self.values[name]):
            self.fail(name, f"is {_shown(self.values[name])}; it must be {must_be}.")
        return self.values[name]

    def text(self, name: str) -> str:
        if name == "qid" and self.numeric_qid:
            return str(self.values[name])
        value = str(self.get(name, lambda value: isinstance(value, str) and bool(value.strip()), "text that is not empty"))
        # JSON can spell both, but no file name can hold a zero and no file at all half of a surrogate pair.
        if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
            self.fail(name, f"is {json.dumps(value)[:60]}; it holds a character that is no text: correct the line.")
        return value

    def windows(self, name: str, *columns: str) -> list[tuple[float, ...]]:
        value = self.get(name, lambda value: isinstance(value, list), f"a list of [{', '.join(columns)}]")
        for item in value:
            if not isinstance(item, list) or len(item) != len(columns) or not all(map(is_finite_number, item)):
                self.fail(name, f"holds {_shown(item)}; each window must be [{', '.join(columns)}], finite numbers.")
            if not 0 <= item[0] <= item[1]:
                self.fail(name, f"holds {_shown(item)}; a window needs 0 <= start <= end, in seconds.")
        return [tuple(map(float, item)) for item in value]


def _parse_query(line: _Line) -> QueryEntry:
    qid, windows = line.text("qid"), None
    if line.values.get("relevant_windows") is not None:
        windows = tuple((start, end) for start, end in line.windows("relevant_windows", "start", "end"))
        for start, end in windows:
            if start == end:
                line.fail("relevant_windows", f"holds {[start, end]}; a true window cannot be empty, start must be below end.")
    query, vid = line.text("query"), line.text("vid")
    duration = line.get("duration", lambda value: is_finite_number(value) and value > 0, "a number of seconds above 0")
    groups: tuple[str, ...] = ()
    if "groups" in line.values:
        must_be = "a list of paths, such as animal/dog"
        groups = tuple(line.get("groups", lambda value: isinstance(value, list) and all(isinstance(one, str) for one in value), must_be))
    return QueryEntry(qid, query, vid, float(duration), windows, line.numeric_qid, groups)


def _parse_prediction(line: _Line, *, allow_pairs: bool) -> PredictionEntry:
    qid, name = line.text("qid"), "pred_relevant_windows"
    value = line.values.get(name)
    lengths = {len(item) for item in value if isinstance(item, list)} if allow_pairs and isinstance(value, list) else set()
    if lengths >= {2, 3}:
        line.fail(name, "mixes [start, end] and [start, end, score]; give all windows of a line a score, or none.")
    if lengths == {2}:
        pairs = line.windows(name, "start", "end")
        scored = tuple((start, end, 1 - rank / len(pairs)) for rank, (start, end) in enumerate(pairs))
    else:
        scored = tuple((start, end, score) for start, end, score in line.windows(name, "start", "end", "score"))
    return PredictionEntry(qid, line.text("query"), line.text("vid"), scored, line.numeric_qid)


_Entry = TypeVar("_Entry", QueryEntry, PredictionEntry)


def _read_lines(path: Path, parse: Callable[[_Line], _Entry]) -> list[_Entry]:
    entries: list[_Entry] = []
    seen: dict[str, int] = {}
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, text in enumerate(file, start=1):
                if not text.strip():
                    continue
                line = _Line(f"{path}, line {number}", text)
                entry = parse(line)
                if entry.qid in seen:
                    line.fail("qid", f"{entry.qid!r} was already used on line {seen[entry.qid]}; every qid must be its own.")
                seen[entry.qid] = number
                entries.append(entry)
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror or error}; give a JSONL file.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start} of a block); give a JSONL file in UTF-8.") from error
    if not entries:
        raise DataError(f"{path} holds no entries; give a JSONL file with one JSON object per line.")
    return entries


def _write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    try:
        with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
            for line in lines:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
    except OSError as error:
        raise DataError(f"Cannot write {path}: {error.strerror or error}; choose another place.") from error


def is_finite_number(value: object) -> bool:
    """Whether a value read from a file is a number, and one that a float can hold; True and False are none."""
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer too large for a float
        return False


def raw_qid(entry: QueryEntry | PredictionEntry) -> str | int:
    """Return the qid as the manifest's file holds it."""
    return int(entry.qid) if entry.numeric_qid else entry.qid


def short(seconds: float) -> float | int:
    """Write whole seconds as `52`, as the field's files have them, others as they are."""
    return int(seconds) if seconds == int(seconds) else seconds


def _shown(value: object) -> str:
    """Show a JSON value on one line, cut when it is long."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
