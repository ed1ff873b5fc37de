"""A run's folder: what to resume from, the best model so far, the log of metrics. Everything in it is replaced whole or not at all."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from accelerate import Accelerator
from safetensors import SafetensorError

from qamdetr.config import Config, load_config, save_config
from qamdetr.errors import CheckpointError, ConfigError, DataError
from qamdetr.inference.pretrained import save_pretrained
from qamdetr.models.qam_detr import QamDetr


@dataclass
class Progress:
    """How far a run has come; saved with the state.

    Attributes:
        epoch: Epochs finished.
        step: Optimiser steps taken.
        best: Metrics of the best epoch, empty before the first.
        best_rank: What checkpoints are compared by (`Validation.rank`).
    """

    epoch: int = 0
    step: int = 0
    best: dict[str, float] = field(default_factory=dict)
    best_rank: tuple[float, ...] = ()

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for Accelerate's `save_state`."""
        return {"epoch": self.epoch, "step": self.step, "best": dict(self.best), "best_rank": list(self.best_rank)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Undo `state_dict`."""
        self.epoch, self.step = state["epoch"], state["step"]
        self.best, self.best_rank = dict(state["best"]), tuple(state["best_rank"])


@dataclass(frozen=True)
class Run:
    """The folder of one run: `config.yaml`, `run.json`, `metrics.jsonl`, `best/` (a checkpoint) and `last/` (the state to resume from)."""

    directory: Path

    @classmethod
    def create(cls, directory: Path, config: Config, command: str) -> Run:
        """Make the folder of a new run.

        Raises:
            ConfigError: The folder is there already: a run never overwrites another.
        """
        try:
            directory.mkdir(parents=True, exist_ok=False)
        except FileExistsError:
            raise ConfigError(f"{directory} holds another run; choose another --name or continue it with --resume {directory}.") from None
        except OSError as error:
            raise ConfigError(f"Cannot make {directory}: {error.strerror or error}; set train.output_dir to another place.") from error
        save_config(config, directory / "config.yaml")
        facts = {
            "command": command,
            "git_revision": git_revision(),
            "python": sys.version.split()[0],
            "train_manifest": file_fingerprint(Path(config.data.train_manifest)),
            "val_manifest": file_fingerprint(Path(config.data.val_manifest)),
        }
        (directory / "run.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        return cls(directory)

    @classmethod
    def open(cls, directory: Path) -> Run:
        """Find the folder of an earlier run.

        Raises:
            CheckpointError: It holds no run.
        """
        if not (directory / "config.yaml").is_file():
            raise CheckpointError(f"{directory} holds no run (no config.yaml); give the folder that train.py made.")
        run = cls(directory)
        kept = run.best_dir.with_name(run.best_dir.name + ".old")
        if kept.is_dir() and not run.best_dir.exists():
            kept.rename(run.best_dir)
        return run

    @property
    def best_dir(self) -> Path:
        """Checkpoint of the best epoch."""
        return self.directory / "best"

    def config(self) -> Config:
        """Read the configuration that the run was started with."""
        return load_config(self.directory / "config.yaml")

    def facts(self) -> dict[str, str]:
        """Read what `create` noted: command, revision, fingerprints of the data."""
        values: dict[str, str] = json.loads((self.directory / "run.json").read_text(encoding="utf-8"))
        return values

    def save_best(self, model: QamDetr, config: Config, card: str) -> None:
        """Replace `best/` by a checkpoint of `model` with its model card.

        Raises:
            CheckpointError: The disk refuses; the earlier checkpoint stays.
        """
        fresh = self.directory / ".best.new"
        shutil.rmtree(fresh, ignore_errors=True)
        try:
            save_pretrained(fresh, model, config, half=False)
            (fresh / "README.md").write_text(card, encoding="utf-8")
            swap_directory(fresh, self.best_dir)
        except OSError as error:
            raise _refused(self.best_dir, error) from error

    def log_metrics(self, row: Mapping[str, Any]) -> None:
        """Append one epoch to `metrics.jsonl`."""
        with (self.directory / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def forget_metrics_after(self, epoch: int) -> None:
        """Drop the lines of epochs that a resumed run will repeat."""
        path = self.directory / "metrics.jsonl"
        if path.is_file():
            # A kill while appending leaves half a line at most: the last one, and that epoch is repeated.
            whole = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
            kept = [line for line in whole if json.loads(line)["epoch"] <= epoch]
            fresh = path.with_suffix(".new")
            fresh.write_text("".join(kept), encoding="utf-8")
            fresh.replace(path)

    def save_state(self, accelerator: Accelerator, progress: Progress) -> None:
        """Save all that resuming needs as `last/step-<steps>`, then remove the state before.

        The folder gets its name by one rename when it is complete, so a kill at any moment leaves a whole state.

        Raises:
            CheckpointError: The disk refuses; the state before stays.
        """
        final = self.directory / "last" / f"step-{progress.step:08d}"
        fresh = final.with_name("unfinished")
        try:
            if accelerator.is_main_process:
                shutil.rmtree(fresh, ignore_errors=True)
            accelerator.wait_for_everyone()
            accelerator.save_state(str(fresh))
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                earlier = self._states()
                swap_directory(fresh, final)
                for state in earlier:
                    if state != final:
                        shutil.rmtree(state, ignore_errors=True)
        except (OSError, RuntimeError, SafetensorError) as error:
            raise _refused(final, error) from error

    def load_state(self, accelerator: Accelerator) -> None:
        """Restore model, optimiser, schedule, random generators and all that was registered for checkpointing.

        A run that was killed before its first state simply begins again.

        Raises:
            CheckpointError: The state is damaged or of another model.
        """
        states = self._states()
        if not states:
            return
        try:
            accelerator.load_state(str(states[-1]))
        except (OSError, EOFError, RuntimeError, ValueError, KeyError, SafetensorError, UnpicklingError) as error:
            raise CheckpointError(
                f"{states[-1]} cannot be resumed from ({' '.join(str(error).split())[:200]}); start a new run, "
                f"from {self.best_dir} if you like (--set train.init_from=…)."
            ) from error

    def _states(self) -> list[Path]:
        return sorted((self.directory / "last").glob("step-????????"))


def swap_directory(fresh: Path, target: Path) -> None:
    """Put the folder `fresh` in the place of `target`; a kill between the two renames leaves the old one as `<target>.old`."""
    old = target.with_name(target.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    fresh.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def git_revision() -> str:
    """Commit of the code, with `+changes` where the working tree differs; `unknown` outside a repository."""
    root = Path(__file__).resolve().parents[2]
    try:
        revision = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=root, capture_output=True, text=True, check=True).stdout
        changes = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=root, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return revision.strip() + ("+changes" if changes.strip() else "")


def file_fingerprint(path: Path) -> str:
    """Return 16 hex digits of a file's whole content.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        return blake2b(path.read_bytes(), digest_size=8).hexdigest()
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror or error}; check data.train_manifest and data.val_manifest.") from error


def _refused(path: Path, error: Exception) -> CheckpointError:
    reason = " ".join(str(error).split())[:200]
    return CheckpointError(f"Cannot save {path} ({reason}); what was saved before is kept: free some space, then continue with --resume.")
