"""From model output to candidates: scores of the decoder (report, Eq. 2), windows in seconds, overlap suppression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from qamdetr import spans
from qamdetr.types import Candidate, ModelOutput

DecodeProtocol = Literal["exact", "official"]

OFFICIAL_MAX_SECONDS = 300.0
"""The field's post-processing cuts every window here, whatever the recording's length."""

OFFICIAL_SCORE_DECIMALS = 4


def decode(
    output: ModelOutput,
    durations_seconds: Sequence[float],
    num_clips: Sequence[int],
    *,
    nms_iou: float = 1.0,
) -> list[list[Candidate]]:
    """Read the candidates off the last decoder layer, best decoder score first; equal scores keep the order of the moment queries.

    Args:
        output: Model output of a batch.
        durations_seconds: True length of each item; windows are clamped to it.
        num_clips: Valid clips of each item; spans are relative to them.
        nms_iou: A candidate that overlaps a better one by more is dropped; 1.0 keeps all.

    Source: report section 2.3.
    """
    foreground = output.decoder.logits.detach().float().softmax(dim=-1)[..., 0]
    quality_logits = output.decoder.quality_logits
    quality = torch.ones_like(foreground) if quality_logits is None else quality_logits.detach().float().sigmoid()
    # In float64, so that clamping to the duration is exact.
    spans_cxw = output.decoder.spans_cxw.detach().double()
    return [
        _decode_item(spans_cxw[i].cpu(), foreground[i].cpu(), quality[i].cpu(), duration, clips, nms_iou)
        for i, (duration, clips) in enumerate(zip(durations_seconds, num_clips, strict=True))
    ]


def _decode_item(
    spans_cxw: Tensor,
    foreground: Tensor,
    quality: Tensor,
    duration_seconds: float,
    num_clips: int,
    nms_iou: float,
) -> list[Candidate]:
    windows = spans.spans_cxw_to_windows(spans_cxw, num_clips, duration_seconds).tolist()
    candidates = [
        Candidate(start_seconds=start, end_seconds=end, foreground=p, quality=q, decoder_score=p * q)
        for (start, end), p, q in zip(windows, foreground.tolist(), quality.tolist(), strict=True)
    ]
    candidates.sort(key=lambda candidate: -candidate.decoder_score)
    return suppress(candidates, nms_iou)


def suppress(candidates: Sequence[Candidate], nms_iou: float) -> list[Candidate]:
    """Drop candidates that overlap a better one by more than `nms_iou`; returns best decoder score first."""
    if nms_iou >= 1.0 or len(candidates) < 2:
        return sorted(candidates, key=lambda candidate: -candidate.decoder_score)
    kept = spans.nms([candidate.window for candidate in candidates], [candidate.decoder_score for candidate in candidates], nms_iou)
    return [candidates[index] for index in kept]


def round_officially(candidate: Candidate, duration_seconds: float) -> Candidate:
    """Clamp a candidate to [0, 300] s and round it to whole seconds and a score of four decimals; its window can become empty.

    Source: the DCASE 2026 Task 6 baseline. It is the last step, after merging and pooling.
    """
    limit = min(OFFICIAL_MAX_SECONDS, duration_seconds)
    return replace(
        candidate,
        start_seconds=float(round(min(candidate.start_seconds, limit))),
        end_seconds=float(round(min(candidate.end_seconds, limit))),
        decoder_score=round(candidate.decoder_score, OFFICIAL_SCORE_DECIMALS),
    )
