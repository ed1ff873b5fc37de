"""Bent spaces: other at every draw, the same by the same numbers, and still joint spaces."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from qamdetr.data.spaces import MAX_DIM, MIN_DIM, bend
from qamdetr.types import Batch

SAYS, HEARD = 40, 30


def batch() -> Batch:
    """Recordings in which query `i` sounds in clip `i`."""
    torch.manual_seed(0)
    meanings = normalize(torch.randn(SAYS, 64), dim=-1)
    clips = normalize(meanings[:HEARD] + 0.02 * torch.randn(HEARD, 64), dim=-1)
    clips[7] = 0
    rows = torch.cat([clips, torch.rand(HEARD, 2)], dim=-1).expand(HEARD, -1, -1)
    mask = torch.ones(HEARD, HEARD, dtype=torch.bool)
    return Batch({"open": rows, "mel_stats": torch.ones(HEARD, HEARD, 3)}, mask, {}, mask, meanings[:HEARD], meanings)


def draw(seed: int, amount: float = 1.0) -> Batch:
    return bend(batch(), amount, np.random.default_rng(seed))


def test_each_draw_is_another_space_and_the_same_numbers_give_the_same() -> None:
    sizes = {draw(seed).text_pooled.shape[-1] for seed in range(12)}
    assert len(sizes) > 6 and min(sizes) >= MIN_DIM and max(sizes) <= MAX_DIM
    assert torch.equal(draw(3).audio["open"], draw(3).audio["open"])


def test_silence_and_all_that_is_not_in_the_space_stay() -> None:
    before, after = batch(), draw(0)
    assert torch.equal(after.audio["open"][..., -2:], before.audio["open"][..., -2:])
    assert torch.equal(after.audio["mel_stats"], before.audio["mel_stats"])
    assert not after.audio["open"][:, 7, :-2].any()


@pytest.mark.parametrize(("amount", "least", "most"), [(0.01, 0.96, 0.97), (1.0, 0.1, 0.95)])
def test_what_belongs_together_stays_nearer_the_less_a_space_is_bent(amount: float, least: float, most: float) -> None:
    right = []
    for seed in range(20):
        bent = draw(seed, amount)
        cosine = bent.audio["open"][0, :, :-2] @ bent.bank.T
        # All but the silent clip can be right.
        right.append(float((cosine.argmax(dim=1) == torch.arange(HEARD)).float().mean()))
    assert least < np.mean(right) <= most
