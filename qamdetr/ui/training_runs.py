"""What runs have come to, read from their folders: it does not matter who started them, or whether the page was open."""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from qamdetr.config import Config, load_config
from qamdetr.errors import QamDetrError
from qamdetr.ui.training_jobs import Job, Jobs, State

JOBS_FOLDER = ".jobs"
FACTS_FILE, METRICS_FILE, CONFIG_FILE, LOCK_FILE = "run.json", "metrics.jsonl", "config.yaml", ".lock"
BEST = "best"
"""Folder of a run's best checkpoint."""

SHOWN_METRICS = ("R1@0.5", "R1@0.7", "mAP", "mAP@0.5", "mAP@0.75")

_BAR = re.compile(
    r"(?P<label>.*?):\s+(?P<percent>\d+)%\|.*?\| *(?P<done>\d+)/(?P<total>\d+).*?\[(?P<spent>[\d:]+)<(?P<left>[\d:?]+)(?P<rest>.*)\]"
)
_EPOCH = re.compile(r"epoch (\d+)/(\d+)")
_LOSS = re.compile(r"loss=(-?[\d.]+)")


@dataclass(frozen=True)
class Run:
    """The folder of a run, as `train.py` leaves it.

    Attributes:
        folder: Where it lies.
        facts: `run.json`.
        rows: `metrics.jsonl`, one per epoch.
        config: The experiment; None where its file cannot be read.
    """

    folder: Path
    facts: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    config: Config | None

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do; runs of earlier versions of the program did not note it."""
        epochs = self.config.train.epochs if self.config is not None else 0
        return "finished" in self.facts or 0 < epochs <= len(self.rows)

    @property
    def best(self) -> Mapping[str, Any] | None:
        """Return the row of the best epoch: highest R1@0.7, ties by mAP, as the run itself chooses."""
        scored = [row for row in self.rows if "R1@0.7" in row.get("val", {})]
        return max(scored, key=lambda row: (row["val"]["R1@0.7"], row["val"].get("mAP", 0.0), -row["epoch"]), default=None)

    @property
    def checkpoint(self) -> Path | None:
        """Folder of the best checkpoint, once there is one."""
        return checkpoint_in(self.folder)


@dataclass(frozen=True)
class Progress:
    """How far a job is.

    Attributes:
        stage: What it is doing.
        share: Share of the whole job that is done, as far as it is known.
        seconds_left: Of all epochs, or of the step where it is another one; None where nobody knows yet.
        epoch: Epochs done, with a fraction; None outside training.
        loss: Mean loss of the epoch under way.
    """

    stage: str = ""
    share: float | None = None
    seconds_left: float | None = None
    epoch: float | None = None
    loss: float | None = None


def run_folders(root: Path) -> list[Path]:
    """Find the folders of runs in `root` and in the folders right below it; a run's own copies of `run.json` are none."""
    folders = [path.parent for path in [*root.glob(f"*/{FACTS_FILE}"), *root.glob(f"*/*/{FACTS_FILE}")]]
    return [folder for folder in folders if not folder.name.startswith(".") and not _is_there(folder.parent / FACTS_FILE)]


def checkpoint_in(run: Path) -> Path | None:
    """Folder of the best checkpoint of a run, once there is one."""
    best = run / BEST
    return best if _is_there(best / "model.safetensors") and _is_there(best / CONFIG_FILE) else None


def find_runs(root: Path) -> list[Run]:
    """Read every run of `run_folders`, the newest first."""
    found = [run for run in map(read_run, run_folders(root)) if run is not None]
    return sorted(found, key=lambda run: -_stamp(run.folder / CONFIG_FILE)[0])


def read_run(folder: Path) -> Run | None:
    """Read one run; None where the folder holds none."""
    facts = _read_facts(str(folder / FACTS_FILE), _stamp(folder / FACTS_FILE))
    if facts is None:
        return None
    rows = _read_rows(str(folder / METRICS_FILE), _stamp(folder / METRICS_FILE))
    return Run(folder, facts, rows, _read_config(str(folder / CONFIG_FILE), _stamp(folder / CONFIG_FILE)))


def run_state(run: Run | None, job: Job | None) -> tuple[State, str]:
    """State of a run and the reason for it; a run that no job of this page is about goes by its files alone."""
    if job is not None and job.state == "running":
        return "running", ""
    if run is not None and run.finished:
        return "finished", ""
    if run is not None and is_locked(run.folder / LOCK_FILE):
        return "running", "Started outside this page, which therefore cannot stop it."
    if job is not None:
        return job.state, job.reason
    return "stopped", ""


