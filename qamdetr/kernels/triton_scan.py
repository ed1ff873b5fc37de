"""The selective scan on a GPU as one differentiable operation: allocates, launches the kernels of `triton_kernels.py`, adds up.

Letters, shapes and the meaning of segments and chunks are those of `scan.py` and `triton_kernels.py`.
"""

# The letters are the paper's.
# ruff: noqa: N803, N806

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import triton
from torch import Tensor

from qamdetr.kernels import triton_kernels
from qamdetr.kernels.backends import differentiable_once, wants_gradient

BLOCK_CHANNELS = 32
CHUNK_STEPS = 4  # more do not fit into registers, fewer mean more states kept in memory
MIN_SEGMENT_STEPS = 64
# One warp is one program: with fewer than `FEW` per multiprocessor most of the GPU idles, and segments repay their two passes more.
FEW_PROGRAMS, ENOUGH_PROGRAMS = 2, 8


def num_segments(programs: int, steps: int, device: torch.device) -> int:
    """Return into how many segments to cut `steps`, where each would run as `programs` programs."""
    if device.type != "cuda":
        return 1
    multiprocessors = _multiprocessors(device)
    if programs >= FEW_PROGRAMS * multiprocessors:
        return 1
    return max(1, min(ENOUGH_PROGRAMS * multiprocessors // programs, steps // MIN_SEGMENT_STEPS))


@lru_cache
def _multiprocessors(device: torch.device) -> int:
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count


class _Launch:
    """How the kernels are started for inputs of one shape."""

    def __init__(self, u: Tensor, A: Tensor, *, softplus: bool, gate: bool) -> None:
        self.batch, self.steps, self.channels = u.shape
        self.state = A.shape[0]
        self.blocks = triton.cdiv(self.channels, BLOCK_CHANNELS)
        segments = num_segments(self.batch * self.blocks, self.steps, u.device)
        # Whole chunks, so that no chunk lies in two segments.
        self.segment_steps = CHUNK_STEPS * triton.cdiv(triton.cdiv(self.steps, segments), CHUNK_STEPS)
        self.segments = triton.cdiv(self.steps, self.segment_steps)
        self.chunks = triton.cdiv(self.steps, CHUNK_STEPS)
        self.tile = {"STATE_PAD": triton.next_power_of_2(self.state), "BLOCK": BLOCK_CHANNELS, "num_warps": 1}
        self.modes = {"SOFTPLUS": softplus, "CHUNK": CHUNK_STEPS, **self.tile}
        self.gate = gate

    def scan(self, kernel: Any, *tensors: Tensor, **flags: bool) -> None:  # noqa: ANN401 - Triton gives kernels no type
        """Run `kernel` with one program for each recording, segment and block."""
        sizes = (self.steps, self.channels, self.state, self.segments, self.segment_steps)
        # Triton launches on the current GPU, whichever the tensors are on.
        with torch.cuda.device_of(tensors[0]):  # type: ignore[no-untyped-call]
            kernel[(self.batch * self.segments * self.blocks,)](*tensors, *sizes, **flags, **self.modes)

    def pass_states(self, A: Tensor, states: Tensor, dt_sums: Tensor, initial: Tensor, *, reverse: bool) -> Tensor:
        """Return what each segment starts from."""
        starts = torch.empty_like(states)
        sizes = (self.channels, self.state, self.segments)
        with torch.cuda.device_of(A):  # type: ignore[no-untyped-call]
            kernel = triton_kernels.pass_states[(self.batch * self.blocks,)]
            kernel(A, states, dt_sums, initial, starts, *sizes, REVERSE=reverse, **self.tile)
        return starts

    def empty(self, like: Tensor, *shape: int) -> Tensor:
        """Return an empty float32 tensor."""
        return like.new_empty(shape, dtype=torch.float32)


def triton_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor | None, delta_bias: Tensor, delta_softplus: bool
) -> tuple[Tensor, Tensor]:
    """Scan channels-last tensors on a GPU, float32 or half precision, as `scan.selective_scan_channels_last`.

    The output has u's type, the last state is float32.
    """
    tensors = (u, delta, A, B, C, D, z, delta_bias)
    results: tuple[Tensor, Tensor] = _TritonScan.apply(*tensors, delta_softplus, wants_gradient(tensors))  # type: ignore[no-untyped-call]
    return results


class _TritonScan(torch.autograd.Function):
    """The kernels as one differentiable operation; gradients have their inputs' types."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch gives the context no type
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor,
        z: Tensor | None,
        delta_bias: Tensor,
        delta_softplus: bool,
        keep_states: bool,
    ) -> tuple[Tensor, Tensor]:
        A_rows = A.detach().float().t()
        parameters = [tensor.detach().float() for tensor in (D, delta_bias)]
        # The kernel does not read the gate when told so, but it wants a pointer.
        inputs = [tensor.detach().contiguous() for tensor in (u, delta, A_rows, B, C, parameters[0], u if z is None else z, parameters[1])]
        u, delta, A_rows, B, _, _, _, bias = inputs
        launch = _Launch(u, A_rows, softplus=delta_softplus, gate=z is not None)

        starts, dt_sums = launch.empty(u, launch.batch, launch.segments, launch.state, launch.channels), launch.empty(u, 0)
        initial = starts.new_zeros(launch.batch, launch.state, launch.channels)
        if launch.segments > 1:
            dt_sums = launch.empty(u, launch.batch, launch.segments, launch.channels)
            launch.scan(triton_kernels.segment_states, u, delta, A_rows, B, bias, starts, dt_sums)
            starts = launch.pass_states(A_rows, starts, dt_sums, initial, reverse=False)
        else:
            starts = initial
        out, last_state = torch.empty_like(u), torch.empty_like(initial)
        checkpoints = launch.empty(u, launch.batch, launch.chunks if keep_states else 0, launch.state, launch.channels)
        launch.scan(triton_kernels.scan_forward, *inputs, starts, out, checkpoints, last_state, GATE=launch.gate, SAVE=keep_states)
        ctx.launch, ctx.types = launch, [tensor.dtype for tensor in (A, D, delta_bias)]
        ctx.save_for_backward(*inputs, checkpoints, dt_sums)
        return out, last_state.transpose(1, 2)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad_out: Tensor, grad_last_state: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        *inputs, checkpoints, dt_sums = ctx.saved_tensors
        u, delta, A_rows, B, C, _, z, bias = inputs
        launch: _Launch = ctx.launch
        grad_out = grad_out.contiguous()
        starts = grad_last_state.float().transpose(1, 2).contiguous()
        if launch.segments > 1:
            states = launch.empty(u, launch.batch, launch.segments, launch.state, launch.channels)
            launch.scan(triton_kernels.segment_gradients, delta, A_rows, C, z, bias, grad_out, states, GATE=launch.gate)
            starts = launch.pass_states(A_rows, states, dt_sums, starts, reverse=True)
        grad_u, grad_delta, grad_z = torch.empty_like(u), torch.empty_like(delta), torch.empty_like(z)
        grad_A = launch.empty(u, launch.batch * launch.segments, launch.state, launch.channels)
        grad_B, grad_C = (launch.empty(u, launch.batch, launch.blocks, launch.steps, launch.state) for _ in range(2))
        grad_D, grad_bias = (launch.empty(u, launch.batch * launch.segments, launch.channels) for _ in range(2))
        outputs = [grad_u, grad_delta, grad_A, grad_B, grad_C, grad_D, grad_z, grad_bias]
        launch.scan(triton_kernels.scan_backward, *inputs, checkpoints, grad_out, starts, *outputs, GATE=launch.gate)
        A_type, D_type, bias_type = ctx.types
        return (
            grad_u, grad_delta, grad_A.sum(dim=0).t().to(A_type), grad_B.sum(dim=1).to(B.dtype), grad_C.sum(dim=1).to(C.dtype),
            grad_D.sum(dim=0).to(D_type), grad_z if launch.gate else None, grad_bias.sum(dim=0).to(bias_type), None, None,
        )  # fmt: skip
