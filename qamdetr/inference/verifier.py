"""Verifiers look at the sound of each candidate once more and say how likely it is the moment of the query (report, section 2.3)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import normalize

from qamdetr.errors import QamDetrError
from qamdetr.types import Candidate, Recording, TextFeatures, Window

CONTEXT_SHARE = 0.5
"""The crop is the window widened on both sides by this share of its length."""

DEFAULT_VERIFIER = "none"


class Verifier(Protocol):
    """Scores candidates; boundaries are not its business."""

    @property
    def name(self) -> str:
        """What the user calls it."""
        ...

    def verify(self, recording: Recording, text: Mapping[str, TextFeatures], candidates: Sequence[Candidate]) -> list[float]:
        """Return one score in [0, 1] per candidate: the normalised probability that it is the moment of the query.

        Args:
            recording: The encoded recording; `path` leads to its sound.
            text: The encoded query, main stream first.
            candidates: The top-K of the decoder.
        """
        ...


@dataclass(frozen=True)
class PocketCoefficients:
    """Logistic of the `pocket` verifier: `sigmoid(bias + inside * mean + contrast * (mean - mean of the rest of the crop))`.

    Means are cosines of clips and query in the joint space. The values are set by hand to be neutral near a cosine of 0.35; fit them
    on validation scenes before reading the score as a probability.
    """

    bias: float = -2.8
    inside: float = 8.0
    contrast: float = 4.0


@dataclass(frozen=True)
class PocketVerifier:
    """Offline stand-in for a language model: compares the clips inside a window, and those around it, with the query.

    Source: ours; takes the crop of report section 2.3, and the pocket encoders in the place of Qwen2.5-Omni.
    """

    coefficients: PocketCoefficients = PocketCoefficients()
    name: str = "pocket"

    def verify(self, recording: Recording, text: Mapping[str, TextFeatures], candidates: Sequence[Candidate]) -> list[float]:
        """Score candidates; see `Verifier`.

        Raises:
            QamDetrError: The encoder in use has no joint space of audio and text.
        """
        cosine = clip_similarity(recording, text)
        c = self.coefficients
        scores = []
        for candidate in candidates:
            crop = crop_window(candidate.window, recording.duration_seconds)
            inside = _overlap_clips(candidate.window, len(cosine))
            around = _overlap_clips(crop, len(cosine)) - inside
            mean = float(inside @ cosine / inside.sum().clamp(min=1e-6))
            # A window that fills its crop (the whole recording) has nothing to stand out from.
            contrast = mean - float(around @ cosine / around.sum()) if float(around.sum()) > 1e-3 else 0.0
            scores.append(1 / (1 + math.exp(-(c.bias + c.inside * mean + c.contrast * contrast))))
        return scores


_VERIFIERS: dict[str, type[PocketVerifier] | None] = {"none": None, "pocket": PocketVerifier}


def get_verifier(name: str) -> Verifier | None:
    """Make a verifier by name; `none` gives None.

    Raises:
        QamDetrError: Unknown name, or one that this version does not have.
    """
    try:
        kind = _VERIFIERS[name]
    except KeyError:
        raise QamDetrError(f"Verifier {name!r} is not available in this version; choose one of {', '.join(_VERIFIERS)}.") from None
    return None if kind is None else kind()


def crop_window(window: Window, duration_seconds: float) -> Window:
    """Widen a window by 50 % of its length on both sides, cut at the recording's ends.

    Source: report section 2.3.
    """
    start, end = window
    margin = CONTEXT_SHARE * (end - start)
    return max(0.0, start - margin), min(duration_seconds, end + margin)


def clip_similarity(recording: Recording, text: Mapping[str, TextFeatures]) -> Tensor:
    """Cosine of each clip with the query in the joint space of the main streams: `(clips,)` in [-1, 1].

    Raises:
        QamDetrError: The main streams share no space.
    """
    stream, clips = next(iter(recording.streams.items()))
    pooled = next(iter(text.values())).pooled
    if pooled is None or pooled.shape[-1] != clips.shape[-1]:
        raise QamDetrError(f"Audio stream {stream!r} has no joint space with the query's text stream; use verifier 'none'.")
    return normalize(clips.float(), dim=-1) @ normalize(pooled.float(), dim=-1)


def _overlap_clips(window: Window, num_clips: int) -> Tensor:
    """Share of each one-second clip that lies in a window: `(num_clips,)` in [0, 1]."""
    begin = torch.arange(num_clips, dtype=torch.float32)
    return (torch.clamp(begin + 1, max=window[1]) - torch.clamp(begin, min=window[0])).clamp(min=0)
