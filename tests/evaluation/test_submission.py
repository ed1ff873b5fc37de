"""What is written for the challenge, and the check: every fault of the files of a submission is found, all of them at once."""

from __future__ import annotations

import copy
import dataclasses
import json

import numpy as np
import pytest
import yaml
from challenge import LABEL, METADATA
from tiny_system import save_tiny

from benchmarks.evaluation import invent_predictions
from qamdetr.data.manifest import PredictionEntry, QueryEntry, read_manifest
from qamdetr.errors import DataError
from qamdetr.evaluation import submission
from qamdetr.evaluation.submission import PLACEHOLDER, check_metadata, check_output, check_submission
from qamdetr.inference.checkpoint import load_checkpoint

MANIFEST = [QueryEntry("1", "雨が降る", "b", 60.0, None, numeric_qid=True), QueryEntry("q2", "a dog", "a", 61.5, None)]


def predicted(entry, *windows):
    return PredictionEntry(entry.qid, entry.query, entry.vid, windows)


def test_lines_follow_the_manifest_and_windows_the_scores():
    predictions = [
        predicted(MANIFEST[1], (5.0, 7.12345, 0.1), (50.0, 90.0, 0.9)),
        predicted(MANIFEST[0], (3.0, 3.0, 0.9), (4.0, 8.0, 0.5), (70.0, 80.0, 0.4), *((1.0, 2.0, 0.3),) * 20),
    ]
    text, left_out = submission.output_text(predictions, MANIFEST)
    first, second = (json.loads(line) for line in text.splitlines())
    assert first == {"qid": 1, "query": "雨が降る", "vid": "b", "duration": 60, "pred_relevant_windows": [[4, 8]] + [[1, 2]] * 7}
    assert second == {"qid": "q2", "query": "a dog", "vid": "a", "duration": 61.5, "pred_relevant_windows": [[50, 61.5], [5, 7.123]]}
    assert left_out == 2


def test_later_parts_win_and_the_rest_stays_open():
    filled = submission.fill_metadata({"system": {"ensemble": "none", "model": {"loss": "L1"}}}, {"system": {"ensemble": "two seeds"}})
    assert (filled["system"]["ensemble"], filled["system"]["model"]["loss"]) == ("two seeds", "L1")
    assert filled["submission"]["name"] == PLACEHOLDER
    assert yaml.safe_load(submission.metadata_text(filled)) == filled


def test_a_checkpoint_tells_streams_parameters_and_loss(tmp_path):
    folder = save_tiny(tmp_path / "checkpoint")
    model, config = load_checkpoint(folder)
    facts = submission.describe_checkpoint(folder)["system"]["model"]
    assert facts["audio_models"] == list(config.model.audio_streams)
    assert facts["text_models"] == list(config.model.text_streams)
    assert facts["trainable_parameters"] == sum(tensor.numel() for tensor in model.parameters())
    assert f"{config.loss.span:g} x L1" in facts["loss"]
    assert submission.describe_checkpoint("qam-detr-pocket")["system"]["model"]["frozen_parameters"] > 1_000_000


def invent_submission(manifest, folder, label=LABEL, seed=0):
    """Write a right pair of files from random predictions."""
    whole = [  # one window that is surely not empty, as random rounding may empty all ten
        dataclasses.replace(p, pred_relevant_windows=(*p.pred_relevant_windows[:9], (0.0, entry.duration_seconds, 0.0)))
        for p, entry in zip(invent_predictions(manifest, np.random.default_rng(seed)), manifest, strict=True)
    ]
    output, description = folder / f"{label}{submission.OUTPUT_SUFFIX}", folder / f"{label}{submission.METADATA_SUFFIX}"
    output.write_text(submission.output_text(whole, manifest)[0], encoding="utf-8")
    description.write_text(submission.metadata_text(submission.fill_metadata(METADATA, {"submission": {"label": label}})), encoding="utf-8")
    return output, description


def windows(*listed):
    return lambda lines: lines[0].update(pred_relevant_windows=list(listed))


def put(**values):
    return lambda lines: lines[0].update(values)


