"""What the training page shows of jobs and runs: plain JSON-able values, small enough to be asked for every two seconds."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qamdetr.config import Config
from qamdetr.ui.training_jobs import Job, Jobs, State
from qamdetr.ui.training_runs import (
    JOBS_FOLDER,
    SHOWN_METRICS,
    Progress,
    Run,
    find_runs,
    identity,
    job_of,
    progress_of,
    run_state,
)

View = dict[str, Any]

MAX_ITEMS = 60
"""Runs that are listed; older ones stay where they are."""

MAX_POINTS = 300
"""Of a curve: more than there are pixels between two of them on most screens."""

LOG_LINES = 8
CURVE_METRICS = ("R1@0.5", "R1@0.7", "mAP")


def panel_view(root: Path, jobs: Jobs, selected: str = "", message: str = "") -> View:
    """Describe all runs and sets of scenes, and one of them in full.

    Args:
        root: Folder of the runs.
        jobs: Their jobs.
        selected: Identity of the one shown in full; another is chosen where it is not there.
        message: One line about what was just done or refused.

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
        self.state, self.reason = run_state(run, job)
        self.progress = progress_of(job, run, time.time()) if job is not None and self.state == "running" else Progress()

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
    on = {"3-way fusion": model.fusion == "three_way", "multi-scale": model.multiscale, "quality": model.quality}
    return {
        "Encoder": {"bimamba": "BiMamba", "transformer": "Transformer"}[model.encoder],
        "Components": ", ".join(name for name, is_on in on.items() if is_on) or "none",
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
