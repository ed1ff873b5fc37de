"""Short causal convolution per channel, then SiLU: what a Mamba block does before its scan.

`out_t = silu(bias + sum_k weight_k * x_{t - taps + 1 + k})` for each channel by itself, with zeros before the first step.

Source: the operation of the `causal-conv1d` package that mamba-ssm uses; weight and bias are those of its `nn.Conv1d`. PyTorch's own
convolution with one group per channel takes a third of the block's training time on a CPU, hence the kernel (`cpu_kernels.py`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from qamdetr.kernels.backends import Backend, choose_backend, differentiable_once, run_kernel
from qamdetr.kernels.time_order import checked_lengths, in_walking_order


def causal_conv_silu(
    x: Tensor, weight: Tensor, bias: Tensor, *, lengths: Tensor | None = None, reverse: bool = False, backend: Backend | None = None
) -> Tensor:
    """Convolve `x` `(batch, steps, channels)` with `weight` `(channels, 1, taps)` and `bias` `(channels,)`; the result has x's shape.

    `lengths` `(batch,)` and `reverse` choose the clips and the direction, as in `time_order.py`.

    Raises:
        ValueError: Shapes that do not fit together, or lengths that are not within the steps.
        ConfigError: A backend that does not exist or cannot take these tensors.
    """
    channels = x.shape[-1]
    if x.dim() != 3 or weight.dim() != 3 or tuple(weight.shape[:2]) != (channels, 1) or tuple(bias.shape) != (channels,):
        raise ValueError(f"x {tuple(x.shape)} needs a weight ({channels}, 1, taps) and a bias ({channels},), not {tuple(weight.shape)}.")
    walk = lengths is not None or reverse
    lengths = checked_lengths(lengths, x)
    if choose_backend(backend, [x, weight, bias]) == "cpu":
        out: Tensor = _CpuConvolution.apply(x.float(), weight.float(), bias.float(), lengths, reverse)  # type: ignore[no-untyped-call]
        return out.to(x.dtype)
    if not walk:
        return _convolve(x, weight, bias)
    return in_walking_order(_convolve(in_walking_order(x, lengths, reverse=reverse), weight, bias), lengths, reverse=reverse)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    padded = functional.pad(x.transpose(1, 2), (weight.shape[2] - 1, 0))
    return functional.silu(functional.conv1d(padded, weight, bias, groups=x.shape[2])).transpose(1, 2)


class _CpuConvolution(torch.autograd.Function):
    """The kernels as one differentiable operation; float32, on the CPU."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch gives the context no type
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        lengths: Tensor,
        reverse: bool,
    ) -> Tensor:
        from qamdetr.kernels import cpu_kernels

        inputs = [tensor.detach().contiguous() for tensor in (x, weight[:, 0].t(), bias)]
        out = torch.empty_like(inputs[0])
        run_kernel(cpu_kernels.conv_forward, x.shape[0] * cpu_kernels.num_blocks(x.shape[2]), [lengths, reverse, *inputs], [out])
        ctx.reverse = reverse
        ctx.save_for_backward(lengths, *inputs)
        return out

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        from qamdetr.kernels import cpu_kernels

        lengths, x, weight, bias = ctx.saved_tensors
        batch, _, channels = x.shape
        grad_x, grad_weight, grad_bias = torch.empty_like(x), x.new_empty(batch, *weight.shape), x.new_empty(batch, channels)
        inputs, outputs = [lengths, ctx.reverse, x, weight, bias, grad_out.contiguous()], [grad_x, grad_weight, grad_bias]
        run_kernel(cpu_kernels.conv_backward, batch * cpu_kernels.num_blocks(channels), inputs, outputs)
        return grad_x, grad_weight.sum(dim=0).t()[:, None], grad_bias.sum(dim=0), None, None
