"""The moment decoder: anchors, refinement, width modulation, masks."""

from __future__ import annotations

import math

import pytest
import torch

from qamdetr.model.decoder import ANCHOR_EPSILON, MomentDecoder, inverse_sigmoid
from qamdetr.model.layers import clip_positions

DIM = 16


def make(num_layers: int = 2, *, trained: bool = True) -> MomentDecoder:
    torch.manual_seed(0)
    decoder = MomentDecoder(DIM, 4, 32, 0.1, num_layers=num_layers, num_moment_queries=5).eval()
    if trained:
        with torch.no_grad():
            for parameter in decoder.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return decoder


@pytest.fixture
def memory():
    torch.manual_seed(3)
    mask = torch.tensor([[True] * 7, [True] * 5 + [False] * 2])
    return torch.randn(2, 7, DIM), mask, clip_positions(mask, DIM)


def test_inverse_sigmoid_undoes_sigmoid_and_is_bounded():
    logits = torch.tensor([-3.0, 0.0, 2.5])
    torch.testing.assert_close(inverse_sigmoid(logits.sigmoid()), logits)
    edges = inverse_sigmoid(torch.tensor([0.0, 1.0]))
    assert edges.tolist() == pytest.approx([math.log(ANCHOR_EPSILON), -math.log(ANCHOR_EPSILON)], abs=1e-3)


def test_each_layer_gives_content_and_the_anchors_it_started_from(memory):
    decoder = make()
    (first, first_anchors), (second, second_anchors) = decoder(*memory)
    assert first.shape == second.shape == (2, 5, DIM)
    torch.testing.assert_close(first_anchors, decoder.anchor_logits.expand(2, 5, 2))
    assert not torch.allclose(first_anchors, second_anchors, atol=1e-3)


def test_fresh_decoder_leaves_anchors_in_place(memory):
    (_, before), (_, after) = make(trained=False)(*memory)
    torch.testing.assert_close(before, after, atol=1e-4, rtol=1e-4)


def test_moment_queries_have_no_order(memory):
    decoder, order = make(), torch.tensor([2, 0, 4, 1, 3])
    # Copies: the first anchors are a view of the parameter that is about to be shuffled.
    before = [(content.clone(), anchors.clone()) for content, anchors in decoder(*memory)]
    with torch.no_grad():
        decoder.anchor_logits.copy_(decoder.anchor_logits[order])
        decoder.content.copy_(decoder.content[order])
    for (content, anchors), (shuffled, shuffled_anchors) in zip(before, decoder(*memory), strict=True):
        torch.testing.assert_close(shuffled, content[:, order], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(shuffled_anchors, anchors[:, order], atol=1e-5, rtol=1e-4)


def test_padded_memory_is_never_heard(memory):
    decoder, (values, mask, positions) = make(), memory
    before = decoder(values, mask, positions)
    values[1, 5:], positions[1, 5:] = 9.0, 9.0
    for (content, _), (again, _) in zip(before, decoder(values, mask, positions), strict=True):
        torch.testing.assert_close(again[1], content[1])


def test_refinement_learns_from_the_next_span_and_not_from_the_next_attention(memory):
    decoder = make()
    _, (content, _) = decoder(*memory)
    content.square().sum().backward()
    assert decoder.refine.layers[0].weight.grad is None
    _, (_, anchors) = decoder(*memory)
    anchors.sum().backward()
    assert decoder.refine.layers[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("width_logit", [-60.0, 60.0])
def test_extreme_anchors_stay_finite(memory, width_logit):
    decoder = make()
    with torch.no_grad():
        decoder.anchor_logits.fill_(width_logit)
    for content, anchors in decoder(*memory):
        assert bool(torch.isfinite(content).all())
        assert bool(torch.isfinite(anchors).all())


def test_single_layer_has_nothing_to_refine(memory):
    decoder = make(num_layers=1)
    assert decoder.refine is None
    assert decoder.sine_scale is None
    assert len(decoder(*memory)) == 1
