"""CPU kernels of the Mamba block, compiled by Numba; imported on first use only, since Numba is slow to import.

Layout: everything is channels-last, so that the innermost loop runs over neighbouring channels and the compiler turns it into SIMD. One
task is one recording of the batch and one block of `BLOCK_CHANNELS` channels, whose hidden state stays in the L1 cache. Every kernel takes
the range of tasks it shall run, from `first` to `last` (exclusive); tasks share nothing, so ranges may run in different threads. What
several tasks would have to add up (gradients of parameters, of B and of C) they leave in separate places for the caller to sum.

Memory: the scan's forward pass keeps the hidden state only every `CHUNK_STEPS` steps; the backward pass recomputes the states of one chunk
at a time from there, as the GPU kernel does (Source: Gu & Dao, https://arxiv.org/abs/2312.00752, section 3.3.2).

The letters are those of `scan.py`; besides, `decay = exp(dt * A)`, `dx` is the gradient of x, and `A_log2 = A * log2(e)`, because the
exponential here is base 2. All in one file, because Numba's cache does not notice a change in a file that a kernel only imports from.
"""

# Compiled code is typed by its compiler, and its letters are the paper's.
# ruff: noqa: ANN001, ANN201, ANN202, N803, N806
# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

BLOCK_CHANNELS = 128
CHUNK_STEPS = 16

# Everything but "no NaN" and "no infinity": a training that diverges must be seen to diverge.
_FAST_MATH = {"reassoc", "contract", "arcp", "nsz", "afn"}
_f = np.float32
_LOG2_E, _LN_2 = _f(1.4426950408889634), _f(0.6931471805599453)
_EXP2_LIMIT = _f(126.0)  # 2**-126 is the smallest normal float32
_EXPONENT_BIAS, _MANTISSA_BITS = np.int32(127), np.int32(23)


