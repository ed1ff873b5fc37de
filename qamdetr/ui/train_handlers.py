"""What the training page does: checks what was filled in, starts, stops and continues jobs, hands checkpoints over."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qamdetr.errors import ConfigError, QamDetrError
from qamdetr.ui.offered_models import run_model
from qamdetr.ui.scene_plans import SCENES, SceneOrder, plan_scenes
from qamdetr.ui.training_jobs import Job, Jobs
from qamdetr.ui.training_plans import TrainOrder, free_name, plan_training, resume_steps
from qamdetr.ui.training_runs import Run, identity
from qamdetr.ui.training_view import View, find_entry, jobs_folder, panel_view


class TrainHandlers:
    """Everything behind the page, without gradio; one for all visitors, since they share one machine."""

    def __init__(self, root: Path, on_checkpoint: Callable[[str, Path], object]) -> None:
        """Bind the page to its folder.

        Args:
            root: Folder of the runs; made when the first job starts.
            on_checkpoint: Takes name and folder of a checkpoint that is to be offered in the other tab.
        """
        self.root = root
        self.jobs = Jobs(jobs_folder(root))
        self._on_checkpoint = on_checkpoint
        self._lock = threading.Lock()

    def view(self, selected: str = "", message: str = "") -> View:
        """Describe all jobs and runs, see `panel_view`."""
        return panel_view(self.root, self.jobs, selected, message)

    def make_scenes(self, order: SceneOrder) -> str:
        """Start to make scenes; returns their identity on the page.

        Raises:
            QamDetrError: One line for whatever is wrong; then nothing was started.
        """
        with self._lock:
            self._refuse_second()
            target, steps = plan_scenes(order, self.root)
            self.jobs.start(f"{SCENES}-{order.name}", "scenes", target, steps)
        return identity(target, self.root)

    def train(self, order: TrainOrder) -> str:
        """Start to train; returns the run's identity on the page.

        Raises:
            QamDetrError: One line for whatever is wrong; then nothing was started.
        """
        with self._lock:
            self._refuse_second()
            target, steps = plan_training(order, self.root, self.jobs.folder / order.name)
            self.jobs.start(order.name, "train", target, steps)
        return identity(target, self.root)

    def stop(self, name: str) -> str:
        """Stop a job of this page; returns what to tell.

        Raises:
            ConfigError: It does not run, or was not started from the page.
        """
        run, job = self._find(name)
        if job is None or job.state != "running":
            kind = "was started outside this page; stop it where it was started" if run is not None and job is None else "does not run"
            raise ConfigError(f"“{name}” {kind}.")
        self.jobs.stop(job.name)
        return "Stopping; what was saved stays, and Resume goes on from there."

    def resume(self, name: str) -> str:
        """Continue what was stopped or failed; returns what to tell.

        Raises:
            ConfigError: Another job runs, or there is nothing left to do.
        """
        with self._lock:
            self._refuse_second()
            run, job = self._find(name)
            if run is not None and run.finished:
                raise ConfigError(f"“{name}” is finished; start a new run for more epochs.")
            if run is not None:
                job_name = job.name if job is not None else free_name(run.folder.name, [self.jobs.folder])
                self.jobs.start(job_name, "train", run.folder, resume_steps(run.folder))
            elif job is not None:
                self.jobs.start(job.name, job.kind, job.target, job.steps)
        return "Going on from what was saved last."

    def use(self, name: str) -> str:
        """Offer the best checkpoint of a run in the other tab; returns the name that the model has there.

        Raises:
            ConfigError: The run has none yet.
        """
        run, _ = self._find(name)
        if run is None or run.checkpoint is None:
            raise ConfigError(f"“{name}” has no checkpoint yet; the first is saved when its first epoch ends.")
        model = run_model(identity(run.folder, self.root))
        self._on_checkpoint(model, run.checkpoint.resolve())
        return model

    def suggest_run_name(self, config: str, seed: float | None) -> str:
        """Return a name for a run that is not taken."""
        return free_name(f"{config}-s{int(seed or 0)}", [self.root, self.jobs.folder])

    def suggest_scenes_name(self) -> str:
        """Return a name for a set of scenes that is not taken."""
        return free_name("my-scenes", [self.root / SCENES])

    def poll(self, request: dict[str, Any]) -> View:
        """Answer the page's own question for news: `{"selected": identity}`."""
        return self.view(_text(request, "selected"))

    def act(self, request: dict[str, Any]) -> View:
        """Do what a button of the page says: `{"action": "stop" or "resume", "selected": identity}`; a refusal is the view's message."""
        action, name = _text(request, "action"), _text(request, "selected")
        known: dict[str, Callable[[str], str]] = {"stop": self.stop, "resume": self.resume}
        try:
            if action not in known:
                raise ConfigError(f"{action!r} is no action of this page; it knows {' and '.join(known)}.")
            message = known[action](name)
        except QamDetrError as error:
            message = str(error)
        return self.view(name, message)

    def _refuse_second(self) -> None:
        """Say it before anything is written; `Jobs.start` makes sure."""
        running = self.jobs.running()
        if running is not None:
            raise ConfigError(
                f"“{running.name}” is still running, and two jobs would only slow each other down; wait until it ends, or stop it."
            )

    def _find(self, name: str) -> tuple[Run | None, Job | None]:
        run, job = find_entry(self.root, self.jobs, name)
        if run is None and job is None:
            raise ConfigError(f"There is no {name!r} among the runs and scenes; it may have been removed. Choose another.")
        return run, job


def _text(request: object, key: str) -> str:
    value = request.get(key) if isinstance(request, dict) else None
    return value if isinstance(value, str) else ""
