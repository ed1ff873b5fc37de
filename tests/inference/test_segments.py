"""Tests of segments read off a curve."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qamdetr.config import InferenceConfig
from qamdetr.inference.segments import pool_segments, segment_candidates, segments_above
from qamdetr.types import Candidate


def test_runs_are_ranked_by_their_mean_and_cut_at_the_end() -> None:
    assert segments_above([0.1, 0.6, 0.8, 0.2, 0.9], 0.5, 4.5) == [(4.0, 4.5, 0.9), (1.0, 3.0, 0.7)]


def test_a_curve_below_the_threshold_still_gives_its_best_clip() -> None:
    assert segments_above([0.1, 0.3, 0.2], 0.5, 3.0) == [(1.0, 2.0, 0.3)]


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=40), st.floats(-1, 1))
def test_segments_cover_exactly_the_clips_above(values: list[float], threshold: float) -> None:
    segments = segments_above(values, threshold, len(values))
    covered = np.zeros(len(values), dtype=bool)
    for start, end, _ in segments:
        covered[int(start) : int(end)] = True
    assert (covered == (np.array(values) >= threshold)).all() or (covered.sum() == 1 and max(values) < threshold)


@pytest.mark.parametrize("window", [(2.0, 5.0), (2.4, 5.0), (2.0, 5.7), (1.25, 6.5), (3.1, 4.9)])
def test_a_perfect_posterior_gives_the_window_back_finer_than_the_grid(window: tuple[float, float]) -> None:
    clips = np.arange(8)
    posterior = np.clip(np.minimum(clips + 1, window[1]) - np.maximum(clips, window[0]), 0, 1)
    best = segment_candidates(posterior, 8.0, 0.3)[0]
    assert best.window == pytest.approx(window)
    assert best.quality == pytest.approx(1.0)


def test_a_clear_segment_ranks_above_a_faint_one() -> None:
    found = segment_candidates([0.0, 0.4, 0.4, 0.0, 0.0, 0.9, 0.95, 0.0], 8.0, 0.3)
    assert [round(candidate.start_seconds) for candidate in found] == [5, 2]
    assert found[0].decoder_score == pytest.approx(found[0].foreground * found[0].quality)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.floats(0.05, 0.95), st.floats(0.05, 1.0))
def test_segments_are_never_empty_and_lie_in_the_recording(values: list[float], threshold: float, last_clip: float) -> None:
    duration = len(values) - 1 + last_clip
    for candidate in segment_candidates(values, duration, threshold):
        assert 0 <= candidate.start_seconds < candidate.end_seconds <= duration
        assert 0 <= candidate.foreground <= 1
        assert 0 <= candidate.quality <= 1


def test_pooling_is_off_by_default_and_drops_doubles() -> None:
    decoded = [Candidate(2.0, 5.0, foreground=0.5, quality=0.5, decoder_score=0.25)]
    saliency = [0.0, 0.0, 1.0, 1.0, 1.0, 0.0]
    assert pool_segments(decoded, saliency, 6.0, InferenceConfig(), nms_iou=0.7) == decoded
    pooled = pool_segments(decoded, saliency, 6.0, InferenceConfig(segment_threshold=0.3), nms_iou=0.7)
    assert [candidate.decoder_score for candidate in pooled] == [pytest.approx(1.0)]


def test_the_curve_weighs_the_decoders_candidates() -> None:
    agreed = Candidate(2.0, 5.0, foreground=0.8, quality=0.5, decoder_score=0.4)
    contradicted = Candidate(7.0, 9.0, foreground=0.9, quality=0.9, decoder_score=0.81)
    saliency = [0.0, 0.0, 0.8, 0.8, 0.8, 0.0, 0.0, 0.1, 0.1, 0.0]
    pooled = pool_segments([contradicted, agreed], saliency, 10.0, InferenceConfig(segment_threshold=0.3), nms_iou=1.0)
    assert pooled.index(next(c for c in pooled if c.window == agreed.window)) < pooled.index(
        next(c for c in pooled if c.window == contradicted.window)
    )
    assert all(c.decoder_score == pytest.approx(c.foreground * c.quality) for c in pooled)


def test_a_faint_curve_still_gives_its_whole_segment() -> None:
    faint = [0.0, 0.02, 0.25, 0.25, 0.2, 0.02, 0.0]
    best = pool_segments([], faint, 7.0, InferenceConfig(segment_threshold=0.3), nms_iou=0.7)[0]
    assert best.end_seconds - best.start_seconds > 1.0
    alone = pool_segments([], faint, 7.0, InferenceConfig(segment_threshold=0.3, segment_peak_share=1.0), nms_iou=0.7)[0]
    assert alone.end_seconds - alone.start_seconds <= 2.0


def test_without_quality_the_score_is_the_foreground_of_segments_and_candidates_alike() -> None:
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
