"""Finer peaks of a part of a recording, for a player that is zoomed in: read when asked for, and only for who opened the recording.

The browser names the recording by a token that no one can guess and that the player alone was given; a path never comes from outside.
"""

from __future__ import annotations

import math
import secrets
import subprocess
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeGuard

import soundfile

from qamdetr.errors import AudioError
from qamdetr.overview import read_peaks
from qamdetr.types import Recording
from qamdetr.ui.peaks import display_gain, scaled_peaks

MOST_COLUMNS = 2000
"""Columns of one answer: a wide screen's pixels, some 20 kB."""

MOST_SECONDS = 600.0
"""Longest part of one answer; reading it takes a second or so, and a wider view is well drawn by the overview."""

MOST_RECORDINGS = 400
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
            while len(self._opened) > MOST_RECORDINGS:
                self._opened.popitem(last=False)
        return token

    def look(self, request: object) -> dict[str, object] | None:
        """Answer a player; anyone may send anything, and whatever is not a fair question gets None.

        Args:
            request: `token`, `from` and `to` (seconds within the recording, at most `MOST_SECONDS` apart) and `columns`
                (1 to `MOST_COLUMNS`).

        Returns:
            `from`, `to` and `peaks` (`[low, high]`, on the scale of the overview); None also where the file is gone or the server busy.
        """
        given = request if isinstance(request, dict) else {}
        opened = self._find(given.get("token"))
        start, end, columns = given.get("from"), given.get("to"), given.get("columns")
        if opened is None or not _is_number(start) or not _is_number(end) or type(columns) is not int:
            return None
        if not (0 <= start < end <= opened.duration_seconds + 1e-3 and end - start <= MOST_SECONDS and 1 <= columns <= MOST_COLUMNS):
            return None
        if not self._reading.acquire(timeout=_WAIT_SECONDS):
            return None
        try:
            peaks = read_peaks(opened.path, start, end, columns)
        except (AudioError, OSError, soundfile.LibsndfileError, subprocess.SubprocessError):
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
