"""Dropout as this model uses it: cheap on a CPU, and together with the PReLU of a feed-forward network in one pass."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from torch import Tensor, nn

from qamdetr.kernels.backends import differentiable_once, run_kernel
from qamdetr.kernels.linear import Linear

_DRAWS = 1 << 16
"""Values that 16 random bits can take."""


class Dropout(nn.Module):
    """Zeroes a share of the values in training and scales up the rest; outside training it changes nothing.

    On a CPU the decision takes 16 random bits per value, four values to one draw of the generator, where `nn.Dropout` takes a draw and a
    logarithm each: that alone was a quarter of a training step. The share is therefore a multiple of 2^-16, and the scale fits it exactly.
    """

    def __init__(self, share: float) -> None:
        """Drop `share` of the values.

        Raises:
            ValueError: `share` is not in [0, 1).
        """
        super().__init__()
        if not 0.0 <= share <= 1.0 - 1.0 / _DRAWS:
            raise ValueError(f"The share to drop is {share}; it must be at least 0 and below 1.")
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        """Return `x`, of any shape, with some values dropped."""
        if not self.training or self.share == 0.0:
            return x
        return drop(x, self.share)

    def extra_repr(self) -> str:
        """Show the share, as `nn.Dropout` does."""
        return f"share={self.share}"


class FeedForward(nn.Sequential):
    """Feed-forward network of a Transformer block: Linear, PReLU, dropout, Linear; `(..., dim)` -> the same."""

    def __init__(self, dim: int, hidden: int, dropout: float) -> None:
        super().__init__(Linear(dim, hidden), nn.PReLU(), Dropout(dropout), Linear(hidden, dim))

    def forward(self, x: Tensor) -> Tensor:
        """Apply it; in training PReLU and dropout are one operation."""
        widen, bend, _, narrow = self
        dropout = cast("Dropout", self[2])
        share = dropout.share if dropout.training else 0.0
        hidden = widen(x)
        hidden = prelu_drop(hidden, cast("Tensor", bend.weight), share) if share else bend(hidden)
        out: Tensor = narrow(hidden)
        return out


def drop(x: Tensor, share: float) -> Tensor:
    """Zero `share` of the values of `x` and scale up the rest; see `Dropout`."""
    if not _has_kernel(x):
        return _drop_elsewhere(x, share)
    out: Tensor = _CpuDrop.apply(x, _random_draws(x.numel()), share)  # type: ignore[no-untyped-call]
    return out


def prelu_drop(x: Tensor, slope: Tensor, share: float) -> Tensor:
    """Apply a PReLU with one `slope` `(1,)` for negative values, then `drop`."""
    if not _has_kernel(x):
        return _drop_elsewhere(F.prelu(x, slope), share)
    out: Tensor = _CpuPreluDrop.apply(x, slope, _random_draws(x.numel()), share)  # type: ignore[no-untyped-call]
    return out


def _has_kernel(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32


def _drop_elsewhere(x: Tensor, share: float) -> Tensor:
    """Drop without a kernel; in other types on the CPU by the same draws, so that half precision can be compared with single."""
    if x.device.type != "cpu":
        return F.dropout(x, share)
    limit, scale = _limit_and_scale(share)
    return x * (_random_draws(x.numel()) >= limit).view(x.shape).to(x.dtype).mul_(scale)


def _random_draws(values: int) -> Tensor:
    """Draw 16 random bits for each of `values` values, from PyTorch's generator: `(values,)` int16."""
    # From the least int64 on, so that all 64 bits are random.
    return torch.empty((values + 3) // 4, dtype=torch.int64).random_(-(2**63), None).view(torch.int16)[:values]


def _limit_and_scale(share: float) -> tuple[int, float]:
    """Least draw that keeps a value, and what kept values are multiplied with."""
    dropped = round(share * _DRAWS)
    return dropped - _DRAWS // 2, _DRAWS / (_DRAWS - dropped)


class _CpuDrop(torch.autograd.Function):
    """The kernel as a differentiable operation; float32, on the CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, draws: Tensor, share: float) -> Tensor:  # noqa: ANN401 - torch's untyped context
        from qamdetr.kernels import dropout_kernels

        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        flat = x.detach().reshape(-1)
        run_kernel(dropout_kernels.drop, dropout_kernels.num_blocks(len(flat)), [flat, draws, *_limit_and_scale(share)], [out.view(-1)])
        ctx.save_for_backward(draws)
        ctx.share = share
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        (draws,) = ctx.saved_tensors
        grad_x: Tensor = _CpuDrop.apply(grad_out, draws, ctx.share)  # type: ignore[no-untyped-call]
        return grad_x, None, None


class _CpuPreluDrop(torch.autograd.Function):
    """The kernels as one differentiable operation; float32, on the CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Tensor, draws: Tensor, share: float) -> Tensor:  # noqa: ANN401
        from qamdetr.kernels import dropout_kernels

        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        inputs = [x.detach().reshape(-1), slope.detach(), draws]
        blocks = dropout_kernels.num_blocks(x.numel())
        run_kernel(dropout_kernels.prelu_drop, blocks, [*inputs, *_limit_and_scale(share)], [out.view(-1)])
        ctx.save_for_backward(*inputs)
        ctx.share = share
        return out

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, Tensor, None, None]:  # noqa: ANN401
        from qamdetr.kernels import dropout_kernels

        x, slope, draws = ctx.saved_tensors
        blocks = dropout_kernels.num_blocks(x.numel())
        grad_x, grad_slope = torch.empty_like(x), x.new_empty(blocks)
        inputs = [x, slope, draws, *_limit_and_scale(ctx.share), grad_out.reshape(-1)]
        run_kernel(dropout_kernels.prelu_drop_backward, blocks, inputs, [grad_x, grad_slope])
        return grad_x.view(grad_out.shape), grad_slope.sum(dim=0, keepdim=True), None, None
