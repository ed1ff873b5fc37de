"""Products with weight matrices, by the faster of PyTorch's two libraries.

PyTorch multiplies float32 matrices on a CPU with MKL, which takes processors of other makers for ones without AVX-512. On one AMD Zen 5
core it does 92 GFLOP/s, and oneDNN, which comes with PyTorch too, 205 to 215, in the same arithmetic. oneDNN is reached by an operator that
has no gradient, hence the gradient here.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_LEAST_WORK = 1_000_000
"""Multiplications below which oneDNN's longer call (some 10 us) takes back what it gains."""


class Linear(nn.Linear):
    """`nn.Linear`, with the same parameters and values, by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """`(..., dim_in)` -> `(..., dim_out)`."""
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `x @ weight.T + bias`, as `torch.nn.functional.linear` does.

    Args:
        x: `(..., dim_in)`.
        weight: `(dim_out, dim_in)`.
        bias: `(dim_out)`, or None.
    """
    if not (_is_large(x, weight) and _is_plain(x, weight, bias) and has_faster_product()):
        return functional.linear(x, weight, bias)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)):
        out: Tensor = _Product.apply(x, weight, bias)  # type: ignore[no-untyped-call]
        return out
    return _product(x.reshape(-1, x.shape[-1]), weight, bias).view(*x.shape[:-1], weight.shape[0])


@functools.cache
def has_faster_product() -> bool:
    """Whether this is a processor with AVX-512 that MKL does not use it on, and a PyTorch that lets oneDNN be asked."""
    with_onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not with_onednn:
        return False
    return _cpu_maker() != "GenuineIntel" and _operator_works()


def _operator_works() -> bool:
    """Try the operator, which is PyTorch's own business and may change with any version."""
    rows, weight, bias = torch.arange(6.0).view(2, 3), torch.arange(12.0).view(4, 3), torch.arange(8.0)[::2]
    try:
        return torch.allclose(_product(rows, weight, bias), functional.linear(rows, weight, bias))
    except (AttributeError, RuntimeError, TypeError):
        return False


def _cpu_maker() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        # Windows says "..., GenuineIntel"; macOS has no AVX-512 to speak of.
        return "GenuineIntel" if "GenuineIntel" in platform.processor() else "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "unknown")


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(x, weight)
        return _product(x.reshape(-1, x.shape[-1]), weight, bias).view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # noqa: ANN401
        x, weight = ctx.saved_tensors
        product = _differentiable_product if torch.is_grad_enabled() else _product  # a gradient of this gradient is wanted
        rows, grad_rows = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        return (
            product(grad_rows, weight.t()).view(x.shape) if wants_x else None,
            _weight_gradient(product, rows, grad_rows) if wants_weight else None,
            grad_rows.sum(dim=0) if wants_bias else None,
        )


def _weight_gradient(product: Callable[[Tensor, Tensor], Tensor], rows: Tensor, grad_rows: Tensor) -> Tensor:
    # oneDNN copies its second factor into an order of its own, so the narrower one goes there.
    if rows.shape[1] < grad_rows.shape[1]:
        return product(rows.t(), grad_rows.t()).t()
    return product(grad_rows.t(), rows.t())


def _differentiable_product(rows: Tensor, weight: Tensor) -> Tensor:
    return functional.linear(rows, weight)


def _product(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    bias = None if bias is None else bias.contiguous()  # the operator reads it as if it was, whatever its strides say
    out: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    return out


def _is_large(x: Tensor, weight: Tensor) -> bool:
    return x.numel() * weight.shape[0] >= _LEAST_WORK


def _is_plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the shapes are those of `linear`, all are float32 on the CPU, and no autocast wants another type."""
    if x.dim() < 2 or weight.dim() != 2 or x.shape[-1] != weight.shape[1] or (bias is not None and bias.shape != weight.shape[:1]):
        return False  # PyTorch broadcasts some of these, and has words for the others
    factors = (x, weight) if bias is None else (x, weight, bias)
    return all(part.dtype == torch.float32 and part.device.type == "cpu" for part in factors) and not torch.is_autocast_enabled("cpu")
