"""Selective scan, the recurrence at the heart of Mamba: one readable reference and fast backends behind the same two functions.

For each recording, channel and time step t, with the letters of the paper (and of mamba-ssm):

    dt_t = softplus(delta_t + delta_bias)       step size: how far this step moves the state, (batch, channels, steps)
    h_t  = exp(dt_t * A) * h_{t-1} + dt_t * B_t * u_t       hidden state, (batch, channels, state); h before the first step is 0
    y_t  = <C_t, h_t> + D * u_t                 output before the gate
    out_t = y_t * silu(z_t)                     output, gated

    u      input, (batch, channels, steps)      A      decay rates, negative, (channels, state)
    delta  raw step size, as u                  B, C   input and output matrices, which depend on the input, (batch, state, steps)
    z      gate, as u                           D, delta_bias   skip weight and bias of delta, (channels,)

Backends: `reference` is a plain PyTorch loop that runs anywhere and differentiates itself; `cpu` is a Numba kernel with its own backward
(`cpu_kernels.py`), hundreds of times faster for training; `triton` is the same for GPUs (`triton_kernels.py`); `mamba_ssm` is the package
of that name where it is installed. The choice is automatic (`backends.py`); `use_backend` or `backend=` override it.

Source: Gu & Dao, "Mamba" (https://arxiv.org/abs/2312.00752), Algorithm 2; maths, shapes and names of `selective_scan_ref` in mamba-ssm.
Beyond it: `lengths` and `reverse`, the clips and the direction that are walked (`time_order.py`).
Deliberate differences: real numbers and input-dependent B and C in one group only, which is all that Mamba uses.
"""

# The letters are the paper's.
# ruff: noqa: N803, N806

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from qamdetr.kernels.backends import HALF_TYPES, Backend, choose_backend, differentiable_once, run_kernel, wants_gradient
from qamdetr.kernels.mamba_ssm_scan import mamba_ssm_scan
from qamdetr.kernels.time_order import checked_lengths, in_walking_order


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    *,
    lengths: Tensor | None = None,
    reverse: bool = False,
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor]:
    """Scan in mamba-ssm's layout, as its `selective_scan_fn(..., return_last_state=True)`.

    Args:
        u: Input `(batch, channels, steps)`.
        delta: Raw step size, as `u`.
        A: `(channels, state)`.
        B: `(batch, state, steps)`.
        C: As `B`.
        D: `(channels,)`, or None for zero.
        z: Gate, as `u`; without it the output is not gated.
        delta_bias: `(channels,)`, or None for zero.
        delta_softplus: Whether `delta` still needs its softplus.
        lengths: `(batch,)`, valid steps of each item, or None for all; with `reverse` it is explained in `time_order.py`.
        reverse: Walk from the last valid step to the first.
        backend: Overrides the automatic choice (`backends.choose_backend`).

    Returns:
        Output `(batch, channels, steps)` and the state after the last step that is walked, `(batch, channels, state)`.

    Raises:
        ValueError: Shapes that do not fit together, or lengths that are not within the steps.
        ConfigError: A backend that does not exist or cannot take these tensors.
    """
    u, delta, B, C = (tensor.transpose(1, 2) for tensor in (u, delta, B, C))
    z = None if z is None else z.transpose(1, 2)
    out, last_state = selective_scan_channels_last(
        u, delta, A, B, C, D, z, delta_bias, delta_softplus, lengths=lengths, reverse=reverse, backend=backend
    )
    return out.transpose(1, 2), last_state


def selective_scan_channels_last(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    *,
    lengths: Tensor | None = None,
    reverse: bool = False,
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor]:
    """Scan with time before channels: what linear layers produce and our kernels want, so nothing is transposed.

    As `selective_scan`, but u, delta, z and the output are `(batch, steps, channels)`, and B and C are `(batch, steps, state)`.
    Half precision is computed in float32, as in mamba-ssm: GPU kernels convert as they read, for the others the tensors are cast. The last
    state is float32 then.
    """
    D = u.new_zeros(u.shape[-1]) if D is None else D
    delta_bias = u.new_zeros(u.shape[-1]) if delta_bias is None else delta_bias
    tensors = (u, delta, A, B, C, D, z, delta_bias)
    _check_shapes(*tensors)
    chosen = choose_backend(backend, tensors)
    scan = _SCANS[chosen]
    if lengths is not None or reverse or chosen == "cpu":
        lengths = checked_lengths(lengths, u)
        scan = partial(scan if chosen == "cpu" else partial(_scan_in_order, scan), lengths, reverse)
    if chosen in ("triton", "mamba_ssm") or not any(tensor is not None and tensor.dtype in HALF_TYPES for tensor in tensors):
        return scan(*tensors, delta_softplus)
    out, last_state = scan(*(None if tensor is None else tensor.float() for tensor in tensors), delta_softplus)
    return out.to(u.dtype), last_state


def _scan_reference(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor | None, delta_bias: Tensor, delta_softplus: bool
) -> tuple[Tensor, Tensor]:
    """Compute the module's formulas step by step; channels last."""
    dt = delta + delta_bias
    dt = functional.softplus(dt) if delta_softplus else dt
    decay = torch.exp(dt[..., None] * A)  # (batch, steps, channels, state)
    driven = (dt * u)[..., None] * B[:, :, None, :]
    h = torch.zeros_like(decay[:, 0])
    outputs = []
    # Unbound once: the gradient of `decay[:, t]` would be a tensor of all steps, at every step.
    for decay_t, driven_t, C_t in zip(decay.unbind(1), driven.unbind(1), C.unbind(1), strict=True):
        h = decay_t * h + driven_t
        outputs.append((h * C_t[:, None, :]).sum(dim=-1))
    y = torch.stack(outputs, dim=1) + D * u
    return (y if z is None else y * functional.silu(z)), h


