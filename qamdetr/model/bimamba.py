"""Bidirectional Mamba: the temporal encoder of QAM-DETR (report section 2.2).

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

from qamdetr.kernels.backends import choose_backend
from qamdetr.kernels.causal_conv import causal_conv_silu
from qamdetr.kernels.dropout import Dropout
from qamdetr.kernels.linear import Linear, linear
from qamdetr.kernels.scan import selective_scan_channels_last
from qamdetr.kernels.time_order import reverse_valid


class Mamba(nn.Module):
    """One Mamba block, causal: `(batch, clips, dim)` -> the same; no residual, no normalisation.

    Source: Gu & Dao (https://arxiv.org/abs/2312.00752), Figure 3; parameter names, shapes and initialisation of `mamba_ssm.Mamba`.
    """

    def __init__(self, dim: int, *, state: int = 16, conv: int = 4, expand: int = 2) -> None:
        super().__init__()
        inner = expand * dim
        self.state = state
        self.dt_rank = math.ceil(dim / 16)
        self.in_proj = Linear(dim, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, conv, groups=inner, padding=conv - 1)
        self.x_proj = Linear(inner, self.dt_rank + 2 * state, bias=False)
        self.dt_proj = Linear(self.dt_rank, inner)
        self.A_log = nn.Parameter(torch.log(torch.arange(1, state + 1, dtype=torch.float32)).repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = Linear(inner, dim, bias=False)
        self._reset_step_size()

    def _reset_step_size(self, shortest: float = 1e-3, longest: float = 0.1, floor: float = 1e-4) -> None:
        """Let step sizes start log-uniform in [shortest, longest], so that channels remember over different times."""
        nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        dt = torch.exp(torch.empty_like(self.D).uniform_(math.log(shortest), math.log(longest))).clamp(min=floor)
        with torch.no_grad():
            self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # inverse of softplus

    def forward(self, x: Tensor) -> Tensor:
        """Mix each clip with the clips before it; `x` is `(batch, clips, dim)`."""
        out: Tensor = self.out_proj(self.mix(x))
        return out

    def mix(self, x: Tensor, *, lengths: Tensor | None = None, reverse: bool = False) -> Tensor:
        """Do all but the last projection: `(batch, clips, dim)` -> `(batch, clips, inner)`; `lengths`, `reverse` as in `time_order.py`."""
        # One product each for u and z, rather than one that is cut in two, leaves both contiguous: what the kernels take without a copy.
        u, z = (linear(x, weight) for weight in self.in_proj.weight.chunk(2))
        u = causal_conv_silu(u, self.conv1d.weight, cast("Tensor", self.conv1d.bias), lengths=lengths, reverse=reverse)
        dt, B, C = self.x_proj(u).split([self.dt_rank, self.state, self.state], dim=-1)  # noqa: N806 - the paper's letters
        delta = linear(dt, self.dt_proj.weight)
        y, _ = selective_scan_channels_last(
            u, delta, -torch.exp(self.A_log), B, C, self.D, z, delta_bias=self.dt_proj.bias, delta_softplus=True,
            lengths=lengths, reverse=reverse,
        )  # fmt: skip
        return y


class BiMambaLayer(nn.Module):
    """Two Mamba branches, one along time and one against it; concat, Linear, dropout, residual, LayerNorm (report section 2.2)."""

    def __init__(self, dim: int, *, state: int = 16, conv: int = 4, expand: int = 2, dropout: float = 0.1) -> None:
        super().__init__()
        self.forward_branch = Mamba(dim, state=state, conv=conv, expand=expand)
        self.backward_branch = Mamba(dim, state=state, conv=conv, expand=expand)
        self.merge = Linear(2 * dim, dim)
        self.dropout = Dropout(dropout)
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


def warm_up() -> None:
    """Compile the CPU kernels, forward and backward; call it at start-up so that nobody waits for it later.

    Takes some ten seconds on a fresh machine; afterwards the kernels come from Numba's cache.
    """
    with torch.enable_grad():
        Mamba(4)(torch.zeros(1, 2, 4, requires_grad=True)).sum().backward()
