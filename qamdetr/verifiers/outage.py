"""Leaves a server alone that cannot be reached, so that a long run does not wait for it at every query."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

from qamdetr.verifiers.http_json import UnreachableError

FAILURES = 3
"""So many in a row make an outage."""

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 60.0, 600.0


@dataclass
class Outage:
    """Counts failures to reach a server; threads may share it.

    After `FAILURES` in a row the server is asked nothing for a minute, then once more; each such try that fails doubles the pause, up to
    ten minutes. Any answer ends the outage.
    """

    _failures: int = 0
    _until: float = 0.0
    _told: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def check(self) -> None:
        """Refuse while the server is left alone.

        Raises:
            UnreachableError: With the words of the last failure.
        """
        with self._lock:
            if self._failures >= FAILURES and time.monotonic() < self._until:
                raise UnreachableError(f"{self._told} It failed {FAILURES} times in a row or more and is asked again after a pause only.")

    def failed(self, error: UnreachableError) -> None:
        """Note a failure."""
        with self._lock:
            self._failures += 1
            self._told = str(error)
            if self._failures >= FAILURES:
                pause = _FIRST_PAUSE_SECONDS * 2 ** min(self._failures - FAILURES, 10)
                self._until = time.monotonic() + min(pause, _LONGEST_PAUSE_SECONDS)

    def over(self) -> None:
        """Note an answer."""
        with self._lock:
            self._failures = 0
