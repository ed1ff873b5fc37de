"""Compile every scan kernel for GPUs that need not be there, and print a line for each; wants a process of its own."""

from __future__ import annotations

import inspect

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from qamdetr.kernels import triton as room

SIZES = {"steps", "channels", "state"}
# What comes from activations, and may be in half precision; the rest is float32.
ACTIVATIONS = {"u", "delta", "B", "C", "z", "out", "grad_out", "grad_u", "grad_delta", "grad_z"}


def compile_ahead(kernel, activations, compute_capability, constant):
    """Compile one kernel; of `constant` are its switches, and sizes of one, which are constants to Triton as when it is called with one."""
    signature, constants = {}, {}
    for position, argument in enumerate(inspect.signature(kernel.fn).parameters):
        if argument in constant:
            signature[argument], constants[(position,)] = "constexpr", constant[argument]
        else:
            signature[argument] = "i32" if argument in SIZES else "*" + (activations if argument in ACTIVATIONS else "fp32")
    target = GPUTarget("cuda", compute_capability, 32)
    return triton.compile(ASTSource(kernel, signature, constants), target=target, options={"num_warps": 1})


if __name__ == "__main__":
    switches = {"STATE_PAD": 16, "BLOCK": room.BLOCK_CHANNELS, "CHUNK": room.CHUNK_STEPS, "SAVE": True}
    ones = {"channels": 1, "state": 1, "SAVE": False}
    for activations, capability, constant in (("fp32", 90, switches), ("bf16", 80, switches), ("fp16", 80, switches | ones)):
        for kernel in (room.scan_forward, room.scan_backward):
            compiled = compile_ahead(kernel, activations, capability, constant)
            print(activations, capability, len(compiled.asm["cubin"]))  # noqa: T201
