"""Multi-scale fusion: pooling over valid clips, full resolution, residual."""

from __future__ import annotations

import pytest
import torch

from qamdetr.model.multiscale import MultiScaleFusion, masked_average_pool


def test_pool_averages_valid_clips_of_each_run():
    x = torch.tensor([1.0, 3.0, 5.0, 100.0, 100.0])[None, :, None]
    mask = torch.tensor([[True, True, True, False, False]])
    pooled, pooled_mask = masked_average_pool(x, mask, 2)
    assert pooled[0, :, 0].tolist() == [2.0, 5.0, 0.0]
    assert pooled_mask.tolist() == [[True, True, False]]


@pytest.mark.parametrize("clips", [1, 2, 7, 8])
def test_resolution_stays_whole_and_padding_changes_nothing(clips):
    torch.manual_seed(0)
    module = MultiScaleFusion(8, (2, 4), 0.1).eval()
    x = torch.randn(1, clips, 8)
    alone = module(x, torch.ones(1, clips, dtype=torch.bool))
    assert alone.shape == x.shape
    padded = module(torch.cat([x, torch.full((1, 5, 8), 7.0)], dim=1), torch.arange(clips + 5)[None, :] < clips)
    torch.testing.assert_close(padded[:, :clips], alone)


def test_context_reaches_beyond_a_clip_and_not_everywhere():
    torch.manual_seed(0)
    module = MultiScaleFusion(8, (2, 4), 0.0).eval()
    mask = torch.ones(1, 32, dtype=torch.bool)
    x = torch.randn(1, 32, 8)
    changed = x.clone()
    changed[0, 16] += 1.0
    moved = (module(changed, mask) - module(x, mask)).abs().sum(-1)[0] > 1e-6
    # Stride 4 and a convolution over three runs: runs 3, 4 and 5, which are clips 12 to 23.
    assert moved.nonzero().squeeze(1).tolist() == list(range(12, 24))


def test_zero_scales_leave_the_sequence_as_it_was():
    module = MultiScaleFusion(8, (2, 4), 0.1).eval()
    with torch.no_grad():
        for scale in module.scales:
            scale.zero_()
    x = torch.randn(2, 9, 8)
    assert torch.equal(module(x, torch.ones(2, 9, dtype=torch.bool)), x)
