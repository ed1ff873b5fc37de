"""Time the evaluator on as many queries as CASTELLA's test split has.

python -m benchmarks.evaluation [--truth castella/test.jsonl] [--repeats 9] [--output build/benchmarks/evaluation.json]

Ten predictions per query: true windows moved and stretched at random, and windows anywhere. Without `--truth`, windows are drawn like
CASTELLA's (1347 queries).
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks._timing import Target, median_seconds, print_targets, write_json
from qamdetr.data.manifest import PredictionEntry, QueryEntry, read_manifest
from qamdetr.evaluation.metrics import MAX_PREDICTIONS, score

NUM_QUERIES = 1347
DURATION_SECONDS = 300
ASKED_MS = 200.0


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
    seconds = median_seconds({"score": lambda: score(predictions, truth)}, repeats=arguments.repeats)["score"]
    num_windows = sum(len(entry.relevant_windows or ()) for entry in truth)
    print(f"{scores.num_queries} queries, {num_windows} windows, {MAX_PREDICTIONS} predictions each; median of {arguments.repeats}")
    targets = print_targets([Target("scoring all queries", 1000 * seconds, ASKED_MS, "ms")])
    setting = {"queries": scores.num_queries, "windows": num_windows, "repeats": arguments.repeats}
    machine = {"numpy": np.__version__, "machine": platform.processor() or platform.machine()}
    write_json(arguments.output, {"setting": setting, **machine, "seconds": seconds, "targets": targets})


if __name__ == "__main__":
    main()
