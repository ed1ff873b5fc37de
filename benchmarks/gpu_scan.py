"""Time the scan, forward + backward, on a GPU: our Triton kernels beside mamba-ssm's, where installed, and beside what memory allows.

python -m benchmarks.gpu_scan [--repeats 30] [--output build/benchmarks/gpu_scan.json]

512 channels, state 16, with gate, in float32 and bfloat16; batch 32 of 300 clips, and 4 of 7200. The floor is the time that a large copy on
the same GPU takes for as many bytes as must be read and written at least; docs/performance.md counts them.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from benchmarks._timing import write_json
from qamdetr.errors import ConfigError
from qamdetr.kernels.scan import Backend, choose_backend, selective_scan

SHAPES = ((32, 300), (4, 7200))  # batch, clips
CHANNELS, STATE = 512, 16
DEVICE = "cuda"
BACKENDS: tuple[Backend, ...] = ("triton", "mamba_ssm")
CHECKED: tuple[Backend, ...] = ("triton", "reference")
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
WARM_UPS = 5
COPY_BYTES = 2**30


def gpu_medians(runs: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Time each of `runs` in turn by the GPU's own clock; medians in seconds."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(WARM_UPS + repeats):
        for name, run in runs.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            start.record()
            run()
            end.record()
            end.synchronize()
            if repeat >= WARM_UPS:
                seconds[name].append(start.elapsed_time(end) / 1000)
    return {name: statistics.median(values) for name, values in seconds.items()}


def copy_rate(repeats: int) -> float:
    """Return bytes read and written per second by a large copy."""
    source = torch.randn(COPY_BYTES // 4, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / gpu_medians({"copy": lambda: target.copy_(source)}, repeats)["copy"]


def floor_bytes(batch: int, clips: int, item_bytes: int) -> int:
    """Count u, delta and z read twice and the output's gradient once; the output and their gradients written; B and C likewise."""
    return item_bytes * batch * clips * (11 * CHANNELS + 6 * STATE)


def scan(leaves: list[Tensor], backend: Backend) -> Tensor:
    u, delta, A, B, C, D, z, bias = leaves  # noqa: N806 - the paper's letters
    return selective_scan(u, delta, A, B, C, D, z, bias, backend=backend)


def can_run(backend: Backend) -> bool:
    """Return whether `backend` starts on this GPU, and print why where it does not."""
    try:
        choose_backend(backend, [torch.ones(1, device=DEVICE)])
    except ConfigError as error:
        print(f"  without {backend}: {error}")
        return False
    return True


def scan_run(batch: int, clips: int, dtype: torch.dtype, backend: Backend) -> Callable[[], object]:
    """Return a forward and backward pass on random input."""
    torch.manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, device=DEVICE)

    u, delta, z, weights = (normal(batch, clips, CHANNELS).to(dtype) for _ in range(4))
    B, C = (normal(batch, clips, STATE).to(dtype) for _ in range(2))  # noqa: N806 - the paper's letters
    A = -torch.arange(1.0, STATE + 1, device=DEVICE).repeat(CHANNELS, 1)  # noqa: N806
    D, bias = torch.ones(CHANNELS, device=DEVICE), torch.full((CHANNELS,), -4.0, device=DEVICE)  # noqa: N806
    leaves = [tensor.requires_grad_() for tensor in (u, delta, A, B, C, D, z, bias)]

    def run() -> None:
        torch.autograd.grad(scan(leaves, backend), leaves, weights)

    return run


def check_against_reference() -> None:
    """Refuse to time a wrong result."""
    generator = torch.Generator(device=DEVICE).manual_seed(0)
    u, delta, z = torch.randn(3, 2, 150, 64, device=DEVICE, generator=generator)
    B, C = torch.randn(2, 2, 150, STATE, device=DEVICE, generator=generator)  # noqa: N806
    A = -torch.rand(64, STATE, device=DEVICE, generator=generator)  # noqa: N806
    leaves = [tensor.requires_grad_() for tensor in (u, delta, A, B, C, torch.ones(64, device=DEVICE), z, torch.zeros(64, device=DEVICE))]
    results = []
    for backend in CHECKED:
        out = scan(leaves, backend)
        results.append([out.detach(), *torch.autograd.grad(out, leaves, torch.ones_like(out))])
    for actual, expected in zip(*results, strict=True):
        error = ((actual - expected).norm() / expected.norm()).item()
        if not error < 1e-4:
            raise SystemExit(f"The Triton scan is off by {error:.1e} of the reference, so it is not timed.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=30, help="timed runs of each; the median counts")
    parser.add_argument("--output", type=Path, default=Path("build/benchmarks/gpu_scan.json"))
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("This benchmark needs a CUDA GPU, and PyTorch finds none here; python -m benchmarks.scan times the CPU.")
    check_against_reference()

    bytes_per_second = copy_rate(arguments.repeats)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}: a copy moves {bytes_per_second / 1e9:.0f} GB/s")
    backends = [backend for backend in BACKENDS if can_run(backend)]
    results = []
    for batch, clips in SHAPES:
        for type_name, dtype in TYPES.items():
            runs: dict[str, Callable[[], object]] = {backend: scan_run(batch, clips, dtype, backend) for backend in backends}
            seconds = gpu_medians(runs, arguments.repeats)
            floor = floor_bytes(batch, clips, dtype.itemsize) / bytes_per_second
            for name, value in seconds.items():
                print(f"  {batch:>3} x {clips:<5}{type_name:<9}{name:<10}{1000 * value:9.3f} ms = {value / floor:6.1f} x the floor")
            results.append({"batch": batch, "clips": clips, "type": type_name, "floor_seconds": floor, "seconds": seconds})
    setting = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "copy_bytes_per_second": bytes_per_second}
    write_json(arguments.output, {**setting, "results": results})


if __name__ == "__main__":
    main()
