"""From model output to candidates in seconds, and the segments of the saliency that join them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_system import candidate

from qamdetr.config import InferenceConfig
from qamdetr.inference.candidates import answers, pool_segments, segment_candidates, suppress
from qamdetr.types import Candidate, DecoderOutput, ModelOutput

SEGMENTS = InferenceConfig(segment_threshold=0.3)


def make_output(spans, foreground, quality=None, saliency=None):
    """One item whose moment queries have the given `(centre, width)` spans and probabilities."""
    p = torch.tensor([foreground])
    logits = torch.stack([p.log(), (1 - p).log()], dim=-1)
    quality_logits = None if quality is None else torch.logit(torch.tensor([quality]))
    curve = torch.zeros(1, 10) if saliency is None else torch.logit(torch.tensor([saliency]), eps=1e-6)
    return ModelOutput(DecoderOutput(logits, torch.tensor([spans]), quality_logits), (), curve)


def decode(output, durations, num_clips, *, nms_iou=1.0):
    return [answer.candidates for answer in answers(output, durations, num_clips, InferenceConfig(nms_iou=nms_iou))]


def test_scores_follow_equation_2_and_the_best_comes_first():
    first, second = decode(make_output([[0.25, 0.1], [0.75, 0.2]], [0.9, 0.6], [0.5, 0.8]), [100.0], [100])[0]
    assert first.window == pytest.approx((65, 85))
    assert (first.foreground, first.quality, first.decoder_score) == pytest.approx((0.6, 0.8, 0.48))
    assert (second.foreground, second.quality, second.decoder_score) == pytest.approx((0.9, 0.5, 0.45))


def test_windows_end_with_the_recording_and_without_a_quality_head_quality_is_one():
    (found,) = decode(make_output([[0.9, 0.2]], [0.5]), [59.123456789], [60])[0]
    assert found.start_seconds == pytest.approx(48)
    assert found.end_seconds == 59.123456789
    assert (found.quality, found.decoder_score) == (1, pytest.approx(0.5))


def test_suppression_drops_the_worse_of_two_that_overlap_and_keeps_the_order_of_equal_ones():
    output = make_output([[0.5, 0.20], [0.5, 0.22], [0.1, 0.1]], [0.5, 0.9, 0.2])
    assert [found.decoder_score for found in decode(output, [100.0], [100], nms_iou=0.7)[0]] == pytest.approx([0.9, 0.2])
    assert len(decode(output, [100.0], [100], nms_iou=0.95)[0]) == 3
    twins = [candidate(start, start + 1) for start in (5, 1, 3)]
    assert suppress(twins, 0.5) == suppress(twins, 1.0) == twins


def test_the_official_protocol_keeps_doubles_but_for_segments():
    output = make_output([[0.5, 0.20], [0.5, 0.201], [0.1, 0.05]], [0.1, 0.9, 0.7])
    counts = {
        (protocol, settings.segment_threshold): len(answers(output, [300.0], [10], settings, protocol=protocol)[0].candidates)
        for protocol in ("exact", "official")
        for settings in (InferenceConfig(nms_iou=0.5), InferenceConfig(nms_iou=0.5, segment_threshold=1e-9))
    }
    assert counts["official", 0.0] == 3 > counts["exact", 0.0]
    assert counts["official", 1e-9] == counts["exact", 1e-9]


def test_answers_pool_segments_by_quality_only_where_there_is_a_quality_head():
    """Validation once forgot that, and chose the best epoch and the threshold in another unit than serving uses."""
    saliency = [0.0, 0.1, 0.8, 0.9, 0.6, 0.1, 0.0, 0.2, 0.6, 0.0]
    with_head, without = (answers(make_output([[0.4, 0.4]], [0.5], q, saliency), [10.0], [10], SEGMENTS)[0] for q in ([0.5], None))
    assert any(found.quality < 1 for found in with_head.candidates)
    assert {found.quality for found in without.candidates} == {1.0}
    assert without.best_score == max(found.foreground for found in without.candidates) > with_head.best_score
    assert without.saliency.tolist() == pytest.approx(saliency, abs=1e-5)


@pytest.mark.parametrize("window", [(2.0, 5.0), (2.4, 5.0), (2.0, 5.7), (1.25, 6.5), (3.1, 4.9)])
def test_a_perfect_posterior_gives_the_window_back_finer_than_the_grid(window):
    clips = np.arange(8)
    posterior = np.clip(np.minimum(clips + 1, window[1]) - np.maximum(clips, window[0]), 0, 1)
    best = segment_candidates(posterior, 8.0, 0.3)[0]
    assert best.window == pytest.approx(window)
    assert best.quality == pytest.approx(1.0)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.floats(0.05, 0.95), st.floats(0.05, 1.0))
def test_segments_are_never_empty_ranked_and_lie_in_the_recording(values, threshold, last_clip):
    duration = len(values) - 1 + last_clip
    found = segment_candidates(values, duration, threshold)
    for each in found:
        assert 0 <= each.start_seconds < each.end_seconds <= duration
        assert 0 <= each.foreground <= 1
        assert 0 <= each.quality <= 1
        assert each.decoder_score == each.foreground * each.quality
    assert found == sorted(found, key=lambda each: -each.decoder_score)


def test_pooling_is_off_by_default_drops_doubles_and_lets_the_curve_weigh_the_decoders_candidates():
    agreed = Candidate(2.0, 5.0, foreground=0.8, quality=0.5, decoder_score=0.4)
    contradicted = Candidate(7.0, 9.0, foreground=0.9, quality=0.9, decoder_score=0.81)
    saliency = [0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.1, 0.1, 0.0]
    assert pool_segments([contradicted, agreed], saliency, 10.0, InferenceConfig(), nms_iou=0.7) == [contradicted, agreed]
    pooled = pool_segments([contradicted, agreed], saliency, 10.0, SEGMENTS, nms_iou=0.7)
    assert [found.window for found in pooled] == [agreed.window, contradicted.window]
    assert pooled[0].decoder_score > 0.9, "the segment's"


def test_a_faint_curve_still_gives_its_whole_segment():
    faint = [0.0, 0.02, 0.25, 0.25, 0.2, 0.02, 0.0]
    best = pool_segments([], faint, 7.0, SEGMENTS, nms_iou=0.7)[0]
    alone = pool_segments([], faint, 7.0, InferenceConfig(segment_threshold=0.3, segment_peak_share=1.0), nms_iou=0.7)[0]
    assert best.end_seconds - best.start_seconds > 1.0
    assert alone.end_seconds - alone.start_seconds <= 2.0
