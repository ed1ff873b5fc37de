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
from qamdetr.data.manifest import PredictionEntry, QueryEntry, read_manifest, read_predictions, write_manifest, write_predictions
from qamdetr.evaluation.data_report import data_report
from qamdetr.evaluation.metrics import METRICS
from qamdetr.evaluation.submission import PLACEHOLDER
from qamdetr.synthesis import SceneRecipe

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
def files(tmp_path):
    """Invented truth, predictions that fit it well, and perfect ones."""
    rng = np.random.default_rng(0)
    truth = [replace(entry, duration_seconds=1000.0) for entry in invent_truth(60, rng)]
    # As a submission has them: ten at most, the best first, with two digits, none of them empty.
    good = [
        replace(
            entry, pred_relevant_windows=tuple(sorted(((round(s, 2), round(e + 0.1, 2), p) for s, e, p in windows), key=lambda w: -w[2]))
        )
        for entry in invent_predictions(truth, rng)
        for windows in [entry.pred_relevant_windows[:10]]
    ]
    perfect = [replace(e, pred_relevant_windows=tuple((*w, 1.0) for w in t.relevant_windows)) for e, t in zip(good, truth, strict=True)]
    write_manifest(tmp_path / "truth.jsonl", truth)
    for name, predictions in (("good", good), ("perfect", perfect)):
        write_predictions(tmp_path / f"{name}.jsonl", predictions)
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


def test_additions_leave_the_contract_as_it_is(files, tmp_path, run):
    plain = json.loads(run("evaluate", files["good"], files["truth"], "--json").out)
    asked = [
        "--thresholds",
        "--by-length",
        "--bootstrap",
        50,
        "--against",
        files["perfect"],
        "--figure",
        tmp_path / "new" / "f.svg",
        "--json",
    ]
    out, err = run("evaluate", files["good"], files["truth"], *asked)
    full = json.loads(out)
    assert list(full) == [*plain, "thresholds", "by_length", "bootstrap", "against"]
    assert {name: full[name] for name in plain} == plain
    assert (tmp_path / "new" / "f.svg").read_text(encoding="utf-8").lstrip().startswith("<?xml")
    assert "f.svg" in err
    for name in METRICS:
        low, high = full["bootstrap"]["intervals"][name]
        assert low <= plain[name] <= high
        difference = full["against"]["differences"][name]
        assert difference["difference"] == pytest.approx(plain[name] - full["against"]["scores"][name], abs=0.011)
    assert full["against"]["scores"]["R1@0.7"] == 100
    assert full["against"]["differences"]["R1@0.7"]["verdict"] == "worse"
    thresholds = full["thresholds"]
    assert [list(values) for values in thresholds.values()] == [[f"{share / 100:g}" for share in range(50, 100, 5)]] * 2
    assert [thresholds["R1"]["0.5"], thresholds["mAP"]["0.75"]] == [plain["R1@0.5"], plain["mAP@0.75"]]
    assert np.mean(list(thresholds["mAP"].values())) == pytest.approx(plain["mAP"], abs=0.011)
    assert run("evaluate", files["good"], files["truth"], *asked).out == out, "the same seed gives the same numbers"


def test_the_text_says_which_is_better(files, run):
    def compared(one, other):
        asked = ["--bootstrap", 200, "--by-length", "--thresholds"]
        return run("evaluate", files[one], files["truth"], "--against", files[other], *asked).out

    told = compared("good", "perfect")
    assert "R1@0.7: B is better than A by" in told
    assert all(part in told for part in ("95 %", "10-30 s", "IoU"))
    assert "R1@0.7: A is better than B by" in compared("perfect", "good")
    assert compared("good", "good").count("no difference shown") == len(METRICS)


def test_pairs_get_scores_that_keep_their_order(tmp_path):
    windows = ([[5, 6], [1, 2], [3, 4], [7, 9]], [[1, 2, 0.3]], [])
    lines = [{"qid": str(i), "query": "q", "vid": "v", "pred_relevant_windows": rows} for i, rows in enumerate(windows)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    read = [entry.pred_relevant_windows for entry in read_predictions(tmp_path / "p.jsonl", allow_pairs=True)]
    assert read == [((5, 6, 1), (1, 2, 0.75), (3, 4, 0.5), (7, 9, 0.25)), ((1, 2, 0.3),), ()]


def test_a_submission_passes_the_check_and_scores_as_its_predictions(files, tmp_path, run):
    (tmp_path / "me.yaml").write_text(yaml.safe_dump(PERSONAL), encoding="utf-8")
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


def test_what_is_open_is_told_and_refused_by_the_check(files, tmp_path, run):
    manifest = ["--manifest", files["truth"]]
    out, err = run("submit", files["good"], *manifest, "--label", LABEL, "--output", tmp_path)
    assert f"`submission.name` still says {PLACEHOLDER!r}" in err
    listed, err = run("submit", "--check", *out.split(), *manifest, status=2)
    assert "`submission.name` still says" in listed
    assert "`submission.label` still says" not in listed
    assert err == f"qamdetr: error: the submission has {len(listed.splitlines())} problems, listed above; mend and check again.\n"


def test_the_report_of_all_files_is_printed(files, run):
    paths = [files["truth"], files["truth"]]
    assert len(read_manifest(paths[0], clamp=False)) == 60
    assert run("data-report", *paths).out.strip() == data_report(paths).strip()


def test_synthesize_hands_every_option_to_the_recipe(tmp_path, monkeypatch, run):
    asked = []
    monkeypatch.setattr("qamdetr.synthesis.synthesize.synthesize", lambda *args: asked.append(args) or tmp_path / "o" / "manifest.jsonl")
    options = ["--clips", "c", "--output", "o", "--num-scenes", "3", "--min-snr-db", "-2.5", "--name", "café"]
    assert run("synthesize", *options).out == f"{tmp_path / 'o' / 'manifest.jsonl'}\n"
    assert asked == [("c", None, "o", SceneRecipe(num_scenes=3, min_snr_db=-2.5, name="café"))]
