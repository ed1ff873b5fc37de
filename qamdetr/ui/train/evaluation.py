"""The view that says what runs are worth: one run by window length, several side by side."""

from __future__ import annotations

import functools
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from qamdetr.config import Config, config_to_dict
from qamdetr.errors import CheckpointError, DataError, QamDetrError
from qamdetr.ui.errors import one_line
from qamdetr.ui.train.runs import SHOWN_METRICS, Run, component_facts, find_runs, identity

if TYPE_CHECKING:
    from qamdetr.data.manifest import PredictionEntry, QueryEntry


_HERE = Path(__file__).resolve().parents[1]
TRAINING_CSS = (_HERE / "training.css").read_text(encoding="utf-8")
EVALUATION_JS = (_HERE / "evaluation.js").read_text(encoding="utf-8")

PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}


def build_evaluation(root: Path) -> tuple[gr.Dropdown, gr.Dropdown]:
    """Lay the view out and wire its events.

    Returns:
        The dropdowns of the run to evaluate and of the runs to compare, whose choices are `run_choices`.
    """
    with gr.Row(elem_classes="qamdetr-evaluate"):
        length_choice = gr.Dropdown([], value=None, label="Run", info="Its best checkpoint on its validation scenes.", min_width=220)
        compared = gr.Dropdown([], value=[], multiselect=True, label="Runs to compare", info="Side by side, by components.", min_width=260)
    with gr.Row():
        by_length = gr.Button("Metrics by window length", elem_id="qamdetr-by-length")
        side_by_side = gr.Button("Table of ablations", elem_id="qamdetr-side-by-side")
    shown = gr.HTML(
        value={"empty": "Choose a run, or several, and press a button."},
        html_template='<div class="qt-evaluation"></div>',
        css_template=TRAINING_CSS,
        js_on_load=EVALUATION_JS,
        apply_default_css=False,
        elem_id="qamdetr-evaluation-table",
    )

    def lengths(chosen: str | None) -> Table:
        return _told(lambda: length_table(*_chosen_runs(root, [chosen] if chosen else [])))

    def compare(chosen: list[str] | None) -> Table:
        return _told(lambda: ablation_table(_chosen_runs(root, chosen or []), root))

    by_length.click(
        lengths, length_choice, shown, api_visibility="private", show_progress="full", concurrency_id="model", concurrency_limit=1
    )
    side_by_side.click(compare, compared, shown, **PRIVATE)
    return length_choice, compared


def run_choices(root: Path) -> list[str]:
    """List the runs by their identity."""
    return [identity(run.folder, root) for run in find_runs(root)]


def _chosen_runs(root: Path, chosen: list[str]) -> list[Run]:
    known = {identity(run.folder, root): run for run in find_runs(root)}
    gone = [name for name in chosen if name not in known]
    if gone:
        raise QamDetrError(f"The run {gone[0]!r} is no longer there: it was moved or removed; choose another.")
    if not chosen:
        raise QamDetrError("No run is chosen; choose one above." if known else "There are no runs yet; train one.")
    return [known[name] for name in chosen]


def _told(make: Callable[[], Table]) -> Table:
    try:
        return make()
    except Exception as error:
        return {"empty": one_line(error)}


Table = dict[str, Any]
"""`title, note, columns: [{name, kind}], rows: [{cells, summary}]`. Kinds: `words`, `percent` (with a bar), `score` (without), `count`;
a cell is text, a number, or None.
"""

MAX_RUNS = 30
MAX_QUERIES = 20_000
SEEDS = "Seed"
MANY_SEEDS = "mean ± sd"


def length_table(run: Run) -> Table:
    """Score a run's best checkpoint on its own validation set, by the length of the true windows.

    Takes the stored features, so no audio is encoded; the result is kept until the checkpoint changes.

    Raises:
        QamDetrError: There is no checkpoint yet, or the validation set or its features are gone.
    """
    checkpoint = run.checkpoint
    if checkpoint is None:
        raise CheckpointError(f"{run.folder.name} has no checkpoint yet; the first is saved when its first epoch ends.")
    try:
        return _length_table(str(checkpoint), (checkpoint / "model.safetensors").stat().st_mtime_ns)
    except QamDetrError as error:
        # The page calls a run by its name; where it lies is the server's business.
        raise error.about(run.folder.name) from error


def ablation_table(runs: Sequence[Run], root: Path) -> Table:
    """Put runs side by side: what each is made of, and validation metrics of its best epoch.

    Runs that differ in nothing but the seed get one more line with mean and standard deviation (of a sample). The best value of a column
    is for the page to mark; the note says where the runs were not validated on the same queries, which makes them no comparison.

    Raises:
        DataError: None, or too many.
    """
    if not runs:
        raise DataError("No run is chosen; choose two or more to compare.")
    if len(runs) > MAX_RUNS:
        raise DataError(f"{len(runs)} runs are chosen; at most {MAX_RUNS} fit on the page.")
    columns = [
        {"name": "Run", "kind": "words"},
        *({"name": name, "kind": "words"} for name in ("Encoder", "Components", "Streams", SEEDS)),
        *({"name": name, "kind": "score"} for name in SHOWN_METRICS),
    ]
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        groups[str(run.folder) if run.config is None else repr(_without_seed(run.config))].append(run)
    rows = []
    for members in groups.values():
        rows += [{"cells": [*_made_of(run, root), *_scores(run)], "summary": False} for run in members]
        # The same seed twice gives the same numbers, and no deviation.
        seeds = list({run.config.train.seed: run for run in members if run.config is not None}.values())
        if len(seeds) > 1:
            first = _made_of(members[0], root)
            rows.append({"cells": [f"{len(seeds)} seeds", *first[1:-1], MANY_SEEDS, *_spread(seeds)], "summary": True})
    return {"title": "Runs side by side", "note": _comparable(runs), "columns": columns, "rows": rows}


