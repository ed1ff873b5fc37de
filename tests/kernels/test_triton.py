"""The GPU kernels equal the reference; on the CPU by Triton's interpreter, on a GPU with TRITON_INTERPRET=0."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from scan_cases import NAMES, assert_close, check_golden, check_small_steps, check_walk, random_inputs, run

pytest.importorskip("triton", reason="needs triton, which exists for Linux only")

from qamdetr.kernels.scan import selective_scan

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = [
    pytest.mark.skipif(not INTERPRETED and not torch.cuda.is_available(), reason="TRITON_INTERPRET=0 needs a GPU"),
    pytest.mark.filterwarnings("ignore:overflow encountered in exp2"),  # the infinity that a GPU takes without a word
]
HALF_STEP = 2**-7  # of bfloat16: the interpreter cuts off bits where a GPU rounds


@pytest.fixture(autouse=True)
def tensors_on_the_gpu():
    with torch.device("cpu" if INTERPRETED else "cuda"):
        yield


SIZES = [st.integers(1, 2), st.integers(1, 9), st.sampled_from([1, 5, 33]), st.sampled_from([1, 3, 16])]


# Interpreted kernels are slow: few cases, and a failing one is not shrunk.
@settings(max_examples=4, phases=[Phase.generate], deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.tuples(*SIZES), step_scale=st.sampled_from([0.1, 1.0, 100.0]), seed=st.integers(0, 2**16))
def test_kernel_equals_reference(sizes, step_scale, seed):
    inputs = random_inputs(*sizes, seed=seed, step_scale=step_scale)
    assert_close(run(inputs, "triton"), run(inputs, "reference"))


@pytest.mark.parametrize("reverse", [False, True])
def test_lengths_and_direction(reverse):
    check_walk([6, 1, 0], 3, 4, "triton", reverse=reverse)


def test_small_step_sizes_keep_their_precision():
    check_small_steps("triton")


def test_half_precision_goes_to_the_kernel_as_it_is():
    inputs = dict(zip(NAMES, random_inputs(1, 6, 3, 4), strict=True))
    inputs |= {name: inputs[name].bfloat16() for name in ("u", "delta", "B", "C", "z")}
    halves = [tensor.clone().requires_grad_() for tensor in inputs.values()]
    singles = [tensor.float().requires_grad_() for tensor in inputs.values()]
    out, expected = selective_scan(*halves, backend="triton"), selective_scan(*singles, backend="reference")
    gradients = zip(torch.autograd.grad(out.sum(), halves), torch.autograd.grad(expected.sum(), singles), strict=True)
    for name, (half, single) in zip(["out", *NAMES], [(out, expected), *gradients], strict=True):
        assert half.dtype == inputs.get(name, inputs["u"]).dtype
        rtol = HALF_STEP if half.dtype == torch.bfloat16 else 1e-4
        torch.testing.assert_close(half.float(), single, rtol=rtol, atol=1e-4, msg=name)


def test_the_same_gradients_at_every_run():
    inputs = random_inputs(1, 4, 33, 2)
    assert all(torch.equal(a, b) for a, b in zip(run(inputs, "triton"), run(inputs, "triton"), strict=True))


def test_agrees_with_mamba_ssm(shared_dir):
    check_golden(np.load(shared_dir / "golden" / "official_reference.npz"), "small", "triton")


@pytest.mark.slow
def test_kernels_compile_for_gpus_that_are_not_here(tmp_path):
    """The interpreter runs what Triton's compiler might refuse; compiling needs no GPU."""
    program = Path(__file__).with_name("triton_ahead.py")
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(program.parents[2])}
    result = subprocess.run([sys.executable, str(program)], env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    assert len(result.stdout.splitlines()) == 6
