"""How the Mamba block's operations run: a readable PyTorch reference anywhere, compiled kernels on the CPU and on GPUs."""

from __future__ import annotations

import functools
import importlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from qamdetr.errors import ConfigError

Backend = Literal["reference", "cpu", "triton", "mamba_ssm"]
HALF_TYPES = (torch.float16, torch.bfloat16)

# Best first: the compiled kernels of mamba-ssm have been measured on many GPUs, ours on none yet.
_GPU_BACKENDS: tuple[Backend, ...] = ("mamba_ssm", "triton")

_forced_backend: ContextVar[Backend | None] = ContextVar("_forced_backend", default=None)


@contextmanager
def use_backend(backend: Backend) -> Iterator[None]:
    """Run every scan and convolution inside the `with` block on `backend`.

    Raises:
        ConfigError: There is no such backend.
    """
    token = _forced_backend.set(_checked(backend))
    try:
        yield
    finally:
        _forced_backend.reset(token)


def choose_backend(backend: Backend | None, tensors: Sequence[Tensor | None]) -> Backend:
    """Return `backend`, else what `use_backend` says, else the fastest that can take these tensors.

    That is `cpu` on the CPU; on a GPU `mamba_ssm` where it is installed, else `triton`; `reference` wherever these cannot run, as for
    float64.

    Raises:
        ConfigError: The wanted backend does not exist, is not installed or cannot take these tensors.
    """
    wanted = _checked(backend) if backend is not None else _forced_backend.get()
    present = [tensor for tensor in tensors if tensor is not None]
    if wanted is None:
        return next((name for name in ("cpu", *_GPU_BACKENDS) if _misfit(name, present) is None), "reference")
    misfit = _misfit(wanted, present)
    if misfit is not None:
        raise ConfigError(f"Backend {wanted!r} {misfit}; use another, or 'reference', which runs anywhere.")
    return wanted


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


@lru_cache
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


def _triton_is_interpreted() -> bool:
    """Return whether Triton runs its kernels on the CPU, step by step, for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def run_kernel(kernel: Callable[..., None], tasks: int, inputs: Sequence[Tensor | float], outputs: Sequence[Tensor]) -> None:
    """Call `kernel(first, last, *inputs, *outputs)` on ranges that cover `tasks`, in as many threads as PyTorch may use.

    Plain threads, because the kernels release the GIL: unlike Numba's own parallel loops they add nothing to compile time, can be called
    from several threads of a web server at once, and survive a fork (PyTorch's own threads, which products use, do not).
    """
    arguments = [value.detach().numpy() if isinstance(value, Tensor) else value for value in (*inputs, *outputs)]
    threads = min(torch.get_num_threads(), tasks)
    if threads <= 1:
        kernel(0, tasks, *arguments)
        return
    pool = _thread_pool(os.getpid(), threads)
    # More ranges than threads, so that a core that is busy elsewhere does not hold up the rest.
    ranges = min(tasks, 4 * threads)
    futures = [pool.submit(kernel, tasks * i // ranges, tasks * (i + 1) // ranges, *arguments) for i in range(ranges)]
    for future in futures:
        future.result()


def differentiable_once(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Mark the backward of an operation whose gradient has none: as torch's own mark, but a second gradient is refused, never left out.

    Torch's attaches its refusal to the gradient that comes in, where that wants one; a loss made of an output and a gradient of it then
    loses the second part without a word.
    """

    @functools.wraps(backward)
    def checked(ctx: Any, *grads: Any) -> Any:  # noqa: ANN401 - torch gives neither a type
        if torch.is_grad_enabled():  # only under `create_graph`
            raise RuntimeError("A gradient of a gradient goes through this kernel, which has none; use_backend('reference') has it.")
        return backward(ctx, *grads)

    return checked


def wants_gradient(tensors: Sequence[Tensor | None]) -> bool:
    """Whether a result of these tensors will be differentiated; inside an operation of one's own torch does not tell."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _checked(backend: str) -> Backend:
    if backend not in get_args(Backend):
        raise ConfigError(f"Backend {backend!r} does not exist; use one of {', '.join(get_args(Backend))}.")
    return cast("Backend", backend)


@lru_cache(maxsize=1)
def _thread_pool(process_id: int, threads: int) -> ThreadPoolExecutor:
    """Threads that outlive a call; `process_id` is part of the key because a forked process needs its own."""
    return ThreadPoolExecutor(threads, thread_name_prefix=f"mamba-{process_id}")
