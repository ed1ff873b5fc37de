"""Small layers that the rooms of the model share: attention, feed-forward, MLP, sine embedding."""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from torch import Tensor, nn

_SINE_TEMPERATURE = 10000.0


def sine_embedding(values: Tensor, dim: int) -> Tensor:
    """Embed numbers in [0, 1] as sines and cosines, from one turn over the range to almost none.

    Args:
        values: Any shape.
        dim: Even number of columns; sines at even columns, cosines at odd ones.

    Returns:
        `values.shape + (dim,)`.

    Source: QD-DETR's position and anchor embeddings (scale 2 pi, temperature 10000).
    """
    pair = torch.arange(dim // 2, dtype=torch.float32, device=values.device)
    angle = values[..., None] * (2.0 * math.pi) / _SINE_TEMPERATURE ** (2.0 * pair / dim)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2)


def clip_positions(mask: Tensor, dim: int) -> Tensor:
    """Sine positions of clips, normalised over each recording's valid clips: `(batch, clips)` bool -> `(batch, clips, dim)`."""
    order = mask.cumsum(dim=1, dtype=torch.float32)
    return sine_embedding(order / order[:, -1:].clamp(min=1.0), dim)


def attend(queries: Tensor, keys: Tensor, values: Tensor, *, num_heads: int, key_mask: Tensor | None, dropout: nn.Dropout) -> Tensor:
    """Scaled dot-product attention over `num_heads` slices of the last dimension.

    Args:
        queries: `(batch, queries, dim_k)`.
        keys: `(batch, keys, dim_k)`.
        values: `(batch, keys, dim_v)`.
        num_heads: Divides `dim_k` and `dim_v`.
        key_mask: `(batch, keys)` bool, True = may be looked at, at least one per item; None for all.
        dropout: Of the attention weights.

    Returns:
        `(batch, queries, dim_v)`.
    """
    q, k, v = (split_heads(part, num_heads).transpose(1, 2) for part in (queries, keys, values))
    mask = None if key_mask is None else key_mask[:, None, None, :]
    p = dropout.p if dropout.training else 0.0
    if p > 0.0 and q.device.type == "cpu":  # where PyTorch's own would draw slowly
        scores = (q / math.sqrt(q.shape[-1])) @ k.transpose(-1, -2)
        weights = (scores if mask is None else scores.masked_fill(~mask, -math.inf)).softmax(dim=-1)
        out: Tensor = dropout(weights) @ v
    else:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p)
    return out.transpose(1, 2).flatten(2)


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """`(batch, n, dim)` -> `(batch, n, num_heads, dim / num_heads)`."""
    return x.reshape(*x.shape[:-1], num_heads, x.shape[-1] // num_heads)


def xavier_init(module: nn.Module) -> None:
    """Initialise every matrix inside `module` with Xavier's uniform rule, as DETR does for its transformer."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)


class Mlp(nn.Module):
    """Linear layers with ReLU between them: `(..., dim_in)` -> `(..., dim_out)`."""

    def __init__(self, dim_in: int, dim_hidden: int, dim_out: int, num_layers: int) -> None:
        super().__init__()
        sizes = [dim_in, *[dim_hidden] * (num_layers - 1), dim_out]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layers; the last one has no ReLU."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        out: Tensor = self.layers[-1](x)
        return out


class Attention(nn.Module):
    """Multi-head attention with its projections.

    The key projection has no bias: it would add the same amount to all scores of a query, which softmax takes away again.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = nn.Dropout(dropout)
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, key_mask: Tensor | None) -> Tensor:
        """`(batch, queries, dim)` looks at `(batch, keys, dim)`; see `attend` for the mask."""
        projected = self.query(queries), self.key(keys), self.value(values)
        out: Tensor = self.out(attend(*projected, num_heads=self.num_heads, key_mask=key_mask, dropout=self.dropout))
        return out


def feed_forward(dim: int, hidden: int, dropout: float) -> nn.Sequential:
    """Make the feed-forward network of a Transformer block: `(..., dim)` -> the same."""
    return nn.Sequential(nn.Linear(dim, hidden), nn.PReLU(), nn.Dropout(dropout), nn.Linear(hidden, dim))


class AttentionBlock(nn.Module):
    """Attention and feed-forward network (PReLU between its two layers), each with dropout, residual and LayerNorm.

    Source: the official baseline's encoder layer. Deliberate difference: where its text-to-audio layer adds the feed-forward
    output to the values before the first norm, this one is the usual post-norm block.
    """

    def __init__(self, dim: int, num_heads: int, ffn_dim: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(dim, num_heads, dropout)
        self.ffn = feed_forward(dim, ffn_dim, dropout)
        self.norm_attention = nn.LayerNorm(dim)
        self.norm_ffn = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, source: Tensor, source_mask: Tensor | None, *,
        x_positions: Tensor | None = None, source_positions: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Update `x` `(batch, n, dim)` with what it finds in `source` `(batch, m, dim)`.

        `source_mask` is `(batch, m)` bool; `x_positions` are added to the attention's queries, `source_positions` to its keys, not to its
        values.
        """
        queries = x if x_positions is None else x + x_positions
        keys = source if source_positions is None else source + source_positions
        x = self.norm_attention(x + self.dropout(self.attention(queries, keys, source, source_mask)))
        out: Tensor = self.norm_ffn(x + self.dropout(self.ffn(x)))
        return out
