"""The row under the player that gives the chosen moments away as a file."""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path
from typing import Any

import gradio as gr

from qamdetr.ui.export_files import EXPORT_KINDS, make_export, what_is_missing
from qamdetr.ui.lane_results import LaneResult
from qamdetr.ui.page_errors import page_error

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
    """Place the panel inside the current `gr.Blocks`.

    Args:
        session: Holds a `Session`: its `lanes` and `chosen` are exported.
        beta: The weight of the verifier that the page shows; ranks and scores in the file follow it.
    """
    with gr.Row(elem_classes="qamdetr-export"):
        kind = gr.Dropdown(
            [(entry.label, name) for name, entry in EXPORT_KINDS.items()],
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
