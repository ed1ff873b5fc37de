"""A run's folder: what to resume from, the best model so far, the log of metrics. Everything in it is replaced whole or not at all."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from accelerate import Accelerator
from filelock import FileLock, Timeout
from safetensors import SafetensorError

from qamdetr.config import Config, load_config, save_config
from qamdetr.errors import CheckpointError, ConfigError
from qamdetr.files import remove_abandoned, write_whole
from qamdetr.inference.checkpoint import save_pretrained
from qamdetr.model.qam_detr import QamDetr
from qamdetr.training.provenance import changed_settings, collect_facts, git_revision

CONFIG_FILE, FACTS_FILE, METRICS_FILE = "config.yaml", "run.json", "metrics.jsonl"

_log = logging.getLogger(__name__)


@dataclass
class Progress:
    """How far a run has come; saved with the state.

    Attributes:
        epoch: Epochs finished.
        step: Optimiser steps taken.
        batches: Batches done in the epoch under way; always whole optimiser steps when saved.
        sums: Sum of each part of the loss over those batches, mean over the processes.
        seconds: Time spent on those batches.
        best: Metrics of the best epoch, empty before the first.
        best_rank: What checkpoints are compared by (`Validation.rank`).
        best_epoch: Which epoch that was, from 1; 0 before the first.
    """

    epoch: int = 0
    step: int = 0
    batches: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    best: dict[str, float] = field(default_factory=dict)
    best_rank: tuple[float, ...] = ()
    best_epoch: int = 0

    def finish_epoch(self) -> None:
        """Count one more epoch and begin the next."""
        self.epoch += 1
        self.batches, self.sums, self.seconds = 0, {}, 0.0

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for Accelerate's `save_state`."""
        return {**asdict(self), "best_rank": list(self.best_rank)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Undo `state_dict`."""
        for item in fields(self):
            setattr(self, item.name, state[item.name])
        self.best_rank = tuple(state["best_rank"])


@dataclass(frozen=True)
class Run:
    """The folder of one run.

    It holds `config.yaml`; `run.json` (what the run is made of, and `finished` when it is); `metrics.jsonl` (one row per epoch);
    `best/` (a checkpoint, with its own `config.yaml` and `run.json`) and `last/step-<steps>/` (the state to resume from, likewise).
    """

    directory: Path

    @classmethod
    def create(cls, directory: Path, config: Config, command: str, *, data_fingerprint: str = "", num_processes: int = 1) -> Run:
        """Make the folder of a new run; it appears whole, by one rename.

        Raises:
            ConfigError: The folder is there already: a run never overwrites another. Or it cannot be made.
        """
        if directory.exists():
            raise _taken(directory)
        facts = collect_facts(config, command=command, data_fingerprint=data_fingerprint, num_processes=num_processes)
        fresh = directory.with_name(f".{directory.name}.{os.getpid()}.new")
        try:
            fresh.mkdir(parents=True)
            save_config(config, fresh / CONFIG_FILE)
            (fresh / FACTS_FILE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
            fresh.rename(directory)
        except OSError as error:
            shutil.rmtree(fresh, ignore_errors=True)
            if directory.exists():
                raise _taken(directory) from None
            raise ConfigError(f"Cannot make {directory}: {error.strerror or error}; set train.output_dir to another place.") from error
        return cls(directory)

    @classmethod
    def open(cls, directory: Path) -> Run:
        """Find the folder of an earlier run.

        Raises:
            CheckpointError: It holds no run.
        """
        if not (directory / CONFIG_FILE).is_file() or not (directory / FACTS_FILE).is_file():
            raise CheckpointError(f"{directory} holds no run (no {CONFIG_FILE} and {FACTS_FILE}); give the folder that train.py made.")
        run = cls(directory)
        remove_abandoned(directory)
        kept = run.best_dir.with_name(run.best_dir.name + ".old")
        if kept.is_dir() and not run.best_dir.exists():
            kept.rename(run.best_dir)
        return run

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Keep the folder for this process; the system gives it free when the process ends, however it ends.

        Raises:
            CheckpointError: Another process trains in it.
        """
        lock = FileLock(self.directory / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise CheckpointError(f"{self.directory} is being trained by another process; wait until it ends, or stop it.") from None
        try:
            yield
        finally:
            lock.release()

    @property
    def best_dir(self) -> Path:
        """Checkpoint of the best epoch."""
        return self.directory / "best"

    @property
    def finished(self) -> bool:
        """Whether the run took all its epochs or stopped early; False also where there is no run yet."""
        return (self.directory / FACTS_FILE).is_file() and "finished" in self.facts()

    def config(self) -> Config:
        """Read the configuration that the run was started with."""
        return load_config(self.directory / CONFIG_FILE)

    def facts(self) -> dict[str, Any]:
        """Read what the run is made of (`provenance.collect_facts`); `finished`, where it is, holds epoch, step, best epoch and metrics.

        Raises:
            CheckpointError: The file is not there or damaged.
        """
        try:
            values: dict[str, Any] = json.loads((self.directory / FACTS_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.directory / FACTS_FILE} cannot be read ({error}); copy the run's folder again.") from error
        return values

    def finish(self, progress: Progress) -> None:
        """Note in `run.json` that nothing is left to do.

        Raises:
            CheckpointError: The disk refuses; the run can be resumed, which only notes it again.
        """
        kept = ("epoch", "step", "best_epoch", "best")
        self._write_facts({**self.facts(), "finished": {name: getattr(progress, name) for name in kept}})

    def check_unchanged(self, config: Config, data_fingerprint: str, num_processes: int) -> None:
        """Refuse to continue a run under other conditions, which would end with other weights.

        Raises:
            CheckpointError: Names the setting, the data or the number of processes that changed.
        """
        facts = self.facts()
        if "data_fingerprint" not in facts:
            raise CheckpointError(
                f"{self.directory} was begun by an earlier version of this program, which noted too little to continue it."
            )
        for folder in (self.directory, *self._states()[-1:]):
            changed = changed_settings(load_config(folder / CONFIG_FILE), config)
            if changed:
                raise CheckpointError(f"{folder} was saved with another configuration ({'; '.join(changed[:3])}); start a new run for it.")
        if facts["data_fingerprint"] != data_fingerprint:
            raise CheckpointError(
                f"{self.directory} was trained on data {facts['data_fingerprint']}, but the manifests and features that its configuration "
                f"names are now {data_fingerprint}; bring back the earlier data, or start a new run."
            )
        if facts["num_processes"] != num_processes:
            raise CheckpointError(
                f"{self.directory} is a run of {facts['num_processes']} process(es), here are {num_processes}; "
                f"resume it with as many (accelerate launch --num_processes {facts['num_processes']}), or start a new run."
            )
        revision = git_revision()
        if revision not in facts["git_revision"].split(", then "):
            _log.warning("%s was begun with code %s, which is now %s.", self.directory, facts["git_revision"], revision)
            self._write_facts({**facts, "git_revision": f"{facts['git_revision']}, then {revision}"})

    def save_best(self, model: QamDetr, config: Config, card: str) -> None:
        """Replace `best/` by a checkpoint of `model` with its model card.

        Raises:
            CheckpointError: The disk refuses; the earlier checkpoint stays.
        """
        fresh = self.directory / ".best.new"
        shutil.rmtree(fresh, ignore_errors=True)
        with saving(self.best_dir, fresh):
            save_pretrained(fresh, model, config, half=False)
            shutil.copyfile(self.directory / FACTS_FILE, fresh / FACTS_FILE)
            (fresh / "README.md").write_text(card, encoding="utf-8")
            swap_directory(fresh, self.best_dir)

    def log_metrics(self, row: Mapping[str, Any]) -> None:
        """Append one epoch to `metrics.jsonl`.

        Raises:
            CheckpointError: The disk refuses.
        """
        path = self.directory / METRICS_FILE
        with saving(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def forget_metrics_after(self, epoch: int) -> None:
        """Drop the lines of epochs that a resumed run will repeat.

        Raises:
            CheckpointError: The disk refuses.
        """
        path = self.directory / METRICS_FILE
        if path.is_file():
            # A kill while appending leaves half a line at most: the last one, and that epoch is repeated.
            whole = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
            replace_text(path, "".join(line for line in whole if json.loads(line)["epoch"] <= epoch))

    def save_state(self, accelerator: Accelerator, progress: Progress) -> None:
        """Save all that resuming needs as `last/step-<steps>`, then remove the state before.

        The folder gets its name by one rename when it is complete, so a kill at any moment leaves a whole state.

        Raises:
            CheckpointError: The disk refuses; the state before stays.
        """
        final = self.directory / "last" / f"step-{progress.step:08d}"
        fresh = final.with_name("unfinished")
        with saving(final, fresh):
            if accelerator.is_main_process:
                shutil.rmtree(fresh, ignore_errors=True)
            accelerator.wait_for_everyone()
            accelerator.save_state(str(fresh))
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                for name in (CONFIG_FILE, FACTS_FILE):
                    shutil.copyfile(self.directory / name, fresh / name)
                earlier = self._states()
                swap_directory(fresh, final)
                for state in earlier:
                    if state != final:
                        shutil.rmtree(state, ignore_errors=True)

    @property
    def has_state(self) -> bool:
        """Whether a state was saved; a run that was killed before simply begins again."""
        return bool(self._states())

    def load_state(self, accelerator: Accelerator) -> None:
        """Restore model, optimiser, schedule, random generators and all that was registered for checkpointing.

        Raises:
            CheckpointError: The state is damaged or of another model.
        """
        if not self.has_state:
            return
        state = self._states()[-1]
        try:
            accelerator.load_state(str(state))
        except (OSError, EOFError, RuntimeError, ValueError, KeyError, SafetensorError, UnpicklingError) as error:
            raise CheckpointError(
                f"{state} cannot be resumed from ({' '.join(str(error).split())[:200]}); start a new run, "
                f"from {self.best_dir} if you like (--init-from)."
            ) from error

    def _states(self) -> list[Path]:
        return sorted((self.directory / "last").glob("step-????????"))

    def _write_facts(self, facts: Mapping[str, Any]) -> None:
        replace_text(self.directory / FACTS_FILE, json.dumps(facts, indent=2) + "\n")


@contextmanager
def saving(path: Path, unfinished: Path | None = None) -> Iterator[None]:
    """Turn what a full disk makes of saving `path` into one line, and give the space of `unfinished` back.

    Raises:
        CheckpointError: The disk refuses. PyTorch's archive writer says so with a `RuntimeError`, safetensors with an error of its own.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError, CheckpointError) as error:
        if unfinished is not None:
            shutil.rmtree(unfinished, ignore_errors=True)
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"Cannot save {path} ({reason}); what was saved before is kept: free some space, then continue with --resume."
        ) from error


def swap_directory(fresh: Path, target: Path) -> None:
    """Put the folder `fresh` in the place of `target`; a kill between the two renames leaves the old one as `<target>.old`."""
    old = target.with_name(target.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    fresh.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def replace_text(path: Path, text: str) -> None:
    """Write a text file that appears whole, or stays as it was.

    Raises:
        CheckpointError: The disk refuses.
    """
    with saving(path):
        write_whole(path, text)


def _taken(directory: Path) -> ConfigError:
    return ConfigError(f"{directory} holds another run; choose another --name or continue it with --resume {directory}.")
