"""Scan and convolution: every backend agrees with mamba-ssm's own numbers and with the readable reference; the right one is chosen."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scan_cases import NAMES, assert_close, check_golden, check_small_steps, check_walk, ramp, random_inputs, run
from torch.nn import functional

from qamdetr.errors import ConfigError
from qamdetr.kernels import scan
from qamdetr.kernels.scan import causal_conv_silu, choose_backend, selective_scan, use_backend

BACKENDS = ["reference", "cpu"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", ["small", "odd", "long"])
def test_agrees_with_mamba_ssm(shared_dir, case, backend):
    check_golden(np.load(shared_dir / "golden" / "official_reference.npz"), case, backend)


SIZES = [st.integers(1, 3), st.integers(1, 40), st.sampled_from([1, 3, 16, 31, 130]), st.sampled_from([1, 4, 16, 17])]


@settings(max_examples=60, deadline=None)
@given(sizes=st.tuples(*SIZES), step_scale=st.sampled_from([0.1, 1.0, 10.0, 100.0]), seed=st.integers(0, 2**16))
def test_kernel_equals_reference(sizes, step_scale, seed):
    inputs = random_inputs(*sizes, seed=seed, step_scale=step_scale)
    assert_close(run(inputs, "cpu"), run(inputs, "reference"))


@pytest.mark.parametrize("walk", [{}, {"lengths": torch.tensor([33, 1]), "reverse": True}])
@pytest.mark.parametrize("delta", [-1e4, -60.0, 60.0, 1e4])
def test_extreme_step_sizes(delta, walk):
    inputs = random_inputs(2, 33, 20, 16)
    inputs[1] = torch.full_like(inputs[1], delta)
    assert_close(run(inputs, "cpu", **walk), run(inputs, "reference", **walk))


def test_small_step_sizes_keep_their_precision():
    check_small_steps("cpu")


def test_reference_passes_gradient_check():
    inputs = [tensor.double().requires_grad_() for tensor in random_inputs(1, 5, 2, 3)]
    assert torch.autograd.gradcheck(selective_scan, inputs)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=3).filter(any),
    channels=st.sampled_from([1, 8, 131]),
    state=st.sampled_from([1, 3, 16]),
    backend=st.sampled_from(BACKENDS),
    reverse=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_lengths_and_direction(lengths, channels, state, backend, reverse, seed):
    check_walk(lengths, channels, state, backend, reverse=reverse, seed=seed)


@pytest.mark.parametrize(
    ("lengths", "message"),
    [([3, 8], r"within \[0, 7\].* from 3 to 8"), ([-1, 7], "from -1 to 7"), ([7], "2 whole numbers"), ([7.0, 7.0], "whole numbers"),
     ([True, True], "whole numbers")],
)  # fmt: skip
def test_lengths_that_do_not_fit_never_reach_compiled_code(lengths, message):
    with pytest.raises(ValueError, match=message):
        selective_scan(*random_inputs(2, 7, 3, 4), lengths=torch.tensor(lengths))


@pytest.mark.parametrize("name", NAMES[1:])
def test_wrong_shapes_never_reach_compiled_code(name):
    inputs = dict(zip(NAMES, random_inputs(2, 7, 3, 4), strict=True))
    inputs[name] = inputs[name][:-1] if name == "A" else inputs[name][..., :-1]
    with pytest.raises(ValueError, match=f"^{name} is"):
        selective_scan(**inputs)


@pytest.mark.parametrize("walk", [{}, {"lengths": torch.tensor([40, 23, 1]), "reverse": True}])
def test_result_depends_neither_on_the_number_of_threads_nor_on_other_callers(walk):
    inputs, threads = [random_inputs(3, 40, 300, 16, seed=seed) for seed in range(3)], torch.get_num_threads()
    results = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            with ThreadPoolExecutor(count) as pool:
                results.append([part for parts in pool.map(lambda each: run(each, "cpu", **walk), inputs) for part in parts])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_diverged_input_stays_visible_and_half_precision_is_computed_in_float32():
    inputs = random_inputs(1, 6, 4, 2)
    inputs[0][0, 3, 1] = float("nan")
    out = selective_scan(*inputs, backend="cpu")
    assert out[0, 3:, 1].isnan().all()
    assert out[0, :3].isfinite().all()
    halves = [tensor.bfloat16() for tensor in random_inputs(1, 12, 6, 4)]
    out = selective_scan(*halves)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, selective_scan(*[tensor.float() for tensor in halves]).bfloat16())


def convolve(inputs, backend, **walk):
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    out = causal_conv_silu(*leaves, backend=backend, **walk)
    return [out.detach(), *torch.autograd.grad(out, leaves, ramp(out))]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=3).filter(any),
    channels=st.sampled_from([1, 7, 128, 133]),
    taps=st.integers(1, 5),
    walked=st.booleans(),
    reverse=st.booleans(),
)
def test_convolution_kernel_equals_reference(lengths, channels, taps, walked, reverse):
    torch.manual_seed(0)
    inputs = [torch.randn(len(lengths), 9, channels), torch.randn(channels, 1, taps), torch.randn(channels)]
    walk = {"lengths": torch.tensor(lengths), "reverse": reverse} if walked else {}
    if walked:
        inputs[0][torch.arange(9) >= torch.tensor(lengths)[:, None]] = float("nan")
    for actual, expected in zip(convolve(inputs, "cpu", **walk), convolve(inputs, "reference", **walk), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_convolution_is_the_formula(backend):
    x, weight, bias = torch.randn(1, 6, 2), torch.randn(2, 1, 3), torch.randn(2)
    out = causal_conv_silu(x, weight, bias, backend=backend)
    by_hand = bias + weight[:, 0, 0] * x[0, 2] + weight[:, 0, 1] * x[0, 3] + weight[:, 0, 2] * x[0, 4]
    torch.testing.assert_close(out[0, 4], functional.silu(by_hand))
    torch.testing.assert_close(out[0, 0], functional.silu(bias + weight[:, 0, 2] * x[0, 0]))


def tensor_on(device, dtype=torch.float32):
    """What the choice looks at, for devices that are not here."""
    return SimpleNamespace(device=torch.device(device), dtype=dtype)


@pytest.fixture
def install(monkeypatch):
    """Make the GPU packages importable or not, whatever is installed here."""
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    scan._start_problem.cache_clear()

    def install(packages):
        for name in ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.selective_scan_interface", "triton"):
            monkeypatch.setitem(sys.modules, name, ModuleType(name) if name.partition(".")[0] in packages else None)
        if "triton" in packages:
            active = SimpleNamespace(get_current_target=lambda: "a GPU")
            sys.modules["triton"].runtime = SimpleNamespace(driver=SimpleNamespace(active=active))

    yield install
    scan._start_problem.cache_clear()


@pytest.mark.parametrize(
    ("packages", "asked", "device", "dtype", "expected"),
    [
        ("mamba_ssm triton", None, "cuda", torch.float32, "mamba_ssm"),
        ("mamba_ssm", None, "cuda", torch.bfloat16, "mamba_ssm"),
        ("triton", None, "cuda", torch.float16, "triton"),
        ("mamba_ssm triton", None, "cuda", torch.float64, "reference"),
        *(("mamba_ssm triton", None, "cpu", dtype, "cpu") for dtype in (torch.float32, torch.bfloat16)),
        ("mamba_ssm triton", None, "cpu", torch.float64, "reference"),
        *(("mamba_ssm triton", name, "cuda", torch.float32, name) for name in ("triton", "mamba_ssm", "reference")),
        ("triton", "gpu", "cpu", torch.float32, "'gpu' does not exist; use one of reference, cpu"),
        ("triton", "cpu", "cpu", torch.float64, "'cpu' takes float32, bfloat16 and float16 tensors only; .*'reference'"),
        ("triton", "triton", "cpu", torch.float32, "'triton' takes tensors on 'cuda' only, not on 'cpu'"),
    ],
)
def test_the_fastest_backend_is_chosen_or_one_is_forced_or_refused(install, packages, asked, device, dtype, expected):
    install(packages)
    tensors = [tensor_on(device, dtype), tensor_on(device)]
    if " " in expected:
        with pytest.raises(ConfigError, match=f"^Backend {expected}"):
            choose_backend(asked, tensors)
        return
    assert choose_backend(asked, tensors) == expected
    with use_backend(expected):
        assert choose_backend(None, tensors) == expected
        assert choose_backend("reference", tensors) == "reference"


def test_a_package_that_does_not_start_is_passed_over(install, monkeypatch):
    install("mamba_ssm triton")

    def broken(name):
        if name == "triton":
            return sys.modules["triton"]
        raise OSError("undefined symbol")

    monkeypatch.setattr(scan, "importlib", SimpleNamespace(import_module=broken))
    with pytest.warns(UserWarning, match="undefined symbol"):
        assert choose_backend(None, [tensor_on("cuda")]) == "triton"
    with pytest.raises(ConfigError, match=r"'mamba_ssm' does not start \(undefined symbol\)"):
        choose_backend("mamba_ssm", [tensor_on("cuda")])


def test_the_mamba_ssm_backend_calls_the_package_as_it_wants_to_be_called(install, monkeypatch):
    """On a stand-in that computes as the package's own reference and is as strict about types and layout."""
    install("mamba_ssm")

    def selective_scan_fn(u, delta, A, B, C, D, z, delta_bias, delta_softplus):  # noqa: N803 - the paper's letters
        assert delta_softplus
        assert all(tensor.dtype == torch.float32 for tensor in (A, D, delta_bias))
        assert all(tensor.dtype == u.dtype and tensor.is_contiguous() for tensor in (u, delta, B, C, z))
        assert (u.shape, B.shape, C.shape) == ((2, 3, 7), (2, 4, 7), (2, 4, 7))
        u, delta, B, C, z = (tensor.transpose(1, 2) for tensor in (u, delta, B, C, z))  # noqa: N806
        return selective_scan(u, delta, A, B, C, D, z, delta_bias, backend="reference").transpose(1, 2)

    sys.modules["mamba_ssm.ops.selective_scan_interface"].selective_scan_fn = selective_scan_fn
    monkeypatch.setattr(scan, "choose_backend", lambda backend, _: backend)
    inputs = random_inputs(2, 7, 3, 4)
    assert_close(run(inputs, "mamba_ssm"), run(inputs, "reference"))
    assert selective_scan(inputs[0].bfloat16(), *inputs[1:], backend="mamba_ssm").dtype == torch.bfloat16
