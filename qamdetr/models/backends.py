"""How the Mamba block's operations run: a readable PyTorch reference anywhere, compiled kernels on the CPU."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Literal, cast, get_args

import torch
from torch import Tensor

from qamdetr.errors import ConfigError

Backend = Literal["reference", "cpu"]

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
    """Return `backend`, else what `use_backend` says, else `cpu` where all tensors are float32 on the CPU and `reference` elsewhere.

    Raises:
        ConfigError: The wanted backend does not exist or cannot take these tensors.
    """
    wanted = _checked(backend) if backend is not None else _forced_backend.get()
    fits = all(tensor is None or (tensor.device.type == "cpu" and tensor.dtype == torch.float32) for tensor in tensors)
    if wanted is None:
        return "cpu" if fits else "reference"
    if wanted == "cpu" and not fits:
        raise ConfigError("Backend 'cpu' takes float32 tensors on the CPU only; convert them or use backend 'reference'.")
    return wanted


def run_kernel(kernel: Callable[..., None], tasks: int, inputs: Sequence[Tensor | float], outputs: Sequence[Tensor]) -> None:
    """Call `kernel(first, last, *inputs, *outputs)` on ranges that cover `tasks`, in as many threads as PyTorch may use.

    Plain threads, because the kernels release the GIL: unlike Numba's own parallel loops they add nothing to compile time, can be called
    from several threads of a web server at once, and survive a fork.
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


def _checked(backend: str) -> Backend:
    if backend not in get_args(Backend):
        raise ConfigError(f"Backend {backend!r} does not exist; use one of {', '.join(get_args(Backend))}.")
    return cast("Backend", backend)


@lru_cache(maxsize=1)
def _thread_pool(process_id: int, threads: int) -> ThreadPoolExecutor:
    """Threads that outlive a call; `process_id` is part of the key because a forked process needs its own."""
    return ThreadPoolExecutor(threads, thread_name_prefix=f"mamba-{process_id}")
