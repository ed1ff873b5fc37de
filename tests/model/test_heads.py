"""Prediction heads against their formulas."""

from __future__ import annotations

import torch

from qamdetr.model.heads import MomentHeads, SaliencyHead


def test_span_is_an_offset_to_the_anchor():
    torch.manual_seed(0)
    heads = MomentHeads(8, quality=True)
    content, anchors = torch.randn(2, 3, 8), torch.randn(2, 3, 2)
    output = heads(content, anchors)
    torch.testing.assert_close(output.spans_cxw, (heads.span(content) + anchors).sigmoid())
    assert output.logits.shape == (2, 3, 2)
    assert output.quality_logits.shape == (2, 3)


def test_quality_can_be_absent_or_bypassed():
    content, anchors = torch.randn(2, 3, 8), torch.randn(2, 3, 2)
    assert MomentHeads(8, quality=False)(content, anchors).quality_logits is None
    assert MomentHeads(8, quality=True)(content, anchors, bypass_quality=True).quality_logits is None


def test_saliency_is_a_scaled_inner_product():
    torch.manual_seed(0)
    head = SaliencyHead(16)
    memory, query, mask = torch.randn(2, 4, 16), torch.randn(2, 16), torch.tensor([[True] * 4, [True, True, False, False]])
    scores = head(memory, query, mask)
    wanted = (head.memory(memory[0, 2]) * head.query(query[0])).sum() / 4.0
    torch.testing.assert_close(scores[0, 2], wanted)
    assert scores[1, 2:].tolist() == [torch.finfo(torch.float32).min] * 2
