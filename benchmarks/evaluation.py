"""Time the evaluator beside a plain loop over queries, on as many queries as CASTELLA's test split has.

python -m benchmarks.evaluation [--truth castella/test.jsonl] [--repeats 9] [--output build/benchmarks/evaluation.json]

Ten predictions per query: true windows moved and stretched at random, and windows anywhere. Without `--truth`, windows are drawn like
CASTELLA's (1347 queries). Both take turns in one process on the same entries, and both must give the same numbers.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks._timing import Target, median_seconds, print_targets, write_json
from qamdetr.data.manifest import PredictionEntry, QueryEntry, read_manifest
from qamdetr.evaluation.matching import IOU_THRESHOLDS, MAX_PREDICTIONS
from qamdetr.evaluation.metrics import score
from qamdetr.types import Window

NUM_QUERIES = 1347
DURATION_SECONDS = 300
ASKED_RATIO = 10.0
Ranked = tuple[float, float, float]


def plain_scores(predictions: Sequence[PredictionEntry], truth: Sequence[QueryEntry]) -> dict[str, float]:
    """Compute the official R1 and AP at every threshold, in percent, one query after the other."""
    by_qid = {entry.qid: entry.pred_relevant_windows for entry in predictions}
    totals = {f"{metric}@{threshold:g}": 0.0 for metric in ("R1", "mAP") for threshold in IOU_THRESHOLDS}
    counted = [entry for entry in truth if entry.relevant_windows]
    for entry in counted:
        windows, listed = entry.relevant_windows or (), by_qid[entry.qid][:MAX_PREDICTIONS]
        ranked = sorted(listed, key=lambda window: -window[2])
        ious = [[iou(window, true) for true in windows] for window in ranked]
        first = max((iou(listed[0], true) for true in windows), default=0.0) if listed else 0.0
        for threshold in IOU_THRESHOLDS:
            totals[f"R1@{threshold:g}"] += first >= threshold
            totals[f"mAP@{threshold:g}"] += plain_average_precision(ious, len(windows), threshold)
    return {name: 100 * total / len(counted) for name, total in totals.items()}


def iou(a: Window | Ranked, b: Window) -> float:
    """Intersection over union of two windows; 0 when either is empty."""
    intersection = min(a[1], b[1]) - max(a[0], b[0])
    if intersection <= 0:
        return 0.0
    return intersection / ((a[1] - a[0]) + (b[1] - b[0]) - intersection)


def plain_average_precision(ious: Sequence[Sequence[float]], num_truths: int, threshold: float) -> float:
    """AP of one query: greedy claims in score order, then the area under the interpolated precision-recall steps.

    `ious[i][j]` is the IoU of the i-th best prediction with true window j; of equal ones the last true window is claimed.
    """
    free = list(range(num_truths))
    precisions: list[float] = []
    hits: list[int] = []
    for rank, row in enumerate(ious):
        best = max(free, key=lambda j: (row[j], j), default=None)
        if best is not None and row[best] >= threshold:
            free.remove(best)
            hits.append(rank)
        precisions.append(len(hits) / (rank + 1))
    return sum(max(precisions[rank:]) for rank in hits) / num_truths


def invent_truth(num_queries: int, rng: np.random.Generator) -> list[QueryEntry]:
    """Draw queries with one to some twenty windows, mostly short, of whole seconds."""
    entries = []
    for number in range(num_queries):
        widths = rng.lognormal(1.4, 1.1, min(int(rng.geometric(0.32)), 24)).clip(1, DURATION_SECONDS).round()
        starts = (rng.random(len(widths)) * (DURATION_SECONDS - widths)).round()
        windows = tuple((float(s), float(s + w)) for s, w in zip(starts, widths, strict=True))
        entries.append(QueryEntry(f"q{number}", "a sound", f"v{number // 2}", DURATION_SECONDS, windows))
    return entries


def invent_predictions(truth: Sequence[QueryEntry], rng: np.random.Generator) -> list[PredictionEntry]:
    """Draw ten predictions per query, half of them near a true window, best first."""
    predictions = []
    for entry in truth:
        windows = entry.relevant_windows or ((0.0, entry.duration_seconds),)
        scores = np.sort(rng.random(MAX_PREDICTIONS))[::-1].round(4)
        ranked = []
        for score_ in scores:
            start, end = windows[rng.integers(len(windows))]
            if rng.random() < 0.5:
                width = (end - start) * rng.uniform(0.6, 1.6)
                start = start + (end - start) * rng.uniform(-0.3, 0.3)
            else:
                width, start = rng.lognormal(2, 1), rng.uniform(0, entry.duration_seconds)
            start = min(max(start, 0.0), entry.duration_seconds)
            ranked.append((round(start), round(min(start + width, entry.duration_seconds)), float(score_)))
        predictions.append(PredictionEntry(entry.qid, entry.query, entry.vid, tuple(ranked)))
    return predictions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--truth", type=Path, help="field JSONL with true windows (default: invented)")
    parser.add_argument("--repeats", type=int, default=9, help="timed runs of each; the median counts")
    parser.add_argument("--output", type=Path, default=Path("build/benchmarks/evaluation.json"))
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    truth = read_manifest(arguments.truth, clamp=False) if arguments.truth else invent_truth(NUM_QUERIES, rng)
    predictions = invent_predictions(truth, rng)

    scores = score(predictions, truth)
    ours = {f"R1@{t:g}": value for t, value in scores.recall_at_1.items()} | {
        f"mAP@{t:g}": value for t, value in scores.average_precision.items()
    }
    plain = plain_scores(predictions, truth)
    np.testing.assert_allclose([ours[name] for name in plain], list(plain.values()), rtol=0, atol=1e-9)

    runs = {"qamdetr": lambda: score(predictions, truth), "plain loop": lambda: plain_scores(predictions, truth)}
    seconds = median_seconds(runs, repeats=arguments.repeats)
    ratio = seconds["plain loop"] / seconds["qamdetr"]
    num_windows = sum(len(entry.relevant_windows or ()) for entry in truth)
    print(f"{scores.num_queries} queries, {num_windows} windows, {MAX_PREDICTIONS} predictions each; median of {arguments.repeats}")
    for name, value in seconds.items():
        print(f"  {name:<14}{1000 * value:9.2f} ms")
    targets = print_targets([Target("plain loop / qamdetr", ratio, ASKED_RATIO, "x", at_least=True)])
    setting = {"queries": scores.num_queries, "windows": num_windows, "repeats": arguments.repeats}
    machine = {"numpy": np.__version__, "machine": platform.processor() or platform.machine()}
    write_json(arguments.output, {"setting": setting, **machine, "seconds": seconds, "ratio": ratio, "targets": targets})


if __name__ == "__main__":
    main()
