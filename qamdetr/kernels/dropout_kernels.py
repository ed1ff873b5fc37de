"""CPU kernels of dropout, compiled by Numba; imported on first use only, since Numba is slow to import.

What PyTorch does in four passes over a tensor (decide, convert, scale, multiply) is one pass here, and one in the gradient. One task is
`BLOCK_VALUES` neighbouring values; `draws` holds 16 random bits for each, and a value is kept where they are at least `limit`.
"""

# Compiled code is typed by its compiler.
# ruff: noqa: ANN001, ANN201
# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from __future__ import annotations

import numpy as np

from qamdetr.kernels.cpu_kernels import jit

BLOCK_VALUES = 1 << 15
"""128 kB of float32: small enough to share out evenly, large enough that the call costs nothing."""

_f = np.float32


def num_blocks(values: int) -> int:
    """How many tasks `values` values make."""
    return -(-values // BLOCK_VALUES)


@jit
def drop(first, last, x, draws, limit, scale, out):
    """Run `out = x * scale` where a value is kept, else 0; also the gradient, with `x` the gradient of the output. All flat."""
    limit, scale = np.int16(limit), _f(scale)
    for i in range(first * BLOCK_VALUES, min(last * BLOCK_VALUES, x.shape[0])):
        out[i] = x[i] * scale if draws[i] >= limit else _f(0.0)


@jit
def prelu_drop(first, last, x, slope, draws, limit, scale, out):
    """Run `drop` behind a PReLU: `x`, or `slope[0] * x` where x is negative. All flat but slope `(1,)`."""
    limit, scale, negative = np.int16(limit), _f(scale), slope[0]
    for i in range(first * BLOCK_VALUES, min(last * BLOCK_VALUES, x.shape[0])):
        bent = x[i] if x[i] > _f(0.0) else negative * x[i]
        out[i] = bent * scale if draws[i] >= limit else _f(0.0)


@jit
def prelu_drop_backward(first, last, x, slope, draws, limit, scale, grad_out, grad_x, grad_slope):
    """Run its gradient: grad_x as x; to be summed over tasks, grad_slope `(tasks,)`.

    The sum has a loop of its own. In one that also writes, the compiler looks where the arrays lie before it sums several values at
    once, and the order of the sum, and with it the last bits, would change from run to run.
    """
    limit, scale, negative = np.int16(limit), _f(scale), slope[0]
    for task in range(first, last):
        start, stop = task * BLOCK_VALUES, min((task + 1) * BLOCK_VALUES, x.shape[0])
        for i in range(start, stop):
            grad = grad_out[i] * scale if draws[i] >= limit else _f(0.0)
            grad_x[i] = grad if x[i] > _f(0.0) else negative * grad
        total = _f(0.0)
        for i in range(start, stop):
            total += x[i] * grad_out[i] * scale if draws[i] >= limit and x[i] <= _f(0.0) else _f(0.0)
        grad_slope[task] = total
