"""What the challenge (DCASE 2026 Task 6) wants of a system: one JSONL of windows without scores, and one YAML that describes it."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from qamdetr.config import LossConfig
from qamdetr.data.manifest import PredictionEntry, QueryEntry
from qamdetr.errors import DataError
from qamdetr.evaluation.matching import MAX_PREDICTIONS

OUTPUT_SUFFIX = ".output.jsonl"
METADATA_SUFFIX = ".meta.yaml"
LABEL_FORM = "Last_Inst_task6_N"
"""Last name, institute, and the number of the system, 1 to 4."""

PLACEHOLDER = "FILL IN"
"""Stands where only a person knows the value; `submission_check` refuses it."""

METADATA_TEMPLATE: dict[str, Any] = {
    "submission": dict.fromkeys(("label", "name", "abbreviation", "authors"), PLACEHOLDER),
    "system": {
        "model": dict.fromkeys(("audio_models", "text_models", "LLMs", "trainable_parameters", "frozen_parameters", "loss"), PLACEHOLDER),
        "dataset": dict.fromkeys(("augmentation", "external_data", "captions"), PLACEHOLDER),
        "ensemble": PLACEHOLDER,
    },
    "results": {"development_testing": {"Recall1@0.7": PLACEHOLDER, "Recall1@0.5": PLACEHOLDER}},
}
"""Every field of the metadata; `authors` is a list of mappings with at least `firstname` and `lastname`."""

YAML_ERRORS = (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError)
"""What a broken YAML file may raise: its own errors, and Python's, of impossible dates, huge integers, wrong tags and deep nesting."""

_LABEL = re.compile(r"[A-Za-z0-9-]+_[A-Za-z0-9-]+_task6_[1-4]")


def is_label(label: object) -> bool:
    """Whether `label` has the challenge's form, `LABEL_FORM`."""
    return isinstance(label, str) and _LABEL.fullmatch(label) is not None


def output_text(predictions: Sequence[PredictionEntry], manifest: Sequence[QueryEntry]) -> tuple[str, int]:
    """Write predictions as the challenge wants them: a line per query of the manifest, windows as pairs, most confident first.

    At most ten windows of a query are written, cut at the recording's ends.

    Args:
        predictions: One entry per query of the manifest, in any order.
        manifest: The evaluation set, whose order, queries, recordings and durations are kept.

    Returns:
        The file's text, and how many windows were left out because nothing of them lies inside the recording.

    Raises:
        DataError: A query without an entry or without a window, or an entry for another recording.
    """
    by_qid = {entry.qid: entry for entry in predictions}
    _refuse("have no prediction", [entry for entry in manifest if entry.qid not in by_qid], manifest)
    _refuse("were predicted on another recording (`vid`)", [entry for entry in manifest if entry.vid != by_qid[entry.qid].vid], manifest)
    lines, left_out = [], 0
    without: list[QueryEntry] = []
    for entry in manifest:
        ranked = sorted(by_qid[entry.qid].pred_relevant_windows, key=lambda window: -window[2])[:MAX_PREDICTIONS]
        cut = [(start, min(end, entry.duration_seconds)) for start, end, _ in ranked]
        windows = [[_short(start), _short(end)] for start, end in cut if round(start, 3) < round(end, 3)]
        left_out += len(ranked) - len(windows)
        if not windows:
            without.append(entry)
        fields = {"qid": raw_qid(entry), "query": entry.query, "vid": entry.vid, "duration": _short(entry.duration_seconds)}
        lines.append(json.dumps({**fields, "pred_relevant_windows": windows}, ensure_ascii=False) + "\n")
    _refuse("have no window inside their recording", without, manifest)
    return "".join(lines), left_out


def raw_qid(entry: QueryEntry) -> str | int:
    """Return the qid as the manifest's file holds it."""
    return int(entry.qid) if entry.numeric_qid else entry.qid


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Read a YAML file with some or all fields of `METADATA_TEMPLATE`.

    Raises:
        DataError: It cannot be read, or has a field that the challenge does not know.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror or error}; give a YAML file.") from error
    except YAML_ERRORS as error:
        raise DataError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise DataError(f"{path} must hold the sections {', '.join(METADATA_TEMPLATE)}, not {type(values).__name__}.")
    unknown = unknown_fields(values, METADATA_TEMPLATE)
    if unknown:
        raise DataError(f"{path} has unknown fields: {', '.join(unknown)}; the challenge knows {', '.join(field_names())}.")
    return values


