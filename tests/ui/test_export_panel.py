"""The files that the page gives away: what goes in, what they are called, and what is said when there is nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gradio as gr
import pytest
from doubles import write_noise

from qamdetr.export import EXPORTS
from qamdetr.types import Moment, Result
from qamdetr.ui.export_panel import NOTHING_FOUND, NOTHING_YET, _export, export_choices, make_export, picked_answers, what_is_missing
from qamdetr.ui.lanes import LaneResult, reranked

BETA = 0.35


@pytest.fixture
def lanes(tmp_path):
    """One query, answered by the full model and without a part of it; the verifier turns the order round."""
    path = write_noise(tmp_path / "walk é.wav", 12)
    scores = ((2.0, 0.8, 0.1), (5.0, 0.6, 0.3), (8.0, 0.3, 0.9))
    moments = tuple(Moment(at, at + 1.0, 0.9, 0.8, decoder, verifier, score=0.0) for at, decoder, verifier in scores)
    result = Result(str(path), 12.0, "a dog barks", True, "pocket", "pocket", BETA, moments, (0.5,) * 12)
    result = reranked(LaneResult("", "", result, None), BETA)
    return [
        LaneResult("a dog barks", "", result, ((2.0, 3.0),)),
        LaneResult("Without 3-way fusion", "bypassed in the full model: 3-way fusion", replace(result, moments=result.moments[:2]), None),
    ]


@pytest.mark.parametrize(("beta", "picked"), [(0.0, [(1, 2.0), (3, 8.0)]), (BETA, [(1, 2.0), (2, 8.0)]), (1.0, [(1, 8.0), (3, 2.0)])])
def test_ranks_and_scores_follow_the_shown_beta(lanes, beta, picked):
    by_start = {m.start_seconds: index for index, m in enumerate(lanes[0].result.moments)}
    first, other = picked_answers(lanes, [(0, by_start[8.0]), (0, by_start[2.0])], beta)
    assert [(rank, m.start_seconds) for rank, m in first.moments()] == picked
    assert (first.result.beta, other.moments()) == (beta, [])


def test_what_is_missing_is_said(lanes):
    absent = [replace(lane, result=replace(lane.result, found=False)) for lane in lanes]
    for given, chosen, kind, told in (
        ([], None, "csv", NOTHING_YET), (lanes, None, "json", ""),
        (absent, None, "zip", NOTHING_FOUND), (absent, None, "svg", ""), (absent, [(0, 1)], "csv", ""),
    ):  # fmt: skip
        assert what_is_missing(given, chosen, BETA, kind) == told, (chosen, kind)


@pytest.mark.parametrize("kind", [name for _, name in export_choices()])
def test_every_kind_makes_its_file(lanes, tmp_path, kind):
    path = make_export(lanes, [(0, 0), (1, 1)], BETA, kind, tmp_path / "out")
    assert path.name.startswith("walk-é")
    assert path.name.endswith(EXPORTS[kind].ending)
    assert path.stat().st_size
    assert str(tmp_path).encode() not in path.read_bytes()
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_recording_that_was_removed_costs_only_what_needs_it_and_leaves_nothing_in_the_cache(lanes, tmp_path, warned):
    cache = tmp_path / "cache"
    assert _export([], None, BETA, "csv", cache)["value"] is None
    assert warned == [NOTHING_YET]
    Path(lanes[0].result.audio).unlink()
    assert Path(_export(lanes, None, BETA, "csv", cache)["value"]).parent.parent == cache
    for kind in ("zip-flac", "png"):
        with pytest.raises(gr.Error, match=r"walk é\.wav is no longer there; open the recording again\."):
            _export(lanes, None, BETA, kind, cache)
    assert len(list(cache.iterdir())) == 1
