"""Selective scan, the recurrence at the heart of Mamba, and the convolution before it: readable references, faster backends behind them.

For each recording, channel and time step t, with the letters of the paper (and of mamba-ssm):

    dt_t = softplus(delta_t + delta_bias)       step size: how far this step moves the state, (batch, steps, channels)
    h_t  = exp(dt_t * A) * h_{t-1} + dt_t * B_t * u_t       hidden state, (batch, channels, state); h before the first step is 0
    y_t  = <C_t, h_t> + D * u_t                 output before the gate
    out_t = y_t * silu(z_t)                     output, gated

    u      input, (batch, steps, channels)      A      decay rates, negative, (channels, state)
    delta  raw step size, as u                  B, C   input and output matrices, which depend on the input, (batch, steps, state)
    z      gate, as u                           D, delta_bias   skip weight and bias of delta, (channels,)

Walking order: `lengths` says how many clips of each item are valid, from the first on; `reverse` walks them from the last valid clip to the
first. Padding is not walked: nothing that stands there, not even NaN, reaches a valid clip or the last state, and the result and all
gradients are zero there. The CPU kernels follow this order by index; for all other backends, tensors are brought into it and back.

Backends: `reference` is a plain PyTorch loop that runs anywhere and differentiates itself; `cpu` are Numba kernels with their own backward
(`cpu_kernels.py`), hundreds of times faster for training; `triton` is the same for GPUs; `mamba_ssm` is the package of that name where it
is installed. The choice is automatic; `use_backend` or `backend=` override it.

Source: Gu & Dao, "Mamba" (https://arxiv.org/abs/2312.00752), Algorithm 2; maths and names of `selective_scan_ref` in mamba-ssm. Deliberate
differences: time stands before channels, as linear layers produce it and our kernels want it; lengths and direction; real numbers and
input-dependent B and C in one group only, which is all that Mamba uses.
"""

# The letters are the paper's.
# ruff: noqa: N803, N806

from __future__ import annotations

import functools
import importlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from qamdetr.errors import ConfigError

Backend = Literal["reference", "cpu", "triton", "mamba_ssm"]
HALF_TYPES = (torch.float16, torch.bfloat16)
# Best first: the compiled kernels of mamba-ssm have been measured on many GPUs, ours on few.
_GPU_BACKENDS: tuple[Backend, ...] = ("mamba_ssm", "triton")

_forced_backend: ContextVar[Backend | None] = ContextVar("_forced_backend", default=None)


@contextmanager
def use_backend(backend: Backend) -> Iterator[None]:
    """Run every scan and convolution inside the `with` block on `backend`."""
    _check_name(backend)
    token = _forced_backend.set(backend)
    try:
        yield
    finally:
        _forced_backend.reset(token)


def choose_backend(backend: Backend | None, tensors: Sequence[Tensor]) -> Backend:
    """Return `backend`, else what `use_backend` says, else the fastest that can take these tensors.

    That is `cpu` on the CPU; on a GPU `mamba_ssm` where it is installed, else `triton`; `reference` wherever these cannot run, as for
    float64. A backend that is asked for and does not exist, is not installed or cannot take the tensors is a `ConfigError`.
    """
    wanted = _forced_backend.get() if backend is None else backend
    if wanted is None:
        return next((name for name in ("cpu", *_GPU_BACKENDS) if _misfit(name, tensors) is None), "reference")
    _check_name(wanted)
    misfit = _misfit(wanted, tensors)
    if misfit is not None:
        raise ConfigError(f"Backend {wanted!r} {misfit}", "use another, or 'reference', which runs anywhere")
    return wanted


def _check_name(backend: str) -> None:
    if backend not in get_args(Backend):
        raise ConfigError(f"Backend {backend!r} does not exist", f"use one of {', '.join(get_args(Backend))}")


def _misfit(backend: Backend, tensors: Sequence[Tensor]) -> str | None:
    """Say why `backend` cannot take these tensors, or return None where it can."""
    if backend == "reference":
        return None
    if any(tensor.dtype not in (torch.float32, *HALF_TYPES) for tensor in tensors):
        return "takes float32, bfloat16 and float16 tensors only"
    device = "cpu" if backend == "cpu" else "cuda"
    others = {tensor.device.type for tensor in tensors} - {device}
    if others and not (others == {"cpu"} and backend == "triton" and _triton_is_interpreted()):
        return f"takes tensors on {device!r} only, not on {', '.join(map(repr, sorted(others)))}"
    problem = _start_problem(backend) if backend in _GPU_BACKENDS else None
    return None if problem is None else f"does not start ({problem})"