def fill_metadata(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """Lay parts of the metadata over the template, the later over the earlier; what none of them knows stays `PLACEHOLDER`."""
    filled = copy.deepcopy(METADATA_TEMPLATE)
    for part in parts:
        _lay_over(filled, part)
    return filled


def metadata_text(metadata: Mapping[str, Any]) -> str:
    """Write metadata as YAML."""
    return yaml.safe_dump(dict(metadata), sort_keys=False, allow_unicode=True, width=120)


def describe_checkpoint(name_or_dir: str | Path) -> dict[str, Any]:
    """Read from a checkpoint what the metadata asks of the model: streams, parameters, loss.

    The encoders' parameters count as frozen; they stay open where the encoders are not here to be counted.

    Raises:
        CheckpointError: No such checkpoint, or a damaged one.
    """
    from qamdetr.errors import CheckpointError, ConfigError
    from qamdetr.features.encoders import load_streams
    from qamdetr.inference.checkpoint import load_pretrained

    model, config = load_pretrained(name_or_dir)
    facts: dict[str, Any] = {
        "audio_models": list(config.model.audio_streams),
        "text_models": list(config.model.text_streams),
        "trainable_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "loss": _loss_in_words(config.loss, quality=config.model.quality),
    }
    try:
        encoders = load_streams(
            tuple(config.model.audio_streams),
            tuple(config.model.text_streams),
            name=config.data.combo,
            models=config.data.encoder_models,
            dtype=config.data.encoder_dtype,
            download=False,
        )
    except (ConfigError, CheckpointError):
        return {"system": {"model": facts}}
    facts["frozen_parameters"] = encoders.num_parameters
    return {"system": {"model": facts}}


def development_results(scores: Mapping[str, float]) -> dict[str, Any]:
    """Put `metrics.evaluate`'s numbers, in percent, where the metadata wants them."""
    return {"results": {"development_testing": {"Recall1@0.7": scores["R1@0.7"], "Recall1@0.5": scores["R1@0.5"]}}}


def field_names(template: Mapping[str, Any] = METADATA_TEMPLATE, prefix: str = "") -> list[str]:
    """Every field of the metadata as a dotted path."""
    names: list[str] = []
    for name, value in template.items():
        names += field_names(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [prefix + name]
    return names


def unknown_fields(values: Mapping[str, Any], template: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted paths that the template does not have, or that hold one value where the template has a section."""
    found: list[str] = []
    for name, value in values.items():
        known = template.get(name)
        if known is None or (isinstance(known, Mapping) and not isinstance(value, Mapping)):
            found.append(f"{prefix}{name}")
        elif isinstance(known, Mapping):
            found += unknown_fields(value, known, f"{prefix}{name}.")
    return found


def _lay_over(filled: dict[str, Any], part: Mapping[str, Any]) -> None:
    for name, value in part.items():
        if isinstance(value, Mapping) and isinstance(filled.get(name), dict):
            _lay_over(filled[name], value)
        else:
            filled[name] = value


def _loss_in_words(loss: LossConfig, *, quality: bool) -> str:
    label = {"cross_entropy": "cross-entropy", "varifocal": "varifocal"}[loss.label_loss]
    weights = {
        "L1 of spans": loss.span,
        "gIoU": loss.giou,
        f"{label} of labels": loss.label,
        "saliency (margin, contrast, negative pairs)": loss.saliency,
        "saliency cross-entropy per clip": loss.saliency_clip,
        "quality (IoU) regression": loss.quality if quality else 0.0,
    }
    return " + ".join(f"{weight:g} x {name}" for name, weight in weights.items() if weight) + "; Hungarian matching"


def _refuse(problem: str, entries: Sequence[QueryEntry], manifest: Sequence[QueryEntry]) -> None:
    if entries:
        raise DataError(
            f"{len(entries)} of {len(manifest)} queries {problem}, the first is qid {entries[0].qid!r}; "
            "a submission needs a window for every query of the manifest."
        )


def _short(seconds: float) -> float | int:
    """Milliseconds are enough, and whole seconds are written as the field's files have them."""
    rounded = round(seconds, 3)
    return int(rounded) if rounded == int(rounded) else rounded
