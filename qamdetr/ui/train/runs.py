"""What runs have come to, read from their folders: it does not matter who started them, or whether the page was open."""

from __future__ import annotations

import functools
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qamdetr.config import Config, load_config, switches
from qamdetr.errors import QamDetrError
from qamdetr.ui.train.jobs import Job, Jobs, State, read_json, started_at

JOBS_FOLDER = ".jobs"
FACTS_FILE, METRICS_FILE, CONFIG_FILE, PROGRESS_FILE = "run.json", "metrics.jsonl", "config.yaml", "progress.json"
BEST = "best"
"""Folder of a run's best checkpoint."""

SHOWN_METRICS = ("R1@0.5", "R1@0.7", "mAP", "mAP@0.5", "mAP@0.75")

ALIVE_SECONDS = 120.0
"""A run that wrote its progress within this time is taken for one that goes on, on whatever machine; it writes every few seconds."""


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


def run_state(run: Run | None, job: Job | None, now: float) -> tuple[State, str]:
    """State of a run and the reason for it; a run that no job of this page is about goes by its files alone."""
    if job is not None and job.state == "running":
        return "running", ""
    if run is not None and run.finished:
        return "finished", ""
    if job is not None:
        return job.state, job.reason
    if run is not None and _goes_on(read_json(run.folder / PROGRESS_FILE), now):
        return "running", "Started outside this page, which therefore cannot stop it."
    return "stopped", ""


def _goes_on(told: Mapping[str, Any], now: float) -> bool:
    """Whether a run wrote its progress just now, or its process is still here; another one may have got the number since."""
    written, started = float(told.get("time") or 0.0), started_at(int(told.get("pid") or 0))
    return now - written < ALIVE_SECONDS or (started is not None and started < written)


def progress_of(job: Job | None, run: Run | None, now: float) -> Progress:
    """Measure what runs."""
    if job is None or (job.kind == "train" and job.step == len(job.steps) - 1):
        return _training_progress(run)
    step, share, left = job.steps[job.step], job.share(), None
    if share is not None:
        spent = now - job.step_started
        # Starting Python takes seconds in which nothing is counted.
        left = spent / share * (1 - share) if share > 0.02 and spent > 5 else None
    if len(job.steps) == 1:
        return Progress(step.label, share, left)
    whole = None if share is None else (job.step + share) / len(job.steps)
    return Progress(f"Step {job.step + 1} of {len(job.steps)}: {step.label}", whole, left)


def _training_progress(run: Run | None) -> Progress:
    """Read what the run itself says, see `training.run.Run.show_progress`."""
    told = {} if run is None else read_json(run.folder / PROGRESS_FILE)
    epochs, batches = int(told.get("epochs") or 0), int(told.get("batches") or 0)
    if run is None or not epochs:
        return Progress("Opening the data and the model", None, None)
    part = min(1.0, int(told.get("batch") or 0) / max(1, batches))
    done = min(int(told.get("epoch") or 1) - 1 + part, float(epochs))
    recent = [float(row["seconds"]) for row in run.rows[-3:]]
    each: float | None = sum(recent) / len(recent) if recent else None
    if each is None and told.get("seconds_per_batch"):
        each = float(told["seconds_per_batch"]) * batches
    stage = "Validating" if told.get("stage") == "validation" else "Training"
    return Progress(
        stage=f"{stage}: epoch {min(int(done) + 1, epochs)} of {epochs}",
        share=min(1.0, done / epochs),
        seconds_left=None if each is None else max(0.0, (epochs - done) * each),
        epoch=done,
        loss=told.get("losses", {}).get("total"),
    )


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


def identity(folder: Path, root: Path) -> str:
    """Name a run or a set of scenes to the page: its place in the folder of runs."""
    return os.path.relpath(folder.resolve(), root.resolve())


View = dict[str, Any]

MAX_ITEMS = 60
"""Runs that are listed; older ones stay where they are."""

MAX_POINTS = 300
"""Of a curve: more than there are pixels between two of them on most screens."""

LOG_LINES = 8
CURVE_METRICS = ("R1@0.5", "R1@0.7", "mAP")


def panel_view(root: Path, jobs: Jobs, selected: str = "", message: str = "") -> View:
    """Describe all runs and sets of scenes, and one of them in full.

    Returns:
        `running, message, selected, items: [{id, name, kind, state, share, brief}]` and `detail`, which adds `stage, seconds_left, reason,
        actions, facts: [[label, value]], charts, log`; None while there is nothing.
    """
    found = _all_of(root, jobs)
    ids = [entry.id for entry in found]
    if selected not in ids:
        selected = next((entry.id for entry in found if entry.state == "running"), ids[0] if ids else "")
    shown = next((entry for entry in found if entry.id == selected), None)
    return {
        "running": any(entry.state == "running" for entry in found),
        "message": message,
        "selected": selected,
        "items": [entry.item() for entry in found[:MAX_ITEMS]],
        "detail": None if shown is None else shown.detail(),
    }


