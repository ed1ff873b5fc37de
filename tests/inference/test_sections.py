"""Sections cover a recording, and merging puts their answers back together."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_system import candidate

from qamdetr.errors import ConfigError
from qamdetr.inference.sections import Section, merge_candidates, merge_saliency, split


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


@pytest.mark.parametrize(("section", "overlap"), [(60, 60), (60, -1), (0, 0)])
def test_an_impossible_overlap_is_refused(section, overlap):
    with pytest.raises(ConfigError, match="section_overlap_clips"):
        split(100, section, overlap)


def test_streams_duration_and_saliency_of_sections():
    first, last = split(20, 12, 4)
    assert last.cut({"a": torch.arange(20)[:, None]})["a"].flatten().tolist() == list(range(8, 20))
    assert (first.seconds(19.4), last.seconds(19.4)) == (12, pytest.approx(11.4))
    merged = merge_saliency([first, last], [torch.zeros(12), torch.ones(12)])
    assert merged.tolist() == [0.0] * 8 + [0.5] * 4 + [1.0] * 8


@pytest.mark.parametrize(
    ("first", "second", "windows"),
    [
        ([(245, 255, 0.9)], [(5, 15.2, 0.8), (100, 110, 0.95)], [(340, 350), (245, 255)]),  # on the recording's time, doubles gone
        ([(280, 300, 0.9)], [(40, 90, 0.5)], [(280, 330)]),  # one that a section's edge has cut gives way to the whole one
        ([(280, 300, 0.9)], [], [(280, 300)]),  # with nobody else to tell of it, it stays
        ([(0, 5, 0.3)], [(290, 300, 0.2)], [(0, 5), (530, 539.1)]),  # the recording's own ends cut nothing, and windows stay inside
    ],
)
def test_candidates_of_sections_are_merged(first, second, windows):
    found = [[candidate(*each) for each in part] for part in (first, second)]
    merged = merge_candidates(split(540, 300, 60), found, 539.1, 0.7)
    assert [item.window for item in merged] == windows
