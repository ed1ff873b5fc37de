"""What the challenge (DCASE 2026 Task 6) wants of a system: one JSONL of windows without scores, and one YAML that describes it.

Both are written, and checked for everything that is wrong before the challenge's server finds it. Each problem is one line of text.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from qamdetr.config import Config
from qamdetr.data.manifest import PredictionEntry, QueryEntry, is_finite_number, raw_qid, short
from qamdetr.errors import CheckpointError, ConfigError, DataError
from qamdetr.evaluation.metrics import MAX_PREDICTIONS

OUTPUT_SUFFIX = ".output.jsonl"
METADATA_SUFFIX = ".meta.yaml"
OUTPUT_FIELDS = ("qid", "query", "vid", "duration", "pred_relevant_windows")
LABEL_FORM = "Last_Inst_task6_N"  # last name, institute, and the number of the system, 1 to 4
PLACEHOLDER = "FILL IN"  # stands where only a person knows the value; `check_submission` refuses it
MAX_SYSTEMS = 4
MAX_ABBREVIATION = 10

# What a broken YAML file may raise: its own errors, and Python's, of impossible dates, huge integers, wrong tags and deep nesting.
_YAML_ERRORS = (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError)
_LABEL = re.compile(r"[A-Za-z0-9-]+_[A-Za-z0-9-]+_task6_[1-4]")

FieldPath = tuple[str, ...]
_Rules = tuple[tuple[Callable[[Any], bool], str], ...]


def is_label(label: object) -> bool:
    """Whether `label` has the challenge's form, `LABEL_FORM`."""
    return isinstance(label, str) and _LABEL.fullmatch(label) is not None


def _is_person(value: object) -> bool:
    names = (value.get("firstname"), value.get("lastname")) if isinstance(value, Mapping) else (None,)
    return all(isinstance(name, str) and name.strip() for name in names)


_COUNT: _Rules = (
    (lambda value: isinstance(value, int) and is_finite_number(value) and value >= 0, "; it must be a whole number, at least 0."),
)
_RECALL: _Rules = (
    (lambda value: is_finite_number(value) and 0 <= value <= 100, "; it must be a percentage, from 0 to 100."),
    (lambda value: not 0 < value <= 1, ", which looks like a share of 1; give percent, from 0 to 100."),
)
_FIELDS: dict[FieldPath, _Rules | None] = {
    ("submission", "label"): ((is_label, f"; it must have the form {LABEL_FORM}, with a number from 1 to {MAX_SYSTEMS}."),),
    ("submission", "name"): ((lambda value: isinstance(value, str), "; it must be text: put it in quotes."),),
    ("submission", "abbreviation"): (
        (lambda value: isinstance(value, str) and len(value) <= MAX_ABBREVIATION, f"; it may have at most {MAX_ABBREVIATION} characters."),
    ),
    ("submission", "authors"): (
        (
            lambda value: isinstance(value, list) and all(map(_is_person, value)),
            "; it must list mappings, each with text as `firstname` and `lastname`.",
        ),
    ),
    ("system", "model", "audio_models"): (),
    ("system", "model", "text_models"): (),
    ("system", "model", "LLMs"): None,
    ("system", "model", "trainable_parameters"): _COUNT,
    ("system", "model", "frozen_parameters"): _COUNT,
    ("system", "model", "loss"): (),
    ("system", "dataset", "augmentation"): None,
    ("system", "dataset", "external_data"): None,
    ("system", "dataset", "captions"): None,
    ("system", "ensemble"): None,
    ("results", "development_testing", "Recall1@0.7"): _RECALL,
    ("results", "development_testing", "Recall1@0.5"): _RECALL,
}
"""Every field of the metadata, and what must hold of its value; None where it may be empty."""

_SECTIONS = {path[:depth] for path in _FIELDS for depth in range(1, len(path))}
_TOP_SECTIONS = ", ".join(dict.fromkeys(path[0] for path in _FIELDS))


