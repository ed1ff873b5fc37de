"""`evaluate`, `submit`, `data-report`, `synthesize`: what is done with files of the field's formats. Mistakes stand in tests/golden."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import yaml
from tiny_system import save_tiny

from benchmarks.evaluation import invent_predictions, invent_truth
from qamdetr import cli
from qamdetr.data.manifest import PredictionEntry, QueryEntry, write_manifest, write_predictions
from qamdetr.evaluation.data_report import data_report
from qamdetr.evaluation.metrics import METRICS

LABEL = "Muster_UNI_task6_1"
PERSONAL = """
submission: {name: QAM-DETR, abbreviation: QAMDETR, authors: [{firstname: Erika, lastname: Muster}]}
system:
  model: {LLMs: null, frozen_parameters: 5, loss: as in the paper}
  dataset: {augmentation: null, external_data: null, captions: null}
  ensemble: null
"""


@pytest.fixture
def files(tmp_path):
    """Invented truth, predictions that fit it well, and perfect ones."""
    rng = np.random.default_rng(0)
    truth = [replace(entry, duration_seconds=1000.0) for entry in invent_truth(60, rng)]
    good, perfect = [], []
    for entry, true in zip(invent_predictions(truth, rng), truth, strict=True):
        # As a submission has them: ten at most, the best first, with two digits, none of them empty.
        windows = [(round(start, 2), round(end + 0.1, 2), score) for start, end, score in entry.pred_relevant_windows[:10]]
        good.append(replace(entry, pred_relevant_windows=tuple(sorted(windows, key=lambda window: -window[2]))))
        perfect.append(replace(entry, pred_relevant_windows=tuple((*window, 1.0) for window in true.relevant_windows)))
    write_manifest(tmp_path / "truth.jsonl", truth)
    write_predictions(tmp_path / "good.jsonl", good)
    write_predictions(tmp_path / "perfect.jsonl", perfect)
    return {name: tmp_path / f"{name}.jsonl" for name in ("truth", "good", "perfect")}


@pytest.fixture
def run(capsys):
    def call(command, *args, status=0):
        assert cli.main([command, *map(str, args)]) == status
        return capsys.readouterr()

    return call


def test_evaluate_prints_the_contract(tmp_path, run):
    truth = [QueryEntry("1", "q", "v", 60.0, ((0.0, 10.0),), numeric_qid=True), QueryEntry("2", "q", "v", 60.0, ())]
    write_manifest(tmp_path / "t.jsonl", truth)
    write_predictions(tmp_path / "p.jsonl", [PredictionEntry(qid, "q", "w", ((0.0, 8.0, 0.9),)) for qid in "123"])
    out, err = run("evaluate", tmp_path / "p.jsonl", tmp_path / "t.jsonl", "--json")
    expected = {"R1@0.5": 100.0, "R1@0.7": 100.0, "mAP": 70.0, "mAP@0.5": 100.0, "mAP@0.75": 100.0, "num_queries": 1}
    assert json.loads(out) == expected
    assert "1 of 2 queries have no true windows" in err
    assert "1 predictions belong to no query" in err
    assert "2 predictions name another recording" in err
    lines = run("evaluate", tmp_path / "p.jsonl", tmp_path / "t.jsonl").out.splitlines()
    assert dict(line.split() for line in lines) == {k: f"{v:.2f}" if k != "num_queries" else "1" for k, v in expected.items()}


def test_additions_leave_the_contract_as_it_is_and_a_figure_is_drawn(files, tmp_path, run):
    plain = json.loads(run("evaluate", files["good"], files["truth"], "--json").out)
    asked = ["--thresholds", "--by-length", "--bootstrap", 50, "--against", files["perfect"], "--json"]
    asked += ["--figure", tmp_path / "new" / "f.svg"]
    out = run("evaluate", files["good"], files["truth"], *asked).out
    full = json.loads(out)
    assert list(full) == [*plain, "thresholds", "by_length", "bootstrap", "against"]
    assert {name: full[name] for name in plain} == plain
    assert (tmp_path / "new" / "f.svg").read_text(encoding="utf-8").lstrip().startswith("<?xml")
    assert full["against"]["differences"]["R1@0.7"]["verdict"] == "worse"
    assert [full["thresholds"]["R1"]["0.5"], full["thresholds"]["mAP"]["0.75"]] == [plain["R1@0.5"], plain["mAP@0.75"]]
    assert run("evaluate", files["good"], files["truth"], *asked).out == out, "the same seed gives the same numbers"


def test_the_text_says_which_is_better(files, run):
    def compared(one, other):
        return run("evaluate", files[one], files["truth"], "--against", files[other], "--bootstrap", 200).out

    assert "R1@0.7: B is better than A by" in compared("good", "perfect")
    assert "R1@0.7: A is better than B by" in compared("perfect", "good")
    assert compared("good", "good").count("no difference shown") == len(METRICS)


def test_a_submission_passes_the_check_and_scores_as_its_predictions(files, tmp_path, run):
    (tmp_path / "me.yaml").write_text(PERSONAL, encoding="utf-8")
    manifest = ["--manifest", files["truth"]]
    call = [files["good"], *manifest, "--label", LABEL, "--output", tmp_path / "out"]
    more = ["--metadata", tmp_path / "me.yaml", "--checkpoint", save_tiny(tmp_path / "checkpoint")]
    out, err = run("submit", *call, *more, "--dev-scores", files["good"], files["truth"])
    output, description = out.splitlines()
    assert "not ready yet" not in err
    assert run("submit", "--check", description, output, *manifest) == ("OK: 1 system, 60 queries.\n", "")
    assert "is there already" in run("submit", *call, status=2).err
    asked = [files["truth"], "--json", "--by-length"]
    scores = run("evaluate", output, *asked).out
    assert scores == run("evaluate", files["good"], *asked).out
    system = yaml.safe_load((tmp_path / "out" / f"{LABEL}.meta.yaml").read_text(encoding="utf-8"))
    assert system["submission"]["label"] == LABEL
    assert system["system"]["model"]["loss"] == "as in the paper", "a person's word is above the checkpoint's"
    assert system["system"]["model"]["trainable_parameters"] > 0
    expected = {f"Recall1@{iou}": json.loads(scores)[f"R1@{iou}"] for iou in (0.7, 0.5)}
    assert system["results"]["development_testing"] == expected
    run("submit", *call[:-1], tmp_path / "again", "--dev-scores", output, files["truth"])
    again = yaml.safe_load((tmp_path / "again" / f"{LABEL}.meta.yaml").read_text(encoding="utf-8"))
    assert again["results"]["development_testing"] == expected, "development results are read from pairs too"


def test_the_report_of_all_files_is_printed(files, run):
    paths = [files["truth"], files["truth"]]
    assert run("data-report", *paths).out.strip() == data_report(paths).strip()
