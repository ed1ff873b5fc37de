"""What the timing benchmarks share: interleaved medians, a table, a JSON file."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def median_seconds(runs: Mapping[str, Callable[[], object]], *, repeats: int, warm_ups: int = 2) -> dict[str, float]:
    """Time each of `runs` in turn, `repeats` times over, so that a busy moment of the machine falls on all of them alike."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(warm_ups + repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if repeat >= warm_ups:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def write_json(path: Path, result: Mapping[str, Any]) -> None:
    """Write `result` to `path`, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"Written to {path}")
