"""The files that the page gives away: what goes in, what they are called, and what is said when there is nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gradio as gr
import pytest
from doubles import write_noise

from qamdetr.errors import AudioError, QamDetrError
from qamdetr.export import EXPORTS, export
from qamdetr.types import Moment, Result
from qamdetr.ui.export_panel import (
    NOTHING_CHOSEN,
    NOTHING_FOUND,
    NOTHING_YET,
    _export,
    export_choices,
    make_export,
    picked_answers,
    what_is_missing,
)
from qamdetr.ui.lanes import LaneResult, reranked

BETA = 0.35


@pytest.fixture
def lanes(tmp_path):
    """One query, answered by the full model and without a part of it; the verifier turns the order round."""
    path = write_noise(tmp_path / "walk é.wav", 12)
    scores = ((2.0, 0.8, 0.1), (5.0, 0.6, 0.3), (8.0, 0.3, 0.9))
    moments = tuple(Moment(at, at + 1.0, 0.9, 0.8, decoder, verifier, 0.0) for at, decoder, verifier in scores)
    result = Result(str(path), 12.0, "a dog barks", True, "pocket", "pocket", BETA, moments, (0.5,) * 12)
    result = reranked(LaneResult("", "", result, None), BETA)
    return [
        LaneResult("a dog barks", "", result, ((2.0, 3.0),)),
        LaneResult("Without 3-way fusion", "bypassed in the full model: 3-way fusion", replace(result, moments=result.moments[:2]), None),
    ]


def absent(lanes):
    return [replace(lane, result=replace(lane.result, found=False)) for lane in lanes]


@pytest.mark.parametrize(("beta", "picked"), [(0.0, [(1, 2.0), (3, 8.0)]), (BETA, [(1, 2.0), (2, 8.0)]), (1.0, [(1, 8.0), (3, 2.0)])])
def test_ranks_and_scores_follow_the_shown_beta(lanes, beta, picked):
    by_start = {m.start_seconds: index for index, m in enumerate(lanes[0].result.moments)}
    first, other = picked_answers(lanes, [(0, by_start[8.0]), (0, by_start[2.0])], beta)
    assert [(rank, m.start_seconds) for rank, m in first.moments()] == picked
    assert (first.result.beta, other.moments()) == (beta, [])


def test_what_is_missing_is_said(lanes):
    for given, chosen, kind, told in (
        ([], None, "csv", NOTHING_YET), ([], None, "png", NOTHING_YET), (lanes, [], "csv", NOTHING_CHOSEN), (lanes, None, "json", ""),
        (absent(lanes), None, "zip", NOTHING_FOUND), (absent(lanes), None, "svg", ""), (absent(lanes), [(0, 1)], "csv", ""),
    ):  # fmt: skip
        assert what_is_missing(given, chosen, BETA, kind) == told, (chosen, kind)


@pytest.mark.parametrize("kind", [name for _, name in export_choices()])
def test_every_kind_makes_its_file(lanes, tmp_path, kind):
    path = make_export(lanes, [(0, 0), (1, 1)], BETA, kind, tmp_path / "out")
    assert path.name.startswith("walk-é")
    assert path.name.endswith(EXPORTS[kind].ending)
    content = path.read_bytes()
    assert content
    assert str(tmp_path).encode() not in content
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_recording_that_was_removed_costs_only_what_needs_it_and_a_full_disk_is_one_line(lanes, tmp_path, monkeypatch):
    Path(lanes[0].result.audio).unlink()
    assert make_export(lanes, [(0, 0)], BETA, "csv", tmp_path / "out").stat().st_size
    for kind in ("zip-flac", "png"):
        with pytest.raises(AudioError, match=r"^walk é\.wav is no longer there; open the recording again\.$"):
            make_export(lanes, [(0, 0)], BETA, kind, tmp_path / "out")

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("qamdetr.export.write_whole", refuse)
    with pytest.raises(QamDetrError, match=r"walk-é-moments.csv cannot be written \(No space left on device\)"):
        make_export(lanes, [(0, 0)], BETA, "csv", tmp_path / "out")


def test_a_failure_leaves_nothing_in_the_cache_and_where_nothing_is_to_be_had_it_is_said(lanes, tmp_path, warned):
    cache = tmp_path / "cache"
    assert Path(_export(lanes, None, BETA, "csv", cache)["value"]).parent.parent == cache
    assert _export([], None, BETA, "csv", cache)["value"] is None
    assert warned == [NOTHING_YET]
    Path(lanes[0].result.audio).unlink()
    with pytest.raises(gr.Error, match=r"walk é\.wav is no longer there"):
        _export(lanes, None, BETA, "png", cache)
    assert len(list(cache.iterdir())) == 1


def test_a_format_from_outside_is_offered_and_written_by_importing_it(lanes, tmp_path):
    export("plain", label="Plain text (.lst): a line per moment", ending=".lst")(
        lambda answers: "".join(f"{moment.start_seconds}\n" for answer in answers for _, moment in answer.moments())
    )
    try:
        assert ("Plain text (.lst): a line per moment", "plain") in export_choices()
        assert make_export(lanes, [(0, 0)], BETA, "plain", tmp_path / "out").read_text() == f"{lanes[0].result.moments[0].start_seconds}\n"
    finally:
        del EXPORTS["plain"]
