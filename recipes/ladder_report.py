"""Writes the tables and the figure of the ladder from the results of its runs (`recipes.ladder`).

    python -m recipes.ladder_report runs/ladder --docs docs

Replaces what stands between the markers `<!-- ladder -->` and `<!-- end -->` (likewise `probe` and `switches`) in `docs/ladder.md`, and
draws `docs/figures/ladder.png`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import textwrap
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from scipy.stats import ttest_ind, ttest_rel

from qamdetr.errors import DataError, QamDetrError
from recipes.ladder import FULL, LADDER, RESULTS_FILE, SWITCHES, Variant

METRICS = ("R1@0.5", "R1@0.7", "mAP", "mAP@0.5", "mAP@0.75")
SETS = ("val", "test")

REPORT_TABLE_1 = {
    "1_baseline": ((39.32, 22.22, 17.89, 35.69, 15.80), (33.01, 16.42, 13.98, 28.94, 12.02)),
    "2_bimamba": ((46.19, 29.20, 23.10, 42.11, 21.80), (38.66, 22.17, 18.32, 34.33, 16.96)),
    "3_quality": ((50.46, 34.09, 26.33, 44.83, 25.28), (42.59, 25.32, 20.39, 36.84, 18.98)),
    "4_multiscale": ((51.08, 34.60, 26.06, 45.87, 24.57), (44.05, 26.65, 21.03, 37.59, 19.92)),
    "5_three_way": ((51.25, 34.43, 26.73, 45.73, 25.47), (45.26, 27.65, 21.82, 38.73, 20.54)),
    "6_multi_feature": ((52.33, 35.46, 28.11, 46.76, 27.08), (47.40, 29.00, 23.50, 40.74, 22.19)),
}
"""`METRICS` on CASTELLA val and test, mean of five seeds. Source: the report, Table 1."""


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (of a sample, so over n - 1) of one metric over seeds, in percent."""

    mean: float
    deviation: float
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise `values`; one value has no deviation (NaN)."""
        deviation = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
        return cls(float(np.mean(values)), deviation, tuple(values))

    def __str__(self) -> str:
        return f"{self.mean:.2f} ± {self.deviation:.2f}"


Runs = Mapping[int, Mapping[str, Mapping[str, float]]]
"""seed -> set -> metrics."""
Results = Mapping[tuple[str, str], Runs]
"""(variant, reading) -> its runs."""


def read_results(output: Path) -> Results:
    """Read `results.json` of every run under `output`.

    Raises:
        DataError: There is none.
    """
    results: dict[tuple[str, str], dict[int, Mapping[str, Mapping[str, float]]]] = defaultdict(dict)
    for path in sorted(output.glob(f"*/{RESULTS_FILE}")):
        run = json.loads(path.read_text(encoding="utf-8"))
        for reading, scores in run["readings"].items():
            results[run["variant"], reading][run["seed"]] = scores
    if not results:
        raise DataError(f"{output} holds no {RESULTS_FILE}; run `python -m recipes.ladder` first.")
    return results


def spread(results: Results, variant: str, reading: str, part: str, metric: str) -> Spread:
    """Summarise one metric of one row over its seeds.

    Raises:
        DataError: No run of that row is there.
    """
    runs = results.get((variant, reading))
    if not runs:
        raise DataError(f"No results of {variant} ({reading}); run `python -m recipes.ladder` to its end.")
    return Spread.of([runs[seed][part][metric] for seed in sorted(runs)])


def ladder_table(results: Results) -> str:
    """Return the six rows on both sets, and the report's R1@0.7 beside them, as Markdown; then each step."""
    parts = []
    for column, part in enumerate(SETS):
        rows = [["row", *METRICS, f"report, CASTELLA {part}: R1@0.7", "mAP"]]
        for variant in LADDER:
            scores = [str(spread(results, variant.name, "decoder", part, metric)) for metric in METRICS]
            rows.append([variant.label, *scores, *(f"{number:.2f}" for number in REPORT_TABLE_1[variant.name][column][1:3])])
        parts.append(f"**{'Validation' if part == 'val' else 'Held-back test'} scenes**\n\n{_table(rows)}")
    seeds = " or ".join(map(str, sorted({len(results[variant.name, "decoder"]) for variant in LADDER})))
    return "\n\n".join([*parts, f"Mean ± standard deviation over {seeds} seeds.", step_table(results)])


