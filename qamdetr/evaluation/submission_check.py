"""Finds everything that is wrong with a submission before the challenge's server does. Each problem is one line of text."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from qamdetr.data.manifest import QueryEntry, is_finite_number
from qamdetr.errors import DataError
from qamdetr.evaluation.matching import MAX_PREDICTIONS
from qamdetr.evaluation.submission import (
    LABEL_FORM,
    METADATA_SUFFIX,
    METADATA_TEMPLATE,
    OUTPUT_SUFFIX,
    PLACEHOLDER,
    YAML_ERRORS,
    field_names,
    is_label,
    raw_qid,
    unknown_fields,
)

MAX_SYSTEMS = 4
MAX_ABBREVIATION = 10
MAX_PARAMETERS = 10**15
"""No model comes near it; a number above is a slip of the keyboard."""
OUTPUT_FIELDS = ("qid", "query", "vid", "duration", "pred_relevant_windows")
_NAMES_SHOWN = 10
_HUGE = 10**20  # integers from here on are not written out
_MAY_BE_EMPTY = ("LLMs", "augmentation", "external_data", "captions", "ensemble")


def check_submission(outputs: Sequence[str | Path], metadata: Sequence[str | Path], manifest: Sequence[QueryEntry]) -> list[str]:
    """Check the files of one or several systems.

    Args:
        outputs: The JSONL files, one per system.
        metadata: Their YAML files in the same order.
        manifest: The evaluation set.

    Returns:
        Every problem, one line each; empty when all is well.

    Raises:
        DataError: A file cannot be read at all.
    """
    problems: list[str] = []
    if len(outputs) != len(metadata):
        problems.append(f"{len(outputs)} output files and {len(metadata)} metadata files; every system needs one of each.")
    if max(len(outputs), len(metadata)) > MAX_SYSTEMS:
        problems.append(f"{max(len(outputs), len(metadata))} systems; a team may submit at most {MAX_SYSTEMS}.")
    for output in outputs:
        problems += check_output(output, manifest)
    for description in metadata:
        problems += check_metadata(description)
    labels = [Path(path).name.removesuffix(OUTPUT_SUFFIX) for path in outputs]
    for output, label, description in zip(outputs, labels, metadata, strict=False):
        if label != Path(description).name.removesuffix(METADATA_SUFFIX):
            problems.append(f"{output} and {description} are not of one system; both names begin with its label.")
    for label in dict.fromkeys(labels):
        if labels.count(label) > 1:
            problems.append(f"Label {label!r} is used by {labels.count(label)} systems; each needs its own number.")
    names = [*labels, *(Path(path).name.removesuffix(METADATA_SUFFIX) for path in metadata)]
    teams = list(dict.fromkeys(name.rpartition("_")[0] for name in names if is_label(name)))
    if len(teams) > 1:
        problems.append(f"Labels begin with {', '.join(teams)}; one team's labels differ in the number only, check each team by itself.")
    return problems


def check_output(path: str | Path, manifest: Sequence[QueryEntry]) -> list[str]:
    """Find everything wrong with an output file: its name, ids, order, fields and windows.

    Raises:
        DataError: The file cannot be read.
    """
    path = Path(path)
    problems = _check_name(path, OUTPUT_SUFFIX)
    expected = {raw_qid(entry): entry for entry in manifest}
    lines: dict[str | int, int] = {}
    # Not `splitlines`, which also parts at U+2028 and the like: JSON may hold those inside a text.
    for number, text in enumerate(_read(path).removesuffix("\n").split("\n"), start=1):
        where = f"{path}, line {number}"
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            problems.append(f"{where}: not valid JSON ({error}).")
            continue
        if not isinstance(values, Mapping):
            problems.append(f"{where}: holds {type(values).__name__}; each line must be one JSON object.")
            continue
        problems += [f"{where}: {problem}" for problem in _check_line(values, expected, lines)]
        qid = values.get("qid")
        if isinstance(qid, (str, int)):
            lines.setdefault(qid, number)
    missing = [qid for qid in expected if qid not in lines]
    if missing:
        shown = ", ".join(map(str, missing[:_NAMES_SHOWN])) + (", …" if len(missing) > _NAMES_SHOWN else "")
        problems.append(f"{path}: {len(missing)} of {len(expected)} queries are missing: {shown}.")
    order = [qid for qid in lines if qid in expected]
    wanted = [qid for qid in expected if qid in lines]
    if order != wanted:
        first, other = next((a, b) for a, b in zip(order, wanted, strict=True) if a != b)
        problems.append(f"{path}, line {lines[first]}: qid {_shown(first)} stands where the manifest's order has {_shown(other)}.")
    return problems


def check_metadata(path: str | Path) -> list[str]:
    """Find everything wrong with a metadata file: its name, fields that are missing, open or unknown, and values out of range.

    Raises:
        DataError: The file cannot be read.
    """
    path = Path(path)
    problems = _check_name(path, METADATA_SUFFIX)
    try:
        values = yaml.safe_load(_read(path))
    except YAML_ERRORS as error:
        return [*problems, f"{path}: not valid YAML ({' '.join(str(error).split())})."]
    if not isinstance(values, Mapping):
        return [*problems, f"{path}: must hold the sections {', '.join(METADATA_TEMPLATE)}."]
    found = [f"`{name}` is not a field of the challenge." for name in unknown_fields(values, METADATA_TEMPLATE)]
    for name in field_names():
        found += (f"`{name}` {problem}" for problem in _check_field(name, _look_up(values, name)))
    label = _look_up(values, "submission.label")
    if is_label(label) and path.name.endswith(METADATA_SUFFIX) and label != path.name.removesuffix(METADATA_SUFFIX):
        found.append(f"`submission.label` is {label!r}, which is not the name of the file.")
    recall = [_look_up(values, f"results.development_testing.Recall1@{t}") for t in ("0.7", "0.5")]
    if all(map(is_finite_number, recall)) and recall[0] > recall[1]:
        shown = map(_shown, recall)
        found.append("`results.development_testing`: Recall1@0.7 is {}, above Recall1@0.5, {}; that cannot be.".format(*shown))
    return [*problems, *(f"{path}: {problem}" for problem in found)]


def _check_line(values: Mapping[str, Any], expected: Mapping[str | int, QueryEntry], lines: Mapping[str | int, int]) -> Iterator[str]:
    """Problems of one line of an output file."""
    missing = [name for name in OUTPUT_FIELDS if name not in values]
    extra = [str(name) for name in values if name not in OUTPUT_FIELDS]
    if missing:
        yield f"lacks {', '.join(missing)}."
    if extra:
        yield f"has unknown fields: {', '.join(extra)}."
    qid = values.get("qid")
    entry = expected.get(qid) if isinstance(qid, (str, int)) else None
    if entry is None and "qid" in values:
        yield f"qid {_shown(qid)} is not in the manifest."
    elif qid in lines:
        yield f"qid {_shown(qid)} was already on line {lines[qid]}."  # type: ignore[index]
    if entry is not None:
        for name, wanted in (("query", entry.query), ("vid", entry.vid), ("duration", entry.duration_seconds)):
            if name in values and values[name] != wanted:
                yield f"{name} is {_shown(values[name])}; the manifest has {_shown(wanted)}."
    if "pred_relevant_windows" in values:
        yield from _check_windows(values["pred_relevant_windows"], math.inf if entry is None else entry.duration_seconds)


def _check_windows(windows: object, duration_seconds: float) -> Iterator[str]:
    if not isinstance(windows, list) or not windows:
        yield f"pred_relevant_windows is {_shown(windows)}; it must be a list of at least one [start, end]."
        return
    if len(windows) > MAX_PREDICTIONS:
        yield f"has {len(windows)} windows; the challenge reads the first {MAX_PREDICTIONS}, leave out the others."
    for window in windows:
        if isinstance(window, list) and len(window) == 3:
            yield f"window {_shown(window)} has three numbers; write [start, end] without the score."
        elif not isinstance(window, list) or len(window) != 2 or not all(map(is_finite_number, window)):
            yield f"window {_shown(window)} is not a pair of finite numbers."
        elif not 0 <= window[0] < window[1] <= duration_seconds:
            yield f"window {_shown(window)} needs 0 <= start < end <= {duration_seconds:g}, in seconds."


def _check_field(name: str, value: object) -> Iterator[str]:
    """Problems of one metadata field; `value` is None where it is missing."""
    leaf = _split(name)[-1]
    if _holds_placeholder(value):
        yield f"still says {PLACEHOLDER!r}."
    elif value is None or value == [] or _is_blank(value):
        if leaf not in _MAY_BE_EMPTY:
            yield "is missing."
    elif leaf == "label" and not is_label(value):
        yield f"is {_shown(value)}; it must have the form {LABEL_FORM}, with a number from 1 to {MAX_SYSTEMS}."
    elif leaf == "name" and not isinstance(value, str):
        yield f"is {_shown(value)}; it must be text: put it in quotes."
    elif leaf == "abbreviation" and (not isinstance(value, str) or len(value) > MAX_ABBREVIATION):
        yield f"is {_shown(value)}; it may have at most {MAX_ABBREVIATION} characters."
    elif leaf == "authors":
        yield from _check_authors(value)
    elif leaf.endswith("_parameters") and not (isinstance(value, int) and is_finite_number(value) and 0 <= value <= MAX_PARAMETERS):
        yield f"is {_shown(value)}; it must be a whole number, at least 0 and at most {MAX_PARAMETERS:g}."
    elif leaf.startswith("Recall1@"):
        yield from _check_recall(value)


def _check_authors(value: object) -> Iterator[str]:
    if not isinstance(value, list) or not all(isinstance(author, Mapping) and {"firstname", "lastname"} <= set(author) for author in value):
        yield "must be a list of mappings, each with at least `firstname` and `lastname`."
        return
    for number, author in enumerate(value, start=1):
        for name in ("firstname", "lastname"):
            if not isinstance(author[name], str) or _is_blank(author[name]):
                yield f"has {_shown(author[name])} as `{name}` of author {number}; it must be text that is not empty."


def _check_recall(value: object) -> Iterator[str]:
    if not is_finite_number(value) or not 0 <= float(value) <= 100:  # type: ignore[arg-type]
        yield f"is {_shown(value)}; it must be a percentage, from 0 to 100."
    elif 0 < float(value) <= 1:  # type: ignore[arg-type]
        yield f"is {_shown(value)}, which looks like a share of 1; give percent, from 0 to 100."


def _is_blank(value: object) -> bool:
    return isinstance(value, str) and not value.strip()


def _holds_placeholder(value: object) -> bool:
    """Whether `PLACEHOLDER` stands anywhere inside; each container is opened once, as YAML's may hold themselves."""
    waiting, opened = [value], set()
    while waiting:
        item = waiting.pop()
        if isinstance(item, str) and PLACEHOLDER in item:
            return True
        if isinstance(item, (Mapping, list)) and id(item) not in opened:
            opened.add(id(item))
            waiting += item.values() if isinstance(item, Mapping) else item
    return False


def _look_up(values: Mapping[str, Any], name: str) -> Any:  # noqa: ANN401 - any YAML value
    """Value at a path such as `system.model.loss`; None where it is missing."""
    *sections, leaf = _split(name)
    for section in sections:
        inner = values.get(section)
        if not isinstance(inner, Mapping):
            return None
        values = inner
    return values.get(leaf)


def _split(name: str) -> list[str]:
    """Take a dotted path apart; the point of `Recall1@0.7` does not part anything."""
    path, at, threshold = name.partition("@")
    parts = path.split(".")
    return [*parts[:-1], parts[-1] + at + threshold]


def _check_name(path: Path, suffix: str) -> list[str]:
    if path.name.endswith(suffix) and is_label(path.name.removesuffix(suffix)):
        return []
    return [f"{path}: the file must be named {LABEL_FORM}{suffix}, with a number from 1 to {MAX_SYSTEMS}."]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror or error}; check the path.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}).") from error


class _Shown(reprlib.Repr):
    """Shows a value from a file, cut when it is long: a file may hold numbers of any size, and YAML lists that hold themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 80

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if abs(x) < _HUGE else "a huge integer"


_shown = _Shown().repr
