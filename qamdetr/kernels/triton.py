"""The selective scan on a GPU: kernels that Triton compiles where they run, so that a CUDA user needs no compiler of their own.

Layout: as the CPU kernels (`cpu_kernels.py`), channels-last, in the letters of `scan.py`. One program is one recording of the batch, one
segment of its steps and one block of `BLOCK` channels; it walks its steps in order with the hidden state `(state, BLOCK)` in registers,
state in rows so that a row of channels is read as it lies in memory. Inputs may be float32 or half precision; all arithmetic is float32.

Segments: recordings and channels alone are too few programs to fill a GPU when a batch is small and long. The recurrence is linear and its
decay diagonal, so the steps may be cut: over a whole segment h decays by exp(A * sum of dt). Hence three passes: each segment by itself
from h = 0 (`segment_states`), the true state at each segment's start from those (`pass_states`), the scan from there. The gradient
does the same backwards in time. With one segment only the last pass runs.

Memory: the forward pass keeps the state before every `CHUNK` steps; the backward pass recomputes a chunk's states from there and holds
them in registers. Sums over programs (gradients of parameters, and of B and C over blocks of channels) are left in separate places for the
caller to add up: unlike atomic additions that gives the same bits at every run.

Steps past the end of a segment are computed with dt = 0 and no input, which leaves the state and its gradient as they are. A chunk loads
all its rows before it stores any, since a compiler may not move a load over a store, and one load would wait for the other.
"""

# Compiled code is typed by its compiler, and its letters are the paper's.
# ruff: noqa: ANN001, ANN201, ANN202, N803, N806
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from qamdetr.kernels.scan import differentiable_once

BLOCK_CHANNELS = 32
CHUNK_STEPS = 4  # more do not fit into registers, fewer mean more states kept in memory
MIN_SEGMENT_STEPS = 64
# One warp is one program: with fewer than `FEW` per multiprocessor most of the GPU idles, and segments repay their two passes more.
FEW_PROGRAMS, ENOUGH_PROGRAMS = 2, 8

_LOG2_E = tl.constexpr(1.4426950408889634)

# Else the first recording whose length is a multiple of 16 would wait for all kernels to be compiled again.
_kernel = triton.jit(do_not_specialize=("steps", "segments", "segment_steps"))


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
def _step_size(raw, within):
    return tl.where(within, _softplus(raw), 0.0)


