"""Sections cover a recording, and merging puts their answers back together."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qamdetr.errors import ConfigError
from qamdetr.inference.sections import Section, merge_candidates, merge_saliency, section_duration, section_streams, split
from qamdetr.types import Candidate


def candidate(start, end, score=0.5):
    return Candidate(float(start), float(end), score, 1.0, score)


@settings(deadline=None)  # a busy machine is no failure
@given(st.integers(1, 5000), st.integers(1, 400), st.data())
def test_sections_cover_every_clip_with_the_overlap_asked_for(num_clips, section_clips, data):
    overlap = data.draw(st.integers(0, section_clips - 1))
    sections = split(num_clips, section_clips, overlap)
    assert (sections[0].start, sections[-1].end) == (0, num_clips)
    assert [section.last for section in sections] == [False] * (len(sections) - 1) + [True]
    if len(sections) == 1:
        assert num_clips <= 1.1 * section_clips
    for before, after in pairwise(sections):
        assert before.num_clips == after.num_clips == section_clips
        assert before.start < after.start
        assert before.end - after.start >= overlap


def test_a_recording_that_nearly_fits_is_one_section():
    assert split(330, 300, 60) == [Section(0, 330, last=True)]
    assert [(s.start, s.end) for s in split(331, 300, 60)] == [(0, 300), (31, 331)]
    assert [(s.start, s.end) for s in split(600, 300, 60)] == [(0, 300), (240, 540), (300, 600)]


@pytest.mark.parametrize(("section", "overlap"), [(60, 60), (60, -1), (0, 0)])
def test_an_impossible_overlap_is_refused(section, overlap):
    with pytest.raises(ConfigError, match="section_overlap_clips"):
        split(100, section, overlap)


def test_streams_and_duration_of_a_section():
    first, last = split(20, 12, 4)
    streams = section_streams({"a": torch.arange(20)[:, None]}, last)
    assert streams["a"].flatten().tolist() == list(range(8, 20))
    assert section_duration(first, 19.4) == 12
    assert section_duration(last, 19.4) == pytest.approx(11.4)


def test_candidates_move_to_the_recordings_time_and_doubles_go():
    sections = split(540, 300, 60)
    merged = merge_candidates(sections, [[candidate(245, 255, 0.9)], [candidate(5, 15.2, 0.8), candidate(100, 110, 0.95)]], 540.0, 0.7)
    assert [item.window for item in merged] == [(340, 350), (245, 255)]


def test_a_candidate_cut_by_a_section_edge_gives_way_to_the_whole_one():
    sections = split(540, 300, 60)
    cut, whole = candidate(280, 300, 0.9), candidate(40, 90, 0.5)
    assert [item.window for item in merge_candidates(sections, [[cut], [whole]], 540.0, 0.7)] == [(280, 330)]
    # With nobody else to tell of it, the cut one stays.
    assert [item.window for item in merge_candidates(sections, [[cut], []], 540.0, 0.7)] == [(280, 300)]
    # The recording's own ends cut nothing.
    ends = [[candidate(0, 5, 0.3)], [candidate(290, 300, 0.2)]]
    assert [item.window for item in merge_candidates(sections, ends, 540.0, 0.7)] == [(0, 5), (530, 540)]


def test_windows_stay_inside_the_recording():
    sections = split(400, 300, 60)
    duration = 399.1
    inside = section_duration(sections[-1], duration)
    (moved,) = merge_candidates(sections, [[], [candidate(280, inside)]], duration, 0.7)
    assert moved.end_seconds <= duration


def test_saliency_is_averaged_where_sections_overlap():
    sections = split(20, 12, 4)
    merged = merge_saliency(sections, [torch.zeros(12), torch.ones(12)])
    assert merged.tolist() == [0.0] * 8 + [0.5] * 4 + [1.0] * 8
