"""Streams, fusion, multi-scale context, decoder, heads and shared layers, each against its formula."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qamdetr.kernels import speed_up
from qamdetr.model.decoder import MomentDecoder, MomentHeads, SaliencyHead
from qamdetr.model.fusion import ThreeWayFusion
from qamdetr.model.layers import Attention, AttentionBlock, attend, clip_positions
from qamdetr.model.multiscale import MultiScaleFusion
from qamdetr.model.streams import GatedStreams

DIM = 16


# Streams follow Eq. 1 of the report.


def test_sum_is_main_plus_gated_auxiliaries_and_a_bypass_closes_a_gate():
    torch.manual_seed(0)
    gated = GatedStreams("audio", {"main": 6, "loud": 3, "soft": 4}, 8, 0.5).eval()
    assert gated.gates() == {"audio/loud": 0.5, "audio/soft": 0.5}
    with torch.no_grad():
        gated.gate_logits["loud"].fill_(2.0)
        gated.gate_logits["soft"].fill_(-1.0)
    streams = {name: torch.randn(2, 5, width) for name, width in gated.widths.items()}
    parts = {name: gated.projections[name](value) for name, value in streams.items()}
    gates = {"loud": torch.sigmoid(torch.tensor(2.0)), "soft": torch.sigmoid(torch.tensor(-1.0))}
    torch.testing.assert_close(gated(streams), parts["main"] + gates["loud"] * parts["loud"] + gates["soft"] * parts["soft"])
    torch.testing.assert_close(gated(streams, bypass={"audio/loud"}), parts["main"] + gates["soft"] * parts["soft"])
    assert gated.gates() == pytest.approx({f"audio/{name}": gate.item() for name, gate in gates.items()})


@pytest.fixture
def pair():
    torch.manual_seed(0)
    audio_mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    text_mask = torch.tensor([[True] * 3, [True] * 2 + [False]])
    return [torch.randn(2, 6, DIM), torch.randn(2, 3, DIM), audio_mask, text_mask, clip_positions(audio_mask, DIM)]


def test_three_way_fusion_is_its_three_blocks_and_a_bypass_the_first_alone(pair):
    fusion = ThreeWayFusion(DIM, 4, 32, 0.1).eval()
    audio, text, audio_mask, text_mask, positions = pair
    first = fusion.audio_from_text(audio, text, text_mask, x_positions=positions)
    bypassed = fusion(*pair, bypass=True)
    torch.testing.assert_close(bypassed, (first, text))
    refined = fusion.text_from_audio(text, first, audio_mask, source_positions=positions)
    torch.testing.assert_close(fusion(*pair), (fusion.audio_from_refined(first, refined, text_mask, x_positions=positions), refined))


def test_context_reaches_beyond_a_clip_and_not_everywhere():
    torch.manual_seed(0)
    module, x, mask = MultiScaleFusion(8, (2, 4), 0.0).eval(), torch.randn(1, 32, 8), torch.ones(1, 32, dtype=torch.bool)
    changed = x.clone()
    changed[0, 16] += 1.0
    moved = (module(changed, mask) - module(x, mask)).abs().sum(-1)[0] > 1e-6
    # Stride 4 and a convolution over three runs: runs 3, 4 and 5, which are clips 12 to 23.
    assert moved.nonzero().squeeze(1).tolist() == list(range(12, 24))


def test_attention_is_the_weighted_mean_of_valid_values_also_on_average_under_dropout():
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 3, 8), torch.randn(2, 5, 8), torch.randn(2, 5, 4)
    mask = torch.tensor([[True, True, True, False, False], [True] * 5])
    got = attend(q, k, v, num_heads=2, key_mask=mask, dropout=nn.Dropout(0.0))
    for item in range(2):
        for head in range(2):
            scores = q[item, :, 4 * head : 4 * head + 4] @ k[item, mask[item], 4 * head : 4 * head + 4].T / 2.0
            wanted = scores.softmax(-1) @ v[item, mask[item], 2 * head : 2 * head + 2]
            torch.testing.assert_close(got[item, :, 2 * head : 2 * head + 2], wanted, atol=1e-5, rtol=1e-5)
    dropped = [attend(q, k, v, num_heads=2, key_mask=mask, dropout=nn.Dropout(0.2)) for _ in range(4000)]
    assert not torch.equal(dropped[0], dropped[1])
    torch.testing.assert_close(torch.stack(dropped).mean(0), got, atol=0.05, rtol=0)


@pytest.mark.parametrize("few", ["queries", "keys"])
def test_with_a_short_side_attention_is_the_same_with_its_gradients_also_under_dropout(few):
    torch.manual_seed(0)
    attention, sizes = speed_up(Attention(32, 2, 0.3)), {"queries": (3, 40), "keys": (40, 3)}[few]
    queries, keys, values = (torch.randn(2, size, 32, requires_grad=True) for size in (sizes[0], sizes[1], sizes[1]))
    mask = torch.arange(sizes[1]) < torch.tensor([[sizes[1]], [2]])

    def plain():
        projected = attention.query(queries), attention.key(keys), attention.value(values)
        return attention.out(attend(*projected, num_heads=2, key_mask=mask, dropout=attention.dropout))

    leaves, results = [queries, keys, values, *attention.parameters()], []
    for way in (plain, lambda: attention(queries, keys, values, mask)):
        torch.manual_seed(1)  # the same weights are dropped
        out = way()
        results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-4)


def test_positions_move_the_attention_and_not_the_values():
    torch.manual_seed(0)
    block = AttentionBlock(8, 2, 16, 0.0).eval()
    x, source, positions = torch.randn(1, 3, 8), torch.randn(1, 4, 8), torch.randn(1, 4, 8)
    moved, plain = block(x, source, None, source_positions=positions), block(x, source, None)
    assert not torch.allclose(moved, plain, atol=1e-3)
    # One source row takes all the attention wherever it stands.
    torch.testing.assert_close(block(x, source[:, :1], None, source_positions=positions[:, :1]), block(x, source[:, :1], None))


# Decoder and heads.


def make_decoder():
    torch.manual_seed(0)
    decoder = MomentDecoder(DIM, 4, 32, 0.1, num_layers=2, num_moment_queries=5).eval()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return decoder


@pytest.fixture
def memory():
    torch.manual_seed(3)
    mask = torch.tensor([[True] * 7, [True] * 5 + [False] * 2])
    return torch.randn(2, 7, DIM), mask, clip_positions(mask, DIM)


def test_moment_queries_have_no_order_and_hear_no_padding(memory):
    decoder, order = make_decoder(), torch.tensor([2, 0, 4, 1, 3])
    # Copies: the first anchors are a view of the parameter that is about to be shuffled.
    before = [(content.clone(), anchors.clone()) for content, anchors in decoder(*memory)]
    with torch.no_grad():
        decoder.anchor_logits.copy_(decoder.anchor_logits[order])
        decoder.content.copy_(decoder.content[order])
    memory[0][1, 5:], memory[2][1, 5:] = 9.0, 9.0
    for (content, anchors), (shuffled, shuffled_anchors) in zip(before, decoder(*memory), strict=True):
        torch.testing.assert_close(shuffled, content[:, order], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(shuffled_anchors, anchors[:, order], atol=1e-5, rtol=1e-4)


def test_refinement_learns_from_the_next_span_and_not_from_the_next_attention(memory):
    decoder = make_decoder()
    weight = decoder.refine.layers[0].weight
    (_, start), (content, anchors) = decoder(*memory)
    torch.testing.assert_close(start, decoder.anchor_logits.expand(2, 5, 2))
    assert torch.autograd.grad(content.square().sum(), weight, allow_unused=True, retain_graph=True) == (None,)
    assert torch.autograd.grad(anchors.sum(), weight)[0].any()


def test_heads_are_their_formulas():
    torch.manual_seed(0)
    heads, saliency = MomentHeads(8, quality=True), SaliencyHead(16)
    content, anchors = torch.randn(2, 3, 8), torch.randn(2, 3, 2)
    output = heads(content, anchors)
    torch.testing.assert_close(output.spans_cxw, (heads.span(content) + anchors).sigmoid())
    assert output.logits.shape == (2, 3, 2)
    assert output.quality_logits.shape == (2, 3)
    memory, query, mask = torch.randn(2, 4, 16), torch.randn(2, 16), torch.tensor([[True] * 4, [True, True, False, False]])
    scores = saliency(memory, query, mask)
    torch.testing.assert_close(scores[0, 2], (saliency.memory(memory[0, 2]) * saliency.query(query[0])).sum() / 4.0)
    assert scores[1, 2:].tolist() == [torch.finfo(torch.float32).min] * 2
