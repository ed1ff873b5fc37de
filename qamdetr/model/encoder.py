"""Temporal encoders: bidirectional Mamba (report, section 2.2), and the Transformer of the baseline.

Glossary (mamba-ssm's names, kept so that weights move both ways by name):

    dim     width of the input and output                     inner    width inside a block, `expand * dim` (d_inner)
    state   size of the hidden state per channel (d_state)    conv     taps of the short causal convolution (d_conv)
    dt_rank width that the step size is predicted from, `ceil(dim / 16)`
    in_proj      input -> u and gate z                        conv1d   causal, one filter per channel
    x_proj       u -> (dt, B, C)                              dt_proj  dt -> raw step size delta; its bias goes into the scan
    A_log        log(-A), so that A stays negative            D        skip weight of the scan
    out_proj     back to dim

The scan itself and its letters are in `scan.py`. Masks are True = valid, and valid clips come first.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from qamdetr.kernels.cpu import linear
from qamdetr.kernels.scan import causal_conv_silu, choose_backend, reverse_valid, selective_scan
from qamdetr.model.layers import AttentionBlock, xavier_init


class Mamba(nn.Module):
    """One Mamba block, causal: `(batch, clips, dim)` -> the same; no residual, no normalisation.

    Source: Gu & Dao (https://arxiv.org/abs/2312.00752), Figure 3; parameter names, shapes and initialisation of `mamba_ssm.Mamba`.
    """

    def __init__(self, dim: int, *, state: int = 16, conv: int = 4, expand: int = 2) -> None:
        super().__init__()
        inner = expand * dim
        self.state = state
        self.dt_rank = math.ceil(dim / 16)
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, conv, groups=inner, padding=conv - 1)
        self.x_proj = nn.Linear(inner, self.dt_rank + 2 * state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, inner)
        self.A_log = nn.Parameter(torch.log(torch.arange(1, state + 1, dtype=torch.float32)).repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, dim, bias=False)
        # Step sizes start log-uniform in [0.001, 0.1], so that channels remember over different times.
        nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        dt = torch.exp(torch.empty_like(self.D).uniform_(math.log(1e-3), math.log(0.1)))
        with torch.no_grad():
            self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # inverse of softplus

    def forward(self, x: Tensor) -> Tensor:
        """Mix each clip with the clips before it; `x` is `(batch, clips, dim)`."""
        out: Tensor = self.out_proj(self.mix(x))
        return out

    def mix(self, x: Tensor, *, lengths: Tensor | None = None, reverse: bool = False) -> Tensor:
        """Do all but the last projection: `(batch, clips, dim)` -> `(batch, clips, inner)`; `lengths` and `reverse` as in `scan.py`."""
        # One product each for u and z, rather than one that is cut in two, leaves both contiguous: what the kernels take without a copy.
        u, z = (linear(x, weight) for weight in self.in_proj.weight.chunk(2))
        u = causal_conv_silu(u, self.conv1d.weight, cast("Tensor", self.conv1d.bias), lengths=lengths, reverse=reverse)
        dt, B, C = self.x_proj(u).split([self.dt_rank, self.state, self.state], dim=-1)  # noqa: N806 - the paper's letters
        delta = linear(dt, self.dt_proj.weight)
        return selective_scan(u, delta, -torch.exp(self.A_log), B, C, self.D, z, self.dt_proj.bias, lengths=lengths, reverse=reverse)


class BiMambaLayer(nn.Module):
    """Two Mamba branches, one along time and one against it; concat, Linear, dropout, residual, LayerNorm (report section 2.2)."""

    def __init__(self, dim: int, *, state: int = 16, conv: int = 4, expand: int = 2, dropout: float = 0.1) -> None:
        super().__init__()
        self.forward_branch = Mamba(dim, state=state, conv=conv, expand=expand)
        self.backward_branch = Mamba(dim, state=state, conv=conv, expand=expand)
        self.merge = nn.Linear(2 * dim, dim)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return `(batch, clips, dim)`; what stands in padded clips of `x` reaches no valid clip.

        Args:
            x: `(batch, clips, dim)`, finite everywhere.
            mask: `(batch, clips)` bool, valid clips first.
        """
        # Nothing stands between a branch's last projection and the merge, so that the two are one product, of the two small matrices.
        ahead_weight, back_weight = (
            merge @ branch.out_proj.weight
            for merge, branch in zip(self.merge.weight.chunk(2, dim=1), (self.forward_branch, self.backward_branch), strict=True)
        )
        if choose_backend(None, [x]) == "cpu":
            lengths = mask.sum(dim=1)
            back = linear(self.backward_branch.mix(x, lengths=lengths, reverse=True), back_weight, self.merge.bias)
            ahead = self.forward_branch.mix(x, lengths=lengths)
        else:
            # Elsewhere a step against time has to move tensors, so the narrow ones at the branch's ends rather than those of its kernels.
            back = reverse_valid(linear(self.backward_branch.mix(reverse_valid(x, mask)), back_weight, self.merge.bias), mask)
            ahead = self.forward_branch.mix(x)
        out: Tensor = self.norm(x + self.dropout(linear(ahead, ahead_weight) + back))
        return out


class BiMambaEncoder(nn.Module):
    """A stack of BiMamba layers: the temporal encoder that gives the memory."""

    def __init__(self, dim: int, num_layers: int, *, state: int = 16, conv: int = 4, expand: int = 2, dropout: float = 0.1) -> None:
        super().__init__()
        self.layers = nn.ModuleList(BiMambaLayer(dim, state=state, conv=conv, expand=expand, dropout=dropout) for _ in range(num_layers))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Let each clip see the whole recording, before and after it.

        Args:
            x: `(batch, clips, dim)`; padded clips may hold anything.
            mask: `(batch, clips)` bool, valid clips first.

        Returns:
            `(batch, clips, dim)`, zero in padded clips. An item comes out the same alone and in a padded batch.
        """
        padding = ~mask[..., None]
        x = x.masked_fill(padding, 0.0)
        for layer in self.layers:
            x = layer(x, mask).masked_fill(padding, 0.0)
        return x


class TransformerEncoder(nn.Module):
    """Stacked post-norm self-attention blocks with PReLU.

    Source: the official baseline (QD-DETR's encoder).
    """

    def __init__(self, dim: int, num_layers: int, *, num_heads: int, ffn_dim: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(AttentionBlock(dim, num_heads, ffn_dim, dropout) for _ in range(num_layers))
        xavier_init(self)

    def forward(self, x: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        """Encode `x` `(batch, clips, dim)` with `mask` `(batch, clips)` bool and `positions` shaped like `x`; same shape out."""
        for layer in self.layers:
            x = layer(x, x, mask, x_positions=positions, source_positions=positions)
        return x
