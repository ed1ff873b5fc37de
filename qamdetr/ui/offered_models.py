"""Which models the page offers, and where each lies: the page, its links, exports and messages know their names alone.

A model that was trained here is called by its run, `run: NAME`; no shipped checkpoint has a name of that kind. Nothing is remembered that
the folder of runs does not say, so a restart loses no run, and one that was removed is gone from the list.
"""

from __future__ import annotations

from pathlib import Path

import qamdetr.config
from qamdetr.errors import ConfigError
from qamdetr.inference.checkpoint import DEFAULT_CHECKPOINT, WEIGHTS_FILE, available_checkpoints
from qamdetr.ui.training_runs import BEST, checkpoint_in, identity, run_folders

OF_RUN = "run: "
"""Begins the name of a model that was trained here."""

MAX_RUNS = 40
"""Runs that are offered, the newest: a longer list is of no use, and each label is read from a file. "Use in Find" offers any other."""

MAX_TOLD = 12
"""Names that a message lists."""


def run_model(run: str) -> str:
    """Name the model of a run.

    Args:
        run: Identity of the run, see `training_runs.identity`.
    """
    return f"{OF_RUN}{run}"


class OfferedModels:
    """The models by name."""

    def __init__(self, first: str, runs: Path | None = None) -> None:
        """Look at no run yet.

        Args:
            first: Name or folder of the checkpoint that the page starts with.
            runs: Folder of the runs whose checkpoints are offered; None offers none.
        """
        self._runs = runs
        self._handed_over: dict[str, Path] = {}
        self._first_source = first
        self.first = _name_of(first, runs)

    def shipped(self) -> dict[str, str]:
        """Map the names of the page's first model, the pocket default and the others that lie here to what `find_checkpoint` takes."""
        names = dict.fromkeys([DEFAULT_CHECKPOINT, *available_checkpoints()])
        return {self.first: self._first_source, **{name: name for name in names if name != self.first}}

    def all(self) -> dict[str, str]:
        """Map the names of all models to what `find_checkpoint` takes: first the `shipped`, then those of runs, the newest first."""
        handed_over = {name: str(folder) for name, folder in list(self._handed_over.items()) if checkpoint_in(folder.parent) is not None}
        trained = {**self._newest_runs(), **handed_over}
        return {**self.shipped(), **{name: folder for name, folder in trained.items() if name != self.first}}

    def add_run(self, name: str, folder: Path) -> None:
        """Offer the model of a run that the list may be too short for.

        Args:
            name: Its name, see `run_model`.
            folder: Its checkpoint.
        """
        self._handed_over[name] = folder

    def folder(self, name: str) -> str:
        """Return what `find_checkpoint` takes for a name; one that is not offered comes back as it is."""
        if name == self.first:
            return self._first_source
        return self.all().get(name, name) if name.startswith(OF_RUN) else name

    def refusal(self, name: str) -> ConfigError:
        """Say that a model is not offered, and what to do."""
        known = list(self.all())
        more = f" or {len(known) - MAX_TOLD} more that the page lists" if len(known) > MAX_TOLD else ""
        choose = f"choose one of {', '.join(known[:MAX_TOLD])}{more}."
        if self._runs is not None and name.startswith(OF_RUN):
            return ConfigError(f"The model of the run {name.removeprefix(OF_RUN)!r} is no longer here: it was moved or removed; {choose}")
        return ConfigError(f"Model {name!r} is not offered here; {choose}")

    def _newest_runs(self) -> dict[str, str]:
        if self._runs is None:
            return {}
        found = []
        for run in run_folders(self._runs):
            best = checkpoint_in(run)
            if best is not None:
                found.append((_changed_ns(best), run_model(identity(run, self._runs)), str(best.resolve())))
        return {name: best for _, name, best in sorted(found, reverse=True)[:MAX_RUNS]}


def _name_of(checkpoint: str, runs: Path | None) -> str:
    """Call the page's first model by a name that tells no folder of the server."""
    path = Path(checkpoint)
    if not path.is_dir() and path.name == checkpoint:
        return checkpoint  # a name already
    folder = path.resolve()
    if folder.parent == qamdetr.config.CHECKPOINT_DIR.resolve():
        return folder.name
    is_best = folder.name == BEST
    if is_best and runs is not None and folder.is_relative_to(runs.resolve()):
        return run_model(identity(folder.parent, runs))
    name = folder.parent.name if is_best else folder.name
    return f"folder: {name}" if name in (DEFAULT_CHECKPOINT, *available_checkpoints()) else name


def _changed_ns(checkpoint: Path) -> int:
    try:
        return (checkpoint / WEIGHTS_FILE).stat().st_mtime_ns
    except OSError:  # removed in this moment
        return 0
