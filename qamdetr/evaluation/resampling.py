"""How sure a score is, and whether one system is better than another: both by resampling recordings.

Queries of one recording share its sound and its moments, so that they are not independent; whole recordings are drawn, or flipped,
together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from qamdetr.errors import DataError
from qamdetr.evaluation.matching import BoolArray, FloatArray, IntArray
from qamdetr.evaluation.metrics import METRICS, QueryScores

CONFIDENCE = 0.95
DEFAULT_RESAMPLES = 10_000
MAX_RESAMPLES = 1_000_000
"""What the command line allows; a hundred times the usual number, and more only takes long."""
_AT_ONCE = 500  # resamples whose weights are held in memory together


@dataclass(frozen=True)
class Interval:
    """A metric in percent with its confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """A metric of one system less that of another, in points of percent.

    Attributes:
        difference: Interval of the difference.
        p_value: How often chance alone makes a difference as large, in (0, 1].
    """

    difference: Interval
    p_value: float

    @property
    def verdict(self) -> str:
        """`better` or `worse` where interval and test agree on it, else `undecided`."""
        if self.p_value > 1 - CONFIDENCE or self.difference.low <= 0 <= self.difference.high:
            return "undecided"
        return "better" if self.difference.value > 0 else "worse"


def bootstrap(
    scores: QueryScores, names: Sequence[str] = METRICS, *, resamples: int = DEFAULT_RESAMPLES, seed: int = 0
) -> dict[str, Interval]:
    """Find 95 % confidence intervals of metrics (names as in `QueryScores.columns`).

    As many recordings as there are get drawn with replacement, each with all its queries; the metric is the mean over the queries drawn.
    The interval holds the middle 95 % of these means.

    Raises:
        DataError: Fewer than two recordings, or less than one resample.

    Source: the percentile bootstrap (Efron and Tibshirani, 1993, chapter 13) with recordings as the units that are drawn.
    """
    columns = scores.columns(names)
    sums, counts = _sum_by_recording(columns, scores.vids)
    low, high = _percentiles(sums, counts, resamples, seed)
    means = columns.mean(axis=0)
    return {name: Interval(float(means[i]), float(low[i]), float(high[i])) for i, name in enumerate(names)}


def compare(
    scores: QueryScores,
    other: QueryScores,
    names: Sequence[str] = METRICS,
    *,
    resamples: int = DEFAULT_RESAMPLES,
    seed: int = 0,
) -> dict[str, Difference]:
    """Compare two systems on the same queries, query by query.

    The interval is `bootstrap`'s on the differences. The test asks how often a difference as large comes about when, recording by
    recording, a coin decides which system's answers go by which name. It is two-sided, and no correction is made for looking at
    several metrics.

    Args:
        scores: The system whose advantage is positive.
        other: The one it is compared with, scored on the same ground truth in the same order.
        names: Metrics, as in `QueryScores.columns`.
        resamples: For the interval, and coin rows for the test; the smallest p-value is `1 / (resamples + 1)`.
        seed: Of both.

    Raises:
        DataError: Other queries, fewer than two recordings, or less than one resample.

    Source: paired randomisation test (Smucker, Allan and Carterette, CIKM 2007) with recordings as units.
    """
    if scores.vids != other.vids:
        raise DataError(f"The systems were scored on {scores.num_queries} and {other.num_queries} other queries; use one ground truth.")
    columns = scores.columns(names) - other.columns(names)
    sums, counts = _sum_by_recording(columns, scores.vids)
    low, high = _percentiles(sums, counts, resamples, seed)
    means, p_values = columns.mean(axis=0), _sign_flip_p_values(sums, resamples, seed)
    return {name: Difference(Interval(float(means[i]), float(low[i]), float(high[i])), float(p_values[i])) for i, name in enumerate(names)}


