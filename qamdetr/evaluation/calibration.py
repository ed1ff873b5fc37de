"""What is calibrated on validation: the threshold of "not in this recording", and the weight of the verifier."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qamdetr.data.manifest import PredictionEntry, QueryEntry
from qamdetr.errors import AudioError, QamDetrError
from qamdetr.evaluation.compare import DEFAULT_RESAMPLES, Difference, compare_best
from qamdetr.evaluation.metrics import QueryScores, match, query_scores
from qamdetr.inference.rerank import check_beta, rerank
from qamdetr.inference.retriever import MomentRetriever
from qamdetr.types import Candidate
from qamdetr.verifiers.base import DEFAULT_VERIFIER, Verifier

REPORT_BETAS = (0.30, 0.35, 0.45)  # the weights that the report names: submissions 4, 2 and 3
FINE_GRID = tuple(step / 20 for step in range(21))  # 0.00:0.05:1.00, which holds the report's
CURVE_METRICS = ("R1@0.5", "R1@0.7", "mAP")


def calibrate_found_threshold(present_scores: Sequence[float], absent_scores: Sequence[float]) -> tuple[float, float]:
    """Choose the threshold with the best balanced accuracy of `score >= threshold` as "the sound is there"; returns both, in [0, 1].

    Scores are the best decoder score of each query, whose sound is in its recording or is not. Balanced: the mean of the share of present
    queries found and the share of absent queries refused. It lies half-way between two scores; when one side is empty, it is 0.
    """
    if not present_scores or not absent_scores:
        return 0.0, 0.5
    present, absent = np.sort(present_scores), np.sort(absent_scores)
    edges = np.unique([0.0, *present, *absent, 1.0])
    thresholds = (edges[:-1] + edges[1:]) / 2
    missed, refused = (np.searchsorted(side, thresholds) / len(side) for side in (present, absent))
    balanced = (1 - missed + refused) / 2
    best = int(balanced.argmax())
    return float(thresholds[best]), float(balanced[best])


@dataclass(frozen=True, eq=False)
class BetaPoint:
    """One weight of the verifier, in [0, 1], and what it scores: query by query, and `CURVE_METRICS` in percent, unrounded."""

    beta: float
    scores: QueryScores
    metrics: Mapping[str, float]

    @property
    def rank(self) -> tuple[float, float, float]:
        """What the weight is chosen by: R1@0.7, then mAP (whose last digits only tell the order of a sum), then the smaller weight."""
        return (self.metrics["R1@0.7"], round(self.metrics["mAP"], 9), -self.beta)


@dataclass(frozen=True)
class BetaCurve:
    """The scores over the weight of the verifier."""

    points: tuple[BetaPoint, ...]  # of the grid, smallest weight first
    chosen: BetaPoint  # the best of them
    decoder_alone: BetaPoint  # of weight 0, whether the grid holds it or not
    gain: Mapping[str, Difference]  # `chosen` less `decoder_alone`, tested as in `compare_best`; empty with one recording

    @property
    def shown(self) -> tuple[BetaPoint, ...]:
        """The points of the grid after the decoder alone, which is there to compare with even where the grid leaves it out."""
        return self.points if self.decoder_alone in self.points else (self.decoder_alone, *self.points)

    @property
    def is_worse(self) -> bool:
        """Whether the decoder alone beats the choice, by R1@0.7, then mAP; it cannot where the grid holds 0."""
        return self.chosen.rank[:2] < self.decoder_alone.rank[:2]

    def marks(self, point: BetaPoint) -> list[str]:
        """Say what is special about a point, such as `report` for a weight that the report names."""
        marks = {"decoder alone": point.beta == 0, "verifier alone": point.beta == 1, "report": point.beta in REPORT_BETAS}
        marks |= {"chosen": point == self.chosen, "not in the grid": point not in self.points}
        return [mark for mark, holds in marks.items() if holds]


@dataclass(frozen=True)
class VerifiedAnswer:
    """What decoder and verifier think of the candidates of one query, both scores apart."""

    entry: QueryEntry  # the query with its true windows
    candidates: tuple[Candidate, ...]  # in decoder order
    verifier_scores: tuple[float, ...] | None  # one per candidate, or None where the verifier failed
    problem: str = ""  # why it failed

    def ranked(self, beta: float) -> PredictionEntry:
        """Rank the candidates with this weight of the verifier; where it failed, the decoder alone ranks."""
        moments = rerank(self.candidates, self.verifier_scores, beta)
        windows = tuple((moment.start_seconds, moment.end_seconds, moment.score) for moment in moments)
        return PredictionEntry(self.entry.qid, self.entry.query, self.entry.vid, windows, self.entry.numeric_qid)


def verify_manifest(
    retriever: MomentRetriever,
    recordings: Mapping[str, str | Path],
    entries: Sequence[QueryEntry],
    verifier: Verifier | str,
    *,
    top_k: int,
) -> Iterator[list[VerifiedAnswer] | AudioError]:
    """Encode each recording (`vid` -> what `retriever.encode` takes) once and ask each of its queries once.

    Yields per recording the answers in the order of its queries, or the error of one that cannot be read. `top_k` candidates are kept, as
    many as the verifier looks at: with another weight the last may come first.
    """
    by_vid: dict[str, list[QueryEntry]] = {}
    for entry in entries:
        by_vid.setdefault(entry.vid, []).append(entry)
    for vid, asked in by_vid.items():
        try:
            recording = retriever.encode(recordings[vid])
        except AudioError as error:
            yield error
            continue
        results = retriever.retrieve_many(recording, [entry.query for entry in asked], top_k=top_k, verifier=verifier, beta=0.0)
        found = []
        for entry, result in zip(asked, results, strict=True):
            scores = tuple(moment.verifier_score for moment in result.moments if moment.verifier_score is not None)
            failed = result.verifier == DEFAULT_VERIFIER
            found.append(VerifiedAnswer(entry, result.moments, None if failed else scores, " ".join(result.notes) if failed else ""))
        yield found


def calibrate_beta(
    answers: Sequence[VerifiedAnswer], grid: Sequence[float] = FINE_GRID, *, resamples: int = DEFAULT_RESAMPLES, seed: int = 0
) -> BetaCurve:
    """Choose the weight of the verifier on validation by R1@0.7; ties by mAP, then for the smaller weight.

    Source: the report tunes beta on validation by the challenge's ranking metric; the rest of the order, and the test, are ours.
    """
    if not grid:
        raise QamDetrError("The grid of betas is empty", "give at least one number from 0 to 1")
    for beta in grid:
        check_beta(beta)
    points = tuple(_score(answers, beta) for beta in sorted(set(grid)))
    chosen = max(points, key=lambda point: point.rank)
    decoder_alone = points[0] if points[0].beta == 0 else _score(answers, 0.0)
    if len(set(chosen.scores.vids)) == 1:
        return BetaCurve(points, chosen, decoder_alone, {})
    tried, best = [point.scores for point in points], points.index(chosen)
    gain = compare_best(tried, best, decoder_alone.scores, ("R1@0.7", "mAP"), resamples=resamples, seed=seed)
    return BetaCurve(points, chosen, decoder_alone, gain)


def _score(answers: Sequence[VerifiedAnswer], beta: float) -> BetaPoint:
    scores = query_scores(match([answer.ranked(beta) for answer in answers], [answer.entry for answer in answers]))
    means = scores.columns(CURVE_METRICS).mean(axis=0).tolist()
    return BetaPoint(beta, scores, dict(zip(CURVE_METRICS, means, strict=True)))
