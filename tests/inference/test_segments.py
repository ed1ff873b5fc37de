"""Tests of segments read off a curve."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from qamdetr.inference.segments import segments_above


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
