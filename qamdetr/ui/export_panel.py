"""The row under the player that gives the chosen moments away as a file."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from qamdetr.errors import AudioError, QamDetrError
from qamdetr.export import EXPORTS
from qamdetr.export.text import Answer, file_name_part
from qamdetr.ui.errors import page_error
from qamdetr.ui.lanes import LaneResult, default_choice, reranked

# A download button gives what it held before it was pressed, so a plain button makes the file and the page then takes it by itself.
# What stays behind is a link, for browsers that stop a download that comes long after the press.
SAVE_JS = """(file) => {
  if (!file || !file.url) return;
  const link = document.createElement("a");
  link.href = file.url;
  link.download = file.orig_name || "";
  document.body.append(link);
  link.click();
  link.remove();
}"""

_QUEUE: dict[str, Any] = {"concurrency_id": "export", "concurrency_limit": 2}


def build_export_panel(session: gr.State, beta: gr.Slider) -> None:
    """Place the panel inside the current `gr.Blocks`."""
    with gr.Row(elem_classes="qamdetr-export"):
        kind = gr.Dropdown(
            export_choices(),
            value="csv",
            label="Export the chosen moments as",
            filterable=False,
            scale=5,
            min_width=220,
            elem_id="qamdetr-export-kind",
        )
        make = gr.Button("Download", scale=1, min_width=110, elem_id="qamdetr-export")
    ready = gr.DownloadButton(visible=False, size="sm", elem_id="qamdetr-export-ready")

    def export_file(mine: Any, weight: float, name: str) -> dict[str, Any]:  # noqa: ANN401 - any object with lanes and chosen will do
        return _export(list(mine.lanes), mine.chosen, weight, name, Path(ready.GRADIO_CACHE))

    made = make.click(export_file, [session, beta, kind], ready, api_visibility="private", show_progress="minimal", **_QUEUE)
    made.success(fn=None, inputs=ready, js=SAVE_JS)
    kind.input(lambda: gr.update(value=None, visible=False), None, ready, api_visibility="private", queue=False, show_progress="hidden")


def _export(lanes: list[LaneResult], chosen: list[tuple[int, int]] | None, beta: float, kind: str, cache: Path) -> dict[str, Any]:
    """Make the file in a folder of its own in gradio's cache, which is swept; return the new state of the link."""
    missing = what_is_missing(lanes, chosen, beta, kind)
    if missing:
        gr.Warning(missing, title="Almost there")
        return dict(gr.update(value=None, visible=False))
    folder = cache / secrets.token_hex(16)
    try:
        path = make_export(lanes, chosen, beta, kind, folder)
    except Exception as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise page_error(error) from error
    return dict(gr.update(value=str(path), visible=True, label=f"{path.name} is ready ({_size(path.stat().st_size)}); save it again"))


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1024**2:.1f} MB" if num_bytes >= 1024**2 else f"{max(1, round(num_bytes / 1024))} kB"


NOTHING_YET = "There is nothing to export yet: open a recording and look for a sound first."
NOTHING_CHOSEN = "No moment is chosen: check the ones you want in the table of candidates."
NOTHING_FOUND = "Nothing was found, so no moment is chosen. If you want a guess anyway, check it in the table of candidates."


_SAYS_NOTHING_FOUND = ("png", "svg", "json")
"""Kinds that are worth having of a sound that was not found: that nothing was found is an answer too."""


def export_choices() -> list[tuple[str, str]]:
    """List the kinds of files, `(label, name)`, the spreadsheet first; formats without an ending are only shown in a terminal."""
    return sorted(((info.label, name) for name, info in EXPORTS.items() if info.ending), key=lambda choice: (choice[1] != "csv", choice))


def what_is_missing(lanes: Sequence[LaneResult], chosen: Sequence[tuple[int, int]] | None, beta: float, kind: str) -> str:
    """Say why there is nothing to export, and what to do; empty where there is something.

    Figures and JSON also show a query whose sound was not found.
    """
    if not lanes:
        return NOTHING_YET
    if kind in _SAYS_NOTHING_FOUND or (default_choice(lanes, beta) if chosen is None else chosen):
        return ""
    return NOTHING_FOUND if chosen is None else NOTHING_CHOSEN


def picked_answers(lanes: Sequence[LaneResult], chosen: Sequence[tuple[int, int]] | None, beta: float) -> list[Answer]:
    """Turn lanes into answers as the page shows them.

    Args:
        lanes: The answers on the page.
        chosen: `(lane, index in the moments of its result)`; None for what is chosen at first (`default_choice`).
        beta: The weight of the verifier that the page shows, in [0, 1]; scores and ranks follow it.

    Returns:
        One answer per lane; those of which nothing is chosen have no ranks.
    """
    pairs = default_choice(lanes, beta) if chosen is None else chosen
    answers = []
    for number, lane in enumerate(lanes):
        wanted = {lane.result.moments[index].window for owner, index in pairs if owner == number}
        shown = reranked(lane, beta)
        ranks = tuple(rank for rank, moment in enumerate(shown.moments, start=1) if moment.window in wanted)
        name = "" if lane.label == shown.query else lane.label.removeprefix(f"{shown.query} · ")
        answers.append(Answer(shown, ranks, name, lane.how, lane.truth))
    return answers


def make_export(lanes: Sequence[LaneResult], chosen: Sequence[tuple[int, int]] | None, beta: float, kind: str, folder: Path) -> Path:
    """Make a file of one of `EXPORTS`, named after the recording; it appears whole or not at all.

    Args:
        lanes: The answers on the page, all about one recording; `what_is_missing` has found nothing missing.
        chosen: As `picked_answers`.
        beta: As `picked_answers`.
        kind: Key of `EXPORTS`.
        folder: Where the file goes; made if it is not there.

    Raises:
        QamDetrError: The recording is gone, there is more than the format can hold, or the disk refuses; the recording is called by its
            name alone.
    """
    audio = Path(lanes[0].result.audio)
    answers = picked_answers(lanes, chosen, beta)
    path = folder / f"{file_name_part(audio.stem, fallback='recording', max_letters=60)}{EXPORTS[kind].ending}"
    try:
        EXPORTS[kind].write(_written(answers, kind), path)
    except AudioError as error:
        # Where a file lies is the server's business.
        raise error.about(audio.name) from error
    except OSError as error:
        what = f"{path.name} cannot be written ({error.strerror or error})"
        raise QamDetrError(what, "choose fewer moments, or free disk space") from error
    return path


def _written(answers: Sequence[Answer], kind: str) -> list[Answer]:
    """Leave out what a kind of file does not show."""
    if kind in ("png", "svg"):  # without ranks, a lane whose sound was not found shows its best guess
        return [answer if answer.ranks or answer.result.found else replace(answer, ranks=None) for answer in answers]
    if EXPORTS[kind].to_file:  # which reads the recording
        return list(answers)
    kept = [answer for answer in answers if answer.ranks or (kind in _SAYS_NOTHING_FOUND and not answer.result.found)]
    return [replace(answer, result=replace(answer.result, audio=Path(answer.result.audio).name)) for answer in kept]
