"""Dropout, alone and behind a PReLU."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from qamdetr.kernels.dropout import Dropout, FeedForward, drop, prelu_drop


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
@pytest.mark.parametrize("shape", [(7,), (3, 5, 1001)])
def test_dropout_zeroes_the_share_and_keeps_the_mean(share: float, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    dropout = Dropout(share)
    total = sum(dropout(torch.ones(shape)) for _ in range(20000 // math.prod(shape) + 20))
    values = dropout(torch.ones(shape)).unique()
    assert all(value == 0 or abs(float(value) - 1 / (1 - share)) < 1e-4 for value in values)
    num_draws = 20000 // math.prod(shape) + 20
    # Three standard errors of a mean of independent draws.
    error = math.sqrt(share / (1 - share) / (num_draws * math.prod(shape)))
    assert float(total.mean()) / num_draws == pytest.approx(1.0, abs=3 * error + 1e-4)


def test_dropout_follows_the_seed_and_stops_outside_training() -> None:
    x = torch.randn(33)
    dropout = Dropout(0.5)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(dropout(x))
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert torch.equal(dropout.eval()(x), x)


def test_dropout_lets_gradients_through_where_it_keeps_values() -> None:
    x = torch.ones(1000, requires_grad=True)
    y = Dropout(0.25)(x)
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, y.detach())


@pytest.mark.parametrize("shape", [(1,), (3, 11), (2, 5, 4099)])
def test_prelu_and_dropout_in_one_are_the_two_one_after_the_other(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape, requires_grad=True)
    slope = torch.tensor([0.3], requires_grad=True)
    weight = torch.randn(shape)

    torch.manual_seed(1)
    out = prelu_drop(x, slope, 0.2)
    together = torch.autograd.grad((out * weight).sum(), [x, slope])
    torch.manual_seed(1)
    expected = drop(nn.functional.prelu(x, slope), 0.2)
    apart = torch.autograd.grad((expected * weight).sum(), [x, slope])

    assert torch.equal(out, expected)
    torch.testing.assert_close(together, apart)


def test_dropout_takes_tensors_that_are_not_contiguous() -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 5).t().requires_grad_()
    torch.manual_seed(1)
    out = drop(x, 0.5)
    (grad,) = torch.autograd.grad(out.sum(), x)
    torch.manual_seed(1)
    plain = drop(x.detach().contiguous(), 0.5)
    assert torch.equal(out, plain)
    assert torch.equal(grad, (plain != 0) * 2.0)


def test_the_feed_forward_network_is_its_four_parts() -> None:
    torch.manual_seed(0)
    network = FeedForward(6, 12, 0.25).eval()
    x = torch.randn(2, 3, 6)
    expected = x
    for part in network:
        expected = part(expected)
    torch.testing.assert_close(network(x), expected)
    network.train()
    assert not torch.equal(network(x), network(x))


@pytest.mark.parametrize("share", [-0.1, 1.0, 2.0, float("nan")])
def test_a_share_outside_its_range_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"^The share to drop is .*; it must be at least 0 and below 1\.$"):
        Dropout(share)


def test_the_networks_dropout_can_be_switched_off_by_itself() -> None:
    torch.manual_seed(0)
    network = FeedForward(6, 12, 0.5).train()
    network[2].eval()
    x = torch.randn(4, 6)
    assert torch.equal(network(x), network(x))
