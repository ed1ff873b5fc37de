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
from qamdetr.ui.find import Session
from qamdetr.ui.lanes import LaneResult, reranked

BETA = 0.35


def moment(start, decoder_score, verifier_score):
    return Moment(start, start + 1.0, 0.9, 0.8, decoder_score, verifier_score, (1 - BETA) * decoder_score + BETA * verifier_score)


@pytest.fixture
def lanes(tmp_path):
    """One query, answered by the full model and without a part of it; the verifier turns the order round."""
    folder = tmp_path / "3f2a"
    folder.mkdir()
    path = folder / "walk é.wav"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.3, 0.3, 12 * 8000), 8000)
    moments = (moment(2.0, 0.8, 0.1), moment(5.0, 0.6, 0.3), moment(8.0, 0.3, 0.9))
    result = Result(str(path), 12.0, "a dog barks", True, "pocket", "pocket", BETA, moments, (0.5,) * 12)
    result = reranked(LaneResult("", "", result, None), BETA)
    return [
        LaneResult("a dog barks", "", result, ((2.0, 3.0),)),
        LaneResult("Without 3-way fusion", "bypassed in the full model: 3-way fusion", replace(result, moments=result.moments[:2]), None),
    ]


def rows_of(path):
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"))))


def test_ranks_and_scores_follow_the_shown_beta(lanes):
    by_start = {m.start_seconds: index for index, m in enumerate(lanes[0].result.moments)}
    chosen = [(0, by_start[8.0]), (0, by_start[2.0])]
    for beta in (0.0, BETA, 1.0):
        first, other = picked_answers(lanes, chosen, beta)
        shown = reranked(lanes[0], beta).moments
        assert [(rank, m.window) for rank, m in first.moments()] == [
            (rank, m.window) for rank, m in enumerate(shown, start=1) if m.start_seconds in (2.0, 8.0)
        ]
        assert first.result.beta == beta
        assert other.moments() == []
    assert [rank for rank, _ in picked_answers(lanes, chosen, 0.0)[0].moments()] == [1, 3]
    assert [m.start_seconds for _, m in picked_answers(lanes, chosen, 1.0)[0].moments()] == [8.0, 2.0]


def test_what_is_missing_is_said(lanes):
    absent = [replace(lane, result=replace(lane.result, found=False)) for lane in lanes]
    assert what_is_missing([], None, BETA, "csv") == NOTHING_YET
    assert what_is_missing([], None, BETA, "png") == NOTHING_YET
    assert what_is_missing(lanes, [], BETA, "csv") == NOTHING_CHOSEN
    assert what_is_missing(absent, None, BETA, "zip") == NOTHING_FOUND
    assert what_is_missing(absent, None, BETA, "svg") == ""
    assert what_is_missing(absent, [(0, 1)], BETA, "csv") == ""
    assert what_is_missing(lanes, None, BETA, "json") == ""


@pytest.mark.parametrize("kind", [name for _, name in export_choices()])
def test_every_kind_makes_its_file(lanes, tmp_path, kind):
    path = make_export(lanes, [(0, 0), (1, 1)], BETA, kind, tmp_path / "out")
    assert path.name.startswith("walk-é")
    assert path.name.endswith(EXPORTS[kind].ending)
    content = path.read_bytes()
    assert content
    assert str(tmp_path).encode() not in content
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_tables_hold_the_chosen_moments_of_each_lane(lanes, tmp_path):
    rows = rows_of(make_export(lanes, [(0, 0), (1, 1)], BETA, "csv", tmp_path / "out"))
    assert [(row["audio"], row["query"], row["rank"], row["lane"]) for row in rows] == [
        ("walk é.wav", "a dog barks", "1", ""),
        ("walk é.wav", "a dog barks", "2", "Without 3-way fusion"),
    ]
    read = json.loads(make_export(lanes, [(1, 1)], BETA, "json", tmp_path / "out").read_text(encoding="utf-8"))
    assert [(item["lane"], len(item["moments"])) for item in read] == [("Without 3-way fusion", 1)]


def test_sounds_are_those_of_the_recording(lanes, tmp_path):
    with zipfile.ZipFile(make_export(lanes, [(0, 1)], BETA, "zip", tmp_path / "out")) as archive:
        _, name = archive.namelist()
        samples, rate_hz = soundfile.read(io.BytesIO(archive.read(name)))
    picked = lanes[0].result.moments[1]
    whole, _ = soundfile.read(lanes[0].result.audio)
    np.testing.assert_array_equal(samples, whole[round(picked.start_seconds * rate_hz) : round(picked.end_seconds * rate_hz)])


def test_a_recording_that_was_removed_costs_only_what_needs_it(lanes, tmp_path):
    Path(lanes[0].result.audio).unlink()
    assert rows_of(make_export(lanes, [(0, 0)], BETA, "csv", tmp_path / "out"))
    for kind in ("zip-flac", "png"):
        with pytest.raises(AudioError, match=r"^walk é\.wav is no longer there; open the recording again\.$"):
            make_export(lanes, [(0, 0)], BETA, kind, tmp_path / "out")


def test_a_full_disk_is_told_in_one_line(lanes, tmp_path, monkeypatch):
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
    assert update["visible"] is True
    assert update["label"].startswith("walk-é-moments.csv is ready (1 kB)")
    assert export_panel._export([], None, BETA, "csv", cache)["value"] is None
    assert warnings == [NOTHING_YET]
    Path(lanes[0].result.audio).unlink()
    with pytest.raises(gr.Error, match=r"walk é\.wav is no longer there"):
        export_panel._export(lanes, None, BETA, "png", cache)
    assert len(list(cache.iterdir())) == 1


def test_the_panel_is_private_and_offers_every_kind():
    with gr.Blocks() as demo:
        export_panel.build_export_panel(gr.State(Session()), gr.Slider(0, 1, value=BETA))
    config = demo.get_config_file()
    (choice,) = (part for part in config["components"] if part["props"].get("elem_id") == "qamdetr-export-kind")
    assert [name for _, name in choice["props"]["choices"]] == [name for _, name in export_choices()]
    assert all(dependency["api_visibility"] == "private" for dependency in config["dependencies"] if dependency["backend_fn"])


def test_a_format_from_outside_is_offered_and_written_by_importing_it(lanes, tmp_path):
    export("plain", label="Plain text (.lst): a line per moment", ending=".lst")(
        lambda answers: "".join(f"{moment.start_seconds}\n" for answer in answers for _, moment in answer.moments())
    )
    try:
        assert ("Plain text (.lst): a line per moment", "plain") in export_choices()
        assert make_export(lanes, [(0, 0)], BETA, "plain", tmp_path / "out").read_text() == f"{lanes[0].result.moments[0].start_seconds}\n"
    finally:
        del EXPORTS["plain"]


def test_json_keeps_a_query_whose_sound_was_not_found(lanes, tmp_path):
    absent = [replace(lanes[0], result=replace(lanes[0].result, found=False)), lanes[1]]
    assert what_is_missing(absent[:1], None, BETA, "json") == ""
    read = json.loads(make_export(absent, [(1, 1)], BETA, "json", tmp_path / "out").read_text(encoding="utf-8"))
    assert [(item["found"], len(item["moments"])) for item in read] == [(False, 0), (True, 1)]
