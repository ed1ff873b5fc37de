"""What a CPU computes faster than PyTorch does on its own: the Mamba block's operations, products with weights, and dropout.

`speed_up` swaps the layers of a network; the compiled kernels are in `cpu_kernels.py`.
"""

# The letters are the paper's.
# ruff: noqa: N806

from __future__ import annotations

import functools
import importlib
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from torch import Tensor, nn

from qamdetr.kernels.scan import differentiable_once

Network = TypeVar("Network", bound=nn.Module)

_LEAST_WORK = 1_000_000  # multiplications below which oneDNN's longer call (some 10 us) takes back what it gains


def speed_up(model: Network) -> Network:
    """Let the linear layers, dropouts and feed-forward networks of `model` run by this module; returns `model`.

    On other devices they do as before. Classes are swapped rather than modules, so that parameters, their names and hooks stay.
    """
    faster: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: Linear, nn.Dropout: Dropout}
    for module in model.modules():  # a network comes before its parts, which are plain still
        if [type(part) for part in module.children()] == [nn.Linear, nn.PReLU, nn.Dropout, nn.Linear] and type(module) is nn.Sequential:
            module.__class__ = FeedForward
        module.__class__ = faster.get(type(module), type(module))
    return model


def _kernels() -> ModuleType:
    """Import the compiled kernels where one is first called, since Numba is slow to import."""
    return importlib.import_module("qamdetr.kernels.cpu_kernels")