@triton.jit
def _place(steps, channels, segments, segment_steps, BLOCK: tl.constexpr):
    """Return which recording, segment and block this program is, and the segment's first step and the one after its last."""
    program, blocks = tl.program_id(0), tl.cdiv(channels, BLOCK)
    segment = (program // blocks) % segments
    first = segment * segment_steps
    # Offsets into a batch may be past 2**31.
    b = (program // (blocks * segments)).to(tl.int64)
    return b, segment, program % blocks, first, tl.minimum(first + segment_steps, steps)


@triton.jit
def _cells(block, channels, state, BLOCK: tl.constexpr, STATE_PAD: tl.constexpr):
    """Return this block's columns, its rows of state, their offsets in an array `(state, channels)`, and which of them exist."""
    columns, n = block * BLOCK + tl.arange(0, BLOCK), tl.arange(0, STATE_PAD)
    return columns, n, n[:, None] * channels + columns[None, :], (n[:, None] < state) & (columns[None, :] < channels)


@_kernel
def segment_states(
    u, delta, A, B, bias, states, dt_sums, steps, channels, state, segments, segment_steps,
    STATE_PAD: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Scan each segment from h = 0: the state it ends in into states `(batch, segments, state, channels)`, its sum of dt into dt_sums."""
    b, segment, block, first, stop = _place(steps, channels, segments, segment_steps, BLOCK)
    columns, n, cells, cells_exist = _cells(block, channels, state, BLOCK, STATE_PAD)
    A_log2 = tl.load(A + cells, mask=cells_exist, other=0.0) * _LOG2_E
    bias_row = _row(bias, columns, channels)
    h, dt_sum = tl.zeros((STATE_PAD, BLOCK), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for t in range(first, stop, CHUNK):
        u_rows = _rows(u + b * steps * channels, t, stop, columns, channels, CHUNK)
        delta_rows = _rows(delta + b * steps * channels, t, stop, columns, channels, CHUNK)
        B_rows = _rows(B + b * steps * state, t, stop, n, state, CHUNK)
        for i in tl.static_range(CHUNK):
            dt = _step_size(delta_rows[i] + bias_row, t + i < stop)
            h = tl.exp2(dt[None, :] * A_log2) * h + (dt * u_rows[i])[None, :] * B_rows[i][:, None]
            dt_sum += dt
    here = b * segments + segment
    tl.store(states + here * state * channels + cells, h, mask=cells_exist)
    tl.store(dt_sums + here * channels + columns, dt_sum, mask=columns < channels)


@_kernel
def pass_states(
    A, states, dt_sums, starts, channels, state, segments, REVERSE: tl.constexpr, STATE_PAD: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Turn what each segment adds (states) into what it starts from (starts): forwards h, with REVERSE its gradient; the first from 0."""
    blocks = tl.cdiv(channels, BLOCK)
    b = (tl.program_id(0) // blocks).to(tl.int64)
    columns, _, cells, cells_exist = _cells(tl.program_id(0) % blocks, channels, state, BLOCK, STATE_PAD)
    A_log2 = tl.load(A + cells, mask=cells_exist, other=0.0) * _LOG2_E
    x = tl.zeros((STATE_PAD, BLOCK), tl.float32)
    for k in range(segments):
        segment = k
        if REVERSE:
            segment = segments - 1 - k
        here = b * segments + segment
        dt_sum = _row(dt_sums + here * channels, columns, channels)
        added = tl.load(states + here * state * channels + cells, mask=cells_exist, other=0.0)
        tl.store(starts + here * state * channels + cells, x, mask=cells_exist)
        x = tl.exp2(dt_sum[None, :] * A_log2) * x + added


@_kernel
def scan_forward(
    u, delta, A, B, C, D, z, bias, starts, out, checkpoints, steps, channels, state, segments, segment_steps,
    SAVE: tl.constexpr, STATE_PAD: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Run the scan, each segment from starts `(batch, segments, state, channels)`.

    Shapes: u, delta, z, out `(batch, steps, channels)`; A `(state, channels)`; B, C `(batch, steps, state)`; D, bias `(channels,)`;
    with SAVE also checkpoints `(batch, chunks, state, channels)`, the state before each chunk.
    """
    b, segment, block, first, stop = _place(steps, channels, segments, segment_steps, BLOCK)
    columns, n, cells, cells_exist = _cells(block, channels, state, BLOCK, STATE_PAD)
    A_log2 = tl.load(A + cells, mask=cells_exist, other=0.0) * _LOG2_E
    bias_row = _row(bias, columns, channels)
    D_row = _row(D, columns, channels)
    h = tl.load(starts + (b * segments + segment) * state * channels + cells, mask=cells_exist, other=0.0)
    row, chunks = b * steps * channels, tl.cdiv(steps, CHUNK)
    for t in range(first, stop, CHUNK):
        u_rows = _rows(u + row, t, stop, columns, channels, CHUNK)
        delta_rows = _rows(delta + row, t, stop, columns, channels, CHUNK)
        z_rows = _rows(z + row, t, stop, columns, channels, CHUNK)
        B_rows = _rows(B + b * steps * state, t, stop, n, state, CHUNK)
        C_rows = _rows(C + b * steps * state, t, stop, n, state, CHUNK)
        if SAVE:
            tl.store(checkpoints + (b * chunks + t // CHUNK) * state * channels + cells, h, mask=cells_exist)
        for i in tl.static_range(CHUNK):
            dt = _step_size(delta_rows[i] + bias_row, t + i < stop)
            h = tl.exp2(dt[None, :] * A_log2) * h + (dt * u_rows[i])[None, :] * B_rows[i][:, None]
            y = tl.sum(h * C_rows[i][:, None], axis=0) + D_row * u_rows[i]
            y *= z_rows[i] * _sigmoid(z_rows[i])
            tl.store(out + row + (t + i) * channels + columns, y, mask=(columns < channels) & (t + i < stop))


@_kernel
def segment_gradients(
    delta, A, C, z, bias, grad_out, states, steps, channels, state, segments, segment_steps,
    STATE_PAD: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Run each segment's gradient back from dh = 0: dh at its start into states `(batch, segments, state, channels)`."""
    b, segment, block, first, stop = _place(steps, channels, segments, segment_steps, BLOCK)
    columns, n, cells, cells_exist = _cells(block, channels, state, BLOCK, STATE_PAD)
    A_log2 = tl.load(A + cells, mask=cells_exist, other=0.0) * _LOG2_E
    bias_row = _row(bias, columns, channels)
    dh = tl.zeros((STATE_PAD, BLOCK), tl.float32)
    row, chunks = b * steps * channels, tl.cdiv(stop - first, CHUNK)
    for k in range(chunks):
        t = first + (chunks - 1 - k) * CHUNK
        delta_rows = _rows(delta + row, t, stop, columns, channels, CHUNK)
        dy_rows = _rows(grad_out + row, t, stop, columns, channels, CHUNK)
        z_rows = _rows(z + row, t, stop, columns, channels, CHUNK)
        C_rows = _rows(C + b * steps * state, t, stop, n, state, CHUNK)
        for i in tl.static_range(CHUNK - 1, -1, -1):
            dt = _step_size(delta_rows[i] + bias_row, t + i < stop)
            dy = dy_rows[i] * z_rows[i] * _sigmoid(z_rows[i])
            dh = tl.exp2(dt[None, :] * A_log2) * (dh + dy[None, :] * C_rows[i][:, None])
    tl.store(states + (b * segments + segment) * state * channels + cells, dh, mask=cells_exist)


@triton.jit
def _recompute(h, A_log2, u_rows, delta_rows, bias_row, B_rows, t, stop, CHUNK: tl.constexpr):
    """Run a chunk's steps again from the state `h` before it: their dt, their decay, and the states before and after each."""
    dt_rows, decays, states = (), (), (h,)
    for i in tl.static_range(CHUNK):
        dt = _step_size(delta_rows[i] + bias_row, t + i < stop)
        decay = tl.exp2(dt[None, :] * A_log2)
        h = decay * h + (dt * u_rows[i])[None, :] * B_rows[i][:, None]
        dt_rows, decays, states = dt_rows + (dt,), decays + (decay,), states + (h,)  # type: ignore[assignment]  # noqa: RUF005
    return dt_rows, decays, states


@_kernel
def scan_backward(
    u, delta, A, B, C, D, z, bias, checkpoints, grad_out, starts, grad_u, grad_delta, grad_A, grad_B, grad_C, grad_D, grad_z, grad_bias,
    steps, channels, state, segments, segment_steps, STATE_PAD: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Run the scan's gradient, each segment from starts `(batch, segments, state, channels)`, dh after its last step.

    Other inputs as in `scan_forward`. Results: grad_u, grad_delta, grad_z as u; to be summed over batch and segments, grad_A
    `(batch * segments, state, channels)`, grad_D and grad_bias `(batch * segments, channels)`; to be summed over blocks, grad_B and grad_C
    `(batch, blocks, steps, state)`.
    """
    b, segment, block, first, stop = _place(steps, channels, segments, segment_steps, BLOCK)
    columns, n, cells, cells_exist = _cells(block, channels, state, BLOCK, STATE_PAD)
    A_row = tl.load(A + cells, mask=cells_exist, other=0.0)
    A_log2 = A_row * _LOG2_E
    bias_row = _row(bias, columns, channels)
    D_row = _row(D, columns, channels)
    here = b * segments + segment
    dh = tl.load(starts + here * state * channels + cells, mask=cells_exist, other=0.0)
    dA, dD, dbias = tl.zeros((STATE_PAD, BLOCK), tl.float32), tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    row, small_row, all_chunks, chunks = b * steps * channels, b * steps * state, tl.cdiv(steps, CHUNK), tl.cdiv(stop - first, CHUNK)
    partial_row = (b * tl.cdiv(channels, BLOCK) + block) * steps * state
    for k in range(chunks):
        t = first + (chunks - 1 - k) * CHUNK
        h = tl.load(checkpoints + (b * all_chunks + t // CHUNK) * state * channels + cells, mask=cells_exist, other=0.0)
        u_rows = _rows(u + row, t, stop, columns, channels, CHUNK)
        delta_rows = _rows(delta + row, t, stop, columns, channels, CHUNK)
        dout_rows = _rows(grad_out + row, t, stop, columns, channels, CHUNK)
        z_rows = _rows(z + row, t, stop, columns, channels, CHUNK)
        B_rows = _rows(B + small_row, t, stop, n, state, CHUNK)
        C_rows = _rows(C + small_row, t, stop, n, state, CHUNK)
        dt_rows, decays, states = _recompute(h, A_log2, u_rows, delta_rows, bias_row, B_rows, t, stop, CHUNK)
        for i in tl.static_range(CHUNK - 1, -1, -1):
            mask = (columns < channels) & (t + i < stop)
            at = row + (t + i) * channels + columns
            dt, u_row, dy = dt_rows[i], u_rows[i], dout_rows[i]
            y = tl.sum(states[i + 1] * C_rows[i][:, None], axis=0) + D_row * u_row
            gate = _sigmoid(z_rows[i])
            silu = z_rows[i] * gate
            tl.store(grad_z + at, dy * y * (gate + silu * (1.0 - gate)), mask=mask)
            dy *= silu
            dh += dy[None, :] * C_rows[i][:, None]
            small_at, small_mask = partial_row + (t + i) * state + n, (n < state) & (t + i < stop)
            tl.store(grad_B + small_at, tl.sum(dh * (dt * u_row)[None, :], axis=1), mask=small_mask)
            tl.store(grad_C + small_at, tl.sum(dy[None, :] * states[i + 1], axis=1), mask=small_mask)
            d_dt_u = tl.sum(dh * B_rows[i][:, None], axis=0)
            dh *= decays[i]
            d_exponent = dh * states[i]
            dA += d_exponent * dt[None, :]
            d_delta = (tl.sum(d_exponent * A_row, axis=0) + d_dt_u * u_row) * _sigmoid(delta_rows[i] + bias_row)
            dD += dy * u_row
            dbias += tl.where(t + i < stop, d_delta, 0.0)
            tl.store(grad_u + at, dy * D_row + d_dt_u * dt, mask=mask)
            tl.store(grad_delta + at, d_delta, mask=mask)
    tl.store(grad_A + here * state * channels + cells, dA, mask=cells_exist)
    tl.store(grad_D + here * channels + columns, dD, mask=columns < channels)
    tl.store(grad_bias + here * channels + columns, dbias, mask=columns < channels)


def num_segments(programs: int, steps: int, device: torch.device) -> int:
    """Return into how many segments to cut `steps`, where each would run as `programs` programs."""
    if device.type != "cuda":
        return 1
    multiprocessors = _multiprocessors(device)
    if programs >= FEW_PROGRAMS * multiprocessors:
        return 1
    return max(1, min(ENOUGH_PROGRAMS * multiprocessors // programs, steps // MIN_SEGMENT_STEPS))


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count


class _Launch:
    """How the kernels are started for inputs of one shape."""

    def __init__(self, u: Tensor, state: int) -> None:
        self.batch, self.steps, self.channels = u.shape
        self.state = state
        self.blocks = triton.cdiv(self.channels, BLOCK_CHANNELS)
        segments = num_segments(self.batch * self.blocks, self.steps, u.device)
        # Whole chunks, so that no chunk lies in two segments.
        self.segment_steps = CHUNK_STEPS * triton.cdiv(triton.cdiv(self.steps, segments), CHUNK_STEPS)
        self.segments = triton.cdiv(self.steps, self.segment_steps)
        self.empty = functools.partial(torch.empty, dtype=torch.float32, device=u.device)

    def run(self, kernel: Any, *arguments: Tensor | int, programs: int, **modes: int) -> None:  # noqa: ANN401 - Triton gives kernels no type
        """Start `programs` programs for each block of channels."""
        tile = {"STATE_PAD": triton.next_power_of_2(self.state), "BLOCK": BLOCK_CHANNELS, "num_warps": 1}
        # Triton launches on the current GPU, whichever the tensors are on.
        with torch.cuda.device_of(arguments[0]):
            kernel[(programs * self.blocks,)](*arguments, **tile, **modes)

    def scan(self, kernel: Any, *tensors: Tensor, **modes: int) -> None:  # noqa: ANN401
        """Run `kernel` with one program for each recording, segment and block."""
        sizes = (self.steps, self.channels, self.state, self.segments, self.segment_steps)
        self.run(kernel, *tensors, *sizes, programs=self.batch * self.segments, CHUNK=CHUNK_STEPS, **modes)

    def starts(self, A: Tensor, dt_sums: Tensor, kernel: Any, *tensors: Tensor, reverse: bool) -> Tensor:  # noqa: ANN401
        """Return what each segment starts from, after `kernel` has written what it ends with."""
        shape = (self.batch, self.segments, self.state, self.channels)
        if self.segments == 1:
            return torch.zeros(shape, device=A.device)
        states, starts = self.empty(shape), self.empty(shape)
        self.scan(kernel, *tensors, states, *([] if reverse else [dt_sums]))
        self.run(pass_states, A, states, dt_sums, starts, self.channels, self.state, self.segments, programs=self.batch, REVERSE=reverse)
        return starts


class _Scan(torch.autograd.Function):
    """`scan.selective_scan` on a GPU; inputs may be float32 or half precision, gradients have their types."""

    @staticmethod
    def forward(ctx: Any, keep_states: bool, *tensors: Tensor) -> Tensor:  # noqa: ANN401 - torch gives the context no type
        u, delta, A, B, C, D, z, delta_bias = tensors
        parts = (u, delta, A.float().t(), B, C, D.float(), z, delta_bias.float())
        inputs = [tensor.detach().contiguous() for tensor in parts]
        u, delta, A_rows, B, _, _, _, bias = inputs
        launch = _Launch(u, A.shape[1])
        dt_sums = launch.empty(launch.batch, launch.segments, launch.channels)
        starts = launch.starts(A_rows, dt_sums, segment_states, u, delta, A_rows, B, bias, reverse=False)
        chunks = triton.cdiv(launch.steps, CHUNK_STEPS) if keep_states else 0
        out, checkpoints = torch.empty_like(u), launch.empty(launch.batch, chunks, launch.state, launch.channels)
        launch.scan(scan_forward, *inputs, starts, out, checkpoints, SAVE=keep_states)
        ctx.launch, ctx.types = launch, [tensor.dtype for tensor in tensors]
        ctx.save_for_backward(*inputs, checkpoints, dt_sums)
        return out

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        *inputs, checkpoints, dt_sums = ctx.saved_tensors
        u, delta, A_rows, _, C, _, z, bias = inputs
        launch: _Launch = ctx.launch
        grad_out = grad_out.contiguous()
        starts = launch.starts(A_rows, dt_sums, segment_gradients, delta, A_rows, C, z, bias, grad_out, reverse=True)
        grad_u, grad_delta, grad_z = torch.empty_like(u), torch.empty_like(delta), torch.empty_like(z)
        runs = launch.batch * launch.segments
        grad_A = launch.empty(runs, launch.state, launch.channels)
        grad_B, grad_C = (launch.empty(launch.batch, launch.blocks, launch.steps, launch.state) for _ in range(2))
        grad_D, grad_bias = (launch.empty(runs, launch.channels) for _ in range(2))
        outputs = [grad_u, grad_delta, grad_A, grad_B, grad_C, grad_D, grad_z, grad_bias]
        launch.scan(scan_backward, *inputs, checkpoints, grad_out, starts, *outputs)
        grads = (
            grad_u, grad_delta, grad_A.sum(dim=0).t(), grad_B.sum(dim=1), grad_C.sum(dim=1), grad_D.sum(dim=0), grad_z, grad_bias.sum(dim=0)
        )  # fmt: skip
        return None, *(grad.to(dtype) for grad, dtype in zip(grads, ctx.types, strict=True))


scan: Callable[..., Tensor] = _Scan.apply
