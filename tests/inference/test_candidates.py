"""From decoder output to candidates in seconds."""

from __future__ import annotations

import math

import pytest
import torch

from qamdetr.inference import candidates
from qamdetr.types import Candidate, DecoderOutput, ModelOutput


def make_output(spans, foreground, quality=None):
    """One item whose moment queries have the given `(centre, width)` spans and probabilities."""
    p = torch.tensor([foreground])
    logits = torch.stack([p.log(), (1 - p).log()], dim=-1)
    quality_logits = None if quality is None else torch.logit(torch.tensor([quality]))
    return ModelOutput(DecoderOutput(logits, torch.tensor([spans]), quality_logits), (), torch.zeros(1, 10))


def test_scores_follow_equation_2_and_the_best_comes_first():
    output = make_output([[0.25, 0.1], [0.75, 0.2]], [0.9, 0.6], [0.5, 0.8])
    first, second = candidates.decode(output, [100.0], [100])[0]
    assert first.window == pytest.approx((65, 85))
    assert (first.foreground, first.quality, first.decoder_score) == pytest.approx((0.6, 0.8, 0.48))
    assert (second.foreground, second.quality, second.decoder_score) == pytest.approx((0.9, 0.5, 0.45))
    assert first.verifier_score is None


def test_without_a_quality_head_quality_is_one():
    (candidate,) = candidates.decode(make_output([[0.5, 0.5]], [0.3]), [10.0], [10])[0]
    assert candidate.quality == 1
    assert candidate.decoder_score == pytest.approx(0.3)


def test_spans_are_relative_to_the_clips_and_windows_end_with_the_recording():
    duration = 59.123456789
    (candidate,) = candidates.decode(make_output([[0.9, 0.2]], [0.5]), [duration], [60])[0]
    assert candidate.start_seconds == pytest.approx(48)
    assert candidate.end_seconds == duration


def test_suppression_drops_the_worse_of_two_that_overlap():
    output = make_output([[0.5, 0.20], [0.5, 0.22], [0.1, 0.1]], [0.5, 0.9, 0.2])
    kept = candidates.decode(output, [100.0], [100], nms_iou=0.7)[0]
    assert [candidate.decoder_score for candidate in kept] == pytest.approx([0.9, 0.2])
    assert len(candidates.decode(output, [100.0], [100], nms_iou=0.95)[0]) == 3
    assert len(candidates.decode(output, [100.0], [100])[0]) == 3


def test_items_of_a_batch_do_not_mix():
    one, two = make_output([[0.5, 0.5]], [0.9]), make_output([[0.25, 0.5]], [0.2])
    decoder = DecoderOutput(
        torch.cat([one.decoder.logits, two.decoder.logits]), torch.cat([one.decoder.spans_cxw, two.decoder.spans_cxw]), None
    )
    both = candidates.decode(ModelOutput(decoder, (), torch.zeros(2, 10)), [20.0, 8.0], [20, 8])
    assert both == candidates.decode(one, [20.0], [20]) + candidates.decode(two, [8.0], [8])
    with pytest.raises(ValueError, match="shorter"):
        candidates.decode(ModelOutput(decoder, (), torch.zeros(2, 10)), [20.0, 8.0], [20])


def test_the_official_protocol_rounds_and_keeps_everything():
    output = make_output([[0.5, 0.20], [0.5, 0.201], [0.996, 0.3], [0.1, 0.001]], [0.123456, 0.9, 0.8, 0.7])
    windows = [candidates.round_officially(candidate, 299.6) for candidate in candidates.decode(output, [299.6], [300])[0]]
    assert [candidate.window for candidate in windows] == [(120, 180), (254, 300), (30, 30), (120, 180)]
    assert windows[-1].decoder_score == 0.1235
    long_recording = [candidates.round_officially(candidate, 1000.0) for candidate in candidates.decode(output, [1000.0], [1000])[0]]
    assert max(candidate.end_seconds for candidate in long_recording) == 300


def test_suppress_keeps_order_of_equal_scores():
    twins = [Candidate(start, start + 1.0, 0.5, 1.0, 0.5) for start in (5.0, 1.0, 3.0)]
    assert candidates.suppress(twins, 0.5) == twins
    assert candidates.suppress(twins, 1.0) == twins
    assert candidates.suppress([], 0.5) == []


def test_extreme_logits_stay_finite():
    output = ModelOutput(
        DecoderOutput(torch.tensor([[[1e4, -1e4]]]), torch.tensor([[[0.5, 0.5]]]), torch.tensor([[1e4]])), (), torch.zeros(1, 4)
    )
    (candidate,) = candidates.decode(output, [4.0], [4])[0]
    assert math.isclose(candidate.decoder_score, 1.0)
