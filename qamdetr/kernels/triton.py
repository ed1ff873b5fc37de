"""The selective scan on a GPU: kernels that Triton compiles where they run, so that a CUDA user needs no compiler of their own.

Layout: as the CPU kernels (`cpu_kernels.py`), channels-last, in the letters of `scan.py`. One program is one recording of the batch and one
block of `BLOCK` channels; it walks the steps in order with the hidden state `(state, BLOCK)` in registers, state in rows so that a row of
channels is read as it lies in memory. Inputs may be float32 or half precision; all arithmetic is float32.

Memory: the forward pass keeps the state before every `CHUNK` steps; the backward pass recomputes a chunk's states from there and holds
them in registers. Sums over programs (gradients of parameters, and of B and C over blocks of channels) are left in separate places for the
caller to add up: unlike atomic additions that gives the same bits at every run.

Steps past the end are computed with dt = 0 and no input, which leaves the state and its gradient as they are. A chunk loads all its rows
before it stores any, since a compiler may not move a load over a store, and one load would wait for the other.
"""

# Compiled code is typed by its compiler, and its letters are the paper's.
# ruff: noqa: ANN001, ANN201, ANN202, N803, N806
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from qamdetr.kernels.scan import differentiable_once

BLOCK_CHANNELS = 32
CHUNK_STEPS = 4  # more do not fit into registers, fewer mean more states kept in memory

_LOG2_E = tl.constexpr(1.4426950408889634)

# Else the first recording whose length is a multiple of 16 would wait for all kernels to be compiled again.
_kernel = triton.jit(do_not_specialize=("steps",))


@triton.jit
def _exp(x):
    return tl.exp2(x * _LOG2_E)


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + _exp(-x))


@triton.jit
def _softplus(x):
    """log(1 + exp(x)), accurate relative to its own size; the series is that of the CPU kernel."""
    v = _exp(-tl.abs(x))
    s = v / (2.0 + v)
    q = s * s
    series = q * (1 / 15) + 1 / 13
    series = series * q + 1 / 11
    series = series * q + 1 / 9
    series = series * q + 1 / 7
    series = series * q + 1 / 5
    series = series * q + 1 / 3
    series = series * q + 1.0
    return tl.maximum(x, 0.0) + 2.0 * s * series


@triton.jit
def _rows(base, t, stop, columns, width, CHUNK: tl.constexpr):
    """Return `CHUNK` rows of `columns` from step `t` on as float32, zero from `stop` on and past the `width` of a row."""
    rows = ()
    for i in tl.static_range(CHUNK):
        inside = (columns < width) & (t + i < stop)
        rows = rows + (tl.load(base + (t + i) * width + columns, mask=inside, other=0.0).to(tl.float32),)  # type: ignore[assignment]  # noqa: RUF005
    return rows


@triton.jit
def _row(base, columns, width):
    return tl.load(base + columns, mask=columns < width, other=0.0)


