"""Prediction heads: class, span and quality of each moment query; saliency of each clip (report, sections 2 and 2.3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from qamdetr.kernels.linear import Linear
from qamdetr.model.layers import Mlp
from qamdetr.types import DecoderOutput


class MomentHeads(nn.Module):
    """Reads class, span and (optionally) quality off the content of the moment queries; shared by all decoder layers."""

    def __init__(self, dim: int, *, quality: bool) -> None:
        super().__init__()
        self.label = Linear(dim, 2)
        self.span = Mlp(dim, dim, 2, 3)
        self.quality = Mlp(dim, dim, 1, 3) if quality else None

    def forward(self, content: Tensor, anchor_logits: Tensor, *, bypass_quality: bool = False) -> DecoderOutput:
        """Predict from one decoder layer.

        Args:
            content: `(batch, moment_queries, dim)`.
            anchor_logits: `(batch, moment_queries, 2)` logits of (centre, width); the span head adds to them.
            bypass_quality: Leave `quality_logits` None, as without the head.
        """
        quality = None if self.quality is None or bypass_quality else self.quality(content).squeeze(-1)
        return DecoderOutput(logits=self.label(content), spans_cxw=(self.span(content) + anchor_logits).sigmoid(), quality_logits=quality)


class SaliencyHead(nn.Module):
    """Relevance of each clip: `<W1 memory_t, W2 query> / sqrt(dim)`.

    Source: QD-DETR's saliency score.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.memory = Linear(dim, dim)
        self.query = Linear(dim, dim)
        self.scale = 1.0 / math.sqrt(dim)

    def forward(self, memory: Tensor, query: Tensor, mask: Tensor) -> Tensor:
        """Score `memory` `(batch, clips, dim)` against `query` `(batch, dim)`: `(batch, clips)`, padded clips the lowest float."""
        scores = torch.einsum("btd,bd->bt", self.memory(memory), self.query(query)) * self.scale
        return scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
