"""The process of a job: `python -m qamdetr.ui.training_runner FOLDER`. Nobody needs to watch it; it notes all in the job's folder."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qamdetr.files import write_whole
from qamdetr.ui.training_jobs import EXIT_FILE, JOB_FILE, STEP_FILE, count_files, read_json

STOP_SECONDS = 15.0
"""A step that has not ended so long after it was asked to is killed."""


class Runner:
    """The process of a job: runs its steps, notes where it is, and ends when it is asked to."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._child: subprocess.Popen[bytes] | None = None
        self._stopped_at: float | None = None

    def run(self) -> int:
        """Run all steps; returns the exit status of the first that fails, or 0."""
        signal.signal(signal.SIGTERM, self._stop)
        steps = self._steps()
        status = 0 if steps else 1
        for index, step in enumerate(steps):
            if self._stopped_at is not None or status:
                break
            if step["done_when"] and Path(step["done_when"]).exists():
                continue
            write_whole(
                self._folder / STEP_FILE,
                json.dumps({"index": index, "started": time.time(), "base": count_files(step["counted"]) if step["counted"] else 0}),
            )
            status = self._run_step(step)
        end = {"status": status, "stopped": self._stopped_at is not None, "ended": time.time()}
        write_whole(self._folder / EXIT_FILE, json.dumps(end) + "\n")
        return status

    def _steps(self) -> list[dict[str, Any]]:
        # The starter writes the note when it knows this process's number, which is a moment after this process began.
        for _ in range(200):
            note = read_json(self._folder / JOB_FILE)
            if note.get("pid") == os.getpid():
                return list(note["steps"])
            time.sleep(0.05)
        return []

    def _run_step(self, step: Mapping[str, Any]) -> int:
        self._child = subprocess.Popen(step["arguments"])
        while self._child.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(timeout=0.5)
            if self._stopped_at is not None:
                # Again and again: the first signal may have come before the step could take it.
                is_late = time.monotonic() - self._stopped_at > STOP_SECONDS
                self._child.send_signal(signal.SIGKILL if is_late else signal.SIGTERM)
        return self._child.returncode

    def _stop(self, *_: object) -> None:
        # Helpers of the step are in this process's group; they are to end with it. This process itself still has to say how it ended.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self._stopped_at = time.monotonic()
        os.killpg(os.getpgrp(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(Runner(Path(sys.argv[1])).run())