def is_locked(path: Path) -> bool:
    """Whether a process holds a run's folder.

    Looks at the system's own list where there is one: trying the lock would keep a run that starts in the same moment from it.
    """
    try:
        number = path.stat().st_ino
        locks = Path("/proc/locks").read_text(encoding="utf-8")
    except FileNotFoundError:
        return path.exists() and not _can_lock(path)
    except OSError:
        return False
    return any(line.split()[5].rpartition(":")[2] == str(number) for line in locks.splitlines() if len(line.split()) > 5)


def progress_of(job: Job, run: Run | None, now: float) -> Progress:
    """Measure a job that runs.

    Args:
        job: It.
        run: Its run, for a training job that has come so far.
        now: Seconds since the epoch.
    """
    stage = job.steps[job.step].label
    if job.kind == "train" and job.step == len(job.steps) - 1:
        return _training_progress(job, run, stage)
    share, left = job.share(), None
    bar = _last_bar(job)
    if share is None and bar:
        share = int(bar["percent"]) / 100
    step = job.steps[job.step]
    if share is not None and step.total:
        spent = now - job.step_started
        # Starting Python takes seconds in which nothing is counted.
        left = spent / share * (1 - share) if share > 0.02 and spent > 5 else None
    if len(job.steps) > 1:
        stage = f"Step {job.step + 1} of {len(job.steps)}: {stage}"
        share = None if share is None else (job.step + share) / len(job.steps)
    return Progress(stage, share, left)


def _training_progress(job: Job, run: Run | None, stage: str) -> Progress:
    epochs = run.config.train.epochs if run is not None and run.config is not None else 0
    if run is None or not epochs:
        return Progress("Opening the data and the model", None, None)
    done = len(run.rows)
    bar = _last_bar(job)
    told = _EPOCH.match(bar["label"]) if bar else None
    part = int(bar["done"]) / max(1, int(bar["total"])) if bar and told and int(told[1]) == done + 1 else 0.0
    loss = _LOSS.search(bar["rest"]) if bar and part else None
    recent = [float(row["seconds"]) for row in run.rows[-3:]]
    if recent:
        each: float | None = sum(recent) / len(recent)
    elif bar and part > 0.02:
        each = _clock_seconds(bar["spent"]) / part
    else:
        each = None
    left = None if each is None else max(0.0, (epochs - done - part) * each)
    return Progress(
        stage=f"{stage}: epoch {min(done + 1, epochs)} of {epochs}",
        share=min(1.0, (done + part) / epochs),
        seconds_left=left,
        epoch=done + part,
        loss=float(loss[1]) if loss else None,
    )


def _last_bar(job: Job) -> re.Match[str] | None:
    return next((found for line in reversed(job.log_tail()[-5:]) if (found := _BAR.match(line))), None)


def _clock_seconds(text: str) -> float:
    seconds = 0.0
    for part in text.split(":"):
        seconds = 60 * seconds + int(part)
    return seconds


def job_of(jobs: Jobs) -> dict[Path, Job]:
    """Map what jobs are about to the job that was started last for it."""
    found: dict[Path, Job] = {}
    for job in jobs.all():
        found.setdefault(job.target, job)
    return found


def _is_there(path: Path) -> bool:
    return _stamp(path) != (0, 0)  # other than `Path.is_file`, it takes what may not be looked at for absent


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return (0, 0)
    return (status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=512)
def _read_facts(path: str, _: tuple[int, int]) -> dict[str, Any] | None:
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None


@functools.lru_cache(maxsize=512)
def _read_rows(path: str, _: tuple[int, int]) -> tuple[dict[str, Any], ...]:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return ()
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:  # half a line, of an epoch that was being written
            continue
        if isinstance(row, dict) and isinstance(row.get("epoch"), int):
            rows.append(row)
    return tuple(rows)


@functools.lru_cache(maxsize=512)
def _read_config(path: str, _: tuple[int, int]) -> Config | None:
    try:
        return load_config(path)
    except (QamDetrError, OSError):
        return None


def _can_lock(path: Path) -> bool:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError):
        return False
    lock.release()
    return True


def identity(folder: Path, root: Path) -> str:
    """Name a run or a set of scenes to the page: its place in the folder of runs."""
    return os.path.relpath(folder.resolve(), root.resolve())