def compare_best(
    tried: Sequence[QueryScores],
    best: int,
    other: QueryScores,
    names: Sequence[str] = METRICS,
    *,
    resamples: int = DEFAULT_RESAMPLES,
    seed: int = 0,
) -> dict[str, Difference]:
    """Compare the best of several settings with another system on the very queries on which it was found to be the best.

    As `compare`, but the test counts the choice in: it asks how often the coins give *any* of the settings a difference as large as the
    best one's. The interval is the best one's own and knows nothing of the choice, so it lies somewhat too high.

    Args:
        tried: All settings from which the best was chosen.
        best: Index of the best in `tried`.
        other: What it is compared with.
        names: Metrics, as in `QueryScores.columns`.
        resamples: As in `compare`.
        seed: As in `compare`.

    Raises:
        DataError: As `compare`.

    Source: single-step adjustment by the largest statistic (Westfall and Young, 1993, chapter 2), in two-sided sign flips of recordings.
    """
    plain = compare(tried[best], other, names, resamples=resamples, seed=seed)
    differences = np.stack([scores.columns(names) - other.columns(names) for scores in tried], axis=2)
    adjusted: dict[str, Difference] = {}
    for column, name in enumerate(names):
        sums, _ = _sum_by_recording(differences[:, column], other.vids)
        p_value = _p_value(
            np.abs(sums[:, best].sum()), (totals.max(axis=1) for totals in _flipped_totals(sums, resamples, seed)), resamples
        )
        adjusted[name] = Difference(plain[name].difference, float(p_value))
    return adjusted


def _sum_by_recording(columns: FloatArray, vids: Sequence[str]) -> tuple[FloatArray, IntArray]:
    """Return sums `(recordings, metrics)` and the number of queries of each recording."""
    _, recording, counts = np.unique(np.array(vids), return_inverse=True, return_counts=True)
    if len(counts) < 2:
        raise DataError(f"All {len(vids)} queries belong to one recording; resampling needs at least 2 recordings.")
    sums = np.zeros((len(counts), columns.shape[1]))
    np.add.at(sums, recording, columns)
    return sums, counts


def _percentiles(sums: FloatArray, counts: IntArray, resamples: int, seed: int) -> tuple[FloatArray, FloatArray]:
    rng, recordings = np.random.default_rng(seed), len(counts)
    means = np.concatenate(
        [
            (drawn @ sums) / (drawn @ counts)[:, None]
            for size in _portions(resamples)
            for drawn in [rng.multinomial(recordings, np.full(recordings, 1 / recordings), size=size).astype(np.float64)]
        ]
    )
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    return low, high


def _sign_flip_p_values(sums: FloatArray, resamples: int, seed: int) -> FloatArray:
    return _p_value(np.abs(sums.sum(axis=0)), _flipped_totals(sums, resamples, seed), resamples)


def _flipped_totals(sums: FloatArray, resamples: int, seed: int) -> Iterator[FloatArray]:
    """Yield portions of `(resamples, columns)`: how far from 0 the totals lie when a coin gives each recording its sign."""
    rng = np.random.default_rng([seed, 1])  # apart from the draws of the interval
    for size in _portions(resamples):
        signs = rng.integers(0, 2, size=(size, len(sums))) * 2.0 - 1.0
        yield np.abs(signs @ sums)


def _p_value(observed: FloatArray, portions: Iterable[FloatArray], resamples: int) -> FloatArray:
    """Share of coin rows whose total is at least as far from 0; the rows found count as one of them, so it is never 0."""
    as_large: IntArray = np.zeros(observed.shape, dtype=np.int64)
    for totals in portions:
        reached: BoolArray = totals >= observed - 1e-9 * np.maximum(observed, 1.0)
        as_large += reached.sum(axis=0)
    p_values: FloatArray = (as_large + 1) / (resamples + 1)
    return p_values


def _portions(total: int) -> Iterator[int]:
    if total < 1:
        raise DataError(f"The number of resamples is {total}; it must be at least 1 (10000 is usual).")
    for start in range(0, total, _AT_ONCE):
        yield min(_AT_ONCE, total - start)
