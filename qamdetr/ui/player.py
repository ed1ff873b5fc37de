"""The player of a recording and its moments: a static template, a style and scripts that gradio runs in the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from qamdetr.ui.closer_look import CloserLook
from qamdetr.ui.presenters import empty_view

_HERE = Path(__file__).parent

PLAYER_SCRIPTS = (
    "weight.js",
    "player_formula.js",
    "player_parts.js",
    "player_skeleton.js",
    "player_sound.js",
    "player_axis.js",
    "player_wave.js",
    "player_drawing.js",
    "player_table.js",
    "player_scatter.js",
    "player_keys.js",
    "player.js",
)
"""The player's scripts in the order in which they run, as one function body."""

PLAYER_JS = "".join((_HERE / name).read_text(encoding="utf-8") for name in PLAYER_SCRIPTS)
PLAYER_STYLES = ("player.css", "player_lanes.css", "player_table.css")
PLAYER_CSS = "".join((_HERE / name).read_text(encoding="utf-8") for name in PLAYER_STYLES)


def build_player(closer: CloserLook) -> gr.HTML:
    """Place the player inside the current `gr.Blocks`.

    Its value is a view (`presenters`). Once moments are chosen for export, it fires `select` with `chosen: [[lane, candidate], …]`;
    a handler takes it as `event: gr.EventData` and reads `presenters.checked_choice(event.chosen, lanes)`. Nothing is sent before the
    visitor has changed the choice, and nothing when the weight of the verifier changes: that comes to the player as the window's event
    `qamdetr-beta`, whose `detail` is the weight as it stands in its box: cut to [0, 1], and passed over where it is no number.

    Work that waits before the server can speak of it is told by the window's event `qamdetr-busy`: `detail` is the text, or
    `{text, cancel}`. The text stands in the busy strip until the next view arrives; an empty one brings back what the page showed.
    A strip with `cancel` (also of `presenters.busy_view`) has a button that fires `cancel`.

    Args:
        closer: Gives the finer peaks that the player asks for when it is zoomed in.
    """

    # Gradio marks the functions that the page may call, which methods do not let it do.
    def look(request: Any) -> dict[str, object] | None:  # noqa: ANN401 - whatever was sent
        return closer.look(request)

    return gr.HTML(
        value=empty_view(),
        html_template='<div class="qd-player"></div>',
        css_template=PLAYER_CSS,
        js_on_load=PLAYER_JS,
        apply_default_css=False,
        server_functions=[look],
        elem_id="qamdetr-player",
    )
