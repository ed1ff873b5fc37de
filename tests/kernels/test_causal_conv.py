"""The compiled convolution equals PyTorch's, gradients too."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from qamdetr.kernels.causal_conv import causal_conv_silu


def run(inputs, backend):
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    out = causal_conv_silu(*leaves, backend=backend)
    (out * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
    return [out.detach(), *[leaf.grad for leaf in leaves]]


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3),
    steps=st.integers(1, 12),
    channels=st.sampled_from([1, 7, 128, 133]),
    taps=st.integers(1, 5),
    seed=st.integers(0, 2**16),
)
def test_kernel_equals_reference(batch, steps, channels, taps, seed):
    torch.manual_seed(seed)
    inputs = [torch.randn(batch, steps, channels), torch.randn(channels, 1, taps), torch.randn(channels)]

    for actual, expected in zip(run(inputs, "cpu"), run(inputs, "reference"), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=3),
    channels=st.sampled_from([1, 7, 133]),
    taps=st.integers(1, 5),
    backend=st.sampled_from(["cpu", "reference"]),
    reverse=st.booleans(),
)
def test_lengths_and_direction(lengths, channels, taps, backend, reverse):
    torch.manual_seed(0)
    whole, weight, bias = torch.randn(len(lengths), 9, channels), torch.randn(channels, 1, taps), torch.randn(channels)
    within = torch.arange(9) < torch.tensor(lengths)[:, None]
    upstream = torch.randn_like(whole)
    leaves = [x.clone().requires_grad_() for x in (whole.masked_fill(~within[..., None], float("nan")), weight, bias)]

    out = causal_conv_silu(*leaves, lengths=torch.tensor(lengths), reverse=reverse, backend=backend)
    gradients = torch.autograd.grad(out, leaves, upstream)

    def turn(x):
        return x.flip(1) if reverse else x

    own = [x.clone().requires_grad_() for x in (whole, weight, bias)]
    expected = torch.zeros_like(whole)
    for i, length in enumerate(lengths):
        if length:
            expected[i, :length] = turn(causal_conv_silu(turn(own[0][i : i + 1, :length]), *own[1:], backend="reference"))[0]
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    if any(lengths):
        torch.testing.assert_close(gradients, torch.autograd.grad(expected, own, upstream), rtol=1e-4, atol=1e-4)


def test_reference_is_the_formula():
    x, weight, bias = torch.randn(1, 6, 2), torch.randn(2, 1, 3), torch.randn(2)

    out = causal_conv_silu(x, weight, bias, backend="reference")

    by_hand = bias + weight[:, 0, 0] * x[0, 2] + weight[:, 0, 1] * x[0, 3] + weight[:, 0, 2] * x[0, 4]
    torch.testing.assert_close(out[0, 4], functional.silu(by_hand))
    torch.testing.assert_close(out[0, 0], functional.silu(bias + weight[:, 0, 2] * x[0, 0]))


def test_wrong_shapes_never_reach_compiled_code():
    with pytest.raises(ValueError, match="needs a weight"):
        causal_conv_silu(torch.zeros(1, 4, 3), torch.zeros(2, 1, 4), torch.zeros(3))
