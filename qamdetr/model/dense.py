"""The dense decoder: every clip, and every longer cell of clips, says whether a moment is centred near it and how far its ends are.

Source: the anchor-free heads of FCOS (Tian et al., ICCV 2019) and ActionFormer (Zhang et al., ECCV 2022), with a quality as in the report,
section 2.3. A moment query has to say the centre as a share of the recording; a cell, how many of its own lengths away an end is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from torch import Tensor, nn

from qamdetr.model.multiscale import masked_average_pool
from qamdetr.types import DecoderOutput

PRIOR = 0.01
"""Foreground of every cell before training: most cells hold no moment, and their loss should not drown the others' at first."""


class Tower(nn.Module):
    """Convolutions over three cells, each with LayerNorm, GELU and dropout; padded cells count as zeros, like those beyond the ends."""

    def __init__(self, dim: int, num_layers: int, dropout: float) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv1d(dim, dim, kernel_size=3, padding=1) for _ in range(num_layers))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(num_layers))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Update `x` `(batch, cells, dim)` with `mask` `(batch, cells)` bool."""
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = self.dropout(F.gelu(norm(convolution(x.masked_fill(~mask[..., None], 0.0).mT).mT)))
        return x


class DenseDecoder(nn.Module):
    """One set of layers on all levels, which are the memory averaged over cells of `strides` clips; a learned vector tells them apart.

    The sources keep either distance positive, with a softplus of its own, so a cell can say no window that its middle is not in; many that
    are shorter than a clip lie beside every middle. Here only the sum is kept so, which far from zero is the same.
    """

    def __init__(self, dim: int, strides: Sequence[int], dropout: float, *, quality: bool) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.levels = nn.Parameter(0.02 * torch.randn(len(self.strides), dim))
        self.stem = Tower(dim, 1, dropout)
        self.find = Tower(dim, 2, dropout)
        self.measure = Tower(dim, 2, dropout)
        self.inside = nn.Linear(dim, 1)
        self.distances = nn.Linear(dim, 2)
        self.quality = nn.Linear(dim, 1) if quality else None
        nn.init.constant_(self.inside.bias, math.log(PRIOR / (1.0 - PRIOR)))

    def forward(self, memory: Tensor, mask: Tensor, *, bypass_quality: bool = False) -> DecoderOutput:
        """Predict from `memory` `(batch, clips, dim)` with `mask` `(batch, clips)` bool, valid clips first.

        `slots` of the output are the cells, the finest level first; those in the padding hold finite numbers that mean nothing
        (`DecoderOutput.valid`). `bypass_quality` leaves `quality_logits` None, as without the head.
        """
        pooled, valid, cells = [], [], []
        for level, stride in zip(self.levels, self.strides, strict=True):
            # A cell of padding behind each level keeps it from the next: all go through the layers at once.
            pooled.append(F.pad(masked_average_pool(memory, mask, stride) + level, (0, 0, 0, 1)))
            valid.append(F.pad(mask[:, ::stride], (0, 1)))
            starts = torch.arange(0, mask.shape[1], stride, dtype=torch.float32, device=mask.device)
            cells.append(torch.stack([starts + 0.5 * stride, torch.full_like(starts, stride)], dim=-1))
        x, usable, grid = torch.cat(pooled, dim=1), torch.cat(valid, dim=1), torch.cat(cells)
        own = torch.cat([F.pad(torch.ones(len(level), dtype=torch.bool), (0, 1)) for level in cells]).nonzero()[:, 0].to(mask.device)
        x = self.stem(x, usable)
        inside, ends = self.inside(self.find(x, usable)[:, own]), self.measure(x, usable)[:, own]
        before, after = self.distances(ends).unbind(-1)
        middles, sizes = grid.unbind(-1)
        spans_clips = torch.stack([middles + 0.5 * (after - before) * sizes, F.softplus(before + after) * sizes], dim=-1)
        return DecoderOutput(
            logits=torch.cat([inside, torch.zeros_like(inside)], dim=-1),
            spans_cxw=spans_clips / mask.sum(dim=1).clamp(min=1)[:, None, None],
            quality_logits=None if self.quality is None or bypass_quality else self.quality(ends).squeeze(-1),
            cells=grid,
        )
