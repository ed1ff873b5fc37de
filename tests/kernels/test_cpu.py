"""Faster layers on a CPU: products, dropout, the swap in a network, and the compiled kernels' own promises."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import numba
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional

from qamdetr.kernels import cpu, cpu_kernels, speed_up
from qamdetr.kernels.cpu import drop, linear
from qamdetr.kernels.scan import selective_scan
from qamdetr.model.encoder import TransformerEncoder

faster_product = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")),
    reason="this PyTorch has no oneDNN product",
)


@pytest.fixture
def always_faster(monkeypatch):
    """Small products, too, take the other way, on any processor."""
    monkeypatch.setattr(cpu, "_LEAST_WORK", 0)
    monkeypatch.setattr(cpu, "has_faster_product", lambda: True)


def values_and_gradients(function, inputs, upstream):
    leaves = [None if part is None else part.clone().requires_grad_() for part in inputs]
    out = function(*leaves)
    out.backward(upstream)
    return [out.detach(), *(leaf.grad for leaf in leaves if leaf is not None)]


@faster_product
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(*(st.integers(1, most) for most in (3, 37, 40, 40)), st.booleans(), st.booleans())
def test_products_and_their_gradients_are_those_of_pytorch(always_faster, batch, rows, dim_in, dim_out, with_bias, strided):
    generator = torch.Generator().manual_seed(rows * 41 + dim_in)
    x = torch.randn(batch, rows, 2 * dim_in, generator=generator)
    x = x[..., ::2] if strided else x[..., :dim_in].contiguous()
    bias = torch.randn(2 * dim_out, generator=generator)[::2] if with_bias else None
    inputs = [x, torch.randn(dim_out, dim_in, generator=generator), bias]
    upstream = torch.randn(batch, rows, dim_out, generator=generator)
    ours = values_and_gradients(linear, inputs, upstream)
    exact = values_and_gradients(functional.linear, [None if part is None else part.double() for part in inputs], upstream.double())
    for own, true in zip(ours, exact, strict=True):
        torch.testing.assert_close(own.double(), true, rtol=1e-5, atol=1e-4)


@faster_product
@pytest.mark.parametrize("case", ["float64", "autocast", "vector", "bias", "columns"])
def test_what_the_other_product_is_not_for_stays_with_pytorch(always_faster, case):
    x = torch.ones(5 if case == "vector" else (2, 4, 5), dtype=torch.float64 if case == "float64" else torch.float32)
    weight, bias = x.new_ones(3, 6 if case == "columns" else 5), x.new_ones(2 if case == "bias" else 3)
    if case in ("bias", "columns"):
        with pytest.raises(RuntimeError):
            linear(x, weight, bias)
        return
    with torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
        out, expected = linear(x, weight, bias), functional.linear(x, weight, bias)
    assert out.dtype == expected.dtype
    assert torch.equal(out, expected)


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5])
@pytest.mark.parametrize("shape", [(7,), (3, 5, 1001)])
def test_dropout_zeroes_its_share_and_keeps_the_mean(p, shape):
    torch.manual_seed(0)
    draws = 20000 // math.prod(shape) + 20
    total = sum(drop(torch.ones(shape), p) for _ in range(draws))
    assert all(value == 0 or abs(float(value) - 1 / (1 - p)) < 1e-4 for value in drop(torch.ones(shape), p).unique())
    # Three standard errors of a mean of independent draws.
    error = math.sqrt(p / (1 - p) / (draws * math.prod(shape)))
    assert float(total.mean()) / draws == pytest.approx(1.0, abs=3 * error + 1e-4)


def test_what_dropout_keeps_hangs_neither_together_with_its_neighbours_nor_with_the_next_call():
    torch.manual_seed(0)
    first, second = (drop(torch.ones(1 << 20), 0.5) > 0 for _ in range(2))
    others = [second, *(first.roll(shift) for shift in (1, 2, 3, 8, 64, 1024, 1 << 15))]
    # Five standard errors of a share of 2^20 fair throws.
    assert all(float((first == other).float().mean()) == pytest.approx(0.5, abs=5 * 0.5 / 1024) for other in others)


@pytest.mark.parametrize("shape", [(1,), (3, 11), (2, 5, 4099)])
def test_prelu_and_dropout_in_one_are_the_two_one_after_the_other(shape):
    torch.manual_seed(0)
    inputs, upstream = [torch.randn(shape), torch.tensor([0.3])], torch.randn(shape)
    torch.manual_seed(1)
    together = values_and_gradients(lambda x, slope: drop(x, 0.2, slope), inputs, upstream)
    torch.manual_seed(1)
    apart = values_and_gradients(lambda x, slope: drop(functional.prelu(x, slope), 0.2), inputs, upstream)
    assert torch.equal(together[0], apart[0])
    torch.testing.assert_close(together[1], apart[1])
    # A float32 sum of n terms of either sign is off by some sqrt(n) roundings; another order, as a processor likes it, gives others.
    rtol = max(1.3e-6, torch.finfo(torch.float32).eps * math.sqrt(math.prod(shape)))
    torch.testing.assert_close(together[2], apart[2], rtol=rtol, atol=1e-5)


def test_dropout_follows_the_seed_in_any_layout_and_type():
    torch.manual_seed(0)
    x = torch.randn(6, 5).t().requires_grad_()
    results = []
    for value in (x, x.detach().contiguous(), x.detach().bfloat16()):
        torch.manual_seed(1)
        results.append(drop(value, 0.5))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0].bfloat16(), results[2])
    assert not torch.equal(drop(x, 0.5), results[0])
    (grad,) = torch.autograd.grad(results[0].sum(), x)
    assert torch.equal(grad, (results[1] != 0) * 2.0)


@pytest.mark.parametrize(
    "second",
    [
        *(lambda x: drop(x, 0.5), lambda x: drop(x, 0.5, torch.ones(1)), lambda x: linear(x, x)),
        lambda x: selective_scan(x[None], x[None], x, x[None], x[None], x[0], x[None], x[0], backend="cpu"),
    ],
)
def test_a_second_gradient_is_refused_and_never_left_out(always_faster, second):
    x = torch.randn(4, 4, requires_grad=True)
    with pytest.raises(RuntimeError, match="gradient of a gradient"):
        torch.autograd.grad(second(x).pow(2).sum(), x, create_graph=True)


def test_a_network_that_is_sped_up_keeps_its_names_and_drops():
    network = TransformerEncoder(8, 1, num_heads=2, ffn_dim=16, dropout=0.3)
    names, x = list(network.state_dict()), torch.randn(2, 5, 8)
    assert list(speed_up(network).state_dict()) == names
    assert {cpu.Linear, cpu.Dropout, cpu.FeedForward} < {type(module) for module in network.modules()}
    ffn = network.layers[0].ffn
    assert not torch.equal(ffn(x), ffn(x))
    assert torch.equal(ffn.eval()(x), ffn(x))


def test_kernels_compile_where_numba_may_not_write_its_cache(monkeypatch):
    def locate(*_):
        raise RuntimeError("cannot cache function: no locator available")

    monkeypatch.setattr(numba.core.caching.FunctionCache, "__init__", locate)
    assert cpu_kernels.kernel(lambda x: 2 * x + 1)(3) == 7


FIRST_STEPS = """
import hashlib, sys, torch
from qamdetr.kernels import speed_up
from qamdetr.kernels.scan import selective_scan
from qamdetr.model.encoder import BiMambaEncoder, TransformerEncoder