class _Entry:
    """One run or one set of scenes."""

    def __init__(self, root: Path, target: Path, run: Run | None, job: Job | None) -> None:
        self.id = identity(target, root)
        self.run, self.job = run, job
        self.kind = "train" if run is not None else job.kind if job is not None else ""
        self.state: State
        now = time.time()
        self.state, self.reason = run_state(run, job, now)
        self.progress = progress_of(job, run, now) if self.state == "running" else Progress()

    @property
    def touched(self) -> float:
        """When something last happened to it."""
        if self.job is not None:
            return self.job.started
        path = self.run.folder / "run.json" if self.run is not None else None
        return path.stat().st_mtime if path is not None and path.is_file() else 0.0

    def item(self) -> View:
        return {
            "id": self.id,
            "name": self.id.removeprefix("scenes/") if self.kind == "scenes" else self.id,
            "kind": self.kind,
            "state": self.state,
            "share": _rounded(self.progress.share),
            "brief": self._brief(),
        }

    def detail(self) -> View:
        return {
            **self.item(),
            "stage": self.progress.stage,
            "seconds_left": _rounded(self.progress.seconds_left, 0),
            "reason": self.reason,
            "actions": self._actions(),
            "facts": [] if self.run is None else run_facts(self.run),
            "charts": [] if self.run is None else charts(self.run, self.progress),
            "log": self.job.log_tail()[-LOG_LINES:] if self.job is not None else [],
        }

    def _brief(self) -> str:
        if self.run is None:
            return "scenes" if self.kind == "scenes" else ""
        best = self.run.best
        epochs = self.run.config.train.epochs if self.run.config is not None else 0
        told = [f"{len(self.run.rows)} of {epochs} epochs"] if epochs else []
        if best is not None:
            told.append(f"R1@0.7 {best['val']['R1@0.7']:.1f}")
        return ", ".join(told)

    def _actions(self) -> list[str]:
        use = ["use"] if self.run is not None and self.run.checkpoint is not None else []
        if self.state == "running":
            return (["stop"] if self.job is not None and self.job.state == "running" else []) + use
        return (["resume"] if self.state != "finished" else []) + use


def _all_of(root: Path, jobs: Jobs) -> list[_Entry]:
    by_target = job_of(jobs)
    runs = {run.folder.resolve(): run for run in find_runs(root)}
    targets = dict.fromkeys([*by_target, *runs])
    entries = [_Entry(root, target, runs.get(target), by_target.get(target)) for target in targets]
    return sorted(entries, key=lambda entry: (entry.state != "running", -entry.touched))


def find_entry(root: Path, jobs: Jobs, name: str) -> tuple[Run | None, Job | None]:
    """Look up a run or a set of scenes by its identity; (None, None) where there is none."""
    entry = next((entry for entry in _all_of(root, jobs) if entry.id == name), None)
    return (None, None) if entry is None else (entry.run, entry.job)


def jobs_folder(root: Path) -> Path:
    """Folder of the jobs of a folder of runs."""
    return root / JOBS_FOLDER


def charts(run: Run, progress: Progress) -> list[View]:
    """Curves of a run: `{title, unit, epochs, best, series: [{name, points: [[epoch, value]], live}]}`; `epochs` is where the axis ends.

    `live` is the mean loss of the epoch under way, which belongs to no whole epoch yet; `best` the epoch of the best checkpoint.
    """
    epochs = _shown_epochs(run.config.train.epochs if run.config is not None else 0, len(run.rows))
    loss = [[row["epoch"], row.get("loss", {}).get("total")] for row in run.rows]
    live = [round(progress.epoch, 3), progress.loss] if progress.epoch is not None and progress.loss is not None else None
    best = run.best
    return [
        {"title": "Training loss", "unit": "", "epochs": epochs, "best": None, "series": [_series("loss", loss, live)]},
        {
            "title": "Validation",
            "unit": "%",
            "epochs": epochs,
            "best": None if best is None else best["epoch"],
            "series": [_series(name, [[row["epoch"], row.get("val", {}).get(name)] for row in run.rows]) for name in CURVE_METRICS],
        },
    ]


def _shown_epochs(planned: int, done: int) -> int:
    """How far the axis goes: to the end, but while there is little to see halved as often as leaves room for it."""
    shown = max(planned, done, 1)
    while shown >= 10 and shown // 2 >= 1.5 * done:
        shown //= 2
    return shown


def _series(name: str, points: Sequence[Sequence[Any]], live: Sequence[float] | None = None) -> View:
    known = [[epoch, round(float(value), 4)] for epoch, value in points if isinstance(value, (int, float)) and math.isfinite(value)]
    step = max(1, math.ceil(len(known) / MAX_POINTS))
    thinned = known[::-1][::step][::-1]  # the newest always stays
    return {"name": name, "points": thinned, "live": live}


def run_facts(run: Run) -> list[list[str]]:
    """Say what a run is made of, as label and value."""
    facts = [] if run.config is None else [[label, value] for label, value in component_facts(run.config).items() if value]
    if run.rows:
        last = run.rows[-1]
        facts.append(["Steps", f"{last.get('step', 0)} in {last['epoch']} epochs; the last epoch took {last.get('seconds', 0):g} s"])
    best = run.best
    if best is not None:
        scores = ", ".join(f"{name} {best['val'][name]:.1f}" for name in SHOWN_METRICS if name in best["val"])
        facts.append([f"Best epoch: {best['epoch']}", scores])
    return facts


def component_facts(config: Config) -> dict[str, str]:
    """Say in words how a model is built and trained."""
    model = config.model
    on = [switch.label for switch in switches().values() if switch.is_on(model)]
    return {
        "Encoder": {"bimamba": "BiMamba", "transformer": "Transformer"}[model.encoder],
        "Components": ", ".join(on) or "none",
        "Streams": ", ".join([*model.audio_streams, *(f"text: {name}" for name in list(model.text_streams)[1:])]),
        "Seed": str(config.train.seed),
        "Scenes": scenes_name(config.data.val_manifest),
    }


def scenes_name(manifest: str) -> str:
    """Name of the set that a validation manifest belongs to."""
    path = Path(manifest)
    return path.parent.parent.name if path.parent.name in ("val", "train", "test") else path.parent.name or path.name


def _rounded(value: float | None, digits: int = 4) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, digits)
