"""The Mamba block equals mamba-ssm's; the bidirectional encoder does not see padding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qamdetr.kernels.backends import use_backend
from qamdetr.kernels.time_order import reverse_valid
from qamdetr.model.bimamba import BiMambaEncoder, BiMambaLayer, Mamba


def prefix_mask(lengths, clips):
    return torch.arange(clips) < torch.tensor(lengths)[:, None]


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_mamba_equals_mamba_ssm(shared_dir: Path, backend):
    golden = np.load(shared_dir / "golden" / "official_reference.npz")
    prefix = "mamba/state_dict/"
    block = Mamba(32, state=16, conv=4, expand=2)
    block.load_state_dict({key[len(prefix) :]: torch.from_numpy(golden[key]) for key in golden.files if key.startswith(prefix)})

    with use_backend(backend), torch.no_grad():
        out = block(torch.from_numpy(golden["mamba/input"]))

    np.testing.assert_allclose(out, golden["mamba/output"], rtol=1e-4, atol=1e-4)


def test_mamba_starts_as_mamba_ssm_does():
    torch.manual_seed(0)
    block = Mamba(64)

    step_sizes = torch.nn.functional.softplus(block.dt_proj.bias)

    assert step_sizes.min() >= 1e-3 * 0.999
    assert step_sizes.max() <= 0.1 * 1.001
    assert step_sizes.log().std() > 0.8  # log-uniform over two decades: 1.33
    assert block.dt_proj.weight.abs().max() <= block.dt_rank**-0.5
    torch.testing.assert_close(torch.exp(block.A_log), torch.arange(1.0, 17).repeat(128, 1))
    assert torch.equal(block.D, torch.ones(128))


def test_mamba_gradients_agree_between_backends():
    torch.manual_seed(0)
    block = Mamba(16)
    x = torch.randn(2, 23, 16, requires_grad=True)
    gradients = {}
    for backend in ("reference", "cpu"):
        with use_backend(backend):
            out = block(x)
        gradients[backend] = torch.autograd.grad((out * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum(), [x, *block.parameters()])

    for actual, expected in zip(gradients["cpu"], gradients["reference"], strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_mamba_is_causal():
    torch.manual_seed(0)
    block = Mamba(8).eval()
    x = torch.randn(1, 12, 8)
    changed = x.clone()
    changed[:, 7:] += 1

    with torch.no_grad():
        difference = (block(changed) - block(x)).abs().amax(dim=(0, 2))

    assert (difference[:7] == 0).all()
    assert (difference[7:] > 0).all()


def test_reverse_valid_turns_valid_clips_only():
    x = torch.arange(10.0).view(2, 5, 1)

    reversed_x = reverse_valid(x, prefix_mask([3, 5], 5))

    assert reversed_x.flatten().tolist() == [2, 1, 0, 3, 4, 9, 8, 7, 6, 5]


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4), seed=st.integers(0, 1000))
def test_reverse_valid_undoes_itself_and_sends_gradients_back(lengths, seed):
    torch.manual_seed(seed)
    mask = prefix_mask(lengths, 9)
    x = torch.randn(len(lengths), 9, 3, requires_grad=True)
    upstream = torch.randn_like(x)

    twice = reverse_valid(reverse_valid(x, mask), mask)
    (gradient,) = torch.autograd.grad(reverse_valid(x, mask), x, upstream)

    assert torch.equal(twice, x)
    assert torch.equal(gradient, reverse_valid(upstream, mask))


@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(1, 20), min_size=2, max_size=4), seed=st.integers(0, 1000))
def test_an_item_comes_out_the_same_alone_and_in_a_padded_batch(lengths, seed):
    torch.manual_seed(seed)
    encoder = BiMambaEncoder(16, 2, state=4, conv=4, expand=2, dropout=0.0)
    items = [torch.randn(1, length, 16, requires_grad=True) for length in lengths]
    mask = prefix_mask(lengths, 20)
    padded = torch.full((len(lengths), 20, 16), 1e3)
    for row, item in zip(padded, items, strict=True):
        row[: item.shape[1]] = item.detach()[0]
    padded.requires_grad_()
    upstream = torch.randn(len(lengths), 20, 16)

    together = encoder(padded, mask)
    (gradient,) = torch.autograd.grad(together, padded, upstream)

    for index, (item, length) in enumerate(zip(items, lengths, strict=True)):
        alone = encoder(item, torch.ones(1, length, dtype=torch.bool))
        (own_gradient,) = torch.autograd.grad(alone, item, upstream[index : index + 1, :length])
        torch.testing.assert_close(together[index, :length], alone[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(gradient[index, :length], own_gradient[0], rtol=1e-4, atol=1e-4)
    assert (together[~mask] == 0).all()
    assert (gradient[~mask] == 0).all()


def test_padding_that_is_not_a_number_stays_outside():
    torch.manual_seed(0)
    encoder = BiMambaEncoder(8, 1, state=4, conv=4, expand=2, dropout=0.0)
    mask = prefix_mask([4, 6], 6)
    x = torch.randn(2, 6, 8).masked_fill(~mask[..., None], float("nan"))

    out = encoder(x, mask)
    out.sum().backward()

    assert out.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in encoder.parameters())


def test_every_clip_sees_the_whole_recording():
    torch.manual_seed(0)
    encoder = BiMambaEncoder(8, 1, state=4, conv=4, expand=2, dropout=0.0).eval()
    mask = torch.ones(1, 11, dtype=torch.bool)
    x = torch.randn(1, 11, 8)
    changed = x.clone()
    changed[:, 5] += 1

    with torch.no_grad():
        difference = (encoder(changed, mask) - encoder(x, mask)).abs().amax(dim=(0, 2))

    assert (difference > 0).all()


def test_a_layer_joins_its_branches_as_the_report_writes_it():
    torch.manual_seed(0)
    layer = BiMambaLayer(8, dropout=0.0)
    x, mask = torch.randn(3, 7, 8, requires_grad=True), prefix_mask([7, 4, 1], 7)
    weight, inputs = torch.randn(3, 7, 8), [x, *layer.parameters()]

    ahead, back = layer.forward_branch(x), reverse_valid(layer.backward_branch(reverse_valid(x, mask)), mask)
    expected = layer.norm(x + layer.merge(torch.cat([ahead, back], dim=-1)))
    got = layer(x, mask)

    torch.testing.assert_close(got[mask], expected[mask])
    gradients = [torch.autograd.grad((out * weight)[mask].sum(), inputs) for out in (got, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