def step_table(results: Results) -> str:
    """Return each row against the one before, and the last against the first, as Markdown."""
    steps = [*pairwise(LADDER), (LADDER[0], LADDER[-1])]
    labels = [after.label for _, after in steps[:-1]] + ["full model against the baseline"]
    columns = [compare([(results[a.name, "decoder"], results[b.name, "decoder"]) for a, b in steps], part) for part in SETS]
    header = ["step", *(f"{part} R1@0.7: {what}" for part in SETS for what in ("difference", "verdict"))]
    return _table([header, *([label, *val, *test] for label, val, test in zip(labels, *columns, strict=True))])


def probe_table(results: Results) -> str:
    """Return what a dense decoder reads off each row's frozen memory, beside the row's own decoder, as Markdown, and compare with row 1."""
    columns = [(part, reading) for part in SETS for reading in ("decoder", "probe")]
    rows = [[row.label, *(str(spread(results, row.name, reading, part, "R1@0.7")) for part, reading in columns)] for row in LADDER]
    told = [compare([(results[LADDER[0].name, "probe"], results[row.name, "probe"]) for row in LADDER[1:]], part) for part in SETS]
    verdicts = [["", ""], *([": ".join(each) for each in both] for both in zip(*told, strict=True))]
    header = [
        "row",
        *(f"{part} R1@0.7: {reading}" for part, reading in columns),
        *(f"{part}: probe against the baseline's" for part in SETS),
    ]
    return _table([header, *([*row, *verdict] for row, verdict in zip(rows, verdicts, strict=True))])


def switch_table(results: Results) -> str:
    """Return the switches that were run as Markdown, each with its verdicts.

    A change is compared with the full model; another reading with the decoder's reading of the same runs, seed by seed.
    """
    changes = [(variant, reading) for variant in SWITCHES for reading in variant.readings if (variant.name, reading) in results]
    base = [FULL.name if reading == "decoder" else variant.name for variant, reading in changes]
    pairs = [(results[name, "decoder"], results[variant.name, how]) for name, (variant, how) in zip(base, changes, strict=True)]
    compared = [compare(pairs, part, paired=[how != "decoder" for _, how in changes]) for part in SETS]
    told = [(("", ""), ("", "")), *zip(*compared, strict=True)]
    rows = [["change to the full model", *(f"{part} {what}" for part in SETS for what in ("R1@0.7", "difference", "verdict", "mAP"))]]
    for (variant, reading), verdicts in zip([(FULL, "decoder"), *changes], told, strict=True):
        label = "(none: row 6)" if variant is FULL else _switch_label(variant, reading)
        scores = [[str(spread(results, variant.name, reading, part, metric)) for metric in ("R1@0.7", "mAP")] for part in SETS]
        rows.append([label, *(cell for (first, last), two in zip(scores, verdicts, strict=True) for cell in (first, *two, last))])
    return _table(rows)


