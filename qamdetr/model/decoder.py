"""The DAB-style moment decoder, whose moment queries move their anchors layer by layer, and the heads (report, sections 2 and 2.3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from qamdetr.model.layers import (
    Mlp,
    attend,
    attention_weights,
    feed_forward,
    few_queries_mix,
    few_queries_scores,
    sine_embedding,
    xavier_init,
)
from qamdetr.types import DecoderOutput

ANCHOR_EPSILON = 1e-3
"""Anchors stay this far from 0 and 1 when taken back to logits; 0.3 s of a 300 s recording."""


def inverse_sigmoid(x: Tensor) -> Tensor:
    """Logits of shares in [0, 1], bounded by `ANCHOR_EPSILON`."""
    return torch.log(x.clamp(min=ANCHOR_EPSILON)) - torch.log((1.0 - x).clamp(min=ANCHOR_EPSILON))


class DecoderLayer(nn.Module):
    """Self-attention among moment queries, attention to the memory, feed-forward; post-norm.

    Content and position stay apart in the attention to the memory. Projections of keys have no bias (see `layers.Attention`).

    Source: DAB-DETR (Liu et al., ICLR 2022) as QD-DETR uses it in one dimension.
    """

    def __init__(self, dim: int, num_heads: int, ffn_dim: int, dropout: float, *, first: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_dropout = nn.Dropout(dropout)
        self.self_query = nn.Linear(dim, dim)
        self.self_query_position = nn.Linear(dim, dim)
        self.self_key = nn.Linear(dim, dim, bias=False)
        self.self_key_position = nn.Linear(dim, dim, bias=False)
        self.self_value = nn.Linear(dim, dim)
        self.self_out = nn.Linear(dim, dim)
        self.cross_query = nn.Linear(dim, dim)
        # Only in the first layer, where the content says nothing yet, does the anchor also enter the content half.
        self.cross_query_position = nn.Linear(dim, dim) if first else None
        self.cross_query_sine = nn.Linear(dim, dim)
        self.cross_key = nn.Linear(dim, dim, bias=False)
        self.cross_key_position = nn.Linear(dim, dim, bias=False)
        self.cross_value = nn.Linear(dim, dim)
        self.cross_out = nn.Linear(dim, dim)
        self.ffn = feed_forward(dim, ffn_dim, dropout)
        self.norm_self = nn.LayerNorm(dim)
        self.norm_cross = nn.LayerNorm(dim)
        self.norm_ffn = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, content: Tensor, anchor_position: Tensor, anchor_sine: Tensor, memory: Tensor, memory_mask: Tensor, memory_position: Tensor
    ) -> Tensor:
        """Update the content of the moment queries, `(batch, moment_queries, dim)`.

        `anchor_position` and `anchor_sine` have its shape: a learned embedding of the anchors, and a sine embedding modulated by their
        width. The memory's are as in `MomentDecoder.forward`.
        """
        dropout = self.attention_dropout
        queries = self.self_query(content) + self.self_query_position(anchor_position)
        keys = self.self_key(content) + self.self_key_position(anchor_position)
        mixed = attend(queries, keys, self.self_value(content), num_heads=self.num_heads, key_mask=None, dropout=dropout)
        content = self.norm_self(content + self.dropout(self.self_out(mixed)))

        # Each head compares content with content and anchor with clip position; two scores that are added are one of both side by side.
        queries, anchors = self.cross_query(content), self.cross_query_sine(anchor_sine)
        if self.cross_query_position is not None:
            queries = queries + self.cross_query_position(anchor_position)
            anchors = anchors + queries  # in the first layer, the clips' position enters the content half of the keys as well
        scores = few_queries_scores(queries, memory, self.cross_key, self.num_heads)
        scores = scores + few_queries_scores(anchors, memory_position, self.cross_key_position, self.num_heads)
        weights = attention_weights(scores / math.sqrt(2 * content.shape[-1] // self.num_heads), memory_mask, dropout)
        mixed = few_queries_mix(weights, memory, self.cross_value)
        content = self.norm_cross(content + self.dropout(self.cross_out(mixed)))
        out: Tensor = self.norm_ffn(content + self.dropout(self.ffn(content)))
        return out


class MomentDecoder(nn.Module):
    """Moment queries with learned (centre, width) anchors, refined after every layer.

    Source: QD-DETR. Deliberate differences: the content of a moment query starts at a learned vector (zero at first) instead of a
    fixed zero, under which the first self-attention has nothing to mix; the width that divides the sine embedding is bounded below.
    """

    def __init__(self, dim: int, num_heads: int, ffn_dim: int, dropout: float, *, num_layers: int, num_moment_queries: int) -> None:
        super().__init__()
        self.dim = dim
        self.layers = nn.ModuleList(DecoderLayer(dim, num_heads, ffn_dim, dropout, first=index == 0) for index in range(num_layers))
        self.norm = nn.LayerNorm(dim)
        self.anchor_position = Mlp(dim, dim, dim, 2)
        self.width_condition = Mlp(dim, dim, 1, 2)
        # With one layer there is no later one to scale or to move anchors for.
        self.sine_scale = Mlp(dim, dim, dim, 2) if num_layers > 1 else None
        self.refine = Mlp(dim, dim, 2, 3) if num_layers > 1 else None
        xavier_init(self)
        self.anchor_logits = nn.Parameter(torch.randn(num_moment_queries, 2))
        self.content = nn.Parameter(torch.zeros(num_moment_queries, dim))
        if self.refine is not None:
            # Anchors move only once there is a reason to.
            for parameter in self.refine.layers[-1].parameters():
                nn.init.zeros_(parameter)

    def forward(self, memory: Tensor, memory_mask: Tensor, memory_position: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Decode `memory` `(batch, clips, dim)` with `memory_mask` `(batch, clips)` bool.

        `memory_position` are sine positions `(batch, clips, dim)`, or `(1, clips, dim)` where they are the same for all.

        Returns:
            Per layer: content `(batch, moment_queries, dim)`, normalised, and the logits `(batch, moment_queries, 2)` of the anchors
            (centre, width) that the layer started from; the span head predicts an offset to them.
        """
        batch = memory.shape[0]
        content = self.content.expand(batch, -1, -1)
        logits = self.anchor_logits.expand(batch, -1, -1)
        anchors = logits.sigmoid()
        outputs: list[tuple[Tensor, Tensor]] = []
        for index, layer in enumerate(self.layers):
            sine = sine_embedding(anchors, self.dim // 2).flatten(-2)
            position = self.anchor_position(sine)
            if self.sine_scale is not None and index > 0:
                sine = sine * self.sine_scale(content)
            # A wide anchor looks widely: the position half of the attention flattens as the width grows.
            width = anchors[..., 1:].clamp(min=ANCHOR_EPSILON)
            sine = sine * (self.width_condition(content).sigmoid() / width)
            content = layer(content, position, sine, memory, memory_mask, memory_position)
            outputs.append((self.norm(content), logits))
            if self.refine is not None and index + 1 < len(self.layers):
                refined = (self.refine(content) + inverse_sigmoid(anchors)).sigmoid()
                logits = inverse_sigmoid(refined)
                # The next layer's prediction may move this offset, its attention may not (look forward once).
                anchors = refined.detach()
        return outputs


class MomentHeads(nn.Module):
    """Reads class, span and (optionally) quality off the content of the moment queries; shared by all decoder layers."""

    def __init__(self, dim: int, *, quality: bool) -> None:
        super().__init__()
        self.label = nn.Linear(dim, 2)
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
        self.memory = nn.Linear(dim, dim)
        self.query = nn.Linear(dim, dim)
        self.scale = 1.0 / math.sqrt(dim)

    def forward(self, memory: Tensor, query: Tensor, mask: Tensor) -> Tensor:
        """Score `memory` `(batch, clips, dim)` against `query` `(batch, dim)`: `(batch, clips)`, padded clips the lowest float."""
        scores = torch.einsum("btd,bd->bt", self.memory(memory), self.query(query)) * self.scale
        return scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
