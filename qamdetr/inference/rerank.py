"""From decoded candidates to the answer: verify, blend (report, Eq. 3), rank, and say whether the sound is there at all.

Boundaries never change here. Only the field's rounding, which is about what is submitted and comes last, moves them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from qamdetr.config import InferenceConfig
from qamdetr.errors import QamDetrError
from qamdetr.inference.candidates import OFFICIAL_SCORE_DECIMALS, Decoded, DecodeProtocol, round_officially
from qamdetr.types import Candidate, Moment, Recording, Result, TextFeatures
from qamdetr.verifiers.base import Verifier


@dataclass(frozen=True)
class Ranking:
    """How candidates become an answer; settled once for all queries of a call.

    Attributes:
        verifier: Looks at the best candidates; None leaves the ranking to the decoder.
        beta: Weight of the verifier's score, in [0, 1].
        top_k: Most moments to return, at least 1.
        verified_k: Candidates that the verifier sees; more when `top_k` is more.
        protocol: `official` rounds the moments as the field does, last of all.

    Raises:
        QamDetrError: `top_k` or `beta` out of range.
    """

    verifier: Verifier | None
    beta: float
    top_k: int
    verified_k: int
    protocol: DecodeProtocol = "exact"

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.top_k < 1:
            raise QamDetrError(f"top_k is {self.top_k}; it must be at least 1.")
        check_beta(self.beta)


def rank(
    recording: Recording, query: str, text: Mapping[str, TextFeatures], decoded: Decoded, ranking: Ranking, *, found: bool, encoder: str
) -> Result:
    """Make the answer to one query.

    Whatever a verifier does, the decoder's answer survives: when it fails, or gives something else than a score in [0, 1] for each
    candidate, the decoder's ranking stands and a note says so.

    Args:
        recording: The encoded recording.
        query: The user's sentence.
        text: The encoded query, main stream first.
        decoded: From the network.
        ranking: How to rank.
        found: Whether the sound is there.
        encoder: Name of the encoders in use.
    """
    candidates, verifier = decoded.candidates, ranking.verifier
    scores: list[float] | None = None
    notes: tuple[str, ...] = ()
    if verifier is not None:
        candidates = candidates[: max(ranking.top_k, ranking.verified_k)]
        try:
            scores = _verify(verifier, recording, query, text, candidates)
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            notes = (f"Verifier {verifier.name} failed ({reason}); the moments are ranked by the decoder alone.",)
    moments = rerank(candidates, scores, ranking.beta)[: ranking.top_k]
    if ranking.protocol == "official":
        moments = tuple(_round_officially(moment, recording.duration_seconds) for moment in moments)
    return Result(
        audio=recording.path or recording.name,
        duration_seconds=recording.duration_seconds,
        query=query,
        found=found,
        encoder=encoder,
        verifier=verifier.name if verifier is not None and scores is not None else "none",
        beta=ranking.beta if scores is not None else 0.0,
        moments=moments,
        saliency=tuple(decoded.saliency.tolist()),
        notes=notes,
    )


def rerank(candidates: Sequence[Candidate], verifier_scores: Sequence[float] | None, beta: float) -> tuple[Moment, ...]:
    """Rank candidates by `(1 - beta) * decoder_score + beta * verifier_score`, best first; equal scores keep their order.

    Args:
        candidates: In decoder order.
        verifier_scores: One in [0, 1] per candidate, or None when no verifier looked: then the decoder score is the score.
        beta: Weight of the verifier, in [0, 1].

    Raises:
        QamDetrError: `beta` out of range.

    Source: report Eq. 3; beta 0.30 to 0.45 there.
    """
    check_beta(beta)
    if verifier_scores is None:
        moments = [_moment(candidate, None, candidate.decoder_score) for candidate in candidates]
    else:
        moments = [
            _moment(candidate, verified, (1 - beta) * candidate.decoder_score + beta * verified)
            for candidate, verified in zip(candidates, verifier_scores, strict=True)
        ]
    return tuple(sorted(moments, key=lambda moment: -moment.score))


def choose_beta(beta: float | None, settings: InferenceConfig, verifier: Verifier | None) -> float:
    """Return the given weight, or what a checkpoint holds: the one calibrated for this verifier, else `inference.beta`."""
    if beta is not None:
        return beta
    return settings.beta if verifier is None else settings.beta_by_verifier.get(verifier.name, settings.beta)


def check_beta(beta: float) -> None:
    """Refuse a weight outside [0, 1].

    Raises:
        QamDetrError: Names value and limits.
    """
    if not 0 <= beta <= 1:
        raise QamDetrError(f"beta is {beta:g}; it must lie between 0 (decoder alone) and 1 (verifier alone).")


def _verify(
    verifier: Verifier, recording: Recording, query: str, text: Mapping[str, TextFeatures], candidates: Sequence[Candidate]
) -> list[float]:
    scores = [float(score) for score in verifier.verify(recording, query, text, candidates)]
    if len(scores) != len(candidates):
        raise QamDetrError(f"it gave {len(scores)} scores for {len(candidates)} candidates")
    strange = next((score for score in scores if not 0 <= score <= 1), None)
    if strange is not None:
        raise QamDetrError(f"it gave a score of {strange:g}, which is not in [0, 1]")
    return scores


def _moment(candidate: Candidate, verifier_score: float | None, score: float) -> Moment:
    return Moment(
        start_seconds=candidate.start_seconds,
        end_seconds=candidate.end_seconds,
        foreground=candidate.foreground,
        quality=candidate.quality,
        decoder_score=candidate.decoder_score,
        verifier_score=verifier_score,
        score=score,
    )


def _round_officially(moment: Moment, duration_seconds: float) -> Moment:
    rounded = round_officially(moment, duration_seconds)
    return replace(
        moment,
        start_seconds=rounded.start_seconds,
        end_seconds=rounded.end_seconds,
        decoder_score=rounded.decoder_score,
        score=round(moment.score, OFFICIAL_SCORE_DECIMALS),
    )