def compare(pairs: Sequence[tuple[Runs, Runs]], part: str, paired: Sequence[bool] = ()) -> list[tuple[str, str]]:
    """Return difference in R1@0.7 with its 95 % interval, and verdict, of each pair (before, after), by Welch's t-test over seeds.

    Where `paired` is True the two are readings of the same runs, and the test is the paired one. Probabilities are corrected for the
    number of pairs (Holm): with three seeds, "by more than the larger standard deviation" finds a winner in a fifth of the cases without
    any difference.
    """
    tests = []
    for (before, after), same_runs in zip(pairs, paired or [False] * len(pairs), strict=True):
        seeds = [sorted(before.keys() & after.keys())] * 2 if same_runs else [sorted(before), sorted(after)]
        old, new = ([runs[seed][part]["R1@0.7"] for seed in own] for own, runs in zip(seeds, (before, after), strict=True))
        tests.append(ttest_rel(new, old) if same_runs else ttest_ind(new, old, equal_var=False))
    told, worst = [("", "")] * len(tests), 0.0
    for rank, index in enumerate(np.argsort([test.pvalue for test in tests])):
        interval = tests[index].confidence_interval()
        difference = (interval.low + interval.high) / 2
        worst = max(worst, min(1.0, float(tests[index].pvalue) * (len(tests) - rank)))
        verdict = "undecided" if not worst < 0.05 else "wins" if difference > 0 else "loses"
        told[index] = (f"{difference:+.2f} [{interval.low:+.1f}, {interval.high:+.1f}]", f"{verdict}, p {worst:.3f}")
    return told


def draw_ladder(results: Results, path: Path) -> None:
    """Draw R1@0.7 of the six rows, each seed as a dot, beside the report's."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.2), layout="constrained")
    ours, theirs = figure.subplots(1, 2, sharex=True)
    places = np.arange(len(LADDER))
    for shift, part, colour in ((-0.18, "val", "#7a9cc6"), (0.18, "test", "#1f4e79")):
        rows = [spread(results, variant.name, "decoder", part, "R1@0.7") for variant in LADDER]
        name = {"val": "validation", "test": "held-back test"}[part]
        means, deviations = [row.mean for row in rows], [row.deviation for row in rows]
        ours.bar(places + shift, means, 0.34, yerr=deviations, color=colour, capsize=3, label=name)
        for place, row in zip(places, rows, strict=True):
            ours.plot([place + shift] * len(row.values), row.values, "o", color="black", markersize=2.5)
        column = SETS.index(part)
        theirs.bar(places + shift, [REPORT_TABLE_1[variant.name][column][1] for variant in LADDER], 0.34, color=colour, label=name)
    ours.set_title("here: synthesised scenes, pocket features", fontsize=10)
    theirs.set_title("report, Table 1: CASTELLA", fontsize=10)
    for axes in (ours, theirs):
        axes.set_xticks(places, ["\n".join(textwrap.wrap(variant.label, 12)) for variant in LADDER], fontsize=7)
        axes.set_ylabel("R1@0.7 (%)")
        axes.spines[["top", "right"]].set_visible(False)
    ours.legend(frameon=False, fontsize=8, loc="upper left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def put_between(text: str, marker: str, content: str) -> str:
    """Replace what stands between `<!-- marker -->` and the next `<!-- end -->`.

    Raises:
        DataError: The text has no such markers.
    """
    pattern = re.compile(rf"(<!-- {re.escape(marker)} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not pattern.search(text):
        raise DataError(f"The page has no `<!-- {marker} -->` … `<!-- end -->` to write the table between; add the two lines.")
    return pattern.sub(lambda found: f"{found[1]}{content}\n{found[2]}", text, count=1)


def _switch_label(variant: Variant, reading: str) -> str:
    told = {"pooled": ", with segments of the saliency curve pooled with the decoder's candidates", "segments": ", segments alone"}
    return variant.label + told.get(reading, "")


def _table(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (rows[0], ["---"] * len(rows[0]), *rows[1:]))


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Tables and figure of the ladder.")
    parser.add_argument("output", type=Path, metavar="RUNS_DIR")
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    arguments = parser.parse_args(argv)
    page = arguments.docs / "ladder.md"
    try:
        results = read_results(arguments.output)
        text = page.read_text(encoding="utf-8")
        text = put_between(text, "ladder", ladder_table(results))
        text = put_between(text, "probe", probe_table(results))
        text = put_between(text, "switches", switch_table(results))
        page.write_text(text, encoding="utf-8")
        draw_ladder(results, arguments.docs / "figures" / "ladder.png")
    except (QamDetrError, OSError) as error:
        sys.stderr.write(f"ladder_report: error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
