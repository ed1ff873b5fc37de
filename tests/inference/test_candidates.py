"""From model output to candidates in seconds, and the segments of the saliency that join them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qamdetr.config import InferenceConfig
from qamdetr.inference import candidates
from qamdetr.inference.candidates import answers, pool_segments, runs_above, segment_candidates
from qamdetr.types import Candidate, DecoderOutput, ModelOutput


def make_output(spans, foreground, quality=None, saliency=None):
    """One item whose moment queries have the given `(centre, width)` spans and probabilities."""
    p = torch.tensor([foreground])
    logits = torch.stack([p.log(), (1 - p).log()], dim=-1)
    quality_logits = None if quality is None else torch.logit(torch.tensor([quality]))
    curve = torch.zeros(1, 10) if saliency is None else torch.logit(torch.tensor([saliency]), eps=1e-6)
    return ModelOutput(DecoderOutput(logits, torch.tensor([spans]), quality_logits), (), curve)


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


def test_suppression_drops_the_worse_of_two_that_overlap_and_keeps_the_order_of_equal_ones():
    output = make_output([[0.5, 0.20], [0.5, 0.22], [0.1, 0.1]], [0.5, 0.9, 0.2])
    kept = candidates.decode(output, [100.0], [100], nms_iou=0.7)[0]
    assert [candidate.decoder_score for candidate in kept] == pytest.approx([0.9, 0.2])
    assert len(candidates.decode(output, [100.0], [100], nms_iou=0.95)[0]) == len(candidates.decode(output, [100.0], [100])[0]) == 3
    twins = [Candidate(start, start + 1.0, 0.5, 1.0, 0.5) for start in (5.0, 1.0, 3.0)]
    assert candidates.suppress(twins, 0.5) == candidates.suppress(twins, 1.0) == twins
    assert candidates.suppress([], 0.5) == []


def test_items_of_a_batch_do_not_mix():
    one, two = make_output([[0.5, 0.5]], [0.9]), make_output([[0.25, 0.5]], [0.2])
    decoder = DecoderOutput(
        torch.cat([one.decoder.logits, two.decoder.logits]), torch.cat([one.decoder.spans_cxw, two.decoder.spans_cxw]), None
    )
    both = ModelOutput(decoder, (), torch.zeros(2, 10))
    assert candidates.decode(both, [20.0, 8.0], [20, 8]) == candidates.decode(one, [20.0], [20]) + candidates.decode(two, [8.0], [8])
    with pytest.raises(ValueError, match="shorter"):
        candidates.decode(both, [20.0, 8.0], [20])


def test_the_official_protocol_rounds_and_keeps_everything():
    output = make_output([[0.5, 0.20], [0.5, 0.201], [0.996, 0.3], [0.1, 0.001]], [0.123456, 0.9, 0.8, 0.7])
    (answer,) = answers(output, [299.6], [10], InferenceConfig(nms_iou=0.5), protocol="official")
    assert len(answer.candidates) == 4
    assert len(answers(output, [299.6], [10], InferenceConfig(nms_iou=0.5))[0].candidates) == 3
    windows = [candidates.round_officially(candidate, 299.6) for candidate in candidates.decode(output, [299.6], [300])[0]]
    assert [candidate.window for candidate in windows] == [(120, 180), (254, 300), (30, 30), (120, 180)]
    assert windows[-1].decoder_score == 0.1235
    long_recording = [candidates.round_officially(candidate, 1000.0) for candidate in candidates.decode(output, [1000.0], [1000])[0]]
    assert max(candidate.end_seconds for candidate in long_recording) == 300


def test_extreme_logits_stay_finite():
    output = ModelOutput(
        DecoderOutput(torch.tensor([[[1e4, -1e4]]]), torch.tensor([[[0.5, 0.5]]]), torch.tensor([[1e4]])), (), torch.zeros(1, 4)
    )
    (candidate,) = candidates.decode(output, [4.0], [4])[0]
    assert math.isclose(candidate.decoder_score, 1.0)


def test_answers_pool_segments_by_quality_only_where_there_is_a_quality_head():
    """Validation once forgot that, and chose the best epoch and the threshold in another unit than serving uses."""
    settings = InferenceConfig(segment_threshold=0.3)
    saliency = [0.0, 0.1, 0.8, 0.9, 0.6, 0.1, 0.0, 0.2, 0.6, 0.0]
    with_head, without = (answers(make_output([[0.4, 0.4]], [0.5], q, saliency), [10.0], [10], settings)[0] for q in ([0.5], None))
    assert any(candidate.quality < 1 for candidate in with_head.candidates)
    assert {candidate.quality for candidate in without.candidates} == {1.0}
    assert without.best_score == max(candidate.foreground for candidate in without.candidates) > with_head.best_score
    assert without.saliency.tolist() == pytest.approx(saliency, abs=1e-5)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=40), st.floats(-1, 1))
def test_runs_cover_exactly_the_clips_above(values, threshold):
    covered = np.zeros(len(values), dtype=bool)
    for first, last in runs_above(np.array(values), threshold):
        covered[first:last] = True
    assert (covered == (np.array(values) >= threshold)).all() or (covered.sum() == 1 and max(values) < threshold)


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
    for candidate in found:
        assert 0 <= candidate.start_seconds < candidate.end_seconds <= duration
        assert 0 <= candidate.foreground <= 1
        assert 0 <= candidate.quality <= 1
        assert candidate.decoder_score == candidate.foreground * candidate.quality
    assert found == sorted(found, key=lambda candidate: -candidate.decoder_score)


def test_pooling_is_off_by_default_and_drops_doubles():
    decoded = [Candidate(2.0, 5.0, foreground=0.5, quality=0.5, decoder_score=0.25)]
    saliency = [0.0, 0.0, 1.0, 1.0, 1.0, 0.0]
    assert pool_segments(decoded, saliency, 6.0, InferenceConfig(), nms_iou=0.7) == decoded
    pooled = pool_segments(decoded, saliency, 6.0, InferenceConfig(segment_threshold=0.3), nms_iou=0.7)
    assert [candidate.decoder_score for candidate in pooled] == [pytest.approx(1.0)]


def test_the_curve_weighs_the_decoders_candidates():
    agreed = Candidate(2.0, 5.0, foreground=0.8, quality=0.5, decoder_score=0.4)
    contradicted = Candidate(7.0, 9.0, foreground=0.9, quality=0.9, decoder_score=0.81)
    saliency = [0.0, 0.0, 0.8, 0.8, 0.8, 0.0, 0.0, 0.1, 0.1, 0.0]
    pooled = pool_segments([contradicted, agreed], saliency, 10.0, InferenceConfig(segment_threshold=0.3), nms_iou=1.0)
    windows = [candidate.window for candidate in pooled]
    assert windows.index(agreed.window) < windows.index(contradicted.window)
    assert all(c.decoder_score == pytest.approx(c.foreground * c.quality) for c in pooled)


def test_a_faint_curve_still_gives_its_whole_segment():
    faint = [0.0, 0.02, 0.25, 0.25, 0.2, 0.02, 0.0]
    best = pool_segments([], faint, 7.0, InferenceConfig(segment_threshold=0.3), nms_iou=0.7)[0]
    assert best.end_seconds - best.start_seconds > 1.0
    alone = pool_segments([], faint, 7.0, InferenceConfig(segment_threshold=0.3, segment_peak_share=1.0), nms_iou=0.7)[0]
    assert alone.end_seconds - alone.start_seconds <= 2.0


def test_without_quality_the_score_is_the_foreground_of_segments_and_candidates_alike():
    tight = Candidate(2.0, 5.0, foreground=0.5, quality=1.0, decoder_score=0.5)
    loose = Candidate(1.0, 8.0, foreground=0.9, quality=1.0, decoder_score=0.9)
    saliency = [0.0, 0.1, 0.8, 0.9, 0.8, 0.1, 0.0, 0.2, 0.6, 0.0]
    config = InferenceConfig(segment_threshold=0.3)
    ranked = pool_segments([loose, tight], saliency, 10.0, config, nms_iou=1.0)
    pooled = pool_segments([loose, tight], saliency, 10.0, config, nms_iou=1.0, by_quality=False)
    assert {c.quality for c in pooled} == {1.0}
    assert all(c.decoder_score == c.foreground for c in pooled)
    assert sorted(c.foreground for c in pooled) == sorted(c.foreground for c in ranked)
    assert [c.window for c in pooled] != [c.window for c in ranked]
