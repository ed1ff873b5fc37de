"""The player of a recording and its moments: a static template, a style and scripts that gradio runs in the page."""

from __future__ import annotations

import math
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import gradio as gr

from qamdetr.audio import Sound
from qamdetr.errors import AudioError
from qamdetr.types import Recording
from qamdetr.ui.lanes import display_gain, empty_view, scaled_peaks

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

    Its value is a view (`lanes`). Once moments are chosen for export, it fires `select` with `chosen: [[lane, candidate], …]`;
    a handler takes it as `event: gr.EventData` and reads `lanes.checked_choice(event.chosen, lanes)`. Nothing is sent before the
    visitor has changed the choice, and nothing when the weight of the verifier changes: that comes to the player as the window's event
    `qamdetr-beta`, whose `detail` is the weight as it stands in its box: cut to [0, 1], and passed over where it is no number.

    The busy strip of a view with `cancel` (see `lanes.busy_view`) has a button that fires `cancel`.

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


MAX_COLUMNS = 2000
"""Columns of one answer: a wide screen's pixels, some 20 kB."""

MAX_SECONDS = 600.0
"""Longest part of one answer; reading it takes a second or so, and a wider view is well drawn by the overview."""

MAX_RECORDINGS = 400
"""Tokens that are remembered; beyond that the one used longest ago is forgotten, and its player draws the overview alone."""

UNUSED_SECONDS = 7200.0
"""A token that nobody used for so long is forgotten, as the upload itself is."""

_AT_ONCE = 2
_WAIT_SECONDS = 3.0


@dataclass
class _Opened:
    path: str
    duration_seconds: float
    gain: float
    used_at: float


class CloserLook:
    """Which recordings are open in which player, by token, and their finer peaks.

    Args:
        clock: Seconds that only ever grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._opened: OrderedDict[str, _Opened] = OrderedDict()
        self._lock = threading.Lock()
        self._reading = threading.BoundedSemaphore(_AT_ONCE)

    def open(self, recording: Recording) -> str:
        """Let the holder of the token that comes back look closer at a recording."""
        token = secrets.token_urlsafe(24)
        with self._lock:
            self._forget_unused()
            gain = display_gain(recording.peaks)
            self._opened[token] = _Opened(recording.path, recording.duration_seconds, gain, self._clock())
            while len(self._opened) > MAX_RECORDINGS:
                self._opened.popitem(last=False)
        return token

    def look(self, request: object) -> dict[str, object] | None:
        """Answer a player; anyone may send anything, and whatever is not a fair question gets None.

        Args:
            request: `token`, `from` and `to` (seconds within the recording, at most `MAX_SECONDS` apart) and `columns`
                (1 to `MAX_COLUMNS`).

        Returns:
            `from`, `to` and `peaks` (`[low, high]`, on the scale of the overview); None also where the file is gone or the server busy.
        """
        given = request if isinstance(request, dict) else {}
        opened = self._find(given.get("token"))
        start, end, columns = given.get("from"), given.get("to"), given.get("columns")
        if opened is None or not _is_number(start) or not _is_number(end) or type(columns) is not int:
            return None
        if not (0 <= start < end <= opened.duration_seconds + 1e-3 and end - start <= MAX_SECONDS and 1 <= columns <= MAX_COLUMNS):
            return None
        if not self._reading.acquire(timeout=_WAIT_SECONDS):
            return None
        try:
            peaks = Sound(opened.path).part_peaks(start, end, columns)
        except (AudioError, OSError):
            return None  # the overview is on the page already
        finally:
            self._reading.release()
        return {"from": start, "to": end, "peaks": scaled_peaks(peaks, opened.gain)}

    def _find(self, token: object) -> _Opened | None:
        with self._lock:
            self._forget_unused()
            if not isinstance(token, str) or token not in self._opened:
                return None
            self._opened.move_to_end(token)
            opened = self._opened[token]
            opened.used_at = self._clock()
            return opened

    def _forget_unused(self) -> None:
        oldest = self._clock() - UNUSED_SECONDS
        while self._opened and next(iter(self._opened.values())).used_at < oldest:
            self._opened.popitem(last=False)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