def _scan_in_order(
    scan: Callable[..., tuple[Tensor, Tensor]],
    lengths: Tensor,
    reverse: bool,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor | None,
    delta_bias: Tensor,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor]:
    """Do as `time_order.py` says with a scan that knows neither lengths nor direction: a step size of zero leaves the state as it is."""

    def ordered(x: Tensor) -> Tensor:
        return in_walking_order(x, lengths, reverse=reverse)

    # Half precision would lose a small step size next to its bias. Zeroed before softplus too, whose gradient at NaN is NaN.
    delta, bias = (x.float() if x.dtype in HALF_TYPES else x for x in (ordered(delta), delta_bias))
    dt = functional.softplus(delta + bias) if delta_softplus else delta + bias
    within = torch.arange(u.shape[1], device=u.device) < lengths[:, None]
    dt = dt.masked_fill(~within[..., None], 0.0)
    z = None if z is None else ordered(z)
    out, last_state = scan(ordered(u), dt, A, ordered(B), ordered(C), D, z, torch.zeros_like(delta_bias), False)
    return ordered(out), last_state


class _CpuScan(torch.autograd.Function):
    """The kernels as one differentiable operation; channels last, float32, on the CPU."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch gives the context no type
        lengths: Tensor,
        reverse: bool,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor,
        z: Tensor | None,
        delta_bias: Tensor,
        delta_softplus: bool,
        keep_states: bool,
    ) -> tuple[Tensor, Tensor]:
        from qamdetr.kernels import cpu_kernels

        batch, steps, channels = u.shape
        state = A.shape[1]
        A_log2 = A.t() / math.log(2.0)
        # The kernel does not read the gate when told so, but its compiled form wants an array.
        arrays = [tensor.detach().contiguous() for tensor in (u, delta, A_log2, B, C, D, u if z is None else z, delta_bias)]
        chunks = -(-steps // cpu_kernels.CHUNK_STEPS) if keep_states else 0
        out, last_state = torch.empty_like(arrays[0]), u.new_empty(batch, state, channels)
        checkpoints = u.new_empty(batch, chunks, state, channels)
        tasks = batch * cpu_kernels.num_blocks(channels)
        run_kernel(
            cpu_kernels.scan_forward, tasks, [lengths, reverse, *arrays, delta_softplus, z is not None], [out, checkpoints, last_state]
        )
        ctx.reverse, ctx.flags = reverse, (delta_softplus, z is not None)
        ctx.save_for_backward(lengths, *arrays, checkpoints)
        return out, last_state.transpose(1, 2)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad_out: Tensor, grad_last_state: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        from qamdetr.kernels import cpu_kernels

        lengths, *arrays, checkpoints = ctx.saved_tensors
        u, state = arrays[0], checkpoints.shape[2]
        batch, steps, channels = u.shape
        blocks = cpu_kernels.num_blocks(channels)
        grad_u, grad_delta, grad_z = (torch.empty_like(u) for _ in range(3))
        grad_A = u.new_empty(batch, state, channels)
        grad_B, grad_C = (u.new_empty(batch, blocks, steps, state) for _ in range(2))
        grad_D, grad_bias = (u.new_empty(batch, channels) for _ in range(2))
        upstream = [checkpoints, grad_out.contiguous(), grad_last_state.transpose(1, 2).contiguous()]
        outputs = [grad_u, grad_delta, grad_A, grad_B, grad_C, grad_D, grad_z, grad_bias]
        run_kernel(cpu_kernels.scan_backward, batch * blocks, [lengths, ctx.reverse, *arrays, *ctx.flags, *upstream], outputs)
        return (
            None, None, grad_u, grad_delta, grad_A.sum(dim=0).t(), grad_B.sum(dim=1), grad_C.sum(dim=1),
            grad_D.sum(dim=0), grad_z if ctx.flags[1] else None, grad_bias.sum(dim=0), None, None,
        )  # fmt: skip


def _scan_cpu(*arguments: Tensor | bool | None) -> tuple[Tensor, Tensor]:
    keep_states = wants_gradient([value for value in arguments if isinstance(value, Tensor)])
    results: tuple[Tensor, Tensor] = _CpuScan.apply(*arguments, keep_states)  # type: ignore[no-untyped-call]
    return results


def _scan_triton(*arguments: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401 - as `triton_scan`, which is imported on first use only
    from qamdetr.kernels.triton_scan import triton_scan

    return triton_scan(*arguments)


_SCANS: dict[Backend, Callable[..., tuple[Tensor, Tensor]]] = {
    "reference": _scan_reference,
    "cpu": _scan_cpu,
    "triton": _scan_triton,
    "mamba_ssm": mamba_ssm_scan,
}


def _check_shapes(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor | None, delta_bias: Tensor) -> None:
    """Refuse a wrong shape, since compiled code does not check its bounds."""
    if u.dim() != 3 or A.dim() != 2 or u.shape[1] == 0:
        raise ValueError(f"u must have three dimensions and at least one step, and A two; they are {tuple(u.shape)} and {tuple(A.shape)}.")
    (batch, steps, channels), state = u.shape, A.shape[1]
    expected = {
        "delta": (delta, (batch, steps, channels)),
        "A": (A, (channels, state)),
        "B": (B, (batch, steps, state)),
        "C": (C, (batch, steps, state)),
        "D": (D, (channels,)),
        "z": (z, (batch, steps, channels)),
        "delta_bias": (delta_bias, (channels,)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"{name} is {tuple(tensor.shape)} in channels-last order; with u {tuple(u.shape)} it must be {shape}.")
