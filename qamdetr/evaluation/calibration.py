"""What is calibrated on validation: what scores mean, when an answer is "found" or "perhaps", and the weight of the verifier."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.optimize import isotonic_regression

from qamdetr import spans
from qamdetr.config import InferenceConfig
from qamdetr.data.manifest import PredictionEntry, QueryEntry
from qamdetr.errors import AudioError, QamDetrError
from qamdetr.evaluation.compare import DEFAULT_RESAMPLES, Difference, compare_best
from qamdetr.evaluation.metrics import QueryScores, match, query_scores
from qamdetr.inference.rerank import calibrated, check_beta, rerank
from qamdetr.inference.retriever import MomentRetriever
from qamdetr.types import Candidate, Window
from qamdetr.verifiers.base import DEFAULT_VERIFIER, Verifier

if TYPE_CHECKING:
    from typing_extensions import Self  # in `typing` from Python 3.11 on

REPORT_BETAS = (0.30, 0.35, 0.45)  # the weights that the report names: submissions 4, 2 and 3
FINE_GRID = tuple(step / 20 for step in range(21))  # 0.00:0.05:1.00, which holds the report's
CURVE_METRICS = ("R1@0.5", "R1@0.7", "mAP")


REFUSED_SHARE = 0.92  # of the queries about absent sounds that are not "found": seen on 300, it is above 0.88 of all with 95 % confidence
PRESENT_SHARE = 2 / 3  # of the queries that are asked, where nothing is known of them
RIGHT_IOU = 0.5  # with a true window, from which a moment is right
MAX_BINS, QUERIES_PER_BIN, DRAWS = 12, 20, 50  # of the map from scores to probabilities


@dataclass(frozen=True)
class BestMoment:
    """What the decoder ranks first for a validation query."""

    score: float  # its decoder score, in [0, 1]; 0 where it proposes nothing
    right: bool  # whether it overlaps a true window by `RIGHT_IOU`
    present: bool  # whether there is a true window

    @classmethod
    def of(cls, windows: Sequence[tuple[float, float, float]], truth: Sequence[Window]) -> Self:
        """Read it off ranked windows `(start, end, score)`."""
        if not windows:
            return cls(0.0, False, bool(truth))
        overlaps = spans.pairwise_iou(torch.tensor([windows[0][:2]]), torch.tensor(truth).reshape(-1, 2))
        return cls(windows[0][2], bool((overlaps >= RIGHT_IOU).any()), bool(truth))


@dataclass(frozen=True)
class AnswerCalibration:
    """What makes a checkpoint's answers ones to lean on, and how well it does so on the queries it was fitted to."""

    inference: InferenceConfig  # with the thresholds and the map, in the digits that are stored
    metrics: Mapping[str, float]  # shares in percent and the calibration error; empty where no sound was absent


def calibrate_answers(best: Sequence[BestMoment], settings: InferenceConfig) -> AnswerCalibration:
    """Fit thresholds and score map on the best moments of a validation set's queries, and put them into the settings.

    *Found* is from the lowest decoder score at which `REFUSED_SHARE` of the absent sounds are refused, so that as few present ones as can
    be are lost. *Perhaps* is below it, down to where a sound of this score is still more likely present than absent, were `PRESENT_SHARE`
    of the sounds that are asked for present: people ask for what they expect. Without present or without absent sounds everything is found.
    """
    present, absent = (np.sort([each.score for each in best if each.present is there]) for there in (True, False))
    knots = fit_score_map([each.score for each in best], [each.right for each in best])
    if not len(present) or not len(absent):
        return AnswerCalibration(replace(settings, found_threshold=0.0, perhaps_threshold=1.0, score_calibration=knots), {})
    edges = np.unique([0.0, *present, *absent, 1.0])
    between = (edges[:-1] + edges[1:]) / 2
    missed, refused = (np.searchsorted(side, between) / len(side) for side in (present, absent))
    found = float(between[(refused >= REFUSED_SHARE).argmax()]) if refused[-1] >= REFUSED_SHARE else 1.0
    likely = float(between[(PRESENT_SHARE * (1 - missed) + (1 - PRESENT_SHARE) * refused).argmax()])
    stored = replace(settings, found_threshold=round(found, 4), perhaps_threshold=round(min(likely, found), 4), score_calibration=knots)
    probabilities = score_map(knots, [each.score for each in best])
    metrics = {
        "found_accuracy": round(100 * calibrate_found_threshold(present.tolist(), absent.tolist())[1], 2),
        "absent_refused": round(100 * float(np.mean(absent < stored.found_threshold)), 2),
        "present_lost": round(100 * float(np.mean(present < stored.found_threshold)), 2),
        "calibration_error": round(expected_calibration_error(probabilities, [each.right for each in best]), 4),
    }
    return AnswerCalibration(stored, metrics)


def fit_score_map(scores: Sequence[float], right: Sequence[bool]) -> tuple[tuple[float, float], ...]:
    """Fit the probability of being right to decoder scores in [0, 1]; returns `inference.score_calibration`, none for too few scores.

    Isotonic regression over bins of equally many scores, whose shares are pulled to a half by one vote; the mean over draws of the queries
    with replacement, as one alone has steps, at which a score would jump. A hundredth of the score itself is mixed in, so that the map
    rises everywhere and no order ever changes.
    """
    bins = min(MAX_BINS, len(scores) // QUERIES_PER_BIN)
    if bins < 1:
        return ()
    values, hits = np.array(sorted(zip(scores, right, strict=True)), dtype=np.float64).T
    raw, maps = np.array([0.0, *(part.mean() for part in np.array_split(values, bins)), 1.0]).round(4), []
    for drawn in np.sort(np.random.default_rng(0).integers(len(values), size=(DRAWS, len(values)))):
        parts = np.array_split(drawn, bins)
        shares = [(hits[part].sum() + 0.5) / (len(part) + 1) for part in parts]
        maps.append(np.interp(raw[1:-1], [values[part].mean() for part in parts], isotonic_regression(shares).x))
    fitted = np.mean(maps, axis=0)
    mixed = (0.99 * np.array([0.0, *fitted, fitted[-1]]) + 0.01 * raw).round(8)
    kept = [0, *(np.flatnonzero(np.diff(raw) > 0) + 1)]
    return tuple((float(raw[index]), float(mixed[index])) for index in kept)


def score_map(knots: Sequence[tuple[float, float]], scores: Sequence[float]) -> list[float]:
    """Read probabilities off a map as serving does; the scores themselves where there is none."""
    blank = [Candidate(0.0, 1.0, score, 1.0, score) for score in scores]
    return [moment.score for moment in (rerank([each], None, 0.0)[0] for each in calibrated(blank, knots))]


def expected_calibration_error(probabilities: Sequence[float], right: Sequence[bool], bins: int = 10) -> float:
    """Return how far probabilities are from the shares that are right: the mean distance over `bins` equal ranges, by their sizes.

    Source: M. P. Naeini, G. Cooper, M. Hauskrecht, "Obtaining well calibrated probabilities using Bayesian binning", AAAI 2015.
    """
    if not len(probabilities):
        return 0.0
    p, hits = np.asarray(probabilities, dtype=np.float64), np.asarray(right, dtype=np.float64)
    place = np.minimum((p * bins).astype(int), bins - 1)
    gaps = np.bincount(place, weights=p - hits, minlength=bins)
    return float(np.abs(gaps).sum() / len(p))


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
