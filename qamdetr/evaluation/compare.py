"""How sure a score is, and whether one system is better than another: both by resampling whole recordings.

Queries of one recording share its sound and its moments, so that they are not independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from qamdetr.errors import DataError
from qamdetr.evaluation.metrics import METRICS, FloatArray, IntArray, QueryScores

CONFIDENCE = 0.95
DEFAULT_RESAMPLES = 10_000
MAX_RESAMPLES = 1_000_000  # what the command line allows; more only takes long
_AT_ONCE = 500  # resamples that are held in memory together


@dataclass(frozen=True)
class Interval:
    """A metric in percent with its confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """A metric of one system less that of another, in points of percent, and how often chance alone makes as large a one, in (0, 1]."""

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
    """Find 95 % confidence intervals of metrics: the middle of their values on recordings drawn with replacement, with all their queries.

    Source: the percentile bootstrap (Efron and Tibshirani, 1993, chapter 13) with recordings as the units that are drawn.
    """
    return _intervals(scores.columns(names), scores.vids, names, resamples, seed)


def compare(
    scores: QueryScores, other: QueryScores, names: Sequence[str] = METRICS, *, resamples: int = DEFAULT_RESAMPLES, seed: int = 0
) -> dict[str, Difference]:
    """Compare two systems on the same queries, query by query; a positive difference is an advantage of `scores`.

    The interval is `bootstrap`'s on the differences. The two-sided test asks how often a difference as large comes about when, recording
    by recording, a coin decides which system's answers go by which name; no correction is made for looking at several metrics.

    Source: paired randomisation test (Smucker, Allan and Carterette, CIKM 2007) with recordings as units.
    """
    return compare_best([scores], 0, other, names, resamples=resamples, seed=seed)


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

    As `compare`, but the test counts the choice in: it asks how often the coins give *any* of the settings a difference as large as that
    of `tried[best]`. The interval is the best one's own and knows nothing of the choice, so it lies somewhat too high.

    Source: single-step adjustment by the largest statistic (Westfall and Young, 1993, chapter 2), in two-sided sign flips of recordings.
    """
    if tried[best].vids != other.vids:
        numbers = f"{tried[best].num_queries} and {other.num_queries}"
        raise DataError(f"The systems were scored on {numbers} other queries", "use one ground truth")
    columns = [scores.columns(names) - other.columns(names) for scores in tried]
    intervals = _intervals(columns[best], other.vids, names, resamples, seed)
    sums = np.stack([_by_recording(differences, other.vids)[0] for differences in columns])
    flipped = stats.permutation_test(
        (sums,),  # one sample: the signs of its recordings are flipped
        lambda flips, axis: np.abs(flips.sum(axis=axis)).max(axis=-2),
        permutation_type="samples",
        alternative="greater",
        vectorized=True,
        axis=-1,
        n_resamples=resamples,
        batch=_AT_ONCE,
        random_state=np.random.default_rng([seed, 1]),  # apart from the draws of the interval
    ).null_distribution
    observed = np.abs(sums[best].sum(axis=-1))
    # The rows found count as one of the coins', so that p is never 0; where all coins were tried they are among them.
    own = int(2 ** sums.shape[-1] > resamples)
    as_large = (flipped >= observed - 1e-9 * np.maximum(observed, 1.0)).sum(axis=0)
    p_values = (as_large + own) / (len(flipped) + own)
    return {name: Difference(intervals[name], float(p_value)) for name, p_value in zip(names, p_values, strict=True)}


def _intervals(columns: FloatArray, vids: Sequence[str], names: Sequence[str], resamples: int, seed: int) -> dict[str, Interval]:
    """Intervals of the means of `columns`, `(queries, metrics)`."""
    if resamples < 1:
        raise DataError(f"The number of resamples is {resamples}; it must be at least 1 (10000 is usual).")
    sums, counts = _by_recording(columns, vids)
    found = stats.bootstrap(
        (sums, np.broadcast_to(counts, sums.shape)),
        lambda drawn_sums, drawn_counts, axis: drawn_sums.sum(axis=axis) / drawn_counts.sum(axis=axis),
        paired=True,
        vectorized=True,
        axis=-1,
        n_resamples=resamples,
        batch=_AT_ONCE,
        confidence_level=CONFIDENCE,
        method="percentile",
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    values = zip(columns.mean(axis=0).tolist(), found.low.tolist(), found.high.tolist(), strict=True)
    return {name: Interval(*value) for name, value in zip(names, values, strict=True)}


def _by_recording(columns: FloatArray, vids: Sequence[str]) -> tuple[FloatArray, IntArray]:
    """Return sums `(metrics, recordings)` and the number of queries of each recording."""
    _, recording, counts = np.unique(np.array(vids), return_inverse=True, return_counts=True)
    if len(counts) < 2:
        raise DataError(f"All {len(vids)} queries belong to one recording; resampling needs at least 2 recordings.")
    sums = np.zeros((columns.shape[1], len(counts)))
    np.add.at(sums.T, recording, columns)
    return sums, counts
