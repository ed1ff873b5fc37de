"""`evaluate`: score predictions; optionally by window length, with confidence intervals, against other predictions, as a figure."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qamdetr.cli.common import note
from qamdetr.errors import QamDetrError

if TYPE_CHECKING:
    from qamdetr.cli.common import Commands
    from qamdetr.data.manifest import QueryEntry
    from qamdetr.evaluation.compare import Difference, Interval
    from qamdetr.evaluation.metrics import LengthScores, Matching, QueryScores

_PRIMARY = "R1@0.7"  # ranks the challenge


def add(commands: Commands) -> None:
    """Add the command's options."""
    parser = commands.add_parser("evaluate", help="score predictions", description="Score predictions as the official evaluator does.")
    parser.add_argument("predictions", metavar="PREDICTIONS", help="field JSONL with pred_relevant_windows, or a submission's")
    parser.add_argument("truth", metavar="GROUND_TRUTH", help="field JSONL with relevant_windows")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--thresholds", action="store_true", help="also print R1 and mAP at each IoU from 0.50 to 0.95")
    parser.add_argument("--by-length", action="store_true", help="also score true windows of <= 2, 2-5, 5-10, 10-30 and > 30 s apart")
    parser.add_argument("--bootstrap", type=int, metavar="N", help="95 %% confidence intervals from N draws of recordings (10000 is usual)")
    parser.add_argument("--against", metavar="OTHER", help="a second predictions file: differences, their intervals, and a paired test")
    parser.add_argument("--figure", metavar="PATH", help="draw R1 and AP by IoU and by window length: .png, .svg or .pdf")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the draws (default: %(default)s)")
    parser.set_defaults(command=run)


def run(args: argparse.Namespace) -> None:
    """Read, score, and print what was asked for."""
    from qamdetr.data.manifest import read_manifest
    from qamdetr.evaluation.metrics import summarise

    _check(args)
    # Unclamped, as the official evaluator reads it.
    truth = read_manifest(args.truth, clamp=False)
    system = _read_system(args.predictions, truth, args)
    other = None if args.against is None else _read_system(args.against, truth, args)
    summary = summarise(system.scores)
    answer: dict[str, Any] = dict(summary.table())
    text = _table(answer, system.intervals)
    if args.thresholds:
        answer["thresholds"] = {"R1": _by_threshold(summary.recall_at_1), "mAP": _by_threshold(summary.average_precision)}
        text += "\n\n" + _threshold_table(answer["thresholds"])
    if args.by_length:
        answer["by_length"] = {bucket.name: bucket.table() for bucket in system.lengths}
        text += "\n\n" + _length_table(answer["by_length"])
    if args.bootstrap is not None:
        intervals = {name: [round(system.intervals[name].low, 2), round(system.intervals[name].high, 2)] for name in system.brief}
        answer["bootstrap"] = {"resamples": args.bootstrap, "seed": args.seed, "confidence": 0.95, "intervals": intervals}
    if other is not None:
        differences = _compare(system, other, args)
        answer["against"] = {
            "predictions": args.against,
            "scores": summarise(other.scores).table(),
            "differences": {name: difference_object(difference) for name, difference in differences.items()},
        }
        text += "\n\n" + _difference_table(system.brief, other.brief, differences, args)
    if args.figure is not None:
        _draw([system] if other is None else [system, other], args.figure)
    print(json.dumps(answer, ensure_ascii=False) if args.json else text)
    if system.matching.num_without_windows:
        note(f"{system.matching.num_without_windows} of {len(truth)} queries have no true windows and were left out of the scores.")


@dataclass(frozen=True)
class _System:
    """A predictions file, scored. `brief`: the field's five numbers; `intervals`: empty unless asked for."""

    path: str
    matching: Matching
    scores: QueryScores
    lengths: Sequence[LengthScores]
    brief: Mapping[str, float]
    intervals: Mapping[str, Interval]


def _check(args: argparse.Namespace) -> None:
    """Refuse now what would fail after the work."""
    from qamdetr.evaluation.compare import MAX_RESAMPLES

    if args.bootstrap is not None and not 1 <= args.bootstrap <= MAX_RESAMPLES:
        raise QamDetrError(f"--bootstrap is {args.bootstrap}; it must be from 1 to {MAX_RESAMPLES} (10000 is usual).")
    if args.seed < 0:
        raise QamDetrError(f"--seed is {args.seed}; it must be at least 0.")
    if args.figure is not None:
        from qamdetr.evaluation.figures import check_figure_path

        check_figure_path(args.figure)


