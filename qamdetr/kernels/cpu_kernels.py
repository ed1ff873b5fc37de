"""CPU kernels of the Mamba block and of dropout, compiled by Numba; imported on first use only, since Numba is slow to import.

Layout: everything is channels-last, so that the innermost loop runs over neighbouring channels and the compiler turns it into SIMD. One
task is one recording of the batch and one block of `BLOCK_CHANNELS` channels, whose hidden state stays in the L1 cache. Every kernel takes
the range of tasks it shall run, from `first` to `last` (exclusive); tasks share nothing, so ranges may run in different threads. What
several tasks would have to add up (gradients of parameters, of B and of C) they leave in separate places for the caller to sum.

Kernels walk the first `lengths[b]` clips of each recording, against time with `reverse`, and leave zeros in the rest (`scan.py`).

Memory: the scan's forward pass keeps the hidden state only every `CHUNK_STEPS` steps; the backward pass recomputes the states of one chunk
at a time from there, as the GPU kernel does (Source: Gu & Dao, https://arxiv.org/abs/2312.00752, section 3.3.2).

The letters are those of `scan.py`; besides, `decay = exp(dt * A)`, `dx` is the gradient of x, and `A_log2 = A * log2(e)`, because the
exponential here is base 2. Two states are walked at a time, which keeps more of the processor busy than one. All in one file, because
Numba's cache does not notice a change in a file that a kernel only imports from.
"""

# Compiled code is typed by its compiler, and its letters are the paper's.
# ruff: noqa: ANN001, ANN201, ANN202, N803, N806
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

BLOCK_CHANNELS = 128
CHUNK_STEPS = 16
BLOCK_VALUES = 1 << 15  # of dropout: 128 kB of float32, small enough to share out evenly, large enough that the call costs nothing

# Everything but "no NaN" and "no infinity": a training that diverges must be seen to diverge.
_FAST_MATH = {"reassoc", "contract", "arcp", "nsz", "afn"}
_f = np.float32
_LOG2_E, _LN_2 = _f(1.4426950408889634), _f(0.6931471805599453)
_EXP2_LIMIT = _f(126.0)  # 2**-126 is the smallest normal float32
_ROUNDS, _MANTISSA_BITS = _f(1.5 * 2**23), np.int32(23)


