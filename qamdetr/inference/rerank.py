"""Blend decoder and verifier scores into the final ranking (report, Eq. 3). Boundaries never change here."""

from __future__ import annotations

from collections.abc import Sequence

from qamdetr.errors import QamDetrError
from qamdetr.types import Candidate, Moment


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


def check_beta(beta: float) -> None:
    """Refuse a weight outside [0, 1].

    Raises:
        QamDetrError: Names value and limits.
    """
    if not 0 <= beta <= 1:
        raise QamDetrError(f"beta is {beta:g}; it must lie between 0 (decoder alone) and 1 (verifier alone).")


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