torch.set_num_threads(1)
torch.manual_seed(0)
mamba, transformer = BiMambaEncoder(32, 2), TransformerEncoder(32, 1, num_heads=4, ffn_dim=64, dropout=0.1)
network = speed_up(torch.nn.ModuleList([mamba, transformer]))
x, mask = torch.randn(4, 30, 32), torch.arange(30) < torch.tensor([30, 20, 10, 7])[:, None]
if sys.argv[1] == "serve first":
    with torch.no_grad():
        mamba.eval()(x, mask)
    mamba.train()
optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
for _ in range(3):
    optimizer.zero_grad()
    (transformer(mamba(x, mask), mask, x) * torch.linspace(-1, 1, 32)).square().sum().backward()
    optimizer.step()
print(hashlib.sha256(b"".join(parameter.detach().numpy().tobytes() for parameter in network.parameters())).hexdigest())
"""


@pytest.mark.slow
def test_a_training_while_kernels_are_compiled_has_the_bits_of_all_later_ones(tmp_path):
    root = Path(__file__).parents[2]
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(root)}
    hashes = []
    for order in ("train", "train", "serve first"):  # the first compiles, the others load
        told = subprocess.run([sys.executable, "-c", FIRST_STEPS, order], env=environment, capture_output=True, text=True, check=True)
        hashes.append(told.stdout)
    assert any(tmp_path.rglob("*.nbc"))
    assert len(set(hashes)) == 1, hashes
