"""From decoded candidates to the answer: verify, blend (report, Eq. 3), rank, and say which moments are likely.

Boundaries never change here. Only the field's rounding, which is about what is submitted and comes last, moves them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from qamdetr.audio import num_clips
from qamdetr.errors import QamDetrError
from qamdetr.features.known import Understood
from qamdetr.inference.candidates import Decoded, DecodeProtocol
from qamdetr.types import Candidate, Moment, Recording, Result, TextFeatures, Tier
from qamdetr.verifiers.base import Verifier

OFFICIAL_MAX_SECONDS = 300.0
OFFICIAL_SCORE_DECIMALS = 4
"""The field's post-processing cuts every window at the first, whatever the recording's length, and scores to the second."""

LIKELY_SCORE = 0.05
LIKELY_SHARE = 0.4
LIKELY_OVERLAP = 0.5
VERIFIER_SAYS_YES = 0.5
"""See `mark_likely`."""


@dataclass(frozen=True)
class Ranking:
    """How candidates become an answer; settled once for all queries of a call."""

    verifier: Verifier | None  # looks at the best candidates; None leaves the ranking to the decoder
    beta: float  # weight of the verifier's score, in [0, 1]
    top_k: int  # most moments to return, at least 1
    verified_k: int  # candidates that the verifier sees; more when `top_k` is more
    thresholds: tuple[float, float]  # decoder scores from which a sound is found, and from which it is perhaps there
    encoder: str  # name of the encoders in use
    calibration: Sequence[tuple[float, float]] = ()  # `inference.score_calibration`
    protocol: DecodeProtocol = "exact"  # `official` rounds the moments as the field does, last of all

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.top_k < 1:
            raise QamDetrError(f"top_k is {self.top_k}; it must be at least 1.")
        check_beta(self.beta)


def rank(
    recording: Recording,
    query: str,
    text: Mapping[str, TextFeatures],
    decoded: Decoded,
    ranking: Ranking,
    *,
    tier: Tier,
    words: Understood,
) -> Result:
    """Make the answer to one query, whose `tier` the decoder has settled, and which is about nothing where its `words` are not understood.

    Where a verifier fails, or gives no score in [0, 1] for each candidate, the decoder's ranking stands and a note says so.
    """
    verifier = ranking.verifier
    # Calibration keeps the order, so without a verifier what comes after the first `top_k` cannot be among them.
    looked_at = ranking.top_k if verifier is None else max(ranking.top_k, ranking.verified_k)
    candidates = calibrated(decoded.candidates[:looked_at], ranking.calibration)
    found, perhaps = (words.known and tier == name for name in ("found", "perhaps"))
    scores: list[float] | None = None
    notes = (*recording.notes, *words.notes)
    if verifier is not None:
        try:
            scores = _checked(verifier.verify(recording, query, text, candidates), len(candidates))
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            notes = (*notes, f"Verifier {verifier.name} failed ({reason}); the moments are ranked by the decoder alone.")
    threshold = second_threshold(*ranking.thresholds, verified=scores is not None)
    moments = mark_likely(rerank(candidates, scores, ranking.beta), found=found, threshold=threshold)[: ranking.top_k]
    start, end = recording.start_seconds, recording.start_seconds + recording.duration_seconds
    saliency = on_file_clock(decoded.saliency, start, end, recording.clip_seconds) if start else decoded.saliency
    if start:  # windows were counted from there so far
        moments = tuple(replace(m, start_seconds=m.start_seconds + start, end_seconds=min(m.end_seconds + start, end)) for m in moments)
    if ranking.protocol == "official":
        moments = tuple(round_officially(moment, end) for moment in moments)
    return Result(
        audio=recording.path or recording.name,
        duration_seconds=end,
        query=query,
        found=found,
        encoder=ranking.encoder,
        verifier=verifier.name if verifier is not None and scores is not None else "none",
        beta=ranking.beta if scores is not None else 0.0,
        moments=moments,
        saliency=tuple(saliency.tolist()),
        notes=notes,
        heard={name: recording.choice[name] for name in ("channel", "track") if name in recording.choice},
        clip_seconds=recording.clip_seconds,
        perhaps=perhaps,
        understood=words.known,
    )


def on_file_clock(curve: Tensor, begin_seconds: float, end_seconds: float, clip_seconds: float) -> Tensor:
    """Return a curve of one value per clip from `begin_seconds` on as one from 0 s to `end_seconds`, 0 before its begin."""
    clips = np.arange(num_clips(end_seconds, clip_seconds)) - begin_seconds / clip_seconds
    return torch.from_numpy(np.interp(clips, np.arange(len(curve)), curve.numpy(), left=0.0)).float()


def calibrated(candidates: Sequence[Candidate], knots: Sequence[tuple[float, float]]) -> list[Candidate]:
    """Give candidates the probability that they are right, read off lines between `knots`; none without knots."""
    if not knots:
        return list(candidates)
    scores, (raw, probable) = [candidate.decoder_score for candidate in candidates], np.asarray(knots).T
    return [replace(each, probability=float(p)) for each, p in zip(candidates, np.interp(scores, raw, probable), strict=True)]


def rerank(candidates: Sequence[Candidate], verifier_scores: Sequence[float] | None, beta: float) -> tuple[Moment, ...]:
    """Rank candidates by `(1 - beta) * decoder_score + beta * verifier_score`, best first; equal scores keep their order.

    Of calibrated candidates, the `probability` stands in the place of the decoder score. `verifier_scores` are one in [0, 1] per candidate,
    or None when no verifier looked: then the decoder's is the score.

    Source: report Eq. 3; beta 0.30 to 0.45 there.
    """
    check_beta(beta)
    judged: Sequence[float | None] = [None] * len(candidates) if verifier_scores is None else verifier_scores
    moments = []
    for candidate, verified in zip(candidates, judged, strict=True):
        own = candidate.decoder_score if candidate.probability is None else candidate.probability
        score = own if verified is None else (1 - beta) * own + beta * verified
        moments.append(Moment(**{**vars(candidate), "verifier_score": verified, "score": score}))
    return tuple(sorted(moments, key=lambda moment: -moment.score))


def mark_likely(moments: Sequence[Moment], *, found: bool, threshold: float) -> tuple[Moment, ...]:
    """Say of each moment whether it is worth showing as an answer: the one definition of `likely`.

    Where the sound was not found, none is. Else a moment is likely when

    - its score is no less than `LIKELY_SCORE`, and no less than `LIKELY_SHARE` of the best moment's;
    - it stands by itself: by a decoder score of `threshold`, or a verifier that says Yes (0.5 or more); the best moment need not, since
      the recording was found by it;
    - it is no double: no better likely moment shares more than `LIKELY_OVERLAP` of the shorter of the two.

    Moments come best score first; `threshold` is `second_threshold`.
    """
    marked: list[Moment] = []
    for place, moment in enumerate(moments):
        strong = moment.score >= max(LIKELY_SCORE, LIKELY_SHARE * moments[0].score)
        vouched = place == 0 or moment.decoder_score >= threshold or (moment.verifier_score or 0.0) >= VERIFIER_SAYS_YES
        likely = found and strong and vouched and not any(other.likely and is_double(moment, other) for other in marked)
        marked.append(replace(moment, likely=likely))
    return tuple(marked)


def second_threshold(found: float, perhaps: float, *, verified: bool) -> float:
    """Return the decoder score from which further moments of a found sound are likely: that of *perhaps*, or of *found* if verified."""
    return found if verified else min(found, perhaps)


def check_beta(beta: float) -> None:
    """Refuse a weight outside [0, 1]."""
    if not 0 <= beta <= 1:
        raise QamDetrError(f"beta is {beta:g}; it must lie between 0 (decoder alone) and 1 (verifier alone).")


def is_double(one: Moment, other: Moment) -> bool:
    """Whether two moments share more than `LIKELY_OVERLAP` of the shorter."""
    shared = min(one.end_seconds, other.end_seconds) - max(one.start_seconds, other.start_seconds)
    return shared > LIKELY_OVERLAP * min(one.end_seconds - one.start_seconds, other.end_seconds - other.start_seconds)


def _checked(scores: Sequence[float], count: int) -> list[float]:
    if len(scores) != count:
        raise QamDetrError(f"it gave {len(scores)} scores for {count} candidates")
    if wrong := [score for score in scores if not 0 <= score <= 1]:
        raise QamDetrError(f"it gave a score of {wrong[0]:g}, which is not in [0, 1]")
    return [float(score) for score in scores]


def round_officially(moment: Moment, duration_seconds: float) -> Moment:
    """Clamp a moment to [0, 300] s and round it to whole seconds and scores of four decimals; its window can become empty.

    Source: the DCASE 2026 Task 6 baseline. It is the last step, after merging and pooling.
    """
    start, end = (float(round(min(seconds, OFFICIAL_MAX_SECONDS, duration_seconds))) for seconds in moment.window)
    decoder_score, score = (round(value, OFFICIAL_SCORE_DECIMALS) for value in (moment.decoder_score, moment.score))
    return replace(moment, start_seconds=start, end_seconds=end, decoder_score=decoder_score, score=score)
