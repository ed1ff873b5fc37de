"""A figure of one or two systems: R1 and AP over the IoU threshold, and R1@0.7 by window length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from qamdetr.errors import DataError
from qamdetr.evaluation.lengths import LengthScores
from qamdetr.evaluation.matching import IOU_THRESHOLDS
from qamdetr.evaluation.metrics import QueryScores
from qamdetr.evaluation.resampling import Interval
from qamdetr.files import replacing

FIGURE_SUFFIXES = (".png", ".svg", ".pdf")
_COLOURS = ("#0072b2", "#d55e00")  # told apart also by readers who see no red or green
_BAR_METRIC = "R1@0.7"


@dataclass(frozen=True)
class FigureSystem:
    """One system of the figure.

    Attributes:
        label: Name in the legend.
        scores: Its scores per query.
        lengths: Its scores by window length.
        intervals: Of `curve_names`, for bands; may be empty.
    """

    label: str
    scores: QueryScores
    lengths: Sequence[LengthScores]
    intervals: Mapping[str, Interval]


def curve_names() -> list[str]:
    """Metrics that are drawn as curves: R1 and AP at every threshold."""
    return [f"{metric}@{threshold:g}" for metric in ("R1", "mAP") for threshold in IOU_THRESHOLDS]


def check_figure_path(path: str | Path) -> Path:
    """Return the path of a figure that can be written.

    Raises:
        DataError: Its ending is none of `FIGURE_SUFFIXES`, or it is a folder.
    """
    path = Path(path)
    if path.suffix.lower() not in FIGURE_SUFFIXES:
        raise DataError(f"{path} ends in {path.suffix or 'nothing'!r}; a figure ends in one of {', '.join(FIGURE_SUFFIXES)}.")
    if path.is_dir():
        raise DataError(f"{path} is a folder; give the path of a file.")
    return path


def save_figure(systems: Sequence[FigureSystem], path: str | Path) -> None:
    """Draw one or two systems and write the file; it appears whole or not at all.

    Raises:
        DataError: Unknown ending, or a place that cannot be written.
    """
    path = check_figure_path(path)
    figure = Figure(figsize=(12, 4), layout="constrained")
    FigureCanvasAgg(figure)
    recall, precision, lengths = figure.subplots(1, 3)
    _draw_curves(recall, systems, "R1")
    _draw_curves(precision, systems, "mAP")
    _draw_lengths(lengths, systems)
    figure.legend(*recall.get_legend_handles_labels(), loc="outside upper center", ncols=len(systems), frameon=False)
    write_figure(figure, path)


def write_figure(figure: Figure, path: Path) -> None:
    """Write a figure to a path that `check_figure_path` gave; the file appears whole or not at all.

    Raises:
        DataError: A place that cannot be written.
    """
    try:
        with replacing(path) as partial:
            figure.savefig(partial, dpi=150)
    except OSError as error:
        raise DataError(f"Cannot write {path}: {error.strerror or error}; choose another place.") from error


def _draw_curves(axes: Axes, systems: Sequence[FigureSystem], metric: str) -> None:
    names = [f"{metric}@{threshold:g}" for threshold in IOU_THRESHOLDS]
    for system, colour in zip(systems, _COLOURS, strict=False):
        axes.plot(IOU_THRESHOLDS, system.scores.columns(names).mean(axis=0), marker="o", color=colour, label=_plain(system.label))
        if system.intervals:
            band = [system.intervals[name] for name in names]
            axes.fill_between(IOU_THRESHOLDS, [i.low for i in band], [i.high for i in band], color=colour, alpha=0.2, linewidth=0)
    axes.set(xlabel="IoU threshold", ylabel=f"{metric} (%)", ylim=(0, None), xticks=IOU_THRESHOLDS[::2])
    axes.grid(alpha=0.3)


def _plain(label: str) -> str:
    """Keep matplotlib from reading a file name as a formula, or from hiding it."""
    return label.lstrip("_").replace("$", r"\$")


def _draw_lengths(axes: Axes, systems: Sequence[FigureSystem]) -> None:
    buckets = systems[0].lengths
    places, width = np.arange(len(buckets)), 0.8 / len(systems)
    for index, (system, colour) in enumerate(zip(systems, _COLOURS, strict=False)):
        heights = np.nan_to_num([bucket.recall_at_1[0.7] for bucket in system.lengths])
        axes.bar(places + (index - (len(systems) - 1) / 2) * width, heights, width, color=colour)
    axes.set(xlabel="length of the true windows (n = queries)", ylabel=f"{_BAR_METRIC} (%)")
    axes.set_xticks(places, [f"{bucket.name}\nn = {bucket.num_queries}" for bucket in buckets], fontsize="small")
    axes.set_axisbelow(True)
    axes.grid(axis="y", alpha=0.3)
