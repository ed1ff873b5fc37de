"""The Mamba block equals mamba-ssm's; the temporal encoders see the whole recording and no padding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qamdetr.kernels.scan import reverse_valid, use_backend
from qamdetr.model.encoder import BiMambaEncoder, BiMambaLayer, Mamba, TransformerEncoder
from qamdetr.model.layers import clip_positions


def prefix_mask(lengths, clips):
    return torch.arange(clips) < torch.tensor(lengths)[:, None]


def small_encoder(dim=8, layers=1):
    torch.manual_seed(0)
    return BiMambaEncoder(dim, layers, state=4, dropout=0.0)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_mamba_equals_mamba_ssm(shared_dir, backend):
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
    assert 1e-3 * 0.999 <= step_sizes.min() <= step_sizes.max() <= 0.1 * 1.001
    assert step_sizes.log().std() > 0.8  # log-uniform over two decades: 1.33
    assert block.dt_proj.weight.abs().max() <= block.dt_rank**-0.5
    torch.testing.assert_close(torch.exp(block.A_log), torch.arange(1.0, 17).repeat(128, 1))
    assert torch.equal(block.D, torch.ones(128))


@pytest.mark.parametrize("network", ["causal block", "encoder"])
def test_a_clip_sees_what_it_should(network):
    torch.manual_seed(0)
    module = Mamba(8) if network == "causal block" else small_encoder()
    inputs = [] if network == "causal block" else [torch.ones(1, 12, dtype=torch.bool)]
    x = torch.randn(1, 12, 8)
    changed = x.clone()
    changed[:, 7] += 1
    difference = (module(changed, *inputs) - module(x, *inputs)).abs().amax(dim=(0, 2))
    assert ((difference == 0) == (torch.arange(12) < (7 if network == "causal block" else 0))).all()


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_layer_joins_its_branches_as_the_report_writes_it(backend):
    torch.manual_seed(0)
    layer = BiMambaLayer(8, dropout=0.0)
    x, mask = torch.randn(3, 7, 8, requires_grad=True), prefix_mask([7, 4, 1], 7)
    weight, inputs = torch.randn(3, 7, 8), [x, *layer.parameters()]
    with use_backend("reference"):
        ahead, back = layer.forward_branch(x), reverse_valid(layer.backward_branch(reverse_valid(x, mask)), mask)
    expected = layer.norm(x + layer.merge(torch.cat([ahead, back], dim=-1)))
    with use_backend(backend):
        got = layer(x, mask)
    torch.testing.assert_close(got[mask], expected[mask], rtol=1e-4, atol=1e-5)
    gradients = [torch.autograd.grad((out * weight)[mask].sum(), inputs) for out in (got, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(1, 20), min_size=2, max_size=4), filler=st.sampled_from([1e3, float("nan")]))
def test_an_item_comes_out_the_same_alone_and_in_a_padded_batch(lengths, filler):
    encoder, mask = small_encoder(16, 2), prefix_mask(lengths, 20)
    padded = torch.randn(len(lengths), 20, 16).masked_fill(~mask[..., None], filler).requires_grad_()
    upstream = torch.randn(len(lengths), 20, 16)

    together = encoder(padded, mask)
    gradient, *of_parameters = torch.autograd.grad(together, [padded, *encoder.parameters()], upstream)

    assert all(each.isfinite().all() for each in of_parameters)
    assert not together[~mask].any()
    assert not gradient[~mask].any()
    for index, length in enumerate(lengths):
        item = padded[index : index + 1, :length].detach().requires_grad_()
        alone = encoder(item, torch.ones(1, length, dtype=torch.bool))
        (own_gradient,) = torch.autograd.grad(alone, item, upstream[index : index + 1, :length])
        torch.testing.assert_close(together[index, :length], alone[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(gradient[index, :length], own_gradient[0], rtol=1e-4, atol=1e-4)


def test_the_transformer_knows_order_from_positions_alone():
    torch.manual_seed(0)
    encoder = TransformerEncoder(16, 2, num_heads=4, ffn_dim=32, dropout=0.1).eval()
    x, mask, order = torch.randn(1, 6, 16), torch.ones(1, 6, dtype=torch.bool), torch.tensor([3, 0, 5, 1, 4, 2])
    nowhere, positions = torch.zeros(1, 6, 16), clip_positions(mask, 16)
    torch.testing.assert_close(encoder(x[:, order], mask, nowhere), encoder(x, mask, nowhere)[:, order])
    assert not torch.allclose(encoder(x[:, order], mask, positions), encoder(x, mask, positions)[:, order], atol=1e-2)
