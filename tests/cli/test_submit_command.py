"""`submit`: the two files from what is known, and the check that lists everything."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from tiny_system import save_tiny

from benchmarks.evaluation import invent_predictions, invent_truth
from qamdetr import cli
from qamdetr.data.manifest import PredictionEntry, QueryEntry, write_manifest, write_predictions
from qamdetr.evaluation.metrics import evaluate
from qamdetr.evaluation.submission import PLACEHOLDER

LABEL = "Muster_UNI_task6_1"
PERSONAL = {
    "submission": {"name": "QAM-DETR", "abbreviation": "QAMDETR", "authors": [{"firstname": "Erika", "lastname": "Muster"}]},
    "system": {
        "model": {"LLMs": None, "frozen_parameters": 5, "loss": "as in the paper"},
        "dataset": {"augmentation": None, "external_data": None, "captions": None},
        "ensemble": None,
    },
}


@pytest.fixture
def paths(tmp_path):
    rng = np.random.default_rng(0)
    truth = invent_truth(10, rng)
    predictions = [type(p)(p.qid, p.query, p.vid, (*p.pred_relevant_windows[:9], (0.0, 9.0, 0.0))) for p in invent_predictions(truth, rng)]
    write_manifest(tmp_path / "truth.jsonl", truth)
    write_predictions(tmp_path / "predictions.jsonl", predictions)
    (tmp_path / "me.yaml").write_text(yaml.safe_dump(PERSONAL), encoding="utf-8")
    save_tiny(tmp_path / "checkpoint")
    return tmp_path, evaluate(predictions, truth)


def run(capsys, *args):
    status = cli.main(["submit", *map(str, args)])
    return status, *capsys.readouterr()


def test_what_is_written_passes_the_check(paths, capsys):
    folder, scores = paths
    manifest = ["--manifest", folder / "truth.jsonl"]
    status, out, err = run(
        capsys, folder / "predictions.jsonl", *manifest, "--label", LABEL, "--output", folder / "out", "--metadata", folder / "me.yaml",
        "--checkpoint", folder / "checkpoint", "--dev-scores", folder / "predictions.jsonl", folder / "truth.jsonl",
    )  # fmt: skip
    assert status == 0
    output, description = out.splitlines()
    assert "not ready yet" not in err
    metadata = yaml.safe_load((folder / "out" / f"{LABEL}.meta.yaml").read_text(encoding="utf-8"))
    assert metadata["submission"]["label"] == LABEL
    assert metadata["system"]["model"]["loss"] == "as in the paper", "a person's word is above the checkpoint's"
    assert metadata["system"]["model"]["trainable_parameters"] > 0
    assert metadata["results"]["development_testing"] == {"Recall1@0.7": scores["R1@0.7"], "Recall1@0.5": scores["R1@0.5"]}
    assert run(capsys, "--check", description, output, *manifest) == (0, "OK: 1 system, 10 queries.\n", "")
    again = run(capsys, folder / "predictions.jsonl", *manifest, "--label", LABEL, "--output", folder / "out")
    assert again[0] == 2
    assert "is there already" in again[2]


def test_what_is_open_is_told_and_refused_by_the_check(paths, capsys):
    folder, _ = paths
    manifest = ["--manifest", folder / "truth.jsonl"]
    status, out, err = run(capsys, folder / "predictions.jsonl", *manifest, "--label", LABEL, "--output", folder)
    assert status == 0
    assert f"`submission.name` still says {PLACEHOLDER!r}" in err
    status, listed, err = run(capsys, "--check", *out.split(), *manifest)
    assert status == 2
    assert "`submission.name` still says" in listed
    assert "`submission.label` still says" not in listed
    assert err == f"qamdetr: error: the submission has {len(listed.splitlines())} problems, listed above; mend and check again.\n"


def test_a_query_with_a_line_separator_passes_the_check(paths, capsys):
    folder, _ = paths
    write_manifest(folder / "m.jsonl", [QueryEntry("1", "a dog\u2028barks", "v", 60.0, None)])
    write_predictions(folder / "p.jsonl", [PredictionEntry("1", "a dog\u2028barks", "v", ((0.0, 1.0, 1.0),))])
    status, out, _ = run(capsys, folder / "p.jsonl", "--manifest", folder / "m.jsonl", "--label", LABEL, "--output", folder / "out")
    assert status == 0
    _, listed, _ = run(capsys, "--check", *out.split(), "--manifest", folder / "m.jsonl")
    assert "output.jsonl" not in listed


def test_development_results_are_read_from_pairs_too(paths, capsys):
    folder, scores = paths
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    for line in lines:
        line["pred_relevant_windows"] = [window[:2] for window in line["pred_relevant_windows"]]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    args = ["--manifest", folder / "truth.jsonl", "--label", LABEL, "--output", folder / "out"]
    assert run(capsys, folder / "predictions.jsonl", *args, "--dev-scores", folder / "pairs.jsonl", folder / "truth.jsonl")[0] == 0
    metadata = yaml.safe_load((folder / "out" / f"{LABEL}.meta.yaml").read_text(encoding="utf-8"))
    assert metadata["results"]["development_testing"] == {"Recall1@0.7": scores["R1@0.7"], "Recall1@0.5": scores["R1@0.5"]}


def test_metadata_with_an_integer_of_5000_digits_is_told(paths, told):
    folder, _ = paths
    (folder / "me.yaml").write_text(f"submission: {{name: {'9' * 5000}}}", encoding="utf-8")
    args = ["--manifest", folder / "truth.jsonl", "--label", LABEL, "--output", folder / "out", "--metadata", folder / "me.yaml"]
    assert "me.yaml is not valid YAML" in told("submit", folder / "predictions.jsonl", *args)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["p.jsonl"], "A submission needs --label and --output"),
        (["p.jsonl", "--label", "x", "--output", "o"], "--label 'x' does not have the form"),
        (["p.jsonl", "q.jsonl", "--label", LABEL, "--output", "o"], "2 files were given"),
        (["p.jsonl", "--label", LABEL, "--output", "o"], "Cannot read p.jsonl"),
        (["--check", "p.txt"], "p.txt is neither .jsonl nor .yaml"),
        (["--check", "p.jsonl", "p.yaml", "--label", LABEL], "--label is for writing"),
        (["--check", "p.jsonl", "p.yaml"], "Cannot read p.jsonl"),
    ],
)
def test_mistakes(paths, told, monkeypatch, tmp_path, args, message):
    monkeypatch.chdir(tmp_path)
    assert message in told("submit", *args, "--manifest", paths[0] / "truth.jsonl")
