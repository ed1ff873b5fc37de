"""Every backend of the selective scan agrees with mamba-ssm's own numbers, and the kernel with the readable reference."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numba
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scan_cases import NAMES, assert_close, check_padded_batch, check_walk, random_inputs, run

from qamdetr.errors import ConfigError
from qamdetr.kernels import cpu_kernels, scan
from qamdetr.kernels.backends import use_backend
from qamdetr.kernels.scan import selective_scan, selective_scan_channels_last

BACKENDS = ["reference", "cpu"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", ["small", "odd", "long"])
def test_agrees_with_mamba_ssm(shared_dir: Path, case, backend):
    golden = np.load(shared_dir / "golden" / "official_reference.npz")
    leaves = {name: torch.from_numpy(golden[f"scan/{case}/{name}"]).requires_grad_() for name in NAMES}

    out, last_state = selective_scan(**leaves, delta_softplus=True, backend=backend)
    out.backward(torch.from_numpy(golden[f"scan/{case}/grad_out"]))

    np.testing.assert_allclose(out.detach(), golden[f"scan/{case}/out"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(last_state.detach(), golden[f"scan/{case}/last_state"], rtol=1e-4, atol=1e-4)
    for name, leaf in leaves.items():
        np.testing.assert_allclose(leaf.grad, golden[f"scan/{case}/grad_{name}"], rtol=1e-4, atol=1e-4, err_msg=name)


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 3),
    steps=st.integers(1, 40),
    channels=st.sampled_from([1, 3, 16, 31, 130]),
    state=st.sampled_from([1, 4, 16, 17]),
    step_scale=st.sampled_from([0.1, 1.0, 10.0, 100.0]),
    softplus=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_kernel_equals_reference(batch, steps, channels, state, step_scale, softplus, seed):
    inputs = random_inputs(batch, steps, channels, state, seed=seed, step_scale=step_scale)
    if not softplus:  # without softplus a step size is positive as it stands
        inputs[1], inputs[7] = inputs[1].abs(), inputs[7].abs()

    actual, expected = run(inputs, "cpu", softplus=softplus), run(inputs, "reference", softplus=softplus)

    assert_close(actual, expected)


@settings(max_examples=16, deadline=None)
@given(missing=st.sets(st.sampled_from(["D", "z", "delta_bias"])))
def test_kernel_equals_reference_without_optional_inputs(missing):
    inputs = [None if name in missing else tensor for name, tensor in zip(NAMES, random_inputs(2, 19, 5, 4), strict=True)]

    actual, expected = run(inputs, "cpu"), run(inputs, "reference")

    assert len(actual) == 10 - len(missing)
    assert_close(actual, expected)


@pytest.mark.parametrize("steps", [1, 33])
@pytest.mark.parametrize("delta", [-1e4, -60.0, 60.0, 1e4])
def test_extreme_step_sizes(delta, steps):
    inputs = random_inputs(1, steps, 20, 16)
    inputs[1] = torch.full_like(inputs[1], delta)

    assert_close(run(inputs, "cpu"), run(inputs, "reference"))


def test_reference_passes_gradient_check():
    inputs = [tensor.double().requires_grad_() for tensor in random_inputs(1, 5, 2, 3)]

    assert torch.autograd.gradcheck(lambda *leaves: selective_scan_channels_last(*leaves, delta_softplus=True), inputs)


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(1, 37), min_size=1, max_size=3), channels=st.sampled_from([1, 8, 131]), seed=st.integers(0, 2**16))
def test_padding_changes_nothing_before_it(lengths, channels, seed):
    check_padded_batch(lengths, channels, 4, "cpu", seed=seed)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=3).filter(any),
    channels=st.sampled_from([1, 8, 131]),
    state=st.sampled_from([1, 3, 16]),
    backend=st.sampled_from(BACKENDS),
    reverse=st.booleans(),
    softplus=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_lengths_and_direction(lengths, channels, state, backend, reverse, softplus, seed):
    check_walk(lengths, channels, state, backend, reverse=reverse, softplus=softplus, seed=seed)


@pytest.mark.parametrize("delta", [-1e4, 60.0, 1e4])
def test_extreme_step_sizes_against_time(delta):
    inputs = random_inputs(2, 33, 20, 16)
    inputs[1] = torch.full_like(inputs[1], delta)
    walk = {"lengths": torch.tensor([33, 1]), "reverse": True}

    assert_close(run(inputs, "cpu", **walk), run(inputs, "reference", **walk))


def test_both_layouts_take_lengths_and_direction():
    u, delta, A, B, C = random_inputs(2, 9, 3, 4)[:5]  # noqa: N806 - the paper's letters
    walk = {"lengths": torch.tensor([9, 5]), "reverse": True}

    expected, last_state = selective_scan_channels_last(u, delta, A, B, C, **walk)
    out, same_state = selective_scan(*(x.transpose(1, 2) for x in (u, delta)), A, *(x.transpose(1, 2) for x in (B, C)), **walk)

    assert torch.equal(out.transpose(1, 2), expected)
    assert torch.equal(same_state, last_state)


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        (torch.tensor([3, 8]), r"within \[0, 7\].* from 3 to 8"),
        (torch.tensor([-1, 7]), "from -1 to 7"),
        (torch.tensor([7]), "2 whole numbers"),
        (torch.tensor([7.0, 7.0]), "whole numbers"),
        (torch.tensor([True, True]), "whole numbers"),
    ],
)
def test_lengths_that_do_not_fit_never_reach_compiled_code(lengths, message):
    with pytest.raises(ValueError, match=message):
        selective_scan_channels_last(*random_inputs(2, 7, 3, 4), lengths=lengths)


@pytest.mark.parametrize("walk", [{}, {"lengths": torch.tensor([40, 23, 1]), "reverse": True}])
def test_result_does_not_depend_on_threads(walk):
    inputs = random_inputs(3, 40, 300, 16)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = run(inputs, "cpu", **walk)
        torch.set_num_threads(3)
        three = run(inputs, "cpu", **walk)
    finally:
        torch.set_num_threads(threads)

    assert all(torch.equal(a, b) for a, b in zip(one, three, strict=True))


def test_concurrent_callers_get_their_own_results():
    inputs = [random_inputs(2, 30, 40, 8, seed=seed) for seed in range(6)]
    expected = [run(each, "cpu") for each in inputs]

    with ThreadPoolExecutor(3) as pool:
        actual = list(pool.map(lambda each: run(each, "cpu"), inputs))

    assert all(torch.equal(a, b) for mine, theirs in zip(actual, expected, strict=True) for a, b in zip(mine, theirs, strict=True))


def _scan_in_child(inputs, queue):
    with torch.no_grad():
        queue.put(selective_scan_channels_last(*inputs, backend="cpu")[0].numpy())


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_kernel_works_after_a_fork():
    inputs = random_inputs(4, 9, 6, 3)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with torch.no_grad():
            expected = selective_scan_channels_last(*inputs, backend="cpu")[0]
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        child = context.Process(target=_scan_in_child, args=(inputs, queue))
        child.start()
        actual = queue.get(timeout=60)
        child.join(timeout=60)
    finally:
        torch.set_num_threads(threads)

    np.testing.assert_array_equal(actual, expected.numpy())


def test_kernels_compile_where_numba_may_not_write_its_cache(monkeypatch):
    compile_in_memory = numba.njit

    def refuse_cache(*args, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return compile_in_memory(*args, **options)

    monkeypatch.setattr(numba, "njit", refuse_cache)

    assert cpu_kernels.jit(lambda x: 2 * x + 1)(3) == 7


def test_kernel_exponential_is_accurate():
    x = np.linspace(-126, 126, 20_001, dtype=np.float32)

    actual = np.array([cpu_kernels.exp2(value) for value in x])

    assert np.abs(actual / np.exp2(x.astype(np.float64)) - 1).max() < 2.5e-7
    assert 0 < cpu_kernels.exp2(np.float32(-1e9)) < 1.2e-38
    assert np.isfinite(cpu_kernels.exp2(np.float32(1e9)))


def test_kernel_softplus_is_accurate_relative_to_its_size():
    x = np.linspace(-30, 30, 6001, dtype=np.float32)

    actual = np.array([cpu_kernels.softplus(value) for value in x])

    assert np.abs(actual / np.logaddexp(0, x.astype(np.float64)) - 1).max() < 3e-6


def test_a_diverged_input_stays_visible():
    inputs = random_inputs(1, 6, 4, 2)
    inputs[0][0, 3, 1] = float("nan")

    with torch.no_grad():
        out, _ = selective_scan_channels_last(*inputs, backend="cpu")

    assert out[0, 3:, 1].isnan().all()
    assert out[0, :3].isfinite().all()


def test_every_call_runs_on_the_chosen_backend(monkeypatch):
    used = []
    for name in scan._SCANS:
        monkeypatch.setitem(scan._SCANS, name, lambda *_, name=name: (used.append(name), None))
    inputs = random_inputs(1, 2, 3, 2)

    selective_scan_channels_last(*inputs)
    selective_scan_channels_last(*[tensor.double() for tensor in inputs])
    selective_scan_channels_last(*[tensor.to("meta") for tensor in inputs])
    selective_scan_channels_last(*inputs, backend="reference")
    with use_backend("reference"):
        selective_scan_channels_last(*inputs)
    selective_scan_channels_last(*inputs)

    assert used == ["cpu", "reference", "reference", "reference", "reference", "cpu"]


def test_half_precision_is_computed_in_float32_and_cast_back():
    inputs = random_inputs(1, 12, 6, 4)
    halves = [tensor.bfloat16() for tensor in inputs]

    out, _ = selective_scan_channels_last(*halves, delta_softplus=True)
    expected, _ = selective_scan_channels_last(*[tensor.float() for tensor in halves], delta_softplus=True)

    assert out.dtype == torch.bfloat16
    assert torch.equal(out, expected.bfloat16())


def test_unknown_or_unfit_backend_is_refused():
    inputs = random_inputs(1, 2, 3, 2)

    with pytest.raises(ConfigError, match="'gpu' does not exist"):
        selective_scan_channels_last(*inputs, backend="gpu")
    with pytest.raises(ConfigError, match="float32"):
        selective_scan_channels_last(*[tensor.double() for tensor in inputs], backend="cpu")


@pytest.mark.parametrize("name", ["delta", "B", "C", "D", "z", "delta_bias"])
def test_wrong_shapes_never_reach_compiled_code(name):
    inputs = dict(zip(NAMES, random_inputs(2, 7, 3, 4), strict=True))
    inputs[name] = inputs[name][..., :-1]

    with pytest.raises(ValueError, match=f"^{name} is"):
        selective_scan_channels_last(**inputs)


def small_inputs():
    return [torch.randn(1, 3, 4), torch.randn(1, 3, 4), -torch.ones(4, 2), torch.randn(1, 3, 2), torch.randn(1, 3, 2)]


def test_a_second_gradient_is_refused_and_never_left_out():
    u, *others = small_inputs()
    u.requires_grad_()
    out, _ = selective_scan_channels_last(u, *others, backend="cpu")
    with pytest.raises(RuntimeError, match="gradient of a gradient"):
        torch.autograd.grad(out.sum(), u, create_graph=True)


@pytest.mark.parametrize("wanted", [True, False])
def test_states_are_kept_for_a_gradient_only(monkeypatch, wanted):
    kept, run_kernel = [], scan.run_kernel

    def watch(kernel, tasks, inputs, outputs):
        kept.append(outputs[1].shape[1])
        run_kernel(kernel, tasks, inputs, outputs)

    monkeypatch.setattr(scan, "run_kernel", watch)
    u, *others = small_inputs()
    u.requires_grad_()
    with torch.set_grad_enabled(wanted):
        selective_scan_channels_last(u, *others, backend="cpu")
    assert kept == [1 if wanted else 0]
