"""The `pocket` verifier: an offline stand-in for a language model, built on the joint space of the encoders."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from qamdetr.config import VerifierConfig
from qamdetr.errors import QamDetrError
from qamdetr.types import Candidate, Recording, TextFeatures, Window
from qamdetr.verifiers.base import Verifier, crop_window, verifier


@dataclass(frozen=True)
class PocketCoefficients:
    """Logistic of the `pocket` verifier: `sigmoid(bias + inside * mean + contrast * (mean - mean of the rest of the crop))`.

    Means are cosines of clips and query in the joint space. The values are set by hand to be neutral near a cosine of 0.35; fit them
    on validation scenes before reading the score as a probability.
    """

    bias: float = -2.8
    inside: float = 8.0
    contrast: float = 4.0


@verifier("pocket", label="Pocket (offline stand-in)", hears=False)
class PocketVerifier(Verifier):
    """Offline stand-in for a language model: compares the clips inside a window, and those around it, with the query.

    Source: ours; takes the crop of report section 2.3, and the pocket encoders in the place of Qwen2.5-Omni.
    """

    def __init__(self, settings: VerifierConfig | None = None, coefficients: PocketCoefficients | None = None) -> None:
        super().__init__(settings)
        self.coefficients = coefficients or PocketCoefficients()

    @property
    def identity(self) -> str:
        """Name and coefficients; the encoders are the checkpoint's."""
        return f"{self.name} {self.coefficients}"

    def verify(self, recording: Recording, query: str, text: Mapping[str, TextFeatures], candidates: Sequence[Candidate]) -> list[float]:
        """Score candidates; refuses encoders without a joint space of audio and text."""
        cosine = clip_similarity(recording, text)
        c = self.coefficients
        scores = []
        for candidate in candidates:
            inside = _overlap_clips(candidate.window, len(cosine))
            around = _overlap_clips(crop_window(candidate.window, recording.duration_seconds), len(cosine)) - inside
            mean = float(inside @ cosine / inside.sum().clamp(min=1e-6))
            # A window that fills its crop (the whole recording) has nothing to stand out from.
            contrast = mean - float(around @ cosine / around.sum()) if float(around.sum()) > 1e-3 else 0.0
            scores.append(1 / (1 + math.exp(-(c.bias + c.inside * mean + c.contrast * contrast))))
        return scores


def clip_similarity(recording: Recording, text: Mapping[str, TextFeatures]) -> Tensor:
    """Cosine of each clip with the query in the joint space of the main streams: `(clips,)` in [-1, 1]."""
    stream, clips = next(iter(recording.streams.items()))
    pooled = next(iter(text.values())).pooled
    if pooled is None or pooled.shape[-1] != clips.shape[-1]:
        raise QamDetrError(f"Audio stream {stream!r} has no joint space with the query's text stream; use verifier 'none'.")
    return normalize(clips.float(), dim=-1) @ normalize(pooled.float(), dim=-1)


def _overlap_clips(window: Window, num_clips: int) -> Tensor:
    """Share of each one-second clip that lies in a window: `(num_clips,)` in [0, 1]."""
    begin = torch.arange(num_clips, dtype=torch.float32)
    return (torch.clamp(begin + 1, max=window[1]) - torch.clamp(begin, min=window[0])).clamp(min=0)
