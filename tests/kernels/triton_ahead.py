"""Compile every scan kernel for GPUs that need not be there, and print a line for each; wants a process of its own."""

from __future__ import annotations

import inspect

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from qamdetr.kernels import triton as room

KERNELS = ["scan_forward", "scan_backward"]
SIZES = {"steps", "channels", "state"}
# What comes from activations, and may be in half precision; the rest is float32.
ACTIVATIONS = {"u", "delta", "B", "C", "z", "out", "grad_out", "grad_u", "grad_delta", "grad_z"}


def compile_ahead(name, *, activations, compute_capability, mode, size_one):
    """Compile one kernel; `mode` is for its switch; a size of one is a constant to Triton, as when it is called with one."""
    kernel = getattr(room, name)
    switches = {"STATE_PAD": 16, "BLOCK": room.BLOCK_CHANNELS, "CHUNK": room.CHUNK_STEPS}
    signature, constants = {}, {}
    for position, argument in enumerate(inspect.signature(kernel.fn).parameters):
        if argument.isupper() and len(argument) > 1:
            signature[argument], constants[(position,)] = "constexpr", switches.get(argument, mode)
        elif argument in SIZES:
            signature[argument] = "constexpr" if argument in size_one else "i32"
            if argument in size_one:
                constants[(position,)] = 1
        else:
            signature[argument] = "*" + (activations if argument in ACTIVATIONS else "fp32")
    target = GPUTarget("cuda", compute_capability, 32)
    return triton.compile(ASTSource(kernel, signature, constants), target=target, options={"num_warps": 1})


if __name__ == "__main__":
    for settings in (
        {"activations": "fp32", "compute_capability": 90, "mode": True, "size_one": set()},
        {"activations": "bf16", "compute_capability": 80, "mode": True, "size_one": set()},
        {"activations": "fp16", "compute_capability": 80, "mode": False, "size_one": {"channels", "state"}},
    ):
        for name in KERNELS:
            compiled = compile_ahead(name, **settings)
            print(name, settings["activations"], settings["compute_capability"], len(compiled.asm["cubin"]))  # noqa: T201