def num_blocks(size: int, block: int = BLOCK_CHANNELS) -> int:
    """How many blocks, and so tasks, `size` channels (of each recording) or values make."""
    return -(-size // block)


def flat_states(state: int) -> int:
    """Length of a block's states one after the other, an even number of them."""
    return (state + state % 2) * BLOCK_CHANNELS


def scratch(*shape: int) -> np.ndarray:
    """Zeros that begin with a cache line, since every access to vectors that straddle two costs two."""
    whole = np.zeros(math.prod(shape) + 16, np.float32)
    skipped = (-whole.ctypes.data % 64) // 4
    return whole[skipped : skipped + math.prod(shape)].reshape(shape)


def kernel(function: Callable[..., Any], *, fastmath: set[str] = _FAST_MATH, **extra: bool) -> Callable[..., Any]:
    """Compile on first call, to run without the GIL; cache on disk where a folder is writable.

    Without Numba's runtime, so nothing is allocated: an atomic count of references per slice took half of the kernels' time.
    """
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": fastmath, "_nrt": False, **extra}
    compiled: Callable[..., Any]
    try:
        compiled = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # Numba found no folder that it may write its cache to
        compiled = numba.njit(**options)(function)
    return compiled


# For parts of kernels. Inlined by force: each kernel brings a copy of what it calls, optimised in its own surroundings, and of copies that
# are not inlined the linker takes the first it meets. Which that is hangs on what the process compiled or loaded before, and so would the
# last bits of a result: a training while kernels were being compiled differed from all later ones.
inlined = functools.partial(kernel, forceinline=True)


@functools.partial(inlined, fastmath=_FAST_MATH - {"reassoc"})
def exp2(x):
    """2**x for x in [-126, 126], clamped outside; relative error below 2.5e-7.

    x splits into the nearest whole number and a rest in [-0.5, 0.5] for a polynomial (fitted for least relative error, 1e-7). Adding
    1.5 * 2**23 rounds, since no float32 of that size has a fraction, and leaves the whole number in the lowest bits, from where it is
    shifted into the exponent. Unlike a call to the C library this has no branch, so it vectorises.
    """
    x = min(max(x, -_EXP2_LIMIT), _EXP2_LIMIT)
    shifted = _f(x + _ROUNDS)
    rest = x - (shifted - _ROUNDS)
    power = _f(0.00132647)
    power = power * rest + _f(0.00967151)
    power = power * rest + _f(0.05550734)
    power = power * rest + _f(0.24022242)
    power = power * rest + _f(0.69314698)
    power = power * rest + _f(1.0)
    bits = np.int32(_f(power).view(np.int32) + np.int32(shifted.view(np.int32) << _MANTISSA_BITS))
    return bits.view(np.float32)


@inlined
def sigmoid(x):
    """1 / (1 + exp(-x))."""
    return _f(1.0) / (_f(1.0) + exp2(-x * _LOG2_E))


@inlined
def softplus(x):
    """log(1 + exp(x)), accurate relative to its own size also where it is tiny.

    With v = exp(-|x|): log(1 + v) = 2 artanh(s), s = v / (2 + v) <= 1/3, whose series ends after eight terms in float32.
    """
    v = exp2(-abs(x) * _LOG2_E)
    s = v / (_f(2.0) + v)
    q = s * s
    series = _f(1 / 15)
    series = series * q + _f(1 / 13)
    series = series * q + _f(1 / 11)
    series = series * q + _f(1 / 9)
    series = series * q + _f(1 / 7)
    series = series * q + _f(1 / 5)
    series = series * q + _f(1 / 3)
    series = series * q + _f(1.0)
    return max(x, _f(0.0)) + _f(2.0) * s * series


@inlined
def _row_of(step, length, reverse):
    """Where the clip stands that is walked at `step`."""
    return length - 1 - step if reverse else step


@inlined
def _flatten(rows, flat):
    """Write rows `(state, width)` one after the other, `BLOCK_CHANNELS` apart."""
    for n in range(rows.shape[0]):
        for j in range(rows.shape[1]):
            flat[n * BLOCK_CHANNELS + j] = rows[n, j]


@inlined
def _unflatten(flat, rows):
    for n in range(rows.shape[0]):
        for j in range(rows.shape[1]):
            rows[n, j] = flat[n * BLOCK_CHANNELS + j]


@inlined
def _pair(row, m):
    """Elements 2m and 2m + 1, with zero for one that is beyond the end."""
    return row[2 * m], (row[2 * m + 1] if 2 * m + 1 < row.shape[0] else _f(0.0))


@inlined
def _prepare_step(u_row, delta_row, D, bias, dt, dt_u, y):
    """Start one time step: `dt = softplus(delta + bias)`, `dt * u` and `y = D * u`."""
    width = u_row.shape[0]
    for j in range(width):
        dt[j] = softplus(delta_row[j] + bias[j])
    for j in range(width):
        dt_u[j] = dt[j] * u_row[j]
        y[j] = D[j] * u_row[j]


@inlined
def _advance(width, A, B_row, C_row, dt, dt_u, h, y):
    """Move the state `h` by one step and add its part to `y`."""
    for m in range(h.shape[0] // (2 * BLOCK_CHANNELS)):
        (b_0, b_1), (c_0, c_1) = _pair(B_row, m), _pair(C_row, m)
        p = 2 * m * BLOCK_CHANNELS
        q = p + BLOCK_CHANNELS
        for j in range(width):
            h_0 = exp2(dt[j] * A[p + j]) * h[p + j] + dt_u[j] * b_0
            h_1 = exp2(dt[j] * A[q + j]) * h[q + j] + dt_u[j] * b_1
            h[p + j] = h_0
            h[q + j] = h_1
            y[j] += h_0 * c_0 + h_1 * c_1


@kernel
def scan_forward(first, last, lengths, reverse, u, delta, A_log2, B, C, D, z, bias, out, checkpoints, states, rows):
    """Run the scan.

    Shapes: u, delta, z, out `(batch, steps, channels)`; B, C `(batch, steps, state)`; A_log2 `(state, channels)`; D, bias `(channels,)`;
    checkpoints `(batch, chunks, state, channels)`, the state before each chunk, or zero chunks when no gradient is wanted. Scratch: states
    `(2, flat_states(state))` and rows `(3, BLOCK_CHANNELS)`.
    """
    channels = u.shape[2]
    blocks = (channels + BLOCK_CHANNELS - 1) // BLOCK_CHANNELS
    A, h, dt, dt_u, y = states[0], states[1], rows[0], rows[1], rows[2]
    for task in range(first, last):
        b, start = task // blocks, (task % blocks) * BLOCK_CHANNELS
        length, stop = lengths[b], min(start + BLOCK_CHANNELS, channels)
        _flatten(A_log2[:, start:stop], A)
        h[:] = _f(0.0)
        for step in range(length):
            t = _row_of(step, length, reverse)
            if step % CHUNK_STEPS == 0 and checkpoints.shape[1] > 0:
                _unflatten(h, checkpoints[b, step // CHUNK_STEPS, :, start:stop])
            _prepare_step(u[b, t, start:stop], delta[b, t, start:stop], D[start:stop], bias[start:stop], dt, dt_u, y)
            _advance(stop - start, A, B[b, t], C[b, t], dt, dt_u, h, y)
            z_row, out_row = z[b, t, start:stop], out[b, t, start:stop]
            for j in range(stop - start):
                out_row[j] = y[j] * z_row[j] * sigmoid(z_row[j])
        out[b, length:, start:stop] = _f(0.0)


@inlined
def _advance_and_keep(width, A, B_row, C_row, dt, dt_u, before, after, decay, y):
    """As `_advance`, from the state `before` to the state `after`, keeping `decay`."""
    for m in range(A.shape[0] // (2 * BLOCK_CHANNELS)):
        (b_0, b_1), (c_0, c_1) = _pair(B_row, m), _pair(C_row, m)
        p = 2 * m * BLOCK_CHANNELS
        q = p + BLOCK_CHANNELS
        for j in range(width):
            a_0, a_1 = exp2(dt[j] * A[p + j]), exp2(dt[j] * A[q + j])
            h_0 = a_0 * before[p + j] + dt_u[j] * b_0
            h_1 = a_1 * before[q + j] + dt_u[j] * b_1
            decay[p + j] = a_0
            decay[q + j] = a_1
            after[p + j] = h_0
            after[q + j] = h_1
            y[j] += h_0 * c_0 + h_1 * c_1


@inlined
def _gate_backward(grad_row, z_row, y, dz_row, dy):
    """Send the gradient of the output to the gate and to `y`."""
    for j in range(z_row.shape[0]):
        gate = sigmoid(z_row[j])
        silu = z_row[j] * gate
        dz_row[j] = grad_row[j] * y[j] * (gate + silu * (_f(1.0) - gate))
        dy[j] = grad_row[j] * silu


@inlined
def _state_backward(width, A, B_row, C_row, dt, dt_u, before, after, decay, dy, dh, dA, d_dt, d_dt_u, dB_row, dC_row):
    """One step backward: `dh` goes from the state after the step to the state before it."""
    d_dt[:] = _f(0.0)
    d_dt_u[:] = _f(0.0)
    for m in range(A.shape[0] // (2 * BLOCK_CHANNELS)):
        (b_0, b_1), (c_0, c_1) = _pair(B_row, m), _pair(C_row, m)
        dB_0, dB_1, dC_0, dC_1 = _f(0.0), _f(0.0), _f(0.0), _f(0.0)
        p = 2 * m * BLOCK_CHANNELS
        q = p + BLOCK_CHANNELS
        for j in range(width):
            dh_0, dh_1 = dh[p + j] + dy[j] * c_0, dh[q + j] + dy[j] * c_1
            dC_0 += dy[j] * after[p + j]
            dC_1 += dy[j] * after[q + j]
            dB_0 += dh_0 * dt_u[j]
            dB_1 += dh_1 * dt_u[j]
            d_dt_u[j] += dh_0 * b_0 + dh_1 * b_1
            dh_0 = dh_0 * decay[p + j]
            dh_1 = dh_1 * decay[q + j]
            dh[p + j] = dh_0
            dh[q + j] = dh_1
            d_exponent_0, d_exponent_1 = dh_0 * before[p + j], dh_1 * before[q + j]
            d_dt[j] += d_exponent_0 * A[p + j] + d_exponent_1 * A[q + j]
            dA[p + j] += d_exponent_0 * dt[j]
            dA[q + j] += d_exponent_1 * dt[j]
        dB_row[2 * m], dC_row[2 * m] = dB_0, dC_0
        if 2 * m + 1 < B_row.shape[0]:
            dB_row[2 * m + 1], dC_row[2 * m + 1] = dB_1, dC_1


@inlined
def _input_backward(u_row, delta_row, D, bias, dt, dy, d_dt, d_dt_u, du_row, ddelta_row, dD, dbias):
    """Send the gradients of `y`, `dt` and `dt * u` on to u, delta, D and the bias."""
    for j in range(u_row.shape[0]):
        du_row[j] = dy[j] * D[j] + d_dt_u[j] * dt[j]
        dD[j] += dy[j] * u_row[j]
        ddelta_row[j] = d_dt[j] * _LN_2 + d_dt_u[j] * u_row[j]
    for j in range(u_row.shape[0]):
        ddelta_row[j] *= sigmoid(delta_row[j] + bias[j])
    for j in range(u_row.shape[0]):
        dbias[j] += ddelta_row[j]


@kernel
def scan_backward(
    first, last, lengths, reverse, u, delta, A_log2, B, C, D, z, bias, checkpoints, grad_out,
    grad_u, grad_delta, grad_A, grad_B, grad_C, grad_D, grad_z, grad_bias, states, h, decay, per_step, rows,
):  # fmt: skip
    """Run the scan's gradient.

    Inputs as in `scan_forward`. Results: grad_u, grad_delta, grad_z as u; to be summed over the batch, grad_A `(batch, state, channels)`,
    grad_D and grad_bias `(batch, channels)`; to be summed over blocks, grad_B and grad_C `(batch, blocks, steps, state)`. Scratch, with
    `flat_states(state)` columns: states of 3, h of `CHUNK_STEPS + 1` and decay of `CHUNK_STEPS` rows; with `BLOCK_CHANNELS` columns:
    per_step `(3, CHUNK_STEPS, ...)` and rows of 3.
    """
    channels = u.shape[2]
    blocks = (channels + BLOCK_CHANNELS - 1) // BLOCK_CHANNELS
    A, dh, dA, dt, dt_u, y = states[0], states[1], states[2], per_step[0], per_step[1], per_step[2]
    for task in range(first, last):
        b, block = task // blocks, task % blocks
        length, start, stop = lengths[b], block * BLOCK_CHANNELS, min((block + 1) * BLOCK_CHANNELS, channels)
        D_block, bias_block, dD, dbias = D[start:stop], bias[start:stop], grad_D[b, start:stop], grad_bias[b, start:stop]
        for sums in (dD, dbias, dA, dh):
            sums[:] = _f(0.0)
        _flatten(A_log2[:, start:stop], A)
        for chunk in range((length + CHUNK_STEPS - 1) // CHUNK_STEPS - 1, -1, -1):
            first_step = chunk * CHUNK_STEPS
            chunk_length = min(CHUNK_STEPS, length - first_step)
            _flatten(checkpoints[b, chunk, :, start:stop], h[0])
            for i in range(chunk_length):
                t = _row_of(first_step + i, length, reverse)
                _prepare_step(u[b, t, start:stop], delta[b, t, start:stop], D_block, bias_block, dt[i], dt_u[i], y[i])
                _advance_and_keep(stop - start, A, B[b, t], C[b, t], dt[i], dt_u[i], h[i], h[i + 1], decay[i], y[i])
            for i in range(chunk_length - 1, -1, -1):
                t = _row_of(first_step + i, length, reverse)
                _gate_backward(grad_out[b, t, start:stop], z[b, t, start:stop], y[i], grad_z[b, t, start:stop], rows[0])
                _state_backward(
                    stop - start, A, B[b, t], C[b, t], dt[i], dt_u[i], h[i], h[i + 1], decay[i], rows[0], dh, dA, rows[1], rows[2],
                    grad_B[b, block, t], grad_C[b, block, t],
                )  # fmt: skip
                _input_backward(
                    u[b, t, start:stop], delta[b, t, start:stop], D_block, bias_block, dt[i], rows[0], rows[1], rows[2],
                    grad_u[b, t, start:stop], grad_delta[b, t, start:stop], dD, dbias,
                )  # fmt: skip
        for grad in (grad_u, grad_delta, grad_z):
            grad[b, length:, start:stop] = _f(0.0)
        for grad in (grad_B, grad_C):
            grad[b, block, length:] = _f(0.0)
        _unflatten(dA, grad_A[b, :, start:stop])


@inlined
def _convolve_step(x, weight, bias, step, length, reverse, start, stop, pre):
    """One step before SiLU: `bias + sum_k weight[k] * x[step - taps + 1 + k]`, with zeros before the start."""
    taps, width = weight.shape[0], stop - start
    bias_block = bias[start:stop]
    for j in range(width):
        pre[j] = bias_block[j]
    for k in range(max(0, taps - 1 - step), taps):
        x_row, weight_row = x[_row_of(step - taps + 1 + k, length, reverse), start:stop], weight[k, start:stop]
        for j in range(width):
            pre[j] += weight_row[j] * x_row[j]


@kernel
def conv_forward(first, last, lengths, reverse, x, weight, bias, out, pre):
    """Run the causal convolution per channel, then SiLU: x, out `(batch, steps, channels)`, weight `(taps, channels)`; scratch: pre."""
    blocks = (x.shape[2] + BLOCK_CHANNELS - 1) // BLOCK_CHANNELS
    for task in range(first, last):
        b, start = task // blocks, (task % blocks) * BLOCK_CHANNELS
        length, stop = lengths[b], min(start + BLOCK_CHANNELS, x.shape[2])
        for step in range(length):
            out_row = out[b, _row_of(step, length, reverse), start:stop]
            _convolve_step(x[b], weight, bias, step, length, reverse, start, stop, pre)
            for j in range(stop - start):
                out_row[j] = pre[j] * sigmoid(pre[j])
        out[b, length:, start:stop] = _f(0.0)


@kernel
def conv_backward(first, last, lengths, reverse, x, weight, bias, grad_out, grad_x, grad_weight, grad_bias, pre):
    """Run its gradient: grad_x as x; to be summed over the batch, grad_weight `(batch, taps, channels)`, grad_bias `(batch, channels)`."""
    taps, channels = weight.shape
    blocks = (channels + BLOCK_CHANNELS - 1) // BLOCK_CHANNELS
    for task in range(first, last):
        b, start = task // blocks, (task % blocks) * BLOCK_CHANNELS
        length, stop = lengths[b], min(start + BLOCK_CHANNELS, channels)
        dbias = grad_bias[b, start:stop]
        dbias[:] = _f(0.0)
        grad_weight[b, :, start:stop] = _f(0.0)
        for step in range(length):
            t = _row_of(step, length, reverse)
            _convolve_step(x[b], weight, bias, step, length, reverse, start, stop, pre)
            grad_row = grad_out[b, t, start:stop]
            for j in range(stop - start):
                gate = sigmoid(pre[j])
                pre[j] = grad_row[j] * gate * (_f(1.0) + pre[j] * (_f(1.0) - gate))
                dbias[j] += pre[j]
            grad_x[b, t, start:stop] = _f(0.0)
            for k in range(max(0, taps - 1 - step), taps):
                source = _row_of(step - taps + 1 + k, length, reverse)
                x_row, dx_row = x[b, source, start:stop], grad_x[b, source, start:stop]
                weight_row, dweight_row = weight[k, start:stop], grad_weight[b, k, start:stop]
                for j in range(stop - start):
                    dx_row[j] += weight_row[j] * pre[j]
                    dweight_row[j] += pre[j] * x_row[j]
        grad_x[b, length:, start:stop] = _f(0.0)


@inlined
def _bits(place, low, high):
    """32 random bits for a place, out of two keys. Source: lowbias32 of C. Wellons, https://github.com/skeeto/hash-prospector."""
    x = np.uint32(place) ^ low
    x = np.uint32((x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)) ^ high
    x = np.uint32((x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B))
    return x ^ (x >> np.uint32(16))


@kernel
def drop(first, last, x, slope, low, high, limit, scale, out):
    """Run dropout behind a PReLU of slope `(1,)`, which is 1 where there is none: `scale` times the value where it is kept, else 0.

    What PyTorch does in passes of its own (draw, decide, bend, convert, scale, multiply) is one here. All is flat; a task is `BLOCK_VALUES`
    neighbouring values. What is kept follows from its place and the keys, so nobody has to store it. Values are read before it is known
    whether they are kept: else the compiler, which may not read what the program would not, makes no SIMD of it (six times as slow).
    """
    low, high, limit, scale, negative = np.uint32(low), np.uint32(high), np.uint32(limit), _f(scale), slope[0]
    for i in range(first * BLOCK_VALUES, min(last * BLOCK_VALUES, x.shape[0])):
        value = x[i]
        bent = (value if value > _f(0.0) else negative * value) * scale
        out[i] = bent if _bits(i, low, high) >= limit else _f(0.0)


@kernel
def drop_backward(first, last, x, slope, low, high, limit, scale, grad_out, grad_x, grad_slope):
    """Run its gradient: grad_x as x; to be summed over tasks, grad_slope `(tasks,)`.

    The sum has a loop of its own. In one that also writes, the compiler looks where the arrays lie before it sums several values at
    once, and the order of the sum, and with it the last bits, would change from run to run.
    """
    low, high, limit, scale, negative = np.uint32(low), np.uint32(high), np.uint32(limit), _f(scale), slope[0]
    for task in range(first, last):
        start, stop = task * BLOCK_VALUES, min((task + 1) * BLOCK_VALUES, x.shape[0])
        for i in range(start, stop):
            value, whole = x[i], grad_out[i] * scale
            grad = whole if _bits(i, low, high) >= limit else _f(0.0)
            grad_x[i] = grad if value > _f(0.0) else negative * grad
        total = _f(0.0)
        for i in range(start, stop):
            below, whole = min(x[i], _f(0.0)), grad_out[i] * scale
            total += below * (whole if _bits(i, low, high) >= limit else _f(0.0))
        grad_slope[task] = total