@functools.lru_cache(maxsize=16)
def _length_table(checkpoint: str, _: int) -> Table:
    from qamdetr.evaluation.metrics import match, query_scores, score_by_length, summarise

    truth, predictions = _answer_validation(Path(checkpoint))
    matching = match(predictions, truth)
    total = summarise(query_scores(matching), matching.num_without_windows).table()
    columns = [
        {"name": "True windows", "kind": "words"},
        *({"name": name, "kind": "percent"} for name in SHOWN_METRICS),
        *({"name": name, "kind": "count"} for name in ("Queries", "Windows")),
    ]
    rows: list[dict[str, Any]] = []
    for bucket in score_by_length(matching):
        table = bucket.table()
        rows.append(
            {
                "cells": [
                    bucket.name.replace("-", " to ").replace("<=", "up to").replace(">", "over"),
                    *(table[name] for name in SHOWN_METRICS),
                    table["num_queries"],
                    table["num_windows"],
                ],
                "summary": False,
            }
        )
    windows = int(sum(row["cells"][-1] for row in rows))
    rows.append({"cells": ["all", *(total[name] for name in SHOWN_METRICS), total["num_queries"], windows], "summary": True})
    absent = matching.num_without_windows
    note = "A dash: no true window of that length, so nothing to score."
    if absent:
        note += f" {absent} queries whose sound is absent are left out."
    return {"title": f"{Path(checkpoint).parent.name}: by length of the true window", "note": note, "columns": columns, "rows": rows}


def _answer_validation(checkpoint: Path) -> tuple[list[QueryEntry], list[PredictionEntry]]:
    """Answer every query of a checkpoint's validation set from stored features."""
    from qamdetr.config import load_config
    from qamdetr.data.manifest import PredictionEntry, read_manifest
    from qamdetr.inference.checkpoint import CONFIG_FILE
    from qamdetr.inference.retriever import MomentRetriever

    config = load_config(checkpoint / CONFIG_FILE)
    manifest = Path(config.data.val_manifest)
    # Unclamped, as the official evaluator reads it.
    entries = [entry for entry in read_manifest(manifest, clamp=False) if entry.relevant_windows is not None]
    if len(entries) > MAX_QUERIES:
        raise DataError(
            f"{manifest} has {len(entries)} queries; the page scores up to {MAX_QUERIES}: use `python -m qamdetr predict` there."
        )
    audio = Path(config.data.val_audio_dir) if config.data.val_audio_dir else manifest.parent / "audio"
    retriever = MomentRetriever.from_features(checkpoint, entries, audio_dir=audio)
    by_vid: dict[str, list[QueryEntry]] = defaultdict(list)
    for entry in entries:
        by_vid[entry.vid].append(entry)
    predictions = []
    for vid, asked in by_vid.items():
        results = retriever.retrieve_many(retriever.encode(vid), [entry.query for entry in asked], verifier="none")
        for entry, result in zip(asked, results, strict=True):
            windows = tuple((moment.start_seconds, moment.end_seconds, moment.score) for moment in result.moments)
            predictions.append(PredictionEntry(entry.qid, entry.query, entry.vid, windows, entry.numeric_qid))
    return entries, predictions


def _made_of(run: Run, root: Path) -> list[str]:
    facts = component_facts(run.config) if run.config is not None else {}
    return [identity(run.folder, root), *(facts.get(name, "") for name in ("Encoder", "Components", "Streams", SEEDS))]


def _scores(run: Run) -> list[float | None]:
    best = run.best
    values: Mapping[str, Any] = {} if best is None else best["val"]
    return [_number(values.get(name)) for name in SHOWN_METRICS]


def _spread(runs: Sequence[Run]) -> list[str | None]:
    columns = zip(*(_scores(run) for run in runs), strict=True)
    return [_mean_and_deviation([value for value in column if value is not None]) for column in columns]


def _mean_and_deviation(values: Sequence[float]) -> str | None:
    if len(values) < 2:
        return None
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"


def _number(value: object) -> float | None:
    return round(float(value), 2) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _without_seed(config: Config) -> dict[str, Any]:
    values = config_to_dict(config)
    values["train"] = {key: value for key, value in values["train"].items() if key not in ("seed", "output_dir")}
    return values


def _comparable(runs: Sequence[Run]) -> str:
    note = "Validation metrics of each run's best epoch (R1@0.7, ties by mAP), in percent."
    if len({run.facts.get("val_manifest") for run in runs}) > 1:
        note += " These runs were validated on different scenes, so their numbers cannot be compared."
    epochs = sorted({run.config.train.epochs for run in runs if run.config is not None})
    if len(epochs) > 1:
        note += f" They were trained for {', '.join(map(str, epochs[:-1]))} and {epochs[-1]} epochs, so not only their components differ."
    if any(run.best is None for run in runs):
        note += " A dash: the run has not finished an epoch."
    if any(not run.finished for run in runs):
        note += " Some are not finished."
    return note
