import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from qamdetr.kernels import linear as room
from qamdetr.kernels.linear import Linear, linear

faster_product = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")),
    reason="this PyTorch has no oneDNN product",
)


@pytest.fixture
def always_faster(monkeypatch):
    """Small products, too, take the other way, on any processor."""
    monkeypatch.setattr(room, "_LEAST_WORK", 0)
    monkeypatch.setattr(room, "has_faster_product", lambda: True)


@pytest.fixture
def calls(monkeypatch):
    seen = []
    product = room._product
    monkeypatch.setattr(room, "_product", lambda *arguments: seen.append(1) or product(*arguments))
    return seen


def values_and_gradients(function, x, weight, bias, outer):
    leaves = [None if part is None else part.clone().requires_grad_() for part in (x, weight, bias)]
    out = function(*leaves)
    (out * outer).sum().backward()
    return [out.detach(), *(leaf.grad for leaf in leaves if leaf is not None)]


@faster_product
@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3),
    rows=st.integers(1, 37),
    dim_in=st.integers(1, 40),
    dim_out=st.integers(1, 40),
    with_bias=st.booleans(),
    strided=st.booleans(),
)
def test_value_and_gradients_are_those_of_pytorch(batch, rows, dim_in, dim_out, with_bias, strided):
    generator = torch.Generator().manual_seed(rows * 41 + dim_in)
    x = torch.randn(batch, rows, 2 * dim_in, generator=generator)
    x = x[..., ::2] if strided else x[..., :dim_in].contiguous()
    weight = torch.randn(dim_out, dim_in, generator=generator)
    bias = torch.randn(dim_out, generator=generator) if with_bias else None
    outer = torch.randn(batch, rows, dim_out, generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "_LEAST_WORK", 0)
        patch.setattr(room, "has_faster_product", lambda: True)
        ours = values_and_gradients(linear, x, weight, bias, outer)
        with torch.no_grad():
            torch.testing.assert_close(linear(x, weight, bias), ours[0], rtol=0, atol=0)
    exact = values_and_gradients(functional.linear, x.double(), weight.double(), None if bias is None else bias.double(), outer.double())
    for own, true in zip(ours, exact, strict=True):
        assert own.shape == true.shape
        torch.testing.assert_close(own.double(), true, rtol=1e-5, atol=1e-4)


@faster_product
def test_only_the_gradients_that_are_wanted_are_made(always_faster, calls):
    x, weight, bias = torch.randn(4, 5), torch.randn(3, 5, requires_grad=True), torch.randn(3, requires_grad=True)
    linear(x, weight, bias).sum().backward()
    assert len(calls) == 2  # forward, and the gradient of the weight
    assert x.grad is None
    torch.testing.assert_close(bias.grad, torch.full((3,), 4.0))


@faster_product
@pytest.mark.parametrize("case", ["small", "float64", "autocast"])
def test_what_the_other_product_is_not_for_stays_with_pytorch(monkeypatch, calls, case):
    monkeypatch.setattr(room, "has_faster_product", lambda: True)
    monkeypatch.setattr(room, "_LEAST_WORK", 10_000 if case == "small" else 0)
    dtype = torch.float64 if case == "float64" else torch.float32
    x, weight = torch.randn(4, 5, dtype=dtype), torch.randn(3, 5, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
        out = linear(x, weight)
    assert calls == []
    assert out.dtype == (torch.bfloat16 if case == "autocast" else dtype)


def test_the_module_is_nn_linear_by_its_parameters():
    ours, stock = Linear(6, 4), torch.nn.Linear(6, 4)
    ours.load_state_dict(stock.state_dict())
    x = torch.randn(2, 3, 6)
    torch.testing.assert_close(ours(x), stock(x))
    assert "bias" not in Linear(6, 4, bias=False).state_dict()


@pytest.mark.parametrize(
    ("capability", "maker", "expected"),
    [("AVX512", "AuthenticAMD", True), ("AVX512", "GenuineIntel", False), ("AVX2", "AuthenticAMD", False)],
)
def test_the_processor_decides(monkeypatch, capability, maker, expected):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(room, "_cpu_maker", lambda: maker)
    assert room.has_faster_product.__wrapped__() is (expected and hasattr(torch.ops.mkldnn, "_linear_pointwise"))


@pytest.mark.parametrize("bias", [torch.arange(16.0)[::2], torch.arange(24.0).view(8, 3)[:, 1], torch.ones(1).expand(8)])
def test_a_bias_may_have_any_strides(always_faster, bias):
    x, weight = torch.randn(5, 6), torch.randn(8, 6)
    torch.testing.assert_close(linear(x, weight, bias), functional.linear(x, weight, bias))


def test_a_gradient_of_a_gradient_is_that_of_pytorch(always_faster):
    torch.manual_seed(0)
    x = torch.randn(5, 6, requires_grad=True)
    ours = Linear(6, 8)
    gradients = []
    for product in (ours, lambda rows: functional.linear(rows, ours.weight, ours.bias)):
        out = product(x)
        (grad_x,) = torch.autograd.grad(out.pow(2).sum(), x, create_graph=True)
        gradients.append(torch.autograd.grad(out.pow(2).mean() + grad_x.pow(2).sum(), [x, ours.weight]))
    torch.testing.assert_close(*gradients)