def output_text(predictions: Sequence[PredictionEntry], manifest: Sequence[QueryEntry]) -> tuple[str, int]:
    """Write predictions as the challenge wants them: a line per query of the manifest, windows as pairs, most confident first.

    At most ten windows of a query are written, cut at the recording's ends. Returns the file's text, and how many windows were left out
    because nothing of them lies inside the recording.
    """
    by_qid = {entry.qid: entry for entry in predictions}
    _refuse("have no prediction", [entry for entry in manifest if entry.qid not in by_qid], manifest)
    _refuse("were predicted on another recording (`vid`)", [entry for entry in manifest if entry.vid != by_qid[entry.qid].vid], manifest)
    lines, left_out = [], 0
    without: list[QueryEntry] = []
    for entry in manifest:
        ranked = sorted(by_qid[entry.qid].pred_relevant_windows, key=lambda window: -window[2])[:MAX_PREDICTIONS]
        cut = [(round(start, 3), round(min(end, entry.duration_seconds), 3)) for start, end, _ in ranked]  # milliseconds are enough
        windows = [[short(start), short(end)] for start, end in cut if start < end]
        left_out += len(ranked) - len(windows)
        if not windows:
            without.append(entry)
        fields = {"qid": raw_qid(entry), "query": entry.query, "vid": entry.vid, "duration": short(round(entry.duration_seconds, 3))}
        lines.append(json.dumps({**fields, "pred_relevant_windows": windows}, ensure_ascii=False) + "\n")
    _refuse("have no window inside their recording", without, manifest)
    return "".join(lines), left_out


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Read a YAML file with some or all fields of the metadata; a `DataError` where it has a field that the challenge does not know."""
    values = _load(Path(path))
    unknown = [".".join(path) for path, _ in _leaves(values) if path not in _FIELDS]
    if unknown:
        raise DataError(f"{path} has unknown fields: {', '.join(unknown)}; the challenge knows {', '.join(map('.'.join, _FIELDS))}.")
    return values


def fill_metadata(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """Lay parts of the metadata over each other, the later over the earlier; what none of them knows is `PLACEHOLDER`."""
    known: dict[FieldPath, Any] = {path: value for part in parts for path, value in _leaves(part)}
    filled: dict[str, Any] = {}
    for path in [*_FIELDS, *known]:
        section = filled
        for name in path[:-1]:
            section = section.setdefault(name, {})
        section[path[-1]] = known.get(path, PLACEHOLDER)
    return filled


def _leaves(values: Mapping[Any, Any], above: FieldPath = ()) -> Iterator[tuple[FieldPath, Any]]:
    """Yield path and value of each field; what is no section of the challenge is not looked into."""
    for name, value in values.items():
        path = (*above, str(name))
        if path in _SECTIONS and isinstance(value, Mapping):
            yield from _leaves(value, path)
        else:
            yield path, value


def metadata_text(metadata: Mapping[str, Any]) -> str:
    """Write metadata as YAML."""
    return yaml.safe_dump(dict(metadata), sort_keys=False, allow_unicode=True, width=120)


def describe_checkpoint(name_or_dir: str | Path) -> dict[str, Any]:
    """Read from a checkpoint what the metadata asks of the model; frozen parameters stay open where the encoders are not here."""
    from qamdetr.features.base import open_streams
    from qamdetr.inference.checkpoint import load_checkpoint

    model, config = load_checkpoint(name_or_dir)
    facts: dict[str, Any] = {
        "audio_models": list(config.model.audio_streams),
        "text_models": list(config.model.text_streams),
        "trainable_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "loss": _loss_in_words(config),
    }
    try:
        streams, data = (tuple(config.model.audio_streams), tuple(config.model.text_streams)), config.data
        how: dict[str, Any] = {"models": data.encoder_models, "dtype": data.encoder_dtype, "clip_seconds": config.model.clip_seconds}
        encoders = open_streams(*streams, name=data.combo, download=False, **how)
        facts["frozen_parameters"] = encoders.num_parameters
    except (ConfigError, CheckpointError):
        pass
    return {"system": {"model": facts}}


def _loss_in_words(config: Config) -> str:
    loss, dense = config.loss, config.model.decoder == "dense"
    cells = {"relative L1 of ends": loss.ends, "gIoU": loss.ends_giou, "focal cross-entropy of cells": loss.inside}
    slots = {"L1 of spans": loss.span, "gIoU": loss.giou, "cross-entropy of labels": loss.label}
    weights = {
        **(cells if dense else slots),
        "saliency (margin, contrast, negative pairs)": loss.saliency,
        "saliency cross-entropy per clip": loss.saliency_clip,
        "quality (IoU) regression": loss.quality if config.model.quality else 0.0,
    }
    parts = " + ".join(f"{weight:g} x {name}" for name, weight in weights.items() if weight)
    return f"{parts}; {'matching by centre' if dense else 'Hungarian matching'}"


def _refuse(problem: str, entries: Sequence[QueryEntry], manifest: Sequence[QueryEntry]) -> None:
    if entries:
        what = f"{len(entries)} of {len(manifest)} queries {problem}, the first is qid {entries[0].qid!r}"
        raise DataError(what, "a submission needs a window for every query of the manifest")


def check_submission(outputs: Sequence[str | Path], metadata: Sequence[str | Path], manifest: Sequence[QueryEntry]) -> list[str]:
    """Find every problem of the JSONL and YAML files of one or several systems in the same order, one line each."""
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
    described = [Path(path).name.removesuffix(METADATA_SUFFIX) for path in metadata]
    for output, description, label, other in zip(outputs, metadata, labels, described, strict=False):
        if label != other:
            problems.append(f"{output} and {description} are not of one system; both names begin with its label.")
    for label in dict.fromkeys(labels):
        if labels.count(label) > 1:
            problems.append(f"Label {label!r} is used by {labels.count(label)} systems; each needs its own number.")
    teams = list(dict.fromkeys(name.rpartition("_")[0] for name in (*labels, *described) if is_label(name)))
    if len(teams) > 1:
        problems.append(f"Labels begin with {', '.join(teams)}; one team's labels differ in the number only, check each team by itself.")
    return problems


def check_output(path: str | Path, manifest: Sequence[QueryEntry]) -> list[str]:
    """Find everything wrong with an output file: its name, ids, order, fields and windows."""
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
        shown = ", ".join(map(str, missing[:10])) + (", …" if len(missing) > 10 else "")
        problems.append(f"{path}: {len(missing)} of {len(expected)} queries are missing: {shown}.")
    order, wanted = [qid for qid in lines if qid in expected], [qid for qid in expected if qid in lines]
    first, other = next(((a, b) for a, b in zip(order, wanted, strict=True) if a != b), (None, None))
    if first is not None:
        problems.append(f"{path}, line {lines[first]}: qid {_shown(first)} stands where the manifest's order has {_shown(other)}.")
    return problems


def check_metadata(path: str | Path) -> list[str]:
    """Find everything wrong with a metadata file."""
    path = Path(path)
    problems = _check_name(path, METADATA_SUFFIX)
    try:
        given = dict(_leaves(_load(path)))
    except DataError as error:
        return [*problems, str(error)]
    found = [f"`{'.'.join(field)}` is not a field of the challenge." for field in given if field not in _FIELDS]
    for field, rules in _FIELDS.items():
        found += (f"`{'.'.join(field)}` {problem}" for problem in _check_field(field, rules, given.get(field)))
    label = given.get(("submission", "label"))
    if is_label(label) and path.name.endswith(METADATA_SUFFIX) and label != path.name.removesuffix(METADATA_SUFFIX):
        found.append(f"`submission.label` is {label!r}, which is not the name of the file.")
    return [*problems, *(f"{path}: {problem}" for problem in found)]


def _check_line(values: Mapping[str, Any], expected: Mapping[str | int, QueryEntry], lines: Mapping[str | int, int]) -> Iterator[str]:
    """Problems of one line of an output file."""
    if missing := [name for name in OUTPUT_FIELDS if name not in values]:
        yield f"lacks {', '.join(missing)}."
    if extra := [str(name) for name in values if name not in OUTPUT_FIELDS]:
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


def _check_field(field: FieldPath, rules: _Rules | None, value: Any) -> list[str]:  # noqa: ANN401
    """Problems of one metadata field; `value` is None where it is missing."""
    if PLACEHOLDER in repr(value):
        return [f"still says {PLACEHOLDER!r}."]
    if rules is None:
        return []
    if value is None or value == [] or (isinstance(value, str) and not value.strip()):
        return ["is missing."]
    return [f"is {_shown(value)}{wanted}" for holds, wanted in rules if not holds(value)][:1]


def _check_name(path: Path, suffix: str) -> list[str]:
    right = path.name.endswith(suffix) and is_label(path.name.removesuffix(suffix))
    return [] if right else [f"{path}: the file must be named {LABEL_FORM}{suffix}, with a number from 1 to {MAX_SYSTEMS}."]


def _load(path: Path) -> dict[Any, Any]:
    try:
        values = yaml.safe_load(_read(path, "give a YAML file"))
    except _YAML_ERRORS as error:
        raise DataError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise DataError(f"{path} must hold the sections {_TOP_SECTIONS}, not {type(values).__name__}.")
    return values


def _read(path: Path, remedy: str = "check the path") -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror or error}", remedy) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}).") from error


def _shown(value: object) -> str:
    """Show a value from a file, cut when it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
