"""Long work as processes of their own: whoever closes the page, reloads it or restarts the app loses nothing.

A job is a folder `JOBS/<name>`: `job.json` (what runs, and its process), `log.txt` (all that it says), `step.json` (how far it is) and
`exit.json` (how it ended). The process is `qamdetr.ui.train.jobs`, which runs the steps of the job one after the other in a session of
its own. Nothing here imports gradio.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
from filelock import FileLock, Timeout

from qamdetr.errors import ConfigError
from qamdetr.files import write_whole

JOB_FILE, LOG_FILE, STEP_FILE, EXIT_FILE = "job.json", "log.txt", "step.json", "exit.json"
TAIL_BYTES = 32_000
"""End of the log that is looked at."""

MAX_NAME = 80
REPOSITORY = Path(__file__).resolve().parents[3]

State = Literal["running", "finished", "stopped", "failed"]

_ERROR_LINE = re.compile(r"^(?:\w+: )?error: (.+)$")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Step:
    """One command of a job.

    Attributes:
        label: What the page calls it.
        arguments: Command line; never goes through a shell.
        done_when: File whose presence makes the step unnecessary; empty for none.
        counted: Folder, or pattern of folders, whose files show how far the step is; empty where none does.
        total: Files there when it is done.
    """

    label: str
    arguments: tuple[str, ...]
    done_when: str = ""
    counted: str = ""
    total: int = 0


@dataclass(frozen=True)
class Job:
    """What a job's folder says.

    Attributes:
        folder: The job's own folder.
        kind: `scenes` or `train`.
        target: Folder of the scenes or of the run.
        steps: In their order.
        state: `stopped` also where the process vanished without a word; both can be continued.
        reason: Why it stopped or failed, in one line; else empty.
        step: Index of the step under way, or the last one.
        started: When the job was last started, seconds since the epoch.
        step_started: When the step under way began.
        step_base: Files that were in its `counted` folder then.
        ended: When it ended, or None.
    """

    folder: Path
    kind: str
    target: Path
    steps: tuple[Step, ...]
    state: State
    reason: str
    step: int
    started: float
    step_started: float
    step_base: int
    ended: float | None

    @property
    def name(self) -> str:
        """Name of the job, which is that of its scenes or run."""
        return self.folder.name

    def log_tail(self) -> list[str]:
        """Last lines of the log; of a progress bar, only its last state."""
        return _tail(self.folder / LOG_FILE)

    def share(self) -> float | None:
        """Share of the step under way that is done, by the files that came to its folder; None where they do not tell."""
        step = self.steps[self.step]
        if not step.counted or not step.total:
            return None
        return min(1.0, (count_files(step.counted) - self.step_base) / max(1, step.total - self.step_base))


class Jobs:
    """Starts, finds and stops the jobs of one folder; one runs at a time, since each uses the whole machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._children: list[subprocess.Popen[bytes]] = []

    def start(self, name: str, kind: str, target: Path, steps: Sequence[Step]) -> Job:
        """Start a job; one of that name that ended is started again, its log goes on.

        Raises:
            ConfigError: Another job runs, or the folder cannot be written.
        """
        check_name(name)
        folder = self.folder / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _only_one(self.folder):
                running = self.running()
                if running is not None:
                    raise ConfigError(
                        f"“{running.name}” is still running, and two jobs would only slow each other down; wait until it ends, or stop it."
                    )
                for stale in (EXIT_FILE, STEP_FILE):
                    (folder / stale).unlink(missing_ok=True)
                process = self._launch(folder)
                note = {
                    "kind": kind,
                    "target": str(target.resolve()),
                    "steps": [asdict(step) for step in steps],
                    "started": time.time(),
                    "pid": process.pid,
                    "process": started_at(process.pid),
                }
                write_whole(folder / JOB_FILE, json.dumps(note, indent=2) + "\n")
        except OSError as error:
            raise ConfigError(f"Cannot start a job in {folder} ({error.strerror or error}); free some space there.") from error
        return self.read(folder)

    def stop(self, name: str) -> Job:
        """Ask a job's process, and no other, to end; it does so within `STOP_SECONDS`.

        Raises:
            ConfigError: There is no such job, or it does not run.
        """
        check_name(name)
        folder = self.folder / name
        note = read_json(folder / JOB_FILE)
        if not self._is_alive(note):
            raise ConfigError(f"“{name}” does not run any more; its state is on the page.")
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(note["pid"]), signal.SIGTERM)
        return self.read(folder)

    def all(self) -> list[Job]:
        """Every job, the one started last first."""
        return sorted((self.read(path.parent) for path in self.folder.glob(f"*/{JOB_FILE}")), key=lambda job: -job.started)

    def running(self) -> Job | None:
        """Return the job that runs, if one does."""
        return next((job for job in self.all() if job.state == "running"), None)

    def read(self, folder: Path) -> Job:
        """Read a job's folder; what is missing or damaged there counts as not known."""
        note, step, end = (read_json(folder / name) for name in (JOB_FILE, STEP_FILE, EXIT_FILE))
        steps = tuple(Step(**{**values, "arguments": tuple(values["arguments"])}) for values in note.get("steps", ()))
        state, reason = self._state(folder, note, end)
        started = float(note.get("started", 0.0))
        return Job(
            folder=folder,
            kind=str(note.get("kind", "")),
            target=Path(note.get("target", "")),
            steps=steps or (Step("", ()),),
            state=state,
            reason=reason,
            step=min(int(step.get("index", 0)), max(len(steps) - 1, 0)),
            started=started,
            step_started=float(step.get("started", started)),
            step_base=int(step.get("base", 0)),
            ended=end.get("ended"),
        )

    def _launch(self, folder: Path) -> subprocess.Popen[bytes]:
        paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
        # The log gets a line of progress every two seconds, not ten a second.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1", "TQDM_MININTERVAL": "2"}
        with (folder / LOG_FILE).open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "qamdetr.ui.train.jobs", str(folder.resolve())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        self._children.append(process)
        return process

    def _is_alive(self, note: Mapping[str, Any]) -> bool:
        for child in self._children:
            child.poll()  # or it would stay in the table of processes as if it were alive
        # Numbers of processes are given out again, and a job may only ever end its own.
        started = started_at(int(note.get("pid", -1)))
        return started is not None and abs(started - float(note.get("process") or 0.0)) < 1.0

    def _state(self, folder: Path, note: Mapping[str, Any], end: Mapping[str, Any]) -> tuple[State, str]:
        if self._is_alive(note):
            return "running", ""
        if not end:
            return "stopped", "It ended without a word: the machine was restarted, or it was killed."
        if end.get("stopped"):
            return "stopped", ""
        return ("finished", "") if end.get("status") == 0 else ("failed", _failure(folder, int(end.get("status", 1))))


