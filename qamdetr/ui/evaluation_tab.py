"""The view that says what runs are worth: one run by window length, several side by side."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from qamdetr.errors import QamDetrError
from qamdetr.ui.evaluation_view import Table, ablation_table, length_table
from qamdetr.ui.page_errors import one_line
from qamdetr.ui.training_runs import Run, find_runs, identity

_HERE = Path(__file__).parent
TRAINING_CSS = (_HERE / "training.css").read_text(encoding="utf-8")
EVALUATION_JS = (_HERE / "evaluation.js").read_text(encoding="utf-8")

PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}


def build_evaluation(root: Path) -> tuple[gr.Dropdown, gr.Dropdown]:
    """Lay the view out and wire its events.

    Args:
        root: Folder of the runs.

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
