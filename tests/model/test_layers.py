"""Shared layers, each against its formula."""

from __future__ import annotations

import math

import pytest
import torch

from qamdetr.model.layers import AttentionBlock, Mlp, attend, clip_positions, sine_embedding


def test_sine_embedding_turns_once_over_the_range():
    values = torch.tensor([0.0, 0.25, 0.5, 1.0])
    embedded = sine_embedding(values, 8)
    assert embedded.shape == (4, 8)
    torch.testing.assert_close(embedded[:, 0], torch.tensor([0.0, 1.0, 0.0, 0.0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(embedded[:, 1], torch.tensor([1.0, 0.0, -1.0, 1.0]), atol=1e-5, rtol=0)
    assert embedded[1, 4].item() == pytest.approx(math.sin(0.25 * 2 * math.pi / 10000 ** (4 / 8)), abs=1e-6)


def test_positions_run_over_valid_clips_only():
    mask = torch.tensor([[True] * 4 + [False] * 3, [True] * 7])
    positions = clip_positions(mask, 8)
    torch.testing.assert_close(positions[0, :4], clip_positions(torch.ones(1, 4, dtype=torch.bool), 8)[0])
    torch.testing.assert_close(positions[0, 3], positions[1, 6])


def test_attention_is_the_weighted_mean_of_valid_values():
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 3, 8), torch.randn(2, 5, 8), torch.randn(2, 5, 4)
    mask = torch.tensor([[True, True, True, False, False], [True] * 5])
    got = attend(q, k, v, num_heads=2, key_mask=mask, dropout=0.0)
    for item in range(2):
        for head in range(2):
            scores = q[item, :, 4 * head : 4 * head + 4] @ k[item, mask[item], 4 * head : 4 * head + 4].T / 2.0
            wanted = scores.softmax(-1) @ v[item, mask[item], 2 * head : 2 * head + 2]
            torch.testing.assert_close(got[item, :, 2 * head : 2 * head + 2], wanted, atol=1e-5, rtol=1e-5)


def test_mlp_has_no_relu_at_its_end():
    mlp = Mlp(4, 8, 2, 3)
    with torch.no_grad():
        mlp.layers[-1].bias.fill_(-100.0)
    assert float(mlp(torch.randn(5, 4)).detach().max()) < 0
    assert [tuple(layer.weight.shape) for layer in mlp.layers] == [(8, 4), (8, 8), (2, 8)]


def test_post_norm_ends_normalised_and_pre_norm_keeps_the_residual():
    torch.manual_seed(0)
    x, source = 50 + torch.randn(2, 3, 8), torch.randn(2, 4, 8)
    post = AttentionBlock(8, 2, 16, 0.0, "post")(x, source, None)
    pre = AttentionBlock(8, 2, 16, 0.0, "pre")(x, source, None)
    torch.testing.assert_close(post.mean(-1), torch.zeros(2, 3), atol=1e-5, rtol=0)
    assert float(pre.detach().mean()) > 40


def test_positions_move_the_attention_and_not_the_values():
    torch.manual_seed(0)
    block = AttentionBlock(8, 2, 16, 0.0).eval()
    x, source, positions = torch.randn(1, 3, 8), torch.randn(1, 1, 8), torch.randn(1, 1, 8)
    # One source row takes all the attention wherever it stands.
    torch.testing.assert_close(block(x, source, None, source_positions=positions), block(x, source, None))
    source, positions = torch.randn(1, 4, 8), torch.randn(1, 4, 8)
    assert not torch.allclose(block(x, source, None, source_positions=positions), block(x, source, None), atol=1e-3)


def test_attention_weights_are_dropped_in_training_and_right_on_average() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 8), torch.randn(2, 6, 8), torch.randn(2, 6, 8)
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[1, 4:] = False
    exact = attend(q, k, v, num_heads=2, key_mask=mask, dropout=0.0)
    mean = torch.stack([attend(q, k, v, num_heads=2, key_mask=mask, dropout=0.2) for _ in range(4000)]).mean(0)
    torch.testing.assert_close(mean, exact, atol=0.05, rtol=0)
    assert not torch.equal(attend(q, k, v, num_heads=2, key_mask=mask, dropout=0.2), exact)