def num_blocks(channels: int) -> int:
    """How many blocks, and so tasks per recording, `channels` channels make."""
    return -(-channels // BLOCK_CHANNELS)


def jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile on first call, to run without the GIL; cache on disk where a folder is writable."""
    try:
        return numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=_FAST_MATH)(function)
    except RuntimeError:  # Numba found no folder that it may write its cache to
        return numba.njit(nogil=True, error_model="numpy", fastmath=_FAST_MATH)(function)


@jit
def exp2(x):
    """2**x for x in [-126, 126], clamped outside; relative error below 2.5e-7.

    x splits into a whole number, which goes straight into the exponent bits, and a rest in [-0.5, 0.5] for a polynomial (fitted for least
    relative error, 1e-7). Unlike a call to the C library this has no branch, so it vectorises.
    """
    x = min(max(x, -_EXP2_LIMIT), _EXP2_LIMIT)
    whole = np.floor(x + _f(0.5))
    rest = x - whole
    power = _f(0.00132647)
    power = power * rest + _f(0.00967151)
    power = power * rest + _f(0.05550734)
    power = power * rest + _f(0.24022242)
    power = power * rest + _f(0.69314698)
    power = power * rest + _f(1.0)
    bits = np.int32((np.int32(whole) + _EXPONENT_BIAS) << _MANTISSA_BITS)
    return power * bits.view(np.float32)


@jit
def sigmoid(x):
    """1 / (1 + exp(-x))."""
    return _f(1.0) / (_f(1.0) + exp2(-x * _LOG2_E))


@jit
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


@jit
def _prepare_step(u_row, delta_row, D, bias, use_softplus, dt, dt_u, y):
    """Start one time step: `dt = softplus(delta + bias)`, `dt * u` and `y = D * u`."""
    width = dt.shape[0]
    if use_softplus:
        for j in range(width):
            dt[j] = softplus(delta_row[j] + bias[j])
    else:
        for j in range(width):
            dt[j] = delta_row[j] + bias[j]
    for j in range(width):
        dt_u[j] = dt[j] * u_row[j]
        y[j] = D[j] * u_row[j]


@jit
def scan_forward(first, last, u, delta, A_log2, B, C, D, z, bias, use_softplus, use_gate, out, checkpoints, last_state):
    """Run the scan.

    Shapes: u, delta, z, out `(batch, steps, channels)`; B, C `(batch, steps, state)`; A_log2 `(state, channels)`; D, bias `(channels,)`;
    last_state `(batch, state, channels)`; checkpoints `(batch, chunks, state, channels)`, the state before each chunk, or zero chunks
    when no gradient is wanted.
    """
    steps, channels = u.shape[1], u.shape[2]
    state = A_log2.shape[0]
    blocks = (channels + BLOCK_CHANNELS - 1) // BLOCK_CHANNELS
    for task in range(first, last):
        b, start = task // blocks, (task % blocks) * BLOCK_CHANNELS
        stop = min(start + BLOCK_CHANNELS, channels)
        width = stop - start
        A, D_block, bias_block = A_log2[:, start:stop].copy(), D[start:stop], bias[start:stop]
        h = np.zeros((state, width), np.float32)
        dt, dt_u, y = np.empty(width, np.float32), np.empty(width, np.float32), np.empty(width, np.float32)
        for t in range(steps):
            if t % CHUNK_STEPS == 0 and checkpoints.shape[1] > 0:
                checkpoints[b, t // CHUNK_STEPS, :, start:stop] = h
            _prepare_step(u[b, t, start:stop], delta[b, t, start:stop], D_block, bias_block, use_softplus, dt, dt_u, y)
            for n in range(state):
                b_n, c_n = B[b, t, n], C[b, t, n]
                for j in range(width):
                    value = exp2(dt[j] * A[n, j]) * h[n, j] + dt_u[j] * b_n
                    h[n, j] = value
                    y[j] += value * c_n
            z_row, out_row = z[b, t, start:stop], out[b, t, start:stop]
            if use_gate:
                for j in range(width):
                    out_row[j] = y[j] * z_row[j] * sigmoid(z_row[j])
            else:
                for j in range(width):
                    out_row[j] = y[j]
        last_state[b, :, start:stop] = h


@jit
def _recompute_state(i, A, B_row, C_row, dt, dt_u, y, decay, h):
    """Step `i` of a chunk forward again, from `h[i]` to `h[i + 1]`, keeping `decay[i]` and completing `y`."""
    for n in range(A.shape[0]):
        b_n, c_n = B_row[n], C_row[n]
        for j in range(A.shape[1]):
            a = exp2(dt[j] * A[n, j])
            value = a * h[i, n, j] + dt_u[j] * b_n
            decay[i, n, j] = a
            h[i + 1, n, j] = value
            y[j] += value * c_n


@jit
def _gate_backward(use_gate, grad_row, z_row, y, dz_row, dy):
    """Send the gradient of the output to the gate and to `y`."""
    if use_gate:
        for j in range(dy.shape[0]):
            gate = sigmoid(z_row[j])
            silu = z_row[j] * gate
            dz_row[j] = grad_row[j] * y[j] * (gate + silu * (_f(1.0) - gate))
            dy[j] = grad_row[j] * silu
    else:
        for j in range(dy.shape[0]):
            dy[j] = grad_row[j]


@jit
def _state_backward(i, A, B_row, C_row, dt, dt_u, decay, h, dy, dh, dA, d_dt, d_dt_u, dB_row, dC_row):
    """Step `i` of a chunk backward: `dh` goes from the state after the step to the state before it."""
    d_dt[:] = _f(0.0)
    d_dt_u[:] = _f(0.0)
    for n in range(A.shape[0]):
        b_n, c_n = B_row[n], C_row[n]
        dB, dC = _f(0.0), _f(0.0)
        for j in range(A.shape[1]):
            dh_now = dh[n, j] + dy[j] * c_n
            dC += dy[j] * h[i + 1, n, j]
            dB += dh_now * dt_u[j]
            d_dt_u[j] += dh_now * b_n
            dh_before = dh_now * decay[i, n, j]
            d_exponent = dh_before * h[i, n, j]
            d_dt[j] += d_exponent * A[n, j] * _LN_2
            dA[n, j] += d_exponent * dt[j]
            dh[n, j] = dh_before
        dB_row[n], dC_row[n] = dB, dC


@jit
def _input_backward(use_softplus, u_row, delta_row, D, bias, dt, dy, d_dt, d_dt_u, du_row, ddelta_row, dD, dbias):
    """Send the gradients of `y`, `dt` and `dt * u` on to u, delta, D and the bias."""
    for j in range(dt.shape[0]):
        du_row[j] = dy[j] * D[j] + d_dt_u[j] * dt[j]
        dD[j] += dy[j] * u_row[j]
        ddelta_row[j] = d_dt[j] + d_dt_u[j] * u_row[j]
    if use_softplus:
        for j in range(dt.shape[0]):
            ddelta_row[j] *= sigmoid(delta_row[j] + bias[j])
    for j in range(dt.shape[0]):
        dbias[j] += ddelta_row[j]


@jit
def scan_backward(
    first, last, u, delta, A_log2, B, C, D, z, bias, use_softplus, use_gate, checkpoints, grad_out, grad_last_state,
    grad_u, grad_delta, grad_A, grad_B, grad_C, grad_D, grad_z, grad_bias,
):  # fmt: skip
    """Run the scan's gradient.

    Inputs as in `scan_forward`. Results: grad_u, grad_delta, grad_z as u; to be summed over the batch, grad_A `(batch, state, channels)`,
    grad_D and grad_bias `(batch, channels)`; to be summed over blocks, grad_B and grad_C `(batch, blocks, steps, state)`.
    """
    steps, channels = u.shape[1], u.shape[2]
    state = A_log2.shape[0]
    blocks = (channels + BLOCK_CHANNELS - 1) // BLOCK_CHANNELS
    for task in range(first, last):
        b, block = task // blocks, task % blocks
        start = block * BLOCK_CHANNELS
        stop = min(start + BLOCK_CHANNELS, channels)
        width = stop - start
        A, D_block, bias_block = A_log2[:, start:stop].copy(), D[start:stop], bias[start:stop]
        h, decay = np.empty((CHUNK_STEPS + 1, state, width), np.float32), np.empty((CHUNK_STEPS, state, width), np.float32)
        dt, dt_u = np.empty((CHUNK_STEPS, width), np.float32), np.empty((CHUNK_STEPS, width), np.float32)
        y = np.empty((CHUNK_STEPS, width), np.float32)
        dy, d_dt, d_dt_u = np.empty(width, np.float32), np.empty(width, np.float32), np.empty(width, np.float32)
        dh, dA = grad_last_state[b, :, start:stop].copy(), np.zeros((state, width), np.float32)
        dD, dbias = np.zeros(width, np.float32), np.zeros(width, np.float32)
        for chunk in range(checkpoints.shape[1] - 1, -1, -1):
            t_first = chunk * CHUNK_STEPS
            length = min(CHUNK_STEPS, steps - t_first)
            h[0] = checkpoints[b, chunk, :, start:stop]
            for i in range(length):
                t = t_first + i
                _prepare_step(u[b, t, start:stop], delta[b, t, start:stop], D_block, bias_block, use_softplus, dt[i], dt_u[i], y[i])
                _recompute_state(i, A, B[b, t], C[b, t], dt[i], dt_u[i], y[i], decay, h)
            for i in range(length - 1, -1, -1):
                t = t_first + i
                _gate_backward(use_gate, grad_out[b, t, start:stop], z[b, t, start:stop], y[i], grad_z[b, t, start:stop], dy)
                _state_backward(
                    i, A, B[b, t], C[b, t], dt[i], dt_u[i], decay, h, dy, dh, dA, d_dt, d_dt_u, grad_B[b, block, t], grad_C[b, block, t]
                )  # fmt: skip
                _input_backward(
                    use_softplus, u[b, t, start:stop], delta[b, t, start:stop], D_block, bias_block, dt[i], dy, d_dt, d_dt_u,
                    grad_u[b, t, start:stop], grad_delta[b, t, start:stop], dD, dbias,
                )  # fmt: skip
        grad_A[b, :, start:stop] = dA
        grad_D[b, start:stop] = dD
        grad_bias[b, start:stop] = dbias


@jit
def _convolve_step(x, weight, bias, b, t, start, stop, pre):
    """One step before SiLU: `bias + sum_k weight[k] * x[t - taps + 1 + k]`, with zeros before the start."""
    taps = weight.shape[0]
    pre[:] = bias[start:stop]
    for k in range(max(0, taps - 1 - t), taps):
        x_row, weight_row = x[b, t - taps + 1 + k, start:stop], weight[k, start:stop]
        for j in range(pre.shape[0]):
            pre[j] += weight_row[j] * x_row[j]


@jit
def conv_forward(first, last, x, weight, bias, out):
    """Run the causal convolution per channel, then SiLU: x, out `(batch, steps, channels)`, weight `(taps, channels)`."""
    steps, channels = x.shape[1], x.shape[2]
    blocks = (channels + BLOCK_CHANNELS - 1) // BLOCK_CHANNELS
    for task in range(first, last):
        b, start = task // blocks, (task % blocks) * BLOCK_CHANNELS
        stop = min(start + BLOCK_CHANNELS, channels)
        pre = np.empty(stop - start, np.float32)
        for t in range(steps):
            out_row = out[b, t, start:stop]
            _convolve_step(x, weight, bias, b, t, start, stop, pre)
            for j in range(stop - start):
                out_row[j] = pre[j] * sigmoid(pre[j])


@jit
def conv_backward(first, last, x, weight, bias, grad_out, grad_x, grad_weight, grad_bias):
    """Run its gradient: grad_x as x; to be summed over the batch, grad_weight `(batch, taps, channels)`, grad_bias `(batch, channels)`."""
    steps, channels, taps = x.shape[1], x.shape[2], weight.shape[0]
    blocks = (channels + BLOCK_CHANNELS - 1) // BLOCK_CHANNELS
    for task in range(first, last):
        b, start = task // blocks, (task % blocks) * BLOCK_CHANNELS
        stop = min(start + BLOCK_CHANNELS, channels)
        width = stop - start
        pre, dbias, dweight = np.empty(width, np.float32), np.zeros(width, np.float32), np.zeros((taps, width), np.float32)
        for t in range(steps):
            _convolve_step(x, weight, bias, b, t, start, stop, pre)
            grad_row = grad_out[b, t, start:stop]
            for j in range(width):
                gate = sigmoid(pre[j])
                pre[j] = grad_row[j] * gate * (_f(1.0) + pre[j] * (_f(1.0) - gate))
                dbias[j] += pre[j]
            grad_x[b, t, start:stop] = _f(0.0)
            for k in range(max(0, taps - 1 - t), taps):
                source = t - taps + 1 + k
                x_row, dx_row = x[b, source, start:stop], grad_x[b, source, start:stop]
                weight_row, dweight_row = weight[k, start:stop], dweight[k]
                for j in range(width):
                    dx_row[j] += weight_row[j] * pre[j]
                    dweight_row[j] += pre[j] * x_row[j]
        grad_weight[b, :, start:stop] = dweight
        grad_bias[b, start:stop] = dbias
