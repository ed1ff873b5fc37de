"""Merging of candidate pools: what holds for any pools, and small cases worked out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qamdetr.inference.pools import merge_pools
from qamdetr.types import Candidate

DURATION = 120.0
METHODS = ("pool", "nms", "fusion")
shares = st.floats(0, 1)


def make(start: float, end: float, foreground: float = 1.0, quality: float = 1.0) -> Candidate:
    return Candidate(start, end, foreground, quality, foreground * quality)


@st.composite
def candidates(draw: st.DrawFn) -> Candidate:
    start = draw(st.floats(0, DURATION - 0.1))
    return make(start, draw(st.floats(start + 0.1, DURATION)), draw(shares), draw(shares))


def best_first(pool: list[Candidate]) -> list[Candidate]:
    return sorted(pool, key=lambda candidate: -candidate.decoder_score)


pools = st.lists(candidates(), max_size=8).map(best_first)
ensembles = st.lists(pools, min_size=1, max_size=4)
ious = st.floats(0, 1)
methods = st.sampled_from(METHODS)
some_weights = st.lists(st.floats(0.1, 10), min_size=4, max_size=4)


def windows(found: list[Candidate]) -> list[tuple[float, float]]:
    return sorted(candidate.window for candidate in found)


@given(ensembles, methods, ious, some_weights)
def test_windows_stay_inside_and_scores_are_shares(members, how, iou, weights):
    merged = merge_pools(members, how, iou=iou, weights=weights[: len(members)])
    assert bool(merged) == any(members)
    assert len(merged) <= sum(map(len, members))
    for candidate in merged:
        assert 0 <= candidate.start_seconds < candidate.end_seconds <= DURATION
        assert all(0 <= value <= 1 for value in (candidate.foreground, candidate.quality, candidate.decoder_score))
        assert candidate.decoder_score == pytest.approx(candidate.foreground * candidate.quality, abs=1e-9)
    assert merged == best_first(merged)


@given(ensembles, ious, some_weights)
def test_pool_and_nms_only_choose(members, iou, weights):
    everything = [candidate.window for pool in members for candidate in pool]
    assert windows(merge_pools(members, "pool", iou=iou, weights=weights[: len(members)])) == sorted(everything)
    kept = [candidate.window for candidate in merge_pools(members, "nms", iou=iou, weights=weights[: len(members)])]
    assert set(kept) <= set(everything)
    assert merge_pools(members, "nms", iou=1.0) == merge_pools(members, "pool")


@given(pools, st.integers(1, 4), ious, some_weights)
def test_one_pool_or_copies_of_it_change_nothing(pool, copies, iou, weights):
    assert merge_pools([pool], "pool", weights=[3.0]) == merge_pools([pool], "nms", iou=1.0) == pool
    merged = merge_pools([pool] * copies, "fusion", iou=iou, weights=weights[:copies])
    assert windows(merged) == windows(pool)
    assert sorted(c.decoder_score for c in merged) == pytest.approx(sorted(c.decoder_score for c in pool))


@given(ensembles, methods, ious, some_weights, st.randoms())
def test_the_order_of_members_does_not_matter(members, how, iou, weights, random):
    scores = [round(weight * c.decoder_score, 12) for pool, weight in zip(members, weights, strict=False) for c in pool]
    if len(set(scores)) < len(scores):
        return  # equal ones, but for rounding, keep the order in which they come
    order = list(range(len(members)))
    random.shuffle(order)
    one = merge_pools(members, how, iou=iou, weights=weights[: len(members)])
    two = merge_pools([members[i] for i in order], how, iou=iou, weights=[weights[i] for i in order])
    assert [c.window for c in best_first(one)] == [pytest.approx(c.window) for c in best_first(two)]
    assert [c.decoder_score for c in one] == pytest.approx([c.decoder_score for c in two])


def test_fusion_averages_by_score_and_weight_and_asks_how_many_agree():
    one, two, three = [make(0, 10, 0.8, 0.5)], [make(2, 12, 0.4, 0.25)], [make(50, 60, 0.5)]
    fused, alone = merge_pools([one, two, three], "fusion", iou=0.5, weights=[1, 2, 1])
    # Scores times weights: 0.4 * 1 and 0.1 * 2.
    assert fused.window == pytest.approx(((0.4 * 0 + 0.2 * 2) / 0.6, (0.4 * 10 + 0.2 * 12) / 0.6))
    assert fused.decoder_score == pytest.approx((0.4 * 1 + 0.1 * 2) / 4)
    assert fused.foreground == pytest.approx((0.8 * 1 + 0.4 * 2) / 4)
    assert (alone.window, alone.decoder_score, alone.foreground, alone.quality) == ((50, 60), 0.5 / 4, 0.5 / 4, 1.0)


def test_a_member_counts_once_per_fused_window():
    repeats = [make(0, 10, 0.9), make(0, 10.5, 0.8)]
    assert windows(merge_pools([repeats], "fusion", iou=0.5)) == windows(repeats)
    assert len(merge_pools([[make(0, 5)], [make(5, 9)]], "fusion", iou=0.0)) == 2, "windows that only touch are not joined"
    merged = merge_pools([repeats, [make(0, 10.5, 0.7)]], "fusion", iou=0.5)
    assert windows(merged) == [(0, 10), (0, 10.5)]  # joined with the one that it overlaps most


def test_a_heavier_member_ranks_higher_in_a_pool_and_nms_drops_doubles():
    light, heavy = [make(0, 5, 0.8)], [make(10, 15, 0.6)]
    merged = merge_pools([light, heavy], "pool", weights=[1, 2])
    assert [(c.window, c.decoder_score) for c in merged] == [((10, 15), 0.6), ((0, 5), 0.4)]
    better, double, other = make(0, 10, 0.9), make(1, 10, 0.8), make(20, 30, 0.1)
    assert windows(merge_pools([[better], [double, other]], "nms", iou=0.8)) == [(0, 10), (20, 30)]