def at(path, value):
    """Set a field of the metadata, such as `system.model/loss`."""

    def change(values):
        *sections, leaf = path.split("/")
        for section in sections:
            values = values[section]
        values[leaf] = value

    return change


AUTHORS, RESULTS, MODEL = "submission/authors", "results/development_testing/", "system/model/"
FAULTS = [
    (lambda lines: lines.pop(0), "1 of 177 queries are missing: dcase2026_evaluation_q001."),
    (lambda lines: lines.append(lines[0]), "was already on line 1"),
    (lambda lines: lines.append({**lines[0], "qid": "q999"}), "qid 'q999' is not in the manifest"),
    (lambda lines: lines.insert(3, lines.pop(4)), "stands where the manifest's order has"),
    (windows([3, 5, 0.9]), "has three numbers; write [start, end] without the score"),
    (windows([60, 67]), "needs 0 <= start < end <= 66"),
    (windows([3, 10**400]), "... is not a pair of finite numbers"),
    (windows(*([0, n] for n in range(1, 12))), "has 11 windows; the challenge reads the first 10"),
    (windows([float("nan"), 5]), "window [nan, 5] is not a pair of finite numbers"),
    (windows(), "must be a list of at least one"),
    (put(query="a cat"), "query is 'a cat'; the manifest has"),
    (put(duration=65), "duration is 65; the manifest has"),
    (lambda lines: lines[0].pop("duration"), "lacks duration"),
    (put(score=1), "has unknown fields: score"),
    (lambda lines: lines.__setitem__(0, []), "line 1: holds list"),
    (at("submission/name", PLACEHOLDER), "`submission.name` still says"),
    (at("submission/name", " "), "`submission.name` is missing"),
    (at("submission/label", "Muster_UNI_task6_1\n"), "it must have the form"),
    (at("submission/label", "Muster_UNI_task6_2"), "which is not the name of the file"),
    (at("submission/abbreviation", "QAM-DETR-12"), "may have at most 10 characters"),
    (at("submission/nickname", "Q"), "`submission.nickname` is not a field"),
    (at(AUTHORS, [{"firstname": PLACEHOLDER, "lastname": "M"}]), "`submission.authors` still says"),
    (at(AUTHORS, "Erika Muster"), "`submission.authors` is 'Erika Muster'; it must list mappings"),
    (at(AUTHORS, [{"firstname": "", "lastname": "M"}]), "it must list mappings, each with text as `firstname`"),
    (at(f"{MODEL}trainable_parameters", 10**400), "...; it must be a whole number, at least 0"),
    (at(f"{MODEL}loss", None), "`system.model.loss` is missing"),
    (at(f"{RESULTS}Recall1@0.7", 129.0), "`results.development_testing.Recall1@0.7` is 129.0; it must be a percentage"),
    (at(f"{RESULTS}Recall1@0.7", 0.1619), "Recall1@0.7` is 0.1619, which looks like a share of 1; give percent"),
]


@pytest.fixture(scope="module")
def manifest(shared_dir):
    return read_manifest(shared_dir / "data" / "dcase2026" / "evaluation.jsonl", clamp=False)


@pytest.mark.parametrize(("change", "problem"), FAULTS, ids=[problem[:40] for _, problem in FAULTS])
def test_every_fault_is_found(manifest, tmp_path, change, problem):
    output, description = invent_submission(manifest, tmp_path)
    assert check_submission([output], [description], manifest) == []
    if change.__qualname__.startswith("at."):
        values = copy.deepcopy(METADATA)
        change(values)
        description.write_text(yaml.safe_dump(values), encoding="utf-8")
    else:
        lines = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
        change(lines)
        output.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert problem in "\n".join(check_submission([output], [description], manifest))


