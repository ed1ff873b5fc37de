"""The selective scan by the kernel of the `mamba-ssm` package, where that is installed."""

# The letters are the paper's.
# ruff: noqa: N803, N806

from __future__ import annotations

import torch
from torch import Tensor

from qamdetr.errors import ConfigError


def mamba_ssm_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor | None, delta_bias: Tensor, delta_softplus: bool
) -> tuple[Tensor, Tensor]:
    """Scan channels-last tensors, as `scan.selective_scan_channels_last`; the package wants channels first, so they are transposed.

    Raises:
        ConfigError: In the backward pass, a gradient of the last state, which the package does not give.

    Source: `selective_scan_fn` in mamba-ssm (https://github.com/state-spaces/mamba), which takes u, delta, B, C and z in one type and A, D
    and delta_bias in float32.
    """
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    delta, B, C = (tensor.to(u.dtype) for tensor in (delta, B, C))
    A, D, delta_bias = A.float(), D.float(), delta_bias.float()
    u, delta, B, C = (tensor.transpose(1, 2).contiguous() for tensor in (u, delta, B, C))
    z = None if z is None else z.to(u.dtype).transpose(1, 2).contiguous()
    out, last_state = selective_scan_fn(u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state=True)
    if last_state.requires_grad:
        # The package would answer zero without a word.
        last_state.register_hook(_refuse_gradient)
    return out.transpose(1, 2), last_state


def _refuse_gradient(grad: Tensor | None) -> None:
    if grad is not None and bool(torch.count_nonzero(grad)):
        raise ConfigError("Backend 'mamba_ssm' gives no gradient of the last state; use backend 'triton' or 'reference'.")
