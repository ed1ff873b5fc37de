"""Affinities: blind to the axes and the size of a joint space, to padding, and to what else is in the batch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qamdetr.config import ModelConfig
from qamdetr.model.affinity import AFFINITIES, affinities
from qamdetr.model.qam_detr import QamDetr
from qamdetr.types import Batch


def space(seed: int, dim: int = 12, clips: int = 20) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    parts = [torch.randn(2, clips, dim, generator=draw), torch.randn(2, dim, generator=draw), torch.randn(30, dim, generator=draw)]
    mask = torch.arange(clips) < torch.tensor([[clips], [clips - 6]])
    parts[0][0, 3] = 0  # a silent clip
    return *parts, mask


@given(seed=st.integers(0, 50), sizes=st.lists(st.floats(0.05, 20), min_size=3, max_size=3), wider=st.integers(0, 7))
@settings(max_examples=30, deadline=None)
def test_nothing_moves_when_the_space_is_turned_scaled_or_laid_into_a_wider_one(seed: int, sizes: list[float], wider: int) -> None:
    clips, query, bank, mask = space(seed)
    turn = torch.linalg.qr(torch.randn(12 + wider, 12 + wider, generator=torch.Generator().manual_seed(seed + 99)))[0][:12]
    turned = [size * part @ turn for size, part in zip(sizes, (clips, query, bank), strict=True)]
    moved = affinities(*turned, mask) - affinities(clips, query, bank, mask)
    # A rank may turn where two cosines are equal but for rounding.
    moved[..., AFFINITIES.index("bank_rank")] = (moved[..., AFFINITIES.index("bank_rank")].abs() - 1 / len(bank)).clamp(min=0)
    assert moved.abs().max() < 1e-3


def test_each_column_is_what_it_says() -> None:
    """Of a recording of two directions: three clips along x, one along y, a query along y, a bank of x, -x and a mix."""
    clips = torch.tensor([[[1.0, 0], [2.0, 0], [0, 3.0], [1.0, 0]]])
    bank = torch.tensor([[1.0, 0], [-1.0, 0], [0.6, 0.8]])
    seen = dict(zip(AFFINITIES, affinities(clips, torch.tensor([[0, 1.0]]), bank, torch.ones(1, 4).bool())[0].T, strict=True))
    assert seen["contrast"].tolist() == pytest.approx([0, 0, 2, 0], abs=1e-4), (
        "the cosine is 1 once in four: two deviations above the median"
    )
    assert seen["bank_rank"].tolist() == pytest.approx([1 / 3, 1 / 3, 1, 1 / 3])
    assert seen["bank_z"].argmax() == seen["bank_share"].argmax() == seen["example"].argmax() == 2
    assert [seen[name].tolist() for name in ("before", "after", "before_two")] == [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]]
    assert seen["highest"].tolist() == pytest.approx([2] * 4, abs=1e-4) and (seen["share"] == 0.25).all()
    half = affinities(clips, torch.tensor([[0, 1.0]]), bank, torch.ones(1, 4).bool(), steps_per_second=2)[0]
    assert half[:, AFFINITIES.index("before")].tolist() == [0, 0, 0, 1], "a second is two clips"


def test_the_network_sees_no_more_of_a_space_and_the_same_with_padding() -> None:
    torch.manual_seed(0)
    widths = {"audio_streams": {"open": 0, "mel_stats": 3}, "text_streams": {"pocket": 5}}
    config = ModelConfig(**widths, affinity=True, decoder="dense", dim=16, num_heads=2, ffn_dim=32, encoder_layers=1)
    model = QamDetr(config).eval()
    clips, query, bank, mask = space(0)
    turn = torch.linalg.qr(torch.randn(12, 12))[0]
    tef = torch.rand(2, 20, 2)
    others = {"mel_stats": torch.randn(2, 20, 3)}
    text, text_mask = {"pocket": torch.randn(2, 4, 5)}, torch.ones(2, 4, dtype=torch.bool)

    def saliency(turn: torch.Tensor, num_clips: int, items: slice) -> torch.Tensor:
        audio = {"open": torch.cat([clips @ turn, tef], dim=-1), **others}
        cut = {name: rows[items, :num_clips] for name, rows in audio.items()}
        words = {"pocket": text["pocket"][items]}
        pooled = torch.nn.functional.normalize(query @ turn, dim=-1)[items]
        return model(Batch(cut, mask[items, :num_clips], words, text_mask[items], pooled, bank @ turn)).saliency

    with torch.inference_mode():
        whole = saliency(torch.eye(12), 20, slice(0, 2))
        torch.testing.assert_close(saliency(turn, 20, slice(0, 2)), whole, atol=1e-3, rtol=0)
        torch.testing.assert_close(saliency(torch.eye(12), 14, slice(1, 2))[0], whole[1, :14], atol=1e-4, rtol=0)
