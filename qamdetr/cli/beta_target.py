"""Where `calibrate` writes a weight: a checkpoint, or a system of several."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Protocol

from qamdetr.config import SYSTEM_DIR, load_config
from qamdetr.errors import CheckpointError, ConfigError, QamDetrError
from qamdetr.inference.checkpoint import CONFIG_FILE, beta_line, find_checkpoint, store_in_checkpoint, store_in_system
from qamdetr.inference.retriever import load_system
from qamdetr.verifiers.base import DEFAULT_VERIFIER

_HARMLESS = ("data.", *(f"verifier.{key}=" for key in ("batch_size", "cache_dir", "retries", "timeout_seconds", "url")))
"""What `--set` may say where a weight is written: beginnings of overrides that change no answer."""


class BetaTarget(Protocol):
    """Something that keeps a weight of the verifier.

    Attributes:
        name: For the eye.
        verifier: Name of its verifier; `none` where it has no verifier of its own.
        top_k: Candidates that its verifier sees.
    """

    name: str
    verifier: str
    top_k: int

    def check_writable(self, verifier: str) -> None:
        """Refuse now what `store` could not write after the work."""
        ...

    def store(self, verifier: str, beta: float) -> str:
        """Write the weight, and tell where; or tell what to write where."""
        ...


def open_target(args: argparse.Namespace) -> BetaTarget:
    """Find the checkpoint or system that the options name.

    Raises:
        QamDetrError: None is named, or it cannot be used.
    """
    if args.system is not None:
        return _System(args)
    if args.checkpoint is None:
        raise QamDetrError("The weight is written into a checkpoint or system; name it with --checkpoint or --system.")
    return _Checkpoint(args)


class _Checkpoint:
    """Its configuration keeps one weight per verifier."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._folder = find_checkpoint(args.checkpoint)
        self.name, self.verifier = self._folder.name, DEFAULT_VERIFIER
        self.top_k = load_config(self._folder / CONFIG_FILE, args.overrides).inference.top_k
        self._changes = _changes(args)

    def check_writable(self, verifier: str) -> None:
        if not self._changes and not os.access(self._folder, os.W_OK):
            raise CheckpointError(f"{self._folder / CONFIG_FILE} cannot be written; calibrate a copy of the checkpoint, or give --dry-run.")

    def store(self, verifier: str, beta: float) -> str:
        line = f"inference.beta_by_verifier.{verifier}: {beta:g}"
        if self._changes:
            return f"nothing was written, as the weight goes with {self._changes}; put that and `{line}` into the config.yaml of a copy."
        return f"{line} is now in {store_in_checkpoint(self._folder, verifier, beta)}."


class _System:
    """Its file names one verifier and the weight of that one; only a file of the user's own is written."""

    def __init__(self, args: argparse.Namespace) -> None:
        system = load_system(args.system, args.overrides, members=args.members or ())
        path = Path(args.system)
        is_own = path.is_file() and SYSTEM_DIR.resolve() not in path.resolve().parents
        self._changes = _changes(args)
        # With other members or settings it is another system.
        self._own_file = path if is_own and args.members is None and not self._changes else None
        self.name, self.verifier, self.top_k = path.stem, system.verify_with, system.top_k

    def check_writable(self, verifier: str) -> None:
        path = self._path(verifier)
        if path is not None and not os.access(path.parent, os.W_OK):
            raise ConfigError(f"{path} cannot be written; calibrate a copy of it, or give --dry-run.")

    def store(self, verifier: str, beta: float) -> str:
        path = self._path(verifier)
        if path is not None:
            store_in_system(path, beta)
            return f"`{beta_line(beta)}` is now in {path}."
        reason = f", as the weight goes with {self._changes}; put that," if self._changes else "; put"
        return f"nothing was written{reason} `verify_with: {verifier}` and `{beta_line(beta)}` into a system file of your own."

    def _path(self, verifier: str) -> Path | None:
        return self._own_file if verifier == self.verifier else None


def _changes(args: argparse.Namespace) -> str:
    """Name the options that make other answers than the file alone would; empty without."""
    changes = [f"--set {override}" for override in args.overrides if not override.startswith(_HARMLESS)]
    if args.verifier_model is not None:
        changes.append(f"--verifier-model {args.verifier_model}")
    return " ".join(changes)