def run_kernel(
    kernel: Callable[..., None], tasks: int, inputs: Sequence[Tensor | float], outputs: Sequence[Tensor], *scratch: tuple[int, ...]
) -> None:
    """Call `kernel(first, last, *inputs, *outputs, *scratch)` on ranges that cover `tasks`, in as many threads as PyTorch may use.

    Each call gets its own scratch of these shapes. Plain threads, because the kernels release the GIL: unlike Numba's own parallel loops
    they add nothing to compile time, can be called from several threads of a web server at once, and survive a fork (PyTorch's own
    threads, which products use, do not).
    """
    arguments = [value.detach().numpy() if isinstance(value, Tensor) else value for value in (*inputs, *outputs)]

    threads = min(torch.get_num_threads(), tasks)
    # More ranges than threads, so that a core that is busy elsewhere does not hold up the rest.
    ranges = min(tasks, 4 * threads) if threads > 1 else 1
    left = iter(range(ranges))

    def work() -> None:
        own = [_kernels().scratch(*shape) for shape in scratch]
        for i in left:
            kernel(tasks * i // ranges, tasks * (i + 1) // ranges, *arguments, *own)

    # The caller works too: to wake a thread takes as long as half a scan of one recording.
    helpers = [_thread_pool(os.getpid(), threads - 1).submit(work) for _ in range(threads - 1)]
    work()
    for helper in helpers:
        if not helper.cancel():  # one that never began, because all threads were at another's work, has nothing left to do
            helper.result()


@functools.lru_cache(maxsize=1)
def _thread_pool(process_id: int, threads: int) -> ThreadPoolExecutor:
    """Threads that outlive a call; `process_id` is part of the key because a forked process needs its own."""
    return ThreadPoolExecutor(threads, thread_name_prefix=f"mamba-{process_id}")


class _Scan(torch.autograd.Function):
    """`scan.selective_scan` in float32, in the order of `lengths` and `reverse`; `keep_states` for a gradient."""

    @staticmethod
    def forward(ctx: Any, lengths: Tensor, reverse: bool, keep_states: bool, *tensors: Tensor) -> Tensor:  # noqa: ANN401 - torch's untyped
        cpu_kernels = _kernels()
        u, delta, A, B, C, D, z, delta_bias = tensors
        batch, steps, channels = u.shape
        arrays = [tensor.detach().contiguous() for tensor in (u, delta, A.t() / math.log(2.0), B, C, D, z, delta_bias)]
        chunks = cpu_kernels.num_blocks(steps, cpu_kernels.CHUNK_STEPS) if keep_states else 0
        out, checkpoints = torch.empty_like(arrays[0]), u.new_empty(batch, chunks, A.shape[1], channels)
        scratch = (2, cpu_kernels.flat_states(A.shape[1])), (3, cpu_kernels.BLOCK_CHANNELS)
        tasks = batch * cpu_kernels.num_blocks(channels)
        run_kernel(cpu_kernels.scan_forward, tasks, [lengths, reverse, *arrays], [out, checkpoints], *scratch)
        ctx.reverse = reverse
        ctx.save_for_backward(lengths, *arrays, checkpoints)
        return out

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        cpu_kernels = _kernels()
        lengths, *arrays, checkpoints = ctx.saved_tensors
        u, state = arrays[0], checkpoints.shape[2]
        batch, steps, channels = u.shape
        blocks = cpu_kernels.num_blocks(channels)
        grad_u, grad_delta, grad_z = (torch.empty_like(u) for _ in range(3))
        grad_A = u.new_empty(batch, state, channels)
        grad_B, grad_C = (u.new_empty(batch, blocks, steps, state) for _ in range(2))
        grad_D, grad_bias = (u.new_empty(batch, channels) for _ in range(2))
        inputs = [lengths, ctx.reverse, *arrays, checkpoints, grad_out.contiguous()]
        outputs = [grad_u, grad_delta, grad_A, grad_B, grad_C, grad_D, grad_z, grad_bias]
        flat, chunk, block = cpu_kernels.flat_states(state), cpu_kernels.CHUNK_STEPS, cpu_kernels.BLOCK_CHANNELS
        scratch = ((3, flat), (chunk + 1, flat), (chunk, flat), (3, chunk, block), (3, block))
        run_kernel(cpu_kernels.scan_backward, batch * blocks, inputs, outputs, *scratch)
        small = (grad_A.sum(dim=0).t(), grad_B.sum(dim=1), grad_C.sum(dim=1), grad_D.sum(dim=0))
        return None, None, None, grad_u, grad_delta, *small, grad_z, grad_bias.sum(dim=0)


scan: Callable[..., Tensor] = _Scan.apply


class _Convolution(torch.autograd.Function):
    """`scan.causal_conv_silu` in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, lengths: Tensor, reverse: bool) -> Tensor:  # noqa: ANN401
        cpu_kernels = _kernels()
        inputs = [tensor.detach().contiguous() for tensor in (x, weight[:, 0].t(), bias)]
        out = torch.empty_like(inputs[0])
        tasks = x.shape[0] * cpu_kernels.num_blocks(x.shape[2])
        run_kernel(cpu_kernels.conv_forward, tasks, [lengths, reverse, *inputs], [out], (cpu_kernels.BLOCK_CHANNELS,))
        ctx.reverse = reverse
        ctx.save_for_backward(lengths, *inputs)
        return out

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        cpu_kernels = _kernels()
        lengths, x, weight, bias = ctx.saved_tensors
        batch, _, channels = x.shape
        grad_x, grad_weight, grad_bias = torch.empty_like(x), x.new_empty(batch, *weight.shape), x.new_empty(batch, channels)
        inputs, outputs = [lengths, ctx.reverse, x, weight, bias, grad_out.contiguous()], [grad_x, grad_weight, grad_bias]
        tasks = batch * cpu_kernels.num_blocks(channels)
        run_kernel(cpu_kernels.conv_backward, tasks, inputs, outputs, (cpu_kernels.BLOCK_CHANNELS,))
        return grad_x, grad_weight.sum(dim=0).t()[:, None], grad_bias.sum(dim=0), None, None


causal_conv_silu: Callable[..., Tensor] = _Convolution.apply


class Linear(nn.Linear):
    """`nn.Linear`, with the same parameters and values, by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """`(..., dim_in)` -> `(..., dim_out)`."""
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `x @ weight.T + bias` as `F.linear` does, by the faster of PyTorch's two libraries.

    PyTorch multiplies float32 matrices on a CPU with MKL, which takes processors of other makers for ones without AVX-512. On one AMD
    Zen 5 core it does 92 GFLOP/s, and oneDNN, which comes with PyTorch too, 205 to 215, in the same arithmetic. oneDNN is reached by an
    operator that has no gradient, hence the gradient here.
    """
    factors = (x, weight) if bias is None else (x, weight, bias)
    if (
        x.numel() * weight.shape[0] < _LEAST_WORK
        or x.dim() < 2
        or x.shape[-1:] != weight.shape[1:]
        or (bias is not None and bias.shape != weight.shape[:1])
        or any(part.dtype != torch.float32 or part.device.type != "cpu" for part in factors)
        or torch.is_autocast_enabled("cpu")
        or not has_faster_product()
    ):
        return F.linear(x, weight, bias)
    return cast("Tensor", _Product.apply(x, weight, bias))  # type: ignore[no-untyped-call]


@functools.cache
def has_faster_product() -> bool:
    """Whether this is a processor with AVX-512 that MKL does not use it on, and a PyTorch that lets oneDNN be asked."""
    from llvmlite import binding  # type: ignore[import-untyped]  # Numba's compiler, which knows every processor by name

    with_onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    is_amd = str(binding.get_host_cpu_name()).startswith("znver")
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not with_onednn or not is_amd:
        return False
    # The operator is PyTorch's own business and may change with any version.
    rows, weight, bias = torch.arange(6.0).view(2, 3), torch.arange(12.0).view(4, 3), torch.arange(8.0)[::2]
    try:
        return torch.allclose(_product(rows, weight, bias), F.linear(rows, weight, bias))
    except (AttributeError, RuntimeError, TypeError):
        return False


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(x, weight)
        return _product(x.reshape(-1, x.shape[-1]), weight, bias).view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # noqa: ANN401
        x, weight = ctx.saved_tensors
        rows, grad_rows = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
        grad_x = _product(grad_rows, weight.t()).view(x.shape) if ctx.needs_input_grad[0] else None
        grad_weight = None
        if ctx.needs_input_grad[1]:
            # oneDNN copies its second factor into an order of its own, so the narrower one goes there.
            narrow_rows = rows.shape[1] < grad_rows.shape[1]
            grad_weight = _product(rows.t(), grad_rows.t()).t() if narrow_rows else _product(grad_rows.t(), rows.t())
        return grad_x, grad_weight, grad_rows.sum(dim=0) if ctx.needs_input_grad[2] else None


def _product(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    bias = None if bias is None else bias.contiguous()  # the operator reads it as if it was, whatever its strides say
    out: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    return out


class Dropout(nn.Dropout):
    """`nn.Dropout`, by `drop`."""

    def forward(self, x: Tensor) -> Tensor:
        """Return `x`, of any shape, with some values dropped in training."""
        return drop(x, self.p) if self.training and self.p else x


class FeedForward(nn.Sequential):
    """`nn.Sequential` of Linear, PReLU, Dropout, Linear; in training PReLU and dropout are one operation."""

    def forward(self, x: Tensor) -> Tensor:
        """`(..., dim)` -> the same."""
        widen, bend, dropout, narrow = self
        hidden, p = widen(x), cast("float", dropout.p)
        out: Tensor = narrow(drop(hidden, p, cast("Tensor", bend.weight)) if dropout.training and p else bend(hidden))
        return out


def drop(x: Tensor, p: float, slope: Tensor | None = None) -> Tensor:
    """Zero the share `p` of the values of `x` and scale up the rest; with a `slope` `(1,)`, of what a PReLU makes of `x`.

    On a CPU what is kept is decided by a hash of each value's place, keyed by one draw of PyTorch's generator, where `nn.Dropout` takes a
    draw and a logarithm for every value: that alone was a quarter of a training step. bfloat16 keeps what float32 would.
    """
    if x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16):
        bend = None if slope is None else slope.float()
        low, high = torch.empty(2, dtype=torch.int64).random_(1 << 32).tolist()
        return cast("Tensor", _Drop.apply(x, bend, (low, high, round(p * (1 << 32)), 1 / (1 - p))))  # type: ignore[no-untyped-call]
    return F.dropout(x if slope is None else F.prelu(x, slope), p)


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Tensor | None, numbers: tuple[float, ...]) -> Tensor:  # noqa: ANN401
        ctx.numbers = numbers
        ctx.save_for_backward(None if slope is None else x, slope)
        return _keep(x, slope, numbers)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, Tensor | None, None]:  # noqa: ANN401
        x, slope = ctx.saved_tensors
        if slope is None:
            return _keep(grad_out, None, ctx.numbers), None, None
        flat, grad = x.float().reshape(-1), grad_out.float().reshape(-1)
        tasks = _kernels().num_blocks(flat.numel(), _kernels().BLOCK_VALUES)
        grad_x, grad_slope = torch.empty_like(flat), flat.new_empty(tasks)
        run_kernel(_kernels().drop_backward, tasks, [flat, slope, *ctx.numbers, grad], [grad_x, grad_slope])
        return grad_x.view(x.shape).to(x.dtype), grad_slope.sum(dim=0, keepdim=True), None


def _keep(x: Tensor, slope: Tensor | None, numbers: tuple[float, ...]) -> Tensor:
    flat = x.float().reshape(-1)
    out, tasks = torch.empty_like(flat), _kernels().num_blocks(flat.numel(), _kernels().BLOCK_VALUES)
    run_kernel(_kernels().drop, tasks, [flat, flat.new_ones(1) if slope is None else slope, *numbers], [out])
    return out.view(x.shape).to(x.dtype)
