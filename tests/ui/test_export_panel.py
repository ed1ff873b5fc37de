"""The files that the page gives away: what goes in, what they are called, and what is said when there is nothing."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
import soundfile
from doubles import write_noise

from qamdetr.errors import AudioError, QamDetrError
from qamdetr.export import EXPORTS, export
from qamdetr.types import Moment, Result
from qamdetr.ui import export_panel
from qamdetr.ui.export_panel import (
    NOTHING_CHOSEN,
    NOTHING_FOUND,
    NOTHING_YET,
    export_choices,
    make_export,
    picked_answers,
    what_is_missing,
)
from qamdetr.ui.lanes import LaneResult, reranked

BETA = 0.35


def moment(start, decoder_score, verifier_score):
    return Moment(start, start + 1.0, 0.9, 0.8, decoder_score, verifier_score, (1 - BETA) * decoder_score + BETA * verifier_score)


@pytest.fixture
def lanes(tmp_path):
    """One query, answered by the full model and without a part of it; the verifier turns the order round."""
    (tmp_path / "3f2a").mkdir()
    path = write_noise(tmp_path / "3f2a" / "walk é.wav", 12)
    moments = (moment(2.0, 0.8, 0.1), moment(5.0, 0.6, 0.3), moment(8.0, 0.3, 0.9))
    result = Result(str(path), 12.0, "a dog barks", True, "pocket", "pocket", BETA, moments, (0.5,) * 12)
    result = reranked(LaneResult("", "", result, None), BETA)
    return [
        LaneResult("a dog barks", "", result, ((2.0, 3.0),)),
        LaneResult("Without 3-way fusion", "bypassed in the full model: 3-way fusion", replace(result, moments=result.moments[:2]), None),
    ]


def test_ranks_and_scores_follow_the_shown_beta(lanes):
    by_start = {m.start_seconds: index for index, m in enumerate(lanes[0].result.moments)}
    chosen = [(0, by_start[8.0]), (0, by_start[2.0])]
    for beta in (0.0, BETA, 1.0):
        first, other = picked_answers(lanes, chosen, beta)
        shown = enumerate(reranked(lanes[0], beta).moments, start=1)
        assert [(rank, m.window) for rank, m in first.moments()] == [(rank, m.window) for rank, m in shown if m.start_seconds != 5.0]
        assert (first.result.beta, other.moments()) == (beta, [])
    assert [rank for rank, _ in picked_answers(lanes, chosen, 0.0)[0].moments()] == [1, 3]
    assert [m.start_seconds for _, m in picked_answers(lanes, chosen, 1.0)[0].moments()] == [8.0, 2.0]


def test_what_is_missing_is_said(lanes):
    absent = [replace(lane, result=replace(lane.result, found=False)) for lane in lanes]
    for given, chosen, kind, told in (
        ([], None, "csv", NOTHING_YET), ([], None, "png", NOTHING_YET), (lanes, [], "csv", NOTHING_CHOSEN), (lanes, None, "json", ""),
        (absent, None, "zip", NOTHING_FOUND), (absent, None, "svg", ""), (absent, None, "json", ""), (absent, [(0, 1)], "csv", ""),
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


def test_files_hold_the_chosen_moments_of_each_lane_and_sounds_are_the_recordings_own(lanes, tmp_path):
    def made(kind, chosen, given=lanes):
        return make_export(given, chosen, BETA, kind, tmp_path / "out")

    rows = csv.DictReader(io.StringIO(made("csv", [(0, 0), (1, 1)]).read_text(encoding="utf-8-sig")))
    assert [(row["audio"], row["query"], row["rank"], row["lane"]) for row in rows] == [
        ("walk é.wav", "a dog barks", "1", ""), ("walk é.wav", "a dog barks", "2", "Without 3-way fusion")
    ]  # fmt: skip
    absent = replace(lanes[0], result=replace(lanes[0].result, found=False))
    for given, chosen, held in (
        (lanes, [(1, 1)], [("Without 3-way fusion", True, 1)]),
        ([absent, lanes[1]], [(1, 1)], [(None, False, 0), ("Without 3-way fusion", True, 1)]),
    ):
        read = json.loads(made("json", chosen, given).read_text(encoding="utf-8"))
        assert [(item.get("lane"), item["found"], len(item["moments"])) for item in read] == held
    with zipfile.ZipFile(made("zip", [(0, 1)])) as archive:
        samples, rate_hz = soundfile.read(io.BytesIO(archive.read(archive.namelist()[1])))
    picked = lanes[0].result.moments[1]
    whole, _ = soundfile.read(lanes[0].result.audio)
    np.testing.assert_array_equal(samples, whole[round(picked.start_seconds * rate_hz) : round(picked.end_seconds * rate_hz)])


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


def test_the_handler_writes_into_the_cache_and_leaves_nothing_after_a_failure(lanes, tmp_path, monkeypatch):
    warnings = []
    monkeypatch.setattr(gr, "Warning", lambda text, **_: warnings.append(text))
    cache = tmp_path / "cache"
    update = export_panel._export(lanes, None, BETA, "csv", cache)
    assert Path(update["value"]).parent.parent == cache
    assert update["label"].startswith("walk-é-moments.csv is ready (1 kB)")
    assert export_panel._export([], None, BETA, "csv", cache)["value"] is None
    assert warnings == [NOTHING_YET]
    Path(lanes[0].result.audio).unlink()
    with pytest.raises(gr.Error, match=r"walk é\.wav is no longer there"):
        export_panel._export(lanes, None, BETA, "png", cache)
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