@triton.jit
def _place(channels, BLOCK: tl.constexpr):
    """Return which recording and block this program is."""
    blocks = tl.cdiv(channels, BLOCK)
    # Offsets into a batch may be past 2**31.
    return (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks


@triton.jit
def _cells(block, channels, state, BLOCK: tl.constexpr, STATE_PAD: tl.constexpr):
    """Return this block's columns, its rows of state, their offsets in an array `(state, channels)`, and which of them exist."""
    columns, n = block * BLOCK + tl.arange(0, BLOCK), tl.arange(0, STATE_PAD)
    return columns, n, n[:, None] * channels + columns[None, :], (n[:, None] < state) & (columns[None, :] < channels)


@_kernel
def scan_forward(
    u, delta, A, B, C, D, z, bias, out, checkpoints, steps, channels, state,
    SAVE: tl.constexpr, STATE_PAD: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Run the scan.

    Shapes: u, delta, z, out `(batch, steps, channels)`; A `(state, channels)`; B, C `(batch, steps, state)`; D, bias `(channels,)`;
    with SAVE also checkpoints `(batch, chunks, state, channels)`, the state before each chunk.
    """
    b, block = _place(channels, BLOCK)
    columns, n, cells, cells_exist = _cells(block, channels, state, BLOCK, STATE_PAD)
    A_log2 = tl.load(A + cells, mask=cells_exist, other=0.0) * _LOG2_E
    bias_row = _row(bias, columns, channels)
    D_row = _row(D, columns, channels)
    h = tl.zeros((STATE_PAD, BLOCK), tl.float32)
    row, chunks = b * steps * channels, tl.cdiv(steps, CHUNK)
    for t in range(0, steps, CHUNK):
        u_rows = _rows(u + row, t, steps, columns, channels, CHUNK)
        delta_rows = _rows(delta + row, t, steps, columns, channels, CHUNK)
        z_rows = _rows(z + row, t, steps, columns, channels, CHUNK)
        B_rows = _rows(B + b * steps * state, t, steps, n, state, CHUNK)
        C_rows = _rows(C + b * steps * state, t, steps, n, state, CHUNK)
        if SAVE:
            tl.store(checkpoints + (b * chunks + t // CHUNK) * state * channels + cells, h, mask=cells_exist)
        for i in tl.static_range(CHUNK):
            dt = tl.where(t + i < steps, _softplus(delta_rows[i] + bias_row), 0.0)
            h = tl.exp2(dt[None, :] * A_log2) * h + (dt * u_rows[i])[None, :] * B_rows[i][:, None]
            y = tl.sum(h * C_rows[i][:, None], axis=0) + D_row * u_rows[i]
            y *= z_rows[i] * _sigmoid(z_rows[i])
            tl.store(out + row + (t + i) * channels + columns, y, mask=(columns < channels) & (t + i < steps))


@triton.jit
def _recompute(h, A_log2, u_rows, delta_rows, bias_row, B_rows, t, stop, CHUNK: tl.constexpr):
    """Run a chunk's steps again from the state `h` before it: their dt, their decay, and the states before and after each."""
    dt_rows, decays, states = (), (), (h,)
    for i in tl.static_range(CHUNK):
        dt = tl.where(t + i < stop, _softplus(delta_rows[i] + bias_row), 0.0)
        decay = tl.exp2(dt[None, :] * A_log2)
        h = decay * h + (dt * u_rows[i])[None, :] * B_rows[i][:, None]
        dt_rows, decays, states = dt_rows + (dt,), decays + (decay,), states + (h,)  # type: ignore[assignment]  # noqa: RUF005
    return dt_rows, decays, states


@_kernel
def scan_backward(
    u, delta, A, B, C, D, z, bias, checkpoints, grad_out, grad_u, grad_delta, grad_A, grad_B, grad_C, grad_D, grad_z, grad_bias,
    steps, channels, state, STATE_PAD: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Run the scan's gradient.

    Inputs as in `scan_forward`. Results: grad_u, grad_delta, grad_z as u; to be summed over the batch, grad_A `(batch, state, channels)`,
    grad_D and grad_bias `(batch, channels)`; to be summed over blocks, grad_B and grad_C `(batch, blocks, steps, state)`.
    """
    b, block = _place(channels, BLOCK)
    columns, n, cells, cells_exist = _cells(block, channels, state, BLOCK, STATE_PAD)
    A_row = tl.load(A + cells, mask=cells_exist, other=0.0)
    A_log2 = A_row * _LOG2_E
    bias_row = _row(bias, columns, channels)
    D_row = _row(D, columns, channels)
    dh = tl.zeros((STATE_PAD, BLOCK), tl.float32)
    dA, dD, dbias = tl.zeros((STATE_PAD, BLOCK), tl.float32), tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    row, small_row, chunks = b * steps * channels, b * steps * state, tl.cdiv(steps, CHUNK)
    partial_row = (b * tl.cdiv(channels, BLOCK) + block) * steps * state
    for k in range(chunks):
        t = (chunks - 1 - k) * CHUNK
        h = tl.load(checkpoints + (b * chunks + t // CHUNK) * state * channels + cells, mask=cells_exist, other=0.0)
        u_rows = _rows(u + row, t, steps, columns, channels, CHUNK)
        delta_rows = _rows(delta + row, t, steps, columns, channels, CHUNK)
        dout_rows = _rows(grad_out + row, t, steps, columns, channels, CHUNK)
        z_rows = _rows(z + row, t, steps, columns, channels, CHUNK)
        B_rows = _rows(B + small_row, t, steps, n, state, CHUNK)
        C_rows = _rows(C + small_row, t, steps, n, state, CHUNK)
        dt_rows, decays, states = _recompute(h, A_log2, u_rows, delta_rows, bias_row, B_rows, t, steps, CHUNK)
        for i in tl.static_range(CHUNK - 1, -1, -1):
            mask = (columns < channels) & (t + i < steps)
            at = row + (t + i) * channels + columns
            dt, u_row, dy = dt_rows[i], u_rows[i], dout_rows[i]
            y = tl.sum(states[i + 1] * C_rows[i][:, None], axis=0) + D_row * u_row
            gate = _sigmoid(z_rows[i])
            silu = z_rows[i] * gate
            tl.store(grad_z + at, dy * y * (gate + silu * (1.0 - gate)), mask=mask)
            dy *= silu
            dh += dy[None, :] * C_rows[i][:, None]
            small_at, small_mask = partial_row + (t + i) * state + n, (n < state) & (t + i < steps)
            tl.store(grad_B + small_at, tl.sum(dh * (dt * u_row)[None, :], axis=1), mask=small_mask)
            tl.store(grad_C + small_at, tl.sum(dy[None, :] * states[i + 1], axis=1), mask=small_mask)
            d_dt_u = tl.sum(dh * B_rows[i][:, None], axis=0)
            dh *= decays[i]
            d_exponent = dh * states[i]
            dA += d_exponent * dt[None, :]
            d_delta = (tl.sum(d_exponent * A_row, axis=0) + d_dt_u * u_row) * _sigmoid(delta_rows[i] + bias_row)
            dD += dy * u_row
            dbias += tl.where(t + i < steps, d_delta, 0.0)
            tl.store(grad_u + at, dy * D_row + d_dt_u * dt, mask=mask)
            tl.store(grad_delta + at, d_delta, mask=mask)
    tl.store(grad_A + b * state * channels + cells, dA, mask=cells_exist)
    tl.store(grad_D + b * channels + columns, dD, mask=columns < channels)
    tl.store(grad_bias + b * channels + columns, dbias, mask=columns < channels)


def _launch(kernel: Any, inputs: Sequence[Tensor], outputs: Sequence[Tensor], **modes: int) -> None:  # noqa: ANN401 - of no type
    """Run `kernel` with one program for each recording and block; `inputs` begin with u, delta and A `(state, channels)`."""
    (batch, steps, channels), state = inputs[0].shape, inputs[2].shape[0]
    modes |= {"STATE_PAD": triton.next_power_of_2(state), "BLOCK": BLOCK_CHANNELS, "CHUNK": CHUNK_STEPS, "num_warps": 1}
    # Triton launches on the current GPU, whichever the tensors are on.
    with torch.cuda.device_of(inputs[0]):
        kernel[(batch * triton.cdiv(channels, BLOCK_CHANNELS),)](*inputs, *outputs, steps, channels, state, **modes)


class _Scan(torch.autograd.Function):
    """`scan.selective_scan` on a GPU; inputs may be float32 or half precision, gradients have their types."""

    @staticmethod
    def forward(ctx: Any, keep_states: bool, *tensors: Tensor) -> Tensor:  # noqa: ANN401 - torch gives the context no type
        u, delta, A, B, C, D, z, delta_bias = tensors
        parts = (u, delta, A.float().t(), B, C, D.float(), z, delta_bias.float())
        inputs = [tensor.detach().contiguous() for tensor in parts]
        batch, steps, channels = u.shape
        chunks = triton.cdiv(steps, CHUNK_STEPS) if keep_states else 0
        out = torch.empty_like(inputs[0])
        checkpoints = torch.empty(batch, chunks, A.shape[1], channels, device=u.device)
        _launch(scan_forward, inputs, [out, checkpoints], SAVE=keep_states)
        ctx.types = [tensor.dtype for tensor in tensors]
        ctx.save_for_backward(*inputs, checkpoints)
        return out

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        *inputs, checkpoints = ctx.saved_tensors
        u, delta, A_rows, _, _, _, z, _ = inputs
        (batch, steps, channels), state = u.shape, A_rows.shape[0]
        empty = functools.partial(torch.empty, dtype=torch.float32, device=u.device)
        grad_u, grad_delta, grad_z = torch.empty_like(u), torch.empty_like(delta), torch.empty_like(z)
        grad_A = empty(batch, state, channels)
        grad_B, grad_C = (empty(batch, triton.cdiv(channels, BLOCK_CHANNELS), steps, state) for _ in range(2))
        grad_D, grad_bias = (empty(batch, channels) for _ in range(2))
        outputs = [grad_u, grad_delta, grad_A, grad_B, grad_C, grad_D, grad_z, grad_bias]
        _launch(scan_backward, [*inputs, checkpoints, grad_out.contiguous()], outputs)
        small = grad_A.sum(dim=0).t(), grad_B.sum(dim=1), grad_C.sum(dim=1), grad_D.sum(dim=0)
        grads = (grad_u, grad_delta, *small, grad_z, grad_bias.sum(dim=0))
        return None, *(grad.to(dtype) for grad, dtype in zip(grads, ctx.types, strict=True))


scan: Callable[..., Tensor] = _Scan.apply
