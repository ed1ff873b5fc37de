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
from scan_cases import NAMES, assert_close, check_golden, check_walk, random_inputs, run

pytest.importorskip("triton", reason="needs triton, which exists for Linux only")

from qamdetr.kernels.scan import selective_scan

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = [
    pytest.mark.skipif(not INTERPRETED and not torch.cuda.is_available(), reason="TRITON_INTERPRET=0 needs a GPU"),
    pytest.mark.filterwarnings("ignore:overflow encountered in exp2"),  # the infinity that a GPU takes without a word
]
HALF_STEP = 2**-7  # of bfloat16: the interpreter cuts off bits where a GPU rounds
# Interpreted kernels are slow: few cases, and a failing one is not shrunk.
few = settings(
    max_examples=4,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(autouse=True)
def tensors_on_the_gpu():
    with torch.device("cpu" if INTERPRETED else "cuda"):
        yield


SIZES = [st.integers(1, 2), st.integers(1, 9), st.sampled_from([1, 5, 33]), st.sampled_from([1, 3, 16])]


@few
@given(sizes=st.tuples(*SIZES), step_scale=st.sampled_from([0.1, 1.0, 100.0]), seed=st.integers(0, 2**16))
def test_kernel_equals_reference(sizes, step_scale, seed):
    inputs = random_inputs(*sizes, seed=seed, step_scale=step_scale)
    assert_close(run(inputs, "triton"), run(inputs, "reference"))


@pytest.mark.parametrize("reverse", [False, True])
def test_lengths_and_direction(reverse):
    check_walk([6, 1, 0], 3, 4, "triton", reverse=reverse)


def test_small_step_sizes_keep_their_precision():
    inputs = random_inputs(1, 4, 3, 2)
    inputs[1] = torch.full_like(inputs[1], -14.0)  # dt near 1e-6, where log(1 + x) in float32 would be off by percents
    inputs[5], inputs[7] = torch.zeros(3), torch.zeros(3)

    out = selective_scan(*inputs, backend="triton")
    expected = selective_scan(*[tensor.double() for tensor in inputs], backend="reference")
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=0)


def test_half_precision_goes_to_the_kernel_as_it_is():
    inputs = random_inputs(1, 6, 3, 4)
    for name in ("u", "delta", "B", "C", "z"):
        inputs[NAMES.index(name)] = inputs[NAMES.index(name)].bfloat16()
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    singles = [tensor.float().requires_grad_() for tensor in inputs]

    out = selective_scan(*leaves, backend="triton")
    expected = selective_scan(*singles, backend="reference")
    out.sum().backward()
    expected.sum().backward()

    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), expected, rtol=HALF_STEP, atol=1e-4)
    for name, leaf, single in zip(NAMES, leaves, singles, strict=True):
        assert leaf.grad.dtype == leaf.dtype, name
        rtol = HALF_STEP if leaf.dtype == torch.bfloat16 else 1e-4
        torch.testing.assert_close(leaf.grad.float(), single.grad, rtol=rtol, atol=1e-4, msg=name)


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
