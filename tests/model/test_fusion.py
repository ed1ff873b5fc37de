"""Cross-modal fusion: who looks at whom, and what a bypass leaves."""

from __future__ import annotations

import pytest
import torch

from qamdetr.model.fusion import TextToAudioFusion, ThreeWayFusion
from qamdetr.model.layers import clip_positions

DIM = 16


@pytest.fixture
def inputs():
    torch.manual_seed(0)
    audio_mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    text_mask = torch.tensor([[True] * 3, [True] * 2 + [False]])
    return [torch.randn(2, 6, DIM), torch.randn(2, 3, DIM), audio_mask, text_mask, clip_positions(audio_mask, DIM)]


def make(kind: str, norm: str = "post"):
    torch.manual_seed(1)
    if kind == "three_way":
        return ThreeWayFusion(DIM, 4, 32, 0.1, norm).eval()
    return TextToAudioFusion(DIM, 4, 32, 0.1, norm, 2).eval()


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("kind", ["three_way", "text_to_audio"])
def test_output_is_normalised_and_depends_on_the_text(inputs, kind, norm):
    fusion = make(kind, norm)
    audio, _ = fusion(*inputs)
    torch.testing.assert_close(audio.mean(-1), torch.zeros(2, 6), atol=1e-5, rtol=0)
    inputs[1] = -inputs[1]
    assert not torch.allclose(fusion(*inputs)[0], audio, atol=1e-2)


def test_three_way_refines_the_text_with_the_audio_and_text_to_audio_does_not(inputs):
    _, refined = make("three_way")(*inputs)
    louder = [inputs[0] * -1, *inputs[1:]]
    assert not torch.allclose(make("three_way")(*louder)[1], refined, atol=1e-2)
    assert torch.equal(make("text_to_audio")(*inputs)[1], inputs[1])


def test_third_block_hears_what_the_second_refined(inputs):
    fusion = make("three_way")
    before, _ = fusion(*inputs)
    with torch.no_grad():
        fusion.text_from_audio.norm_ffn.bias += 1.0
        fusion.text_from_audio.norm_ffn.weight *= torch.linspace(-1, 1, DIM)
    assert not torch.allclose(fusion(*inputs)[0], before, atol=1e-3)


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_bypass_is_the_first_block_alone(inputs, norm):
    fusion = make("three_way", norm)
    audio, text, _, text_mask, positions = inputs
    got_audio, got_text = fusion(*inputs, bypass=True)
    torch.testing.assert_close(got_audio, fusion.norm_audio(fusion.audio_from_text(audio, text, text_mask, x_positions=positions)))
    torch.testing.assert_close(got_text, fusion.norm_text(text))
    assert not torch.allclose(got_audio, fusion(*inputs)[0], atol=1e-2)


@pytest.mark.parametrize("kind", ["three_way", "text_to_audio"])
def test_padded_clips_and_tokens_are_never_heard(inputs, kind):
    fusion = make(kind)
    audio, text = fusion(*inputs)
    inputs[0][1, 4:] = 9.0
    inputs[1][1, 2:] = 9.0
    audio_again, text_again = fusion(*inputs)
    torch.testing.assert_close(audio_again[1, :4], audio[1, :4])
    torch.testing.assert_close(text_again[1, :2], text[1, :2])
