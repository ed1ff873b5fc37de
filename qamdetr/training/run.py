"""A run's folder: what to resume from, the best model so far, the log of metrics. Everything in it is replaced whole or not at all."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from filelock import FileLock, Timeout
from safetensors import SafetensorError

import qamdetr
from qamdetr.config import Config, config_to_dict, load_config, save_config
from qamdetr.errors import CheckpointError, ConfigError
from qamdetr.files import remove_abandoned, write_whole
from qamdetr.inference.checkpoint import save_checkpoint
from qamdetr.model.qam_detr import QamDetr
from qamdetr.training.data import TrainingData

CONFIG_FILE, FACTS_FILE, METRICS_FILE, PROGRESS_FILE, SUMS_FILE = "config.yaml", "run.json", "metrics.jsonl", "progress.json", "sums.json"

PACKAGES = ("accelerate", "numba", "numpy", "safetensors", "scipy", "torch")  # those that a number of a run may depend on

_log = logging.getLogger(__name__)


@dataclass
class Progress:
    """How far a run has come; saved with the state."""

    epoch: int = 0  # epochs finished
    step: int = 0  # optimiser steps taken
    batches: int = 0  # done in the epoch under way; always whole optimiser steps when saved
    sums: dict[str, float] = field(default_factory=dict)  # of each part of the loss over those batches, mean over the processes
    seconds: float = 0.0  # spent on those batches
    best: dict[str, float] = field(default_factory=dict)  # metrics of the best epoch, empty before the first
    best_epoch: int = 0  # which epoch that was, from 1; 0 before the first

    def finish_epoch(self, metrics: dict[str, float]) -> bool:
        """Count one more epoch and begin the next; whether it is the best so far: by R1@0.7, the challenge's ranking, ties by mAP."""
        self.epoch += 1
        self.batches, self.sums, self.seconds = 0, {}, 0.0
        is_best = not self.best or [metrics[key] for key in ("R1@0.7", "mAP")] > [self.best[key] for key in ("R1@0.7", "mAP")]
        if is_best:
            self.best, self.best_epoch = metrics, self.epoch
        return is_best

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for Accelerate's `save_state`."""
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Undo `state_dict`."""
        vars(self).update(state)


@dataclass(frozen=True)
class Run:
    """The folder of one run.

    It holds `config.yaml`; `run.json` (what the run is made of, and `finished` when it is); `metrics.jsonl` (one row per epoch);
    `progress.json` (see `show_progress`); `best/` (a checkpoint, with its own `config.yaml` and `run.json`) and `last/step-<steps>/`
    (the state to resume from, likewise).
    """

    directory: Path

    @classmethod
    def create(cls, directory: Path, config: Config, command: str, data_fingerprint: str = "", num_processes: int = 1) -> Run:
        """Make the folder of a new run; it appears whole, by one rename. A run never overwrites another."""
        taken = ConfigError(f"{directory} holds another run; choose another --name or continue it with --resume {directory}.")
        if directory.exists():
            raise taken
        facts = {
            "command": command,
            "seed": config.train.seed,
            "git_revision": git_revision(),
            "python": sys.version.split()[0],
            "packages": {"qamdetr": qamdetr.__version__, **{name: version(name) for name in PACKAGES}},
            "num_processes": num_processes,
            "data_fingerprint": data_fingerprint,
            "train_manifest": _digest(Path(config.data.train_manifest))[:16],
            "val_manifest": _digest(Path(config.data.val_manifest))[:16],
        }
        fresh = directory.with_name(f".{directory.name}.{os.getpid()}.new")
        try:
            fresh.mkdir(parents=True)
            save_config(config, fresh / CONFIG_FILE)
            (fresh / FACTS_FILE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
            fresh.rename(directory)
        except OSError as error:
            shutil.rmtree(fresh, ignore_errors=True)
            if directory.exists():
                raise taken from None
            raise ConfigError(f"Cannot make {directory}: {error.strerror or error}; set train.output_dir to another place.") from error
        return cls(directory)

    @classmethod
    def open(cls, directory: Path) -> Run:
        """Find the folder of an earlier run, and clear away what a kill left there."""
        if not (directory / CONFIG_FILE).is_file() or not (directory / FACTS_FILE).is_file():
            raise CheckpointError(f"{directory} holds no run (no {CONFIG_FILE} and {FACTS_FILE}); give the folder that train.py made.")
        run = cls(directory)
        remove_abandoned(directory)
        kept = directory / "best.old"
        if kept.is_dir() and not run.best_dir.exists():
            kept.rename(run.best_dir)
        return run

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Keep the folder for this process; the system gives it free when the process ends, however it ends."""
        try:
            lock = FileLock(self.directory / ".lock").acquire(timeout=0)
        except Timeout:
            raise CheckpointError(f"{self.directory} is being trained by another process; wait until it ends, or stop it.") from None
        with lock:
            yield

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
        """Read what the run is made of (see `create`); `finished`, where it is, holds epoch, step, best epoch and metrics."""
        try:
            return dict(json.loads((self.directory / FACTS_FILE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(f"{self.directory / FACTS_FILE} cannot be read ({error}); copy the run's folder again.") from error

    def finish(self, progress: Progress) -> None:
        """Note in `run.json` that nothing is left to do; on a full disk the run can be resumed, which only notes it again."""
        finished = {name: getattr(progress, name) for name in ("epoch", "step", "best_epoch", "best")}
        replace_text(self.directory / FACTS_FILE, json.dumps({**self.facts(), "finished": finished}, indent=2) + "\n")

    def check_unchanged(self, config: Config, data_fingerprint: str, num_processes: int) -> None:
        """Refuse to continue a run under other conditions, which would end with other weights."""
        facts, now = self.facts(), config_to_dict(config)
        for folder in (self.directory, *self.states[-1:]):
            before = config_to_dict(load_config(folder / CONFIG_FILE))
            changed = [
                f"{section}.{key} was {before[section][key]!r}, is {value!r}"
                for section, values in now.items()
                if isinstance(values, dict)
                for key, value in values.items()
                if before[section][key] != value
            ]
            if changed:
                raise CheckpointError(f"{folder} was saved with another configuration ({'; '.join(changed[:3])}); start a new run for it.")
        known, processes = facts["data_fingerprint"], facts["num_processes"]
        if known != data_fingerprint:
            what = f"{self.directory} was trained on data {known}, but the manifests and features that its configuration names are now"
            raise CheckpointError(f"{what} {data_fingerprint}", "bring back the earlier data, or start a new run")
        if processes != num_processes:
            remedy = f"resume it with as many (accelerate launch --num_processes {processes}), or start a new run"
            raise CheckpointError(f"{self.directory} is a run of {processes} process(es), here are {num_processes}", remedy)
        revision = git_revision()
        if revision not in facts["git_revision"].split(", then "):
            _log.warning("%s was begun with code %s, which is now %s.", self.directory, facts["git_revision"], revision)
            facts["git_revision"] += f", then {revision}"
            replace_text(self.directory / FACTS_FILE, json.dumps(facts, indent=2) + "\n")

    def show_progress(self, row: Mapping[str, object]) -> None:
        """Replace `progress.json`, for whoever wants to show how far the run is: the page's training tab reads it.

        `stage` is "training" or "validation"; `epoch`, from 1, is the one under way, of `epochs`; `batch` of `batches` are done in it, and
        `step` optimiser steps in all; `losses` are the means of the parts of the loss over the epoch so far, "total" among them, empty
        while nothing is known; `seconds_per_batch` is null likewise; `pid` is the process, `time` (since 1970) when it was written.
        """
        with contextlib.suppress(OSError):  # a full disk ends a run where something would be lost, not here
            write_whole(self.directory / PROGRESS_FILE, json.dumps({**row, "pid": os.getpid(), "time": round(time.time(), 1)}) + "\n")

    def save_best(self, model: QamDetr, config: Config, card: str) -> None:
        """Replace `best/` by a checkpoint of `model` with its model card; on a full disk the earlier one stays."""
        fresh = self.directory / ".best.new"
        shutil.rmtree(fresh, ignore_errors=True)
        with saving(self.best_dir, fresh):
            save_checkpoint(fresh, model, config, card)
            shutil.copyfile(self.directory / FACTS_FILE, fresh / FACTS_FILE)
            swap_directory(fresh, self.best_dir)

    def log_metrics(self, row: Mapping[str, Any]) -> None:
        """Append one epoch to `metrics.jsonl`."""
        path = self.directory / METRICS_FILE
        with saving(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def forget_metrics_after(self, epoch: int) -> None:
        """Drop the lines of epochs that a resumed run will repeat."""
        path = self.directory / METRICS_FILE
        if path.is_file():
            try:
                # A kill while appending leaves half a line at most: the last one, and that epoch is repeated.
                whole = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
                kept = "".join(line for line in whole if json.loads(line)["epoch"] <= epoch)
            except (ValueError, TypeError, KeyError) as error:
                raise CheckpointError(f"{path} is damaged ({error}); copy the run's folder again, or remove that file.") from error
            replace_text(path, kept)

    def save_state(self, accelerator: Accelerator, progress: Progress) -> None:
        """Save all that resuming needs as `last/step-<steps>`, then remove the state before.

        The folder gets its name by one rename when it is complete, so a kill at any moment leaves a whole state.
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
                sums = {str(path.relative_to(fresh)): _digest(path) for path in fresh.rglob("*") if path.is_file()}
                (fresh / SUMS_FILE).write_text(json.dumps(sums), encoding="utf-8")
                earlier = self.states
                swap_directory(fresh, final)
                for state in earlier:
                    if state != final:
                        shutil.rmtree(state, ignore_errors=True)

    @property
    def states(self) -> list[Path]:
        """Folders of the states that were saved, the last one last."""
        return sorted((self.directory / "last").glob("step-????????"))

    def load_state(self, accelerator: Accelerator) -> None:
        """Restore model, optimiser, schedule, random generators and all that was registered; a flipped bit is found, too."""
        if not self.states:  # a run that was killed before simply begins again
            return
        state = self.states[-1]
        try:
            sums = json.loads((state / SUMS_FILE).read_text(encoding="utf-8"))
            if damaged := [name for name, digest in sums.items() if _digest(state / name) != digest]:
                raise ValueError(f"{', '.join(damaged)} changed on the disk")
            accelerator.load_state(str(state))
        except (OSError, EOFError, RuntimeError, ValueError, KeyError, AttributeError, SafetensorError) as error:
            what = f"{state} cannot be resumed from ({' '.join(str(error).split())[:200]})"
            raise CheckpointError(what, f"start a new run, from {self.best_dir} if you like (--init-from)") from error


@contextlib.contextmanager
def saving(path: Path, unfinished: Path | None = None) -> Iterator[None]:
    """Turn what a full disk makes of saving `path` into one line, and give the space of `unfinished` back."""
    try:
        yield
    # PyTorch's archive writer says it with a `RuntimeError`, safetensors with an error of its own.
    except (OSError, RuntimeError, SafetensorError, CheckpointError) as error:
        if unfinished is not None:
            shutil.rmtree(unfinished, ignore_errors=True)
        what = f"Cannot save {path} ({' '.join(str(error).split())[:200]})"
        raise CheckpointError(what, "what was saved before is kept: free some space, then continue with --resume") from error


def swap_directory(fresh: Path, target: Path) -> None:
    """Put the folder `fresh` in the place of `target`; a kill between the two renames leaves the old one as `<target>.old`."""
    old = target.with_name(target.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    fresh.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def replace_text(path: Path, text: str) -> None:
    """Write a text file that appears whole, or stays as it was."""
    with saving(path):
        write_whole(path, text)


def git_revision() -> str:
    """Commit of the code, with `+changes` where the working tree differs; `unknown` outside a repository."""
    command = ["git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+changes"]
    try:
        return subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _digest(path: Path) -> str:
    return blake2b(path.read_bytes()).hexdigest()


def model_card(
    name: str, model: QamDetr, config: Config, facts: Mapping[str, Any], metrics: Mapping[str, float], data: TrainingData, epoch: int
) -> str:
    """Write the README.md of a checkpoint: what it is, what it was trained on (`Run.facts`), how good it is, how to get it again."""
    streams = [f"audio `{name}`" for name in config.model.audio_streams] + [f"text `{name}`" for name in config.model.text_streams]
    rows = "\n".join(f"| {key} | {value:g} |" for key, value in metrics.items())
    decay, encoder = config.train.ema_decay, data.section.encoder or "unknown"
    bound = "hears in any other joint space, too" if "open" in config.model.audio_streams else "works with that encoder only"
    return f"""---
license: apache-2.0
library_name: qamdetr
tags: [audio, audio-moment-retrieval]
---

# {name}

QAM-DETR for audio moment retrieval: finds the seconds of a recording that match a sentence.
It reads features of the combo `{config.data.combo}` (encoder version `{encoder}`) and {bound}.
What the encoder was trained on, under which licences, and what it cannot hear is on its own card.

| validation (`{config.data.val_manifest}`, {len(data.val)} queries) | |
|---|---|
{rows}

- **Data**: trained on `{config.data.train_manifest}` ({len(data.train)} queries, content `{facts["train_manifest"]}`); \
validated on content `{facts["val_manifest"]}`.
- **Model**: {sum(p.numel() for p in model.parameters()):,} trainable parameters; streams {", ".join(streams)}; \
all settings in `config.yaml`.
- **Chosen**: epoch {epoch} of {config.train.epochs}, by validation R1@0.7, ties by mAP\
{f"; weights averaged with decay {decay:g}" if decay else ""}. Such numbers flatter a little.
- **Answers**: *found* from a decoder score of {config.inference.found_threshold:.3f}, \
*perhaps* from {min(config.inference.perhaps_threshold, config.inference.found_threshold):.3f}; these and the scores are calibrated \
on the same validation set.
- **Made by**: `{facts["command"]}`, seed {config.train.seed}, git revision `{facts["git_revision"]}`.
"""