@functools.cache
def _start_problem(backend: Backend) -> str | None:
    """Import what a GPU backend needs; return the error where that fails, and warn where it means a slower scan than one would expect."""
    try:
        if backend == "mamba_ssm":
            importlib.import_module("mamba_ssm.ops.selective_scan_interface")
        elif not _triton_is_interpreted():
            # Builds Triton's launcher, which takes a C compiler; better to find out here than in a kernel's first call.
            importlib.import_module("triton").runtime.driver.active.get_current_target()
    except Exception as error:  # a build for another CUDA may fail in any way, and there are other backends
        if backend == "triton":
            warnings.warn(f"The scan runs as a slow loop, since Triton, which needs gcc, does not start: {error}", stacklevel=2)
        elif not isinstance(error, ModuleNotFoundError):
            warnings.warn(f"The scan runs on Triton: mamba_ssm is installed but does not start: {error}", stacklevel=2)
        return str(error)
    return None


def _triton_is_interpreted() -> bool:  # on the CPU, step by step, for tests
    return os.environ.get("TRITON_INTERPRET") == "1"


def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor,
    *, lengths: Tensor | None = None, reverse: bool = False, backend: Backend | None = None,
) -> Tensor:  # fmt: skip
    """Scan tensors of the shapes above; `out` is of u's type.

    `lengths` are `(batch,)` whole numbers, None for all clips; `backend` as in `choose_backend`. Half precision is computed in float32, as
    in mamba-ssm: GPU kernels convert as they read, for the others the tensors are cast. Shapes that do not fit together, and lengths that
    are not within the steps, are `ValueError`s.
    """
    tensors = [u, delta, A, B, C, D, z, delta_bias]
    _check_shapes(*tensors)
    chosen = choose_backend(backend, tensors)
    if chosen not in _GPU_BACKENDS and any(tensor.dtype in HALF_TYPES for tensor in tensors):
        tensors = [tensor.float() for tensor in tensors]
    walk = lengths is not None or reverse
    lengths = checked_lengths(lengths, u)
    if chosen == "cpu":
        from qamdetr.kernels import cpu

        return cpu.scan(lengths, reverse, wants_gradient(tensors), *tensors).to(u.dtype)
    if walk:
        tensors = [in_walking_order(tensor, lengths, reverse=reverse) if tensor.dim() == 3 else tensor for tensor in tensors]
    if chosen == "triton":
        from qamdetr.kernels import triton  # which may not be installed

        out = triton.scan(wants_gradient(tensors), *tensors)
    else:
        out = (_scan_reference if chosen == "reference" else _scan_mamba_ssm)(*tensors)
    return (in_walking_order(out, lengths, reverse=reverse) if walk else out).to(u.dtype)


def causal_conv_silu(
    x: Tensor, weight: Tensor, bias: Tensor, *, lengths: Tensor | None = None, reverse: bool = False, backend: Backend | None = None
) -> Tensor:
    """Convolve `x` `(batch, steps, channels)` with `weight` `(channels, 1, taps)` and `bias` `(channels,)`; the result has x's shape.

    `out_t = silu(bias + sum_k weight_k * x_{t - taps + 1 + k})` for each channel by itself, with zeros before the first step; `lengths`
    and `reverse` as in `selective_scan`. PyTorch's own convolution with one group per channel takes a third of the block's training time
    on a CPU, hence the kernel.

    Source: the operation of the `causal-conv1d` package that mamba-ssm uses; weight and bias are those of its `nn.Conv1d`.
    """
    channels = x.shape[-1]
    if x.dim() != 3 or weight.dim() != 3 or tuple(weight.shape[:2]) != (channels, 1) or tuple(bias.shape) != (channels,):
        raise ValueError(f"x {tuple(x.shape)} needs a weight ({channels}, 1, taps) and a bias ({channels},), not {tuple(weight.shape)}.")
    walk = lengths is not None or reverse
    lengths = checked_lengths(lengths, x)
    if choose_backend(backend, [x, weight, bias]) == "cpu":
        from qamdetr.kernels import cpu

        return cpu.causal_conv_silu(x.float(), weight.float(), bias.float(), lengths, reverse).to(x.dtype)
    ordered = in_walking_order(x, lengths, reverse=reverse) if walk else x
    padded = functional.pad(ordered.transpose(1, 2), (weight.shape[2] - 1, 0))
    out = functional.silu(functional.conv1d(padded, weight, bias, groups=channels)).transpose(1, 2)
    return in_walking_order(out, lengths, reverse=reverse) if walk else out


