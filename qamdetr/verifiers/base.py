"""What all verifiers share: the protocol, and the crop around a candidate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from qamdetr.errors import QamDetrError
from qamdetr.types import Candidate, Recording, TextFeatures, Window

CONTEXT_SHARE = 0.5
"""The crop is the window widened on both sides by this share of its length."""

DEFAULT_VERIFIER = "none"


class PartialAnswersError(QamDetrError):
    """A verifier failed, but not before it had scored some of the candidates.

    Attributes:
        scores: Score by the candidate's place in what was asked.
    """

    def __init__(self, message: str, scores: Mapping[int, float]) -> None:
        super().__init__(message)
        self.scores = dict(scores)


class Verifier(Protocol):
    """Looks at each candidate once more and says how likely it is the moment of the query."""

    @property
    def name(self) -> str:
        """What the user calls it."""
        ...

    @property
    def identity(self) -> str:
        """Changes whenever the same crop and query could get another answer: name, weights, prompt."""
        ...

    @property
    def needs_audio(self) -> bool:
        """Whether it listens to the recording's file, or does with the encoded clips."""
        ...

    def check(self) -> None:
        """Find out, before there is anything to verify, whether it can work at all; loads no model.

        Raises:
            QamDetrError: Its model or server is not there, or its settings cannot be used.
        """
        ...

    def verify(self, recording: Recording, query: str, text: Mapping[str, TextFeatures], candidates: Sequence[Candidate]) -> list[float]:
        """Return one score in [0, 1] per candidate: the normalised probability that it is the moment of the query.

        Args:
            recording: The encoded recording; `path` leads to its sound.
            query: The user's sentence.
            text: The encoded query, main stream first.
            candidates: The top-K of the decoder.

        Raises:
            PartialAnswersError: It failed half-way.
            QamDetrError: The verifier cannot do its work; the caller keeps the decoder's ranking.
        """
        ...


@dataclass(frozen=True)
class WrappedVerifier:
    """A verifier that changes how `inner` is asked and is `inner` in all else; what it adds is its `verify`."""

    inner: Verifier

    @property
    def name(self) -> str:
        """As `inner`."""
        return self.inner.name

    @property
    def identity(self) -> str:
        """As `inner`."""
        return self.inner.identity

    @property
    def needs_audio(self) -> bool:
        """As `inner`."""
        return self.inner.needs_audio

    def check(self) -> None:
        """As `inner`; see `Verifier`.

        Raises:
            QamDetrError: As `inner`.
        """
        self.inner.check()


def crop_window(window: Window, duration_seconds: float) -> Window:
    """Widen a window by 50 % of its length on both sides, cut at the recording's ends.

    Source: report section 2.3.
    """
    start, end = window
    margin = CONTEXT_SHARE * (end - start)
    return max(0.0, start - margin), min(duration_seconds, end + margin)