def _read_system(path: str, truth: Sequence[QueryEntry], args: argparse.Namespace) -> _System:
    from qamdetr.data.manifest import read_predictions
    from qamdetr.evaluation.compare import bootstrap
    from qamdetr.evaluation.metrics import METRICS, match, query_scores, score_by_length

    predictions = read_predictions(path, allow_pairs=True)
    try:
        matching = match(predictions, truth)
    except QamDetrError as error:
        raise type(error)(f"{path}: {error}") from error
    scores = query_scores(matching)
    intervals: Mapping[str, Interval] = {}
    if args.bootstrap is not None:
        names: Sequence[str] = METRICS
        if args.figure is not None:
            from qamdetr.evaluation.figures import curve_names

            names = list(dict.fromkeys([*METRICS, *curve_names()]))
        intervals = bootstrap(scores, names, resamples=args.bootstrap, seed=args.seed)
    brief = dict(zip(METRICS, scores.columns().mean(axis=0).tolist(), strict=True))
    extra = len({entry.qid for entry in predictions} - {entry.qid for entry in truth})
    if extra:
        note(f"{path}: {extra} predictions belong to no query of the ground truth and were not read.")
    if matching.num_other_recordings:
        note(f"{path}: {matching.num_other_recordings} predictions name another recording (`vid`) than the ground truth; were files mixed?")
    return _System(path, matching, scores, score_by_length(matching), brief, intervals)


def _compare(system: _System, other: _System, args: argparse.Namespace) -> dict[str, Difference]:
    from qamdetr.evaluation.compare import DEFAULT_RESAMPLES, compare

    return compare(system.scores, other.scores, resamples=args.bootstrap or DEFAULT_RESAMPLES, seed=args.seed)


def _draw(systems: Sequence[_System], path: str) -> None:
    from qamdetr.evaluation.figures import FigureSystem, save_figure

    letters = ["A: ", "B: "] if len(systems) > 1 else [""]
    save_figure(
        [
            FigureSystem(letter + Path(system.path).stem, system.scores, system.lengths, system.intervals)
            for letter, system in zip(letters, systems, strict=True)
        ],
        path,
    )
    note(f"the figure is in {path}.")


def _table(scores: Mapping[str, float], intervals: Mapping[str, Interval]) -> str:
    lines = []
    for name, value in scores.items():
        interval = intervals.get(name)
        number = f"{value:>8d}" if isinstance(value, int) else f"{value:>8.2f}"
        lines.append(f"{name:<12}{number}" + (f"   95 % {interval.low:6.2f} to {interval.high:6.2f}" if interval else ""))
    return "\n".join(lines)


def _by_threshold(values: Mapping[float, float]) -> dict[str, float]:
    return {f"{threshold:g}": round(value, 2) for threshold, value in values.items()}


def _threshold_table(thresholds: Mapping[str, Mapping[str, float]]) -> str:
    lines = [f"{'IoU':<10}" + "".join(f"{name:>10}" for name in thresholds)]
    for threshold in next(iter(thresholds.values())):
        cells = [f"{values[threshold]:>10.2f}" for values in thresholds.values()]
        lines.append(f"{float(threshold):<10.2f}" + "".join(cells))
    return "\n".join(lines)


def _length_table(buckets: Mapping[str, Mapping[str, Any]]) -> str:
    names = list(next(iter(buckets.values())))
    lines = [f"{'length':<10}" + "".join(f"{name.removeprefix('num_'):>10}" for name in names)]
    for bucket, table in buckets.items():
        cells = [
            "-" if table[name] is None else f"{table[name]:.2f}" if isinstance(table[name], float) else str(table[name]) for name in names
        ]
        lines.append(f"{bucket:<10}" + "".join(f"{cell:>10}" for cell in cells))
    return "\n".join(lines)


def difference_object(difference: Difference) -> dict[str, Any]:
    """Write a difference as JSON has it."""
    interval = difference.difference
    return {
        "difference": round(interval.value, 2),
        "low": round(interval.low, 2),
        "high": round(interval.high, 2),
        "p_value": round(difference.p_value, 6),
        "verdict": difference.verdict,
    }


def _difference_table(
    brief: Mapping[str, float], other: Mapping[str, float], differences: Mapping[str, Difference], args: argparse.Namespace
) -> str:
    lines = [f"A = {args.predictions}", f"B = {args.against}", f"{'':<12}{'A':>8}{'B':>8}{'A - B':>9}   {'95 % interval':<18}{'p':>8}"]
    for name, difference in differences.items():
        interval = difference.difference
        span = f"{interval.low:+.2f} to {interval.high:+.2f}"
        lines.append(f"{name:<12}{brief[name]:>8.2f}{other[name]:>8.2f}{interval.value:>+9.2f}   {span:<18}{difference.p_value:>8.4f}")
    sentences = [_sentence(name, difference) for name, difference in differences.items()]
    sentences.sort(key=lambda sentence: not sentence.startswith(f"{_PRIMARY}:"))
    return "\n".join([*lines, "", *sentences])


def _sentence(name: str, difference: Difference) -> str:
    amount = abs(difference.difference.value)
    if difference.verdict == "undecided":
        return f"{name}: no difference shown at the 5 % level (A - B = {difference.difference.value:+.2f}, p = {difference.p_value:.4f})."
    first, second = ("A", "B") if difference.verdict == "better" else ("B", "A")
    return f"{name}: {first} is better than {second} by {amount:.2f} points (p = {difference.p_value:.4f})."
