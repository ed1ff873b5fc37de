"""A figure of the scores over the weight of the verifier, with the weight that was chosen."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from qamdetr.evaluation.calibration import CURVE_METRICS, BetaCurve
from qamdetr.evaluation.figure import check_figure_path, write_figure

_COLOURS = dict(zip(CURVE_METRICS, ("#0072b2", "#d55e00", "#009e73"), strict=True))  # told apart also by readers who see no red or green
_MARKERS = dict(zip(CURVE_METRICS, "os^", strict=True))


def save_beta_figure(curve: BetaCurve, title: str, path: str | Path) -> None:
    """Draw the curve and write the file; it appears whole or not at all.

    Args:
        curve: From `calibrate_beta`.
        title: What was calibrated, on what.
        path: `.png`, `.svg` or `.pdf`.

    Raises:
        DataError: Unknown ending, or a place that cannot be written.
    """
    path = check_figure_path(path)
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    betas = [point.beta for point in curve.points]
    for name in CURVE_METRICS:
        colour = _COLOURS[name]
        values = [point.metrics[name] for point in curve.points]
        axes.plot(betas, values, color=colour, marker=_MARKERS[name], label=name)
        axes.axhline(curve.decoder_alone.metrics[name], color=colour, linestyle=":", alpha=0.6)
    axes.axvline(curve.chosen.beta, color="black", linestyle="--", label=f"chosen: {curve.chosen.beta:g}")
    axes.set(xlabel="β, the weight of the verifier (dotted: decoder alone)", ylabel="%", xlim=(-0.02, 1.02))
    axes.set_title(title.replace("$", r"\$"), fontsize="medium")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=len(CURVE_METRICS) + 1, frameon=False)
    write_figure(figure, path)
