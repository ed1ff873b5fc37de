"""The adapter to mamba-ssm, on a stand-in that computes as the package's own reference and is as strict about types and layout."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from scan_cases import NAMES, assert_close, random_inputs

from qamdetr.errors import ConfigError
from qamdetr.kernels.mamba_ssm_scan import mamba_ssm_scan
from qamdetr.kernels.scan import selective_scan, selective_scan_channels_last


class WithoutStateGradient(torch.autograd.Function):
    """The package's backward pass takes no notice of the last state's gradient."""

    @staticmethod
    def forward(ctx, out, last_state):
        return out.clone(), last_state.clone()

    @staticmethod
    def backward(ctx, grad_out, grad_last_state):
        return grad_out, None


@pytest.fixture(autouse=True)
def calls(monkeypatch):
    """Install the stand-in; return what it was called with."""
    calls = []

    def selective_scan_fn(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, return_last_state=False):  # noqa: N803
        assert all(tensor.dtype == torch.float32 for tensor in (A, D, delta_bias))
        assert all(tensor.dtype == u.dtype and tensor.is_contiguous() for tensor in (u, delta, B, C, z) if tensor is not None)
        assert B.shape == C.shape == (u.shape[0], A.shape[1], u.shape[2])
        calls.append({"u": u, "z": z})
        out, last_state = WithoutStateGradient.apply(
            *selective_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, backend="reference")
        )
        return (out, last_state) if return_last_state else out

    module = ModuleType("mamba_ssm.ops.selective_scan_interface")
    module.selective_scan_fn = selective_scan_fn
    for name in ("mamba_ssm", "mamba_ssm.ops"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return calls


def results(scan, inputs, softplus):
    leaves = [None if tensor is None else tensor.clone().requires_grad_() for tensor in inputs]
    out, last_state = scan(leaves, softplus)
    (out * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
    return [out.detach(), last_state.detach(), *[leaf.grad for leaf in leaves if leaf is not None]]


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("softplus", [True, False])
def test_equals_the_reference(calls, gated, softplus):
    inputs = random_inputs(2, 7, 3, 4)
    inputs[1] = inputs[1].abs()
    inputs[7] = inputs[7].abs()
    inputs[6] = inputs[6] if gated else None

    actual = results(lambda leaves, softplus: mamba_ssm_scan(*leaves, softplus), inputs, softplus)
    expected = results(
        lambda leaves, softplus: selective_scan_channels_last(*leaves, delta_softplus=softplus, backend="reference"), inputs, softplus
    )

    assert len(calls) == 1
    assert calls[0]["u"].shape == (2, 3, 7)
    assert (calls[0]["z"] is not None) == gated
    assert_close(actual, expected)


def test_mixed_types_are_brought_to_those_of_the_package():
    inputs = random_inputs(1, 5, 3, 4)
    inputs[0], inputs[5] = inputs[0].bfloat16(), inputs[5].bfloat16()

    out, last_state = mamba_ssm_scan(*inputs, True)

    assert out.shape == (1, 5, 3)
    assert out.dtype == torch.bfloat16
    assert last_state.dtype == torch.float32


def test_a_gradient_that_the_package_does_not_give_is_refused():
    leaves = dict(zip(NAMES, [tensor.requires_grad_() for tensor in random_inputs(1, 5, 3, 4)], strict=True))

    out, last_state = mamba_ssm_scan(**leaves, delta_softplus=True)

    with pytest.raises(ConfigError, match="no gradient of the last state"):
        (out.sum() + last_state.sum()).backward()
