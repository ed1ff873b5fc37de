"""What the timing benchmarks share: interleaved medians, what was asked beside what was measured, a JSON file."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
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


def compile_kernels() -> None:
    """Compile or load the CPU kernels: some ten seconds on a fresh machine, afterwards Numba's cache."""
    import torch

    from qamdetr.kernels import speed_up
    from qamdetr.model.encoder import BiMambaLayer

    layer = speed_up(BiMambaLayer(4, dropout=0.5))
    layer(torch.zeros(1, 2, 4, requires_grad=True), torch.ones(1, 2, dtype=torch.bool)).sum().backward()


@dataclass(frozen=True)
class Target:
    """What was asked for, and what was measured."""

    name: str
    measured: float
    limit: float
    unit: str
    at_least: bool = False  # whether more is better

    @property
    def is_met(self) -> bool:
        """Whether the measured value is on the right side of the limit."""
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit


def print_targets(targets: Sequence[Target]) -> list[dict[str, Any]]:
    """Print a line per target; returns them for the JSON file."""
    print(f"  {'':<52}{'asked':>12}{'measured':>12}")
    for target in targets:
        asked = f"{'>=' if target.at_least else '<='} {target.limit:g} {target.unit}"
        print(f"  {target.name:<52}{asked:>12}{target.measured:>9.3g} {target.unit:<3}{'met' if target.is_met else 'MISSED'}")
    return [{**asdict(target), "is_met": target.is_met} for target in targets]


def write_json(path: Path, result: Mapping[str, Any]) -> None:
    """Write `result` to `path`, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"Written to {path}")