def _scan_reference(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor) -> Tensor:
    """Compute the module's formulas step by step."""
    dt = functional.softplus(delta + delta_bias)
    decay = torch.exp(dt[..., None] * A)  # (batch, steps, channels, state)
    driven = (dt * u)[..., None] * B[:, :, None, :]
    h = torch.zeros_like(decay[:, 0])
    outputs = []
    # Unbound once: the gradient of `decay[:, t]` would be a tensor of all steps, at every step.
    for decay_t, driven_t, C_t in zip(decay.unbind(1), driven.unbind(1), C.unbind(1), strict=True):
        h = decay_t * h + driven_t
        outputs.append((h * C_t[:, None, :]).sum(dim=-1))
    return (torch.stack(outputs, dim=1) + D * u) * functional.silu(z)


def _scan_mamba_ssm(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor) -> Tensor:
    """Scan by the package's kernel, which wants channels first, A, D and delta_bias in float32, and all others in one type.

    Source: `selective_scan_fn` in mamba-ssm (https://github.com/state-spaces/mamba).
    """
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    u, delta, B, C, z = (tensor.to(u.dtype).transpose(1, 2).contiguous() for tensor in (u, delta, B, C, z))
    out: Tensor = selective_scan_fn(u, delta, A.float(), B, C, D.float(), z, delta_bias.float(), delta_softplus=True)
    return out.transpose(1, 2)


def reverse_valid(x: Tensor, mask: Tensor) -> Tensor:
    """Reverse each item's valid clips in time, where `mask` `(batch, clips)` is True, and leave its padding behind them where it is."""
    batch, clips = mask.shape
    position = torch.arange(clips, device=mask.device)
    length = mask.sum(dim=1, keepdim=True)
    order = torch.where(position < length, length - 1 - position, position)
    flat_order = (order + clips * torch.arange(batch, device=mask.device)[:, None]).flatten()
    return x.reshape(-1, x.shape[-1]).index_select(0, flat_order).view(x.shape)


def in_walking_order(x: Tensor, lengths: Tensor, *, reverse: bool) -> Tensor:
    """Zero the padding of `x` `(batch, clips, dim)` and put its valid clips in the order that they are walked in, or back."""
    mask = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
    x = x.masked_fill(~mask[..., None], 0.0)
    return reverse_valid(x, mask) if reverse else x


def checked_lengths(lengths: Tensor | None, x: Tensor) -> Tensor:
    """Return `lengths` as `(batch,)` int64 beside `x` `(batch, clips, dim)`, None for all clips; compiled code checks no bounds."""
    batch, clips, _ = x.shape
    if lengths is None:
        return torch.full((batch,), clips, device=x.device)
    if lengths.shape != (batch,) or lengths.dtype.is_floating_point or lengths.dtype == torch.bool:
        raise ValueError(f"lengths must be {batch} whole numbers, one per item; they are {tuple(lengths.shape)}, {lengths.dtype}.")
    if lengths.device.type != "meta" and batch and not 0 <= int(lengths.min()) <= int(lengths.max()) <= clips:
        raise ValueError(f"lengths must lie within [0, {clips}], the clips there are; they reach from {lengths.min()} to {lengths.max()}.")
    return lengths.to(x.device, torch.int64).contiguous()


def _check_shapes(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor) -> None:
    """Refuse a wrong shape, since compiled code does not check its bounds."""
    if u.dim() != 3 or A.dim() != 2 or u.shape[1] == 0:
        raise ValueError(f"u must have three dimensions and at least one step, and A two; they are {tuple(u.shape)} and {tuple(A.shape)}.")
    (batch, steps, channels), state = u.shape, A.shape[1]
    small = (batch, steps, state)
    expected = {"delta": u.shape, "A": (channels, state), "B": small, "C": small, "D": (channels,), "z": u.shape, "delta_bias": (channels,)}
    for (name, shape), tensor in zip(expected.items(), (delta, A, B, C, D, z, delta_bias), strict=True):
        if tensor.shape != shape:
            raise ValueError(f"{name} is {tuple(tensor.shape)}; with u {tuple(u.shape)} it must be {tuple(shape)}.")


def differentiable_once(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Mark the backward of an operation whose gradient has none: a second gradient is refused.

    Torch's own mark refuses only where the gradient that comes in wants one; a loss made of an output and a gradient of it then loses the
    second part without a word.
    """

    @functools.wraps(backward)
    def checked(ctx: Any, *grads: Any) -> Any:  # noqa: ANN401 - torch gives neither a type
        if torch.is_grad_enabled():  # only under `create_graph`
            raise RuntimeError("A gradient of a gradient goes through this kernel, which has none; use_backend('reference') has it.")
        return backward(ctx, *grads)

    return checked


def wants_gradient(tensors: Sequence[Tensor]) -> bool:
    """Whether a result of these tensors will be differentiated; inside an operation of one's own torch does not tell."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
