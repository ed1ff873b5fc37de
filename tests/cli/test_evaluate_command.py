"""`evaluate`: the contract of its numbers, and what may be asked for besides."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from benchmarks.evaluation import invent_predictions, invent_truth
from qamdetr import cli
from qamdetr.data.manifest import PredictionEntry, QueryEntry, read_manifest, read_predictions, write_manifest, write_predictions
from qamdetr.errors import DataError
from qamdetr.evaluation.metrics import METRICS, evaluate


def test_evaluate_prints_the_contract(tmp_path, capsys):
    write_manifest(
        tmp_path / "t.jsonl", [QueryEntry("1", "q", "v", 60.0, ((0.0, 10.0),), numeric_qid=True), QueryEntry("2", "q", "v", 60.0, ())]
    )
    windows = ((0.0, 8.0, 0.9),)
    write_predictions(tmp_path / "p.jsonl", [PredictionEntry(qid, "q", "v", windows) for qid in "123"])
    assert cli.main(["evaluate", str(tmp_path / "p.jsonl"), str(tmp_path / "t.jsonl"), "--json"]) == 0
    out, err = capsys.readouterr()
    expected = {"R1@0.5": 100.0, "R1@0.7": 100.0, "mAP": 70.0, "mAP@0.5": 100.0, "mAP@0.75": 100.0, "num_queries": 1}
    assert json.loads(out) == expected
    assert "1 of 2 queries have no true windows" in err
    assert "1 predictions belong to no query" in err
    assert cli.main(["evaluate", str(tmp_path / "p.jsonl"), str(tmp_path / "t.jsonl")]) == 0
    assert dict(line.split() for line in capsys.readouterr().out.splitlines()) == {
        k: f"{v:.2f}" if k != "num_queries" else "1" for k, v in expected.items()
    }


def test_evaluate_agrees_with_the_official_evaluator(shared_dir, capsys):
    data = shared_dir / "data"
    predictions, truth = data / "official_baseline" / "castella_val_predictions.jsonl", data / "castella" / "val.jsonl"
    assert cli.main(["evaluate", str(predictions), str(truth), "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores == {"R1@0.5": 27.56, "R1@0.7": 16.19, "mAP": 11.44, "mAP@0.5": 24.02, "mAP@0.75": 10.26, "num_queries": 352}


@pytest.fixture
def files(tmp_path):
    """Invented truth, predictions, and the same predictions with the order of their scores turned round."""
    rng = np.random.default_rng(0)
    truth = invent_truth(60, rng)
    good = invent_predictions(truth, rng)
    bad = [
        dataclasses.replace(entry, pred_relevant_windows=tuple((s, e, 0.5) for s, e, _ in entry.pred_relevant_windows[::-1]))
        for entry in good
    ]
    perfect = [
        dataclasses.replace(e, pred_relevant_windows=tuple((*w, 1.0) for w in t.relevant_windows)) for e, t in zip(good, truth, strict=True)
    ]
    write_manifest(tmp_path / "truth.jsonl", truth)
    for name, predictions in (("good", good), ("bad", bad), ("perfect", perfect)):
        write_predictions(tmp_path / f"{name}.jsonl", predictions)
    return {name: str(tmp_path / f"{name}.jsonl") for name in ("truth", "good", "bad", "perfect")}


def run(capsys, *args):
    status = cli.main(["evaluate", *args])
    out, err = capsys.readouterr()
    assert status == 0, err
    return out, err


def test_additions_leave_the_contract_as_it_is(files, tmp_path, capsys):
    plain = json.loads(run(capsys, files["good"], files["truth"], "--json")[0])
    figure = tmp_path / "figures" / "f.svg"
    asked = ["--by-length", "--bootstrap", "50", "--against", files["perfect"], "--figure", str(figure), "--json"]
    out, err = run(capsys, files["good"], files["truth"], *asked)
    full = json.loads(out)
    assert list(full) == [*plain, "by_length", "bootstrap", "against"]
    assert {name: full[name] for name in plain} == plain
    assert figure.read_text(encoding="utf-8").lstrip().startswith("<?xml")
    assert str(figure) in err
    for name in METRICS:
        low, high = full["bootstrap"]["intervals"][name]
        assert low <= plain[name] <= high
        difference = full["against"]["differences"][name]
        assert difference["difference"] == pytest.approx(plain[name] - full["against"]["scores"][name], abs=0.011)
    assert full["against"]["scores"]["R1@0.7"] == 100
    assert full["against"]["differences"]["R1@0.7"]["verdict"] == "worse"
    assert run(capsys, files["good"], files["truth"], *asked)[0] == out, "the same seed gives the same numbers"


def test_the_text_says_which_is_better(files, capsys):
    out, _ = run(capsys, files["good"], files["truth"], "--against", files["perfect"], "--bootstrap", "200", "--by-length")
    assert "R1@0.7: B is better than A by" in out
    assert "95 %" in out
    assert "10-30 s" in out
    swapped, _ = run(capsys, files["perfect"], files["truth"], "--against", files["good"], "--bootstrap", "200")
    assert "R1@0.7: A is better than B by" in swapped
    itself, _ = run(capsys, files["good"], files["truth"], "--against", files["good"], "--bootstrap", "200")
    assert itself.count("no difference shown") == len(METRICS)


def test_mixed_up_files_are_noticed(files, tmp_path, capsys):
    rng = np.random.default_rng(1)
    truth = [QueryEntry(f"q{i}", "a sound", f"other{i}", 300.0, ((0.0, 5.0),)) for i in range(4)]
    write_manifest(tmp_path / "t.jsonl", truth)
    predictions = [dataclasses.replace(entry, vid="v") for entry in invent_predictions(truth, rng)]
    write_predictions(tmp_path / "p.jsonl", predictions)
    assert evaluate(predictions, truth)["num_queries"] == len(truth)
    _, err = run(capsys, str(tmp_path / "p.jsonl"), str(tmp_path / "t.jsonl"))
    assert f"{len(truth)} predictions name another recording" in err


def test_a_faulty_second_file_is_named(files, tmp_path, told):
    write_predictions(tmp_path / "short.jsonl", [PredictionEntry("q0", "q", "v0", ((0.0, 1.0, 1.0),))])
    err = told("evaluate", files["good"], files["truth"], "--against", tmp_path / "short.jsonl")
    assert "short.jsonl: 59 of 60 queries have no prediction" in err


def test_thresholds_are_all_ten_in_percent(files, capsys):
    plain = json.loads(run(capsys, files["good"], files["truth"], "--json")[0])
    full = json.loads(run(capsys, files["good"], files["truth"], "--json", "--thresholds")[0])
    thresholds = full.pop("thresholds")
    assert full == plain
    ten = ["0.5", "0.55", "0.6", "0.65", "0.7", "0.75", "0.8", "0.85", "0.9", "0.95"]
    assert {name: list(values) for name, values in thresholds.items()} == {"R1": ten, "mAP": ten}
    assert [thresholds["R1"]["0.5"], thresholds["R1"]["0.7"]] == [plain["R1@0.5"], plain["R1@0.7"]]
    assert [thresholds["mAP"]["0.5"], thresholds["mAP"]["0.75"]] == [plain["mAP@0.5"], plain["mAP@0.75"]]
    assert np.mean(list(thresholds["mAP"].values())) == pytest.approx(plain["mAP"], abs=0.011)
    assert "IoU" not in run(capsys, files["good"], files["truth"])[0]
    table = [line.split() for line in run(capsys, files["good"], files["truth"], "--thresholds")[0].splitlines()[-11:]]
    assert table[0] == ["IoU", "R1", "mAP"]
    assert table[1:] == [[f"{float(t):.2f}", f"{thresholds['R1'][t]:.2f}", f"{thresholds['mAP'][t]:.2f}"] for t in ten]


@pytest.mark.parametrize("resamples", [0, 1_000_001])
def test_too_few_and_too_many_draws_are_refused(files, told, resamples):
    err = told("evaluate", files["good"], files["truth"], "--bootstrap", resamples)
    assert f"--bootstrap is {resamples}; it must be from 1 to 1000000 (10000 is usual)." in err


def submitted(capsys, predictions, truth, folder):
    args = ["submit", predictions, "--manifest", truth, "--label", "Muster_UNI_task6_1", "--output", folder]
    assert cli.main(list(map(str, args))) == 0
    return capsys.readouterr().out.splitlines()[0]


def test_a_submission_scores_as_the_predictions_it_came_from(files, tmp_path, capsys):
    predictions = [
        dataclasses.replace(
            entry,
            pred_relevant_windows=tuple(
                sorted(((round(s, 2), round(e + 0.1, 2), p) for s, e, p in entry.pred_relevant_windows[:10]), key=lambda w: -w[2])
            ),
        )
        for entry in read_predictions(files["good"])
    ]
    truth = [QueryEntry(e.qid, e.query, e.vid, 1000.0, e.relevant_windows) for e in read_manifest(files["truth"], clamp=False)]
    write_manifest(tmp_path / "long.jsonl", truth)
    write_predictions(tmp_path / "p.jsonl", predictions)
    output = submitted(capsys, tmp_path / "p.jsonl", tmp_path / "long.jsonl", tmp_path / "out")
    asked = [str(tmp_path / "long.jsonl"), "--json", "--thresholds", "--by-length"]
    assert run(capsys, output, *asked)[0] == run(capsys, str(tmp_path / "p.jsonl"), *asked)[0]


def test_the_official_baseline_cut_at_the_recordings_ends_scores_the_same_as_a_submission(shared_dir, tmp_path, capsys):
    data = shared_dir / "data"
    truth = data / "castella" / "val.jsonl"
    ends = {entry.qid: entry.duration_seconds for entry in read_manifest(truth, clamp=False)}
    predictions = [
        dataclasses.replace(
            entry,
            pred_relevant_windows=tuple((s, min(e, ends[entry.qid]), p) for s, e, p in entry.pred_relevant_windows if s < e),
        )
        for entry in read_predictions(data / "official_baseline" / "castella_val_predictions.jsonl")
    ]
    write_predictions(tmp_path / "cut.jsonl", predictions)
    output = submitted(capsys, tmp_path / "cut.jsonl", truth, tmp_path)
    assert run(capsys, output, str(truth), "--thresholds")[0] == run(capsys, str(tmp_path / "cut.jsonl"), str(truth), "--thresholds")[0]


def write_windows(path, *lists):
    lines = [{"qid": str(i), "query": "q", "vid": "v", "pred_relevant_windows": windows} for i, windows in enumerate(lists)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_pairs_get_scores_that_keep_their_order(tmp_path):
    path = write_windows(tmp_path / "p.jsonl", [[5, 6], [1, 2], [3, 4], [7, 9]], [[1, 2, 0.3]], [])
    pairs, triples, empty = (entry.pred_relevant_windows for entry in read_predictions(path, allow_pairs=True))
    assert pairs == ((5, 6, 1), (1, 2, 0.75), (3, 4, 0.5), (7, 9, 0.25))
    assert triples == ((1, 2, 0.3),)
    assert empty == ()


@pytest.mark.parametrize(
    ("windows", "problem"),
    [
        ([[1, 2], [3, 4, 0.5]], r"mixes \[start, end\] and \[start, end, score\]; give all windows of a line a score, or none"),
        ([[1, 2], [3]], r"each window must be \[start, end, score\]"),
        ([[1, 2], [4, 3]], "needs 0 <= start <= end"),
        ([[1, 2], [3, 10**400]], "finite numbers"),
        ({}, "must be a list"),
    ],
)
def test_lines_that_are_neither_pairs_nor_triples(tmp_path, windows, problem):
    path = write_windows(tmp_path / "p.jsonl", [[1, 2]], windows)
    with pytest.raises(DataError, match=rf"p\.jsonl, line 2: field `pred_relevant_windows` .*{problem}"):
        read_predictions(path, allow_pairs=True)
