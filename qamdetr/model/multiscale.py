"""Multi-scale temporal fusion: wider context is added to every clip, at full temporal resolution (report, section 2.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from torch import Tensor, nn

INITIAL_SCALE = 0.1
"""The context starts as a faint addition, so that the encoder trains first and the scales grow where they help."""


def masked_average_pool(x: Tensor, mask: Tensor, stride: int) -> Tensor:
    """Average each run of `stride` clips of `x` `(batch, clips, dim)` over its valid clips; a last, shorter run counts too.

    Returns:
        `(batch, ceil(clips / stride), dim)`, zero where a run has no valid clip.
    """
    missing = -x.shape[1] % stride
    batch, _, dim = x.shape
    weight = F.pad(mask.to(x.dtype), (0, missing)).reshape(batch, -1, stride)
    runs = F.pad(x, (0, 0, 0, missing)).reshape(batch, -1, stride, dim)
    return (runs * weight[..., None]).sum(dim=2) / weight.sum(dim=2).clamp(min=1.0)[..., None]


class MultiScaleFusion(nn.Module):
    """Adds, per stride, a pooled and convolved view of the sequence, repeated back to full resolution.

    Source: report, section 2.2, which names downsampled context, upsampling and residuals only. Our choices: masked average pooling,
    a convolution over three runs, repetition, and one learned residual scale per channel and stride. All of it sees valid clips
    alone, so padding changes nothing.
    """

    def __init__(self, dim: int, strides: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.convolutions = nn.ModuleList(nn.Conv1d(dim, dim, kernel_size=3, padding=1) for _ in self.strides)
        self.scales = nn.ParameterList(nn.Parameter(torch.full((dim,), INITIAL_SCALE)) for _ in self.strides)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Add context to `x` `(batch, clips, dim)` with `mask` `(batch, clips)` bool; same shape out."""
        fused = x
        for stride, convolution, scale in zip(self.strides, self.convolutions, self.scales, strict=True):
            pooled = masked_average_pool(x, mask, stride)
            context = F.gelu(convolution(pooled.mT).mT)
            context = context.repeat_interleave(stride, dim=1)[:, : x.shape[1]]
            fused = fused + scale * self.dropout(context)
        return fused