def started_at(pid: int) -> float | None:
    """When a process that runs was started, in seconds since the epoch; None where none of that number does."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except (psutil.Error, ValueError):
        return None


def check_name(name: str, longest: int = MAX_NAME) -> str:
    """Refuse a name that would not be one plain folder.

    Raises:
        ConfigError: See above.
    """
    if not _NAME.fullmatch(name) or len(name) > longest:
        raise ConfigError(
            f"The name is {name[: longest + 1]!r}; it becomes a folder: begin with a letter or digit, "
            f"use letters, digits, - and _ only, {longest} at most."
        )
    return name


def count_files(folders: str) -> int:
    """Count the finished files of the folders of a pattern; names of unfinished ones begin with a dot."""
    try:
        return sum(not name.startswith(".") for folder in glob.glob(folders) for name in os.listdir(folder))  # noqa: PTH207, PTH208 - thousands of names, twice a second
    except OSError:
        return 0


@contextlib.contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Two pages that press Start in the same moment must not both find that nothing runs."""
    try:
        with FileLock(folder / ".lock", timeout=5):
            yield
    except Timeout:
        raise ConfigError("Another page is starting a job in this moment; look again in a second.") from None


def _failure(folder: Path, status: int) -> str:
    """Return the program's own one line of what was wrong, or the best that the log offers."""
    lines = _tail(folder / LOG_FILE)
    for line in reversed(lines):
        told = _ERROR_LINE.match(line)
        if told:
            return told[1]
    if status == -signal.SIGKILL:
        return "It was killed by the system, most often because memory ran out; make it smaller, or close other programs."
    return lines[-1] if lines else f"It ended with status {status} and said nothing."


def _tail(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    # A progress bar writes over its own line.
    lines = [[part for part in line.split("\r") if part.strip()] for line in text.split("\n")]
    return [parts[-1].rstrip() for parts in lines if parts]


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; empty where it is not there or damaged."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


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