def test_all_faults_are_listed_and_a_broken_line_does_not_hide_others(manifest, tmp_path):
    output, _ = invent_submission(manifest, tmp_path)
    lines = output.read_text(encoding="utf-8").splitlines()
    third = {**json.loads(lines[2]), "vid": "x", "pred_relevant_windows": [[1, 2, 0.5], [8, 4]]}
    output.write_text("\n".join([lines[0], "{broken", json.dumps(third), *lines[3:]]), encoding="utf-8")
    problems = check_output(output, manifest)
    assert [problem.split(": ")[0].rsplit(", ")[-1] for problem in problems[:4]] == ["line 2", "line 3", "line 3", "line 3"]
    assert "1 of 177 queries are missing" in problems[4]
    assert len(check_metadata(written(tmp_path, submission.fill_metadata()))) == 16


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\r\n"])
def test_only_a_newline_ends_a_line_and_numbers_as_ids_stay_numbers(tmp_path, mark):
    entries = [QueryEntry(qid, f"a dog{mark}barks", "v", 60.0, None, numeric_qid=True) for qid in "78"]
    path = tmp_path / f"{LABEL}.output.jsonl"
    text, _ = submission.output_text([predicted(entry, (0.0, 1.0, 1.0)) for entry in entries], entries)
    path.write_bytes(text.replace("\n", "\r\n").encode())
    assert check_output(path, entries) == []
    path.write_text(text.replace('"qid": 7', '"qid": "7"'), encoding="utf-8")
    assert "qid '7' is not in the manifest" in check_output(path, entries)[0]


def written(tmp_path, values, name=f"{LABEL}.meta.yaml"):
    path = tmp_path / name
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values), encoding="utf-8")
    return path


@pytest.mark.parametrize("text", ["a: [", "a: " + "1" * 5000, "a: 2026-13-45", "[" * 3000, "a: !!int ''", "a: !!timestamp x"], ids=range(6))
def test_yaml_that_cannot_be_read_is_told(tmp_path, text):
    (problem,) = check_metadata(written(tmp_path, text))
    assert "is not valid YAML" in problem


def test_odd_files(tmp_path):
    path = written(tmp_path, "submission: {name: &n [*n], authors: &a [*a, FILL IN]}")  # holds itself
    problems = "\n".join(check_metadata(path))
    assert "`submission.name` is [[" in problems
    assert "`submission.authors` still says" in problems
    zeros = {**METADATA, "results": {"development_testing": {"Recall1@0.7": 0, "Recall1@0.5": 0.0}}}
    assert check_metadata(written(tmp_path, zeros)) == [], "recalls of nothing are percent too"
    assert "must be named" in check_metadata(written(tmp_path, METADATA, "meta.yaml"))[0]
    assert "must hold the sections" in check_metadata(written(tmp_path, [1]))[0]
    path.write_bytes(b"\xff\xfe")
    assert "not UTF-8" in check_metadata(path)[0]
    with pytest.raises(DataError, match=r"unknown fields: submision, system\.modle"):
        submission.read_metadata(written(tmp_path, "submision: {name: x}\nsystem: {modle: {}}"))


def test_systems_are_pairs_with_labels_of_their_own_at_most_four_and_of_one_team(manifest, tmp_path):
    pairs = [invent_submission(manifest, tmp_path, f"Muster_UNI_task6_{number}", seed=number) for number in (1, 2, 3, 4)]
    outputs, metadata = map(list, zip(*pairs, strict=True))
    assert check_submission(outputs, metadata, manifest) == []
    assert any("not of one system" in problem for problem in check_submission(outputs, metadata[::-1], manifest))
    assert any("2 output files and 1 metadata" in problem for problem in check_submission(outputs[:2], metadata[:1], manifest))
    (tmp_path / "more").mkdir()
    fifth = invent_submission(manifest, tmp_path / "more")
    problems = check_submission([*outputs, fifth[0]], [*metadata, fifth[1]], manifest)
    assert problems == ["5 systems; a team may submit at most 4.", f"Label {LABEL!r} is used by 2 systems; each needs its own number."]
    for other in ("Meier_UNI_task6_2", "Muster_TU_task6_2"):
        output, description = invent_submission(manifest, tmp_path, other)
        (problem,) = check_submission([outputs[0], output], [metadata[0], description], manifest)
        assert problem.startswith(f"Labels begin with Muster_UNI_task6, {other[:-2]}; one team's labels differ in the number only")
