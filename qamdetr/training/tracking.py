"""What a run tells while it goes on: the experiment tracker and the lines on the screen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType

from qamdetr.config import TrainConfig
from qamdetr.errors import ConfigError


def check_tracker(tracker: str) -> None:
    """Refuse a tracker that is not known or not installed; Accelerate would silently track nothing.

    Raises:
        ConfigError: Names those that can be used.
    """
    known = [str(kind) for kind in LoggerType if str(kind) != "all"]
    available = [str(kind) for kind in get_available_trackers()]
    if tracker and tracker not in known:
        raise ConfigError(f"train.tracker is {tracker!r}; choose one of {', '.join(known)}, or leave it empty.")
    if tracker and tracker not in available:
        raise ConfigError(
            f"train.tracker is {tracker!r}, whose package is not installed; install it, choose one of {', '.join(available) or 'none'}, "
            "or leave it empty."
        )


def start_tracker(accelerator: Accelerator, config: TrainConfig, epochs_done: int) -> None:
    """Open the tracker of the run; a resumed run goes on after `epochs_done`."""
    if config.tracker:
        # TensorBoard takes the name for its folder, and hides what a killed run wrote after its last saved epoch.
        name = "tensorboard" if config.tracker == "tensorboard" else "qamdetr"
        accelerator.init_trackers(name, init_kwargs={"tensorboard": {"purge_step": epochs_done + 1}})


def track(accelerator: Accelerator, row: Mapping[str, Any]) -> None:
    """Send one row of `metrics.jsonl` to the tracker, with the epoch as its step."""
    values = {f"train/{key}": value for key, value in row["loss"].items()} | {f"val/{key}": value for key, value in row["val"].items()}
    accelerator.log(values, step=row["epoch"])


def end_tracker(accelerator: Accelerator) -> None:
    """Close the tracker; the processes stay joined, for a run that may follow in them."""
    for tracker in accelerator.trackers:
        tracker.finish()


def epoch_line(row: Mapping[str, Any], epochs: int, *, is_best: bool) -> str:
    """Put one row of `metrics.jsonl` into a line for people."""
    parts = "  ".join(f"{name} {value:.3f}" for name, value in row["loss"].items() if "_aux" not in name)
    scores = "  ".join(f"{name} {value:g}" for name, value in row["val"].items())
    return f"epoch {row['epoch']}/{epochs}  {row['seconds']:.0f} s | {parts} | {scores}{'  (best)' if is_best else ''}"
