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
    p = dropout.p if dropout.training else 0.0
    if p > 0.0 and q.device.type == "cpu":  # where PyTorch's own would draw slowly
        out = attention_weights((q / math.sqrt(q.shape[-1])) @ k.transpose(-1, -2), key_mask, dropout) @ v
    else:
        mask = None if key_mask is None else key_mask[:, None, None, :]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p)
    return out.transpose(1, 2).flatten(2)


def attention_weights(scores: Tensor, key_mask: Tensor | None, dropout: nn.Dropout) -> Tensor:
    """Softmax of scaled scores `(batch, num_heads, queries, keys)` over the keys that may be looked at, then dropout."""
    if key_mask is not None:
        scores = scores.masked_fill(~key_mask[:, None, None, :], -math.inf)
    weights: Tensor = dropout(scores.softmax(dim=-1))
    return weights


def few_queries_scores(queries: Tensor, source: Tensor, key: nn.Linear, num_heads: int) -> Tensor:
    """Return the scores, not yet scaled, of `queries` `(batch, n, dim)` on keys that `key` (without a bias) would make of `source`.

    `(batch, num_heads, n, m)` for `source` `(batch or 1, m, dim)`. The weight goes to the queries: where they are fewer than `dim` in all
    heads together, that is less work than to make the keys, which are then never held.
    """
    looks = torch.einsum("bnhd,hdc->bhnc", split_heads(queries, num_heads), rows_by_head(key, num_heads))
    return (looks.flatten(1, 2) @ source.transpose(1, 2)).view(*looks.shape[:3], -1)


def few_queries_mix(weights: Tensor, source: Tensor, value: nn.Linear) -> Tensor:
    """Mix what `value` would make of `source` `(batch, m, dim)` by `weights` `(batch, num_heads, n, m)`: mix first, then project."""
    num_heads = weights.shape[1]
    seen = (weights.flatten(1, 2) @ source).view(*weights.shape[:3], -1)
    mixed = torch.einsum("bhnc,hdc->bnhd", seen, rows_by_head(value, num_heads)).flatten(2)
    # Weights add up to 1 only without dropout.
    return mixed + weights.sum(dim=-1).transpose(1, 2).repeat_interleave(mixed.shape[2] // num_heads, dim=2) * value.bias


def rows_by_head(layer: nn.Linear, num_heads: int) -> Tensor:
    """Weights of a projection by head: `(num_heads, dim_out / num_heads, dim_in)`."""
    return layer.weight.view(num_heads, -1, layer.in_features)


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
        """`(batch, queries, dim)` looks at `(batch, keys, dim)`; see `attend` for the mask.

        Between a long recording and a short text, projections of the text's side take over those of the recording's: in the same sums,
        a third of the work.
        """
        few, heads = queries.shape[-1] // self.num_heads, self.num_heads
        if queries.shape[1] < min(few, keys.shape[1]):
            scores = few_queries_scores(self.query(queries), keys, self.key, heads) / math.sqrt(few)
            mixed = few_queries_mix(attention_weights(scores, key_mask, self.dropout), values, self.value)
        elif keys.shape[1] < min(few, queries.shape[1]):
            return self._at_few_keys(queries, split_heads(self.key(keys), heads), split_heads(self.value(values), heads), key_mask)
        else:
            projected = self.query(queries), self.key(keys), self.value(values)
            mixed = attend(*projected, num_heads=heads, key_mask=key_mask, dropout=self.dropout)
        out: Tensor = self.out(mixed)
        return out

    def _at_few_keys(self, queries: Tensor, keys: Tensor, values: Tensor, key_mask: Tensor | None) -> Tensor:
        """All of it for projected keys and values `(batch, keys, num_heads, dim / num_heads)`, which take on the weights they meet."""
        looked_at = torch.einsum("bmhd,hdc->bchm", keys, rows_by_head(self.query, self.num_heads)).flatten(2)
        shift = (keys * self.query.bias.view(keys.shape[2:])).sum(dim=-1).transpose(1, 2).flatten(1)
        scores = (queries @ looked_at + shift[:, None]).view(*queries.shape[:2], self.num_heads, -1).transpose(1, 2)
        weights = attention_weights(scores / math.sqrt(keys.shape[-1]), key_mask, self.dropout)
        given = torch.einsum("bmhd,ohd->bhmo", values, self.out.weight.view(-1, *values.shape[2:])).flatten(1, 2)
        out: Tensor = weights.transpose(1, 2).flatten(2) @ given + self.out.bias
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
