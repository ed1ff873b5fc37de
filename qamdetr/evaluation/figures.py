"""Figures of scores: one or two systems over the IoU threshold and by window length, and the curve over the weight of the verifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qamdetr.errors import DataError
from qamdetr.evaluation.calibration import CURVE_METRICS, BetaCurve
from qamdetr.evaluation.compare import Interval
from qamdetr.evaluation.metrics import IOU_THRESHOLDS, QueryScores, Scores
from qamdetr.files import replacing

FIGURE_SUFFIXES = (".png", ".svg", ".pdf")
_COLOURS = ("#0072b2", "#d55e00", "#009e73")  # told apart also by readers who see no red or green


@dataclass(frozen=True)
class FigureSystem:
    """One system of the figure: its name in the legend, its scores, and intervals of `curve_names` for bands (may be empty)."""

    label: str
    scores: QueryScores
    lengths: Sequence[Scores]
    intervals: Mapping[str, Interval]


def curve_names() -> list[str]:
    """Metrics that are drawn as curves: R1 and AP at every threshold."""
    return [f"{metric}@{threshold:g}" for metric in ("R1", "mAP") for threshold in IOU_THRESHOLDS]


def check_figure_path(path: str | Path) -> Path:
    """Return the path of a figure that can be written; a `DataError` says why it cannot."""
    path = Path(path)
    if path.suffix.lower() not in FIGURE_SUFFIXES:
        raise DataError(f"{path} ends in {path.suffix or 'nothing'!r}; a figure ends in one of {', '.join(FIGURE_SUFFIXES)}.")
    return path


def save_figure(systems: Sequence[FigureSystem], path: str | Path) -> None:
    """Draw one or two systems and write the file; it appears whole or not at all."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    recall, precision, lengths = figure.subplots(1, 3)
    _draw_curves(recall, systems, "R1")
    _draw_curves(precision, systems, "mAP")
    buckets = systems[0].lengths
    width = 0.8 / len(systems)
    for index, (system, colour) in enumerate(zip(systems, _COLOURS, strict=False)):
        heights = np.nan_to_num([bucket.recall_at_1[0.7] for bucket in system.lengths])
        lengths.bar(np.arange(len(buckets)) + (index - (len(systems) - 1) / 2) * width, heights, width, color=colour)
    lengths.set(xlabel="length of the true windows (n = queries)", ylabel="R1@0.7 (%)")
    lengths.set_xticks(range(len(buckets)), [f"{bucket.name}\nn = {bucket.num_queries}" for bucket in buckets], fontsize="small")
    lengths.set_axisbelow(True)
    lengths.grid(axis="y", alpha=0.3)
    figure.legend(*recall.get_legend_handles_labels(), loc="outside upper center", ncols=len(systems), frameon=False)
    _write(figure, path)


def save_beta_figure(curve: BetaCurve, title: str, path: str | Path) -> None:
    """Draw the scores over the weight of the verifier, with the weight that was chosen; as `save_figure`."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    betas = [point.beta for point in curve.points]
    for name, colour, marker in zip(CURVE_METRICS, _COLOURS, "os^", strict=True):
        axes.plot(betas, [point.metrics[name] for point in curve.points], color=colour, marker=marker, label=name)
        axes.axhline(curve.decoder_alone.metrics[name], color=colour, linestyle=":", alpha=0.6)
    axes.axvline(curve.chosen.beta, color="black", linestyle="--", label=f"chosen: {curve.chosen.beta:g}")
    axes.set(xlabel="β, the weight of the verifier (dotted: decoder alone)", ylabel="%", xlim=(-0.02, 1.02))
    axes.set_title(_plain(title), fontsize="medium")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=len(CURVE_METRICS) + 1, frameon=False)
    _write(figure, path)


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


def _write(figure: Figure, path: str | Path) -> None:
    path = check_figure_path(path)
    try:
        with replacing(path) as partial:
            figure.savefig(partial, dpi=150)
    except OSError as error:
        raise DataError(f"Cannot write {path}: {error.strerror or error}", "choose another place") from error
