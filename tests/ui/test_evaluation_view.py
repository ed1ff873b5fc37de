from __future__ import annotations

import json

import pytest
from run_folders import row, write_run

from qamdetr.errors import QamDetrError
from qamdetr.ui.evaluation_view import ablation_table, length_table
from qamdetr.ui.training_runs import find_runs, read_run


def cells(table, line):
    return dict(zip([column["name"] for column in table["columns"]], table["rows"][line]["cells"], strict=True))


def test_runs_stand_side_by_side_with_what_they_are_made_of(tmp_path):
    write_run(tmp_path / "full", [row(1, 40.0), row(2, 30.0)], finished=True)
    write_run(tmp_path / "plain", [row(1, 20.0)], finished=True, fusion="text_to_audio", multiscale=False, quality=False)
    runs = {run.folder.name: run for run in find_runs(tmp_path)}
    table = ablation_table([runs["full"], runs["plain"]], tmp_path)
    assert cells(table, 0)["Run"] == "full"
    assert cells(table, 0)["R1@0.7"] == 40.0
    assert cells(table, 0)["Components"] == "3-way fusion, multi-scale, quality"
    assert cells(table, 1)["Components"] == "none"
    assert "cannot be compared" not in table["note"]
    json.dumps(table, allow_nan=False)


def test_runs_that_differ_in_the_seed_alone_are_summed_up(tmp_path):
    for seed, score in ((0, 40.0), (1, 44.0)):
        write_run(tmp_path / f"run-s{seed}", [row(1, score)], finished=True, seed=seed)
    write_run(tmp_path / "other", [row(1, 10.0)], finished=True, encoder_layers=2)
    table = ablation_table(sorted(find_runs(tmp_path), key=lambda run: run.folder.name), tmp_path)
    (summary,) = [line for line, values in enumerate(table["rows"]) if values["summary"]]
    assert cells(table, summary)["Run"] == "2 seeds"
    assert cells(table, summary)["R1@0.7"] == "42.00 ± 2.83"


def test_what_cannot_be_compared_is_said(tmp_path):
    write_run(tmp_path / "one", [row(1, 1.0)], finished=True)
    other = write_run(tmp_path / "two", [])
    facts = json.loads((other / "run.json").read_text())
    (other / "run.json").write_text(json.dumps({**facts, "val_manifest": "bbbb"}))
    note = ablation_table(find_runs(tmp_path), tmp_path)["note"]
    assert "different scenes" in note
    assert "has not finished an epoch" in note


def test_no_run_and_no_checkpoint_are_one_line(tmp_path):
    with pytest.raises(QamDetrError, match="No run is chosen"):
        ablation_table([], tmp_path)
    with pytest.raises(QamDetrError, match="no checkpoint yet"):
        length_table(read_run(write_run(tmp_path / "young", [])))
