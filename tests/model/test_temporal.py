"""The Transformer encoder of the baseline."""

from __future__ import annotations

import torch

from qamdetr.model.layers import clip_positions
from qamdetr.model.temporal import TransformerEncoder


def test_order_is_known_from_positions_alone():
    torch.manual_seed(0)
    encoder = TransformerEncoder(16, 2, num_heads=4, ffn_dim=32, dropout=0.1).eval()
    x, mask = torch.randn(1, 6, 16), torch.ones(1, 6, dtype=torch.bool)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    nowhere = torch.zeros(1, 6, 16)
    torch.testing.assert_close(encoder(x[:, order], mask, nowhere), encoder(x, mask, nowhere)[:, order])
    positions = clip_positions(mask, 16)
    assert not torch.allclose(encoder(x[:, order], mask, positions), encoder(x, mask, positions)[:, order], atol=1e-2)


def test_padded_clips_are_never_heard():
    torch.manual_seed(0)
    encoder = TransformerEncoder(16, 2, num_heads=4, ffn_dim=32, dropout=0.1).eval()
    x, mask = torch.randn(1, 6, 16), torch.arange(6)[None, :] < 4
    alone = encoder(x[:, :4], mask[:, :4], clip_positions(mask[:, :4], 16))
    torch.testing.assert_close(encoder(x, mask, clip_positions(mask, 16))[:, :4], alone)
