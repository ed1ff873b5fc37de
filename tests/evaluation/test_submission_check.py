"""Every corruption of a right submission is found, and all of them at once; on the real evaluation set."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import yaml

from benchmarks.evaluation import invent_predictions
from qamdetr.data.manifest import PredictionEntry, QueryEntry, read_manifest
from qamdetr.errors import DataError
from qamdetr.evaluation import submission
from qamdetr.evaluation.submission import check_metadata, check_output, check_submission

LABEL = "Muster_UNI_task6_1"
METADATA = {
    "submission": {
        "label": LABEL,
        "name": "QAM-DETR",
        "abbreviation": "QAMDETR",
        "authors": [{"firstname": "Erika", "lastname": "Muster", "affiliation": {"institute": "UNI"}}],
    },
    "system": {
        "model": {
            "audio_models": ["laion_clap"],
            "text_models": ["laion_clap"],
            "LLMs": None,
            "trainable_parameters": 9_000_000,
            "frozen_parameters": 200_000_000,
            "loss": "L1",
        },
        "dataset": {"augmentation": None, "external_data": "Clotho-Moment", "captions": None},
        "ensemble": None,
    },
    "results": {"development_testing": {"Recall1@0.7": 29.0, "Recall1@0.5": 47.4}},
}


@pytest.fixture
def manifest(shared_dir):
    return read_manifest(shared_dir / "data" / "dcase2026" / "evaluation.jsonl", clamp=False)


def invent_submission(manifest, folder, label=LABEL, seed=0):
    """Write a right pair of files from random predictions."""
    rng = np.random.default_rng(seed)
    predictions = invent_predictions(manifest, rng)
    whole = [
        # One window that is surely not empty, as random rounding may empty all ten.
        type(p)(p.qid, p.query, p.vid, (*p.pred_relevant_windows[:9], (0.0, entry.duration_seconds, 0.0)))
        for p, entry in zip(predictions, manifest, strict=True)
    ]
    output, description = folder / f"{label}{submission.OUTPUT_SUFFIX}", folder / f"{label}{submission.METADATA_SUFFIX}"
    output.write_text(submission.output_text(whole, manifest)[0], encoding="utf-8")
    metadata = submission.fill_metadata(METADATA, {"submission": {"label": label}})
    description.write_text(submission.metadata_text(metadata), encoding="utf-8")
    return output, description


def test_a_submission_of_the_real_evaluation_set_passes(manifest, tmp_path):
    output, description = invent_submission(manifest, tmp_path)
    assert len(output.read_text(encoding="utf-8").splitlines()) == len(manifest)
    assert check_submission([output], [description], manifest) == []


def swap(lines):
    lines[3], lines[4] = lines[4], lines[3]


OUTPUT_FAULTS = {
    "1 of 177 queries are missing: dcase2026_evaluation_q001.": lambda lines: lines.pop(0),
    "was already on line 1": lambda lines: lines.append(lines[0]),
    "qid 'q999' is not in the manifest": lambda lines: lines.append({**lines[0], "qid": "q999"}),
    "qid [1] is not in the manifest": lambda lines: lines[0].update(qid=[1]),
    "stands where the manifest's order has": swap,
    "has three numbers; write [start, end] without the score": lambda lines: lines[0]["pred_relevant_windows"][0].append(0.9),
    "needs 0 <= start < end <= 66": lambda lines: lines[0].update(pred_relevant_windows=[[60, 67]]),
    "window [3, a huge integer] is not a pair of finite numbers": lambda lines: lines[0].update(pred_relevant_windows=[[3, 10**400]]),
    "qid a huge integer is not in the manifest": lambda lines: lines[0].update(qid=10**4000),
    "has 11 windows; the challenge reads the first 10": lambda lines: lines[0].update(pred_relevant_windows=[[0, n] for n in range(1, 12)]),
    "window [5, 5] needs": lambda lines: lines[0].update(pred_relevant_windows=[[5, 5]]),
    "window [9, 5] needs": lambda lines: lines[0].update(pred_relevant_windows=[[9, 5]]),
    "window [-1, 5] needs": lambda lines: lines[0].update(pred_relevant_windows=[[-1, 5]]),
    "window [nan, 5] is not a pair of finite numbers": lambda lines: lines[0].update(pred_relevant_windows=[[float("nan"), 5]]),
    "window ['0', '5'] is not a pair": lambda lines: lines[0].update(pred_relevant_windows=[["0", "5"]]),
    "window 7 is not a pair": lambda lines: lines[0].update(pred_relevant_windows=[7]),
    "must be a list of at least one": lambda lines: lines[0].update(pred_relevant_windows=[]),
    "query is 'a cat'; the manifest has": lambda lines: lines[0].update(query="a cat"),
    "vid is 'x'; the manifest has": lambda lines: lines[0].update(vid="x"),
    "duration is 65; the manifest has": lambda lines: lines[0].update(duration=65),
    "lacks duration": lambda lines: lines[0].pop("duration"),
    "has unknown fields: score": lambda lines: lines[0].update(score=1),
    "line 1: holds list": lambda lines: lines.__setitem__(0, []),
}


@pytest.mark.parametrize("problem", OUTPUT_FAULTS)
def test_every_fault_of_the_output_is_found(manifest, tmp_path, problem):
    output, _ = invent_submission(manifest, tmp_path)
    lines = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    OUTPUT_FAULTS[problem](lines)
    output.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert problem in "\n".join(check_output(output, manifest))


def test_all_faults_are_listed_and_a_broken_line_does_not_hide_others(manifest, tmp_path):
    output, _ = invent_submission(manifest, tmp_path)
    lines = output.read_text(encoding="utf-8").splitlines()
    third = {**json.loads(lines[2]), "vid": "x", "pred_relevant_windows": [[1, 2, 0.5], [8, 4]]}
    output.write_text("\n".join([lines[0], "{broken", json.dumps(third), *lines[3:]]), encoding="utf-8")
    problems = check_output(output, manifest)
    assert [problem.split(": ")[0].rsplit(", ")[-1] for problem in problems[:4]] == ["line 2", "line 3", "line 3", "line 3"]
    assert "1 of 177 queries are missing" in problems[4]


def test_numbers_as_ids_stay_numbers(tmp_path):
    manifest = [QueryEntry("7", "a dog", "v", 60.0, None, numeric_qid=True)]
    path = tmp_path / f"{LABEL}.output.jsonl"
    line = {"qid": 7, "query": "a dog", "vid": "v", "duration": 60, "pred_relevant_windows": [[0, 1]]}
    path.write_text(json.dumps(line), encoding="utf-8")
    assert check_output(path, manifest) == []
    path.write_text(json.dumps({**line, "qid": "7"}), encoding="utf-8")
    assert "qid '7' is not in the manifest" in check_output(path, manifest)[0]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85"])
def test_only_a_newline_ends_a_line(tmp_path, mark, newline):
    manifest = [QueryEntry(qid, f"a dog{mark}barks", "v", 60.0, None) for qid in "ab"]
    predictions = [PredictionEntry(entry.qid, entry.query, entry.vid, ((0.0, 1.0, 1.0),)) for entry in manifest]
    path = tmp_path / f"{LABEL}.output.jsonl"
    path.write_bytes(submission.output_text(predictions, manifest)[0].replace("\n", newline).encode())
    assert check_output(path, manifest) == []


def change(values, path, value):
    *sections, leaf = path
    for section in sections:
        values = values[section]
    values[leaf] = value


RESULTS = ("results", "development_testing")
METADATA_FAULTS = [
    (("submission", "name"), submission.PLACEHOLDER, "`submission.name` still says"),
    (("submission", "authors"), [{"firstname": submission.PLACEHOLDER, "lastname": "M"}], "`submission.authors` still says"),
    (("submission", "authors"), "Erika Muster", "`submission.authors` must be a list of mappings"),
    (("submission", "authors"), [], "`submission.authors` is missing"),
    (("submission", "label"), "Muster", "`submission.label` is 'Muster'; it must have the form"),
    (("submission", "label"), "Muster_UNI_task6_2", "which is not the name of the file"),
    (("submission", "abbreviation"), "QAM-DETR-12", "may have at most 10 characters"),
    (("submission", "nickname"), "Q", "`submission.nickname` is not a field"),
    (("system", "model", "trainable_parameters"), "9M", "must be a whole number"),
    (("system", "model", "frozen_parameters"), -1, "must be a whole number, at least 0"),
    (("system", "model", "loss"), None, "`system.model.loss` is missing"),
    (("system", "model"), None, "`system.model.audio_models` is missing"),
    ((*RESULTS, "Recall1@0.7"), 129.0, "`results.development_testing.Recall1@0.7` is 129.0; it must be a percentage"),
    ((*RESULTS, "Recall1@0.7"), float("nan"), "must be a percentage"),
    ((*RESULTS, "Recall1@0.7"), 50.0, "above Recall1@0.5"),
    ((*RESULTS, "Recall1@0.7"), 10**400, "is a huge integer; it must be a percentage"),
    ((*RESULTS, "Recall1@0.7"), 0.1619, "Recall1@0.7` is 0.1619, which looks like a share of 1; give percent"),
    ((*RESULTS, "Recall1@0.5"), 1, "Recall1@0.5` is 1, which looks like a share of 1; give percent"),
    (("system", "model", "trainable_parameters"), 10**400, "is a huge integer; it must be a whole number, at least 0 and at most 1e+15"),
    (("submission", "name"), 5, "`submission.name` is 5; it must be text"),
    (("submission", "name"), 10**400, "`submission.name` is a huge integer; it must be text"),
    (("submission", "name"), " ", "`submission.name` is missing"),
    (("submission", "authors"), [{"firstname": "", "lastname": "M"}], "`submission.authors` has '' as `firstname` of author 1"),
    (("submission", "authors"), [{"firstname": "E", "lastname": " "}], "has ' ' as `lastname` of author 1; it must be text"),
    (("submission", "authors"), [{"firstname": None, "lastname": "M"}], "has None as `firstname` of author 1"),
]


def written(tmp_path, values, name=f"{LABEL}.meta.yaml"):
    path = tmp_path / name
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


@pytest.mark.parametrize(("field", "value", "problem"), METADATA_FAULTS)
def test_every_fault_of_the_metadata_is_found(tmp_path, field, value, problem):
    assert check_metadata(written(tmp_path, METADATA)) == []
    values = copy.deepcopy(METADATA)
    change(values, field, value)
    assert problem in "\n".join(check_metadata(written(tmp_path, values)))


def test_recalls_of_nothing_are_percent_too(tmp_path):
    values = copy.deepcopy(METADATA)
    values["results"]["development_testing"] = {"Recall1@0.7": 0, "Recall1@0.5": 0.0}
    assert check_metadata(written(tmp_path, values)) == []


def test_an_untouched_template_names_every_field(tmp_path):
    problems = check_metadata(written(tmp_path, submission.fill_metadata()))
    assert len(problems) == 16


BROKEN_YAML = ["a: [", "a: " + "1" * 5000, "a: 2026-13-45", "[" * 100_000, "a: !!int ''", "a: !!timestamp x", "a: !!bool x"]


@pytest.mark.parametrize("text", BROKEN_YAML, ids=range(len(BROKEN_YAML)))
def test_yaml_that_cannot_be_read_is_told(tmp_path, text):
    path = tmp_path / f"{LABEL}.meta.yaml"
    path.write_text(text, encoding="utf-8")
    (problem,) = check_metadata(path)
    assert "not valid YAML" in problem
    with pytest.raises(DataError, match="is not valid YAML"):
        submission.read_metadata(path)


def test_yaml_that_holds_itself_is_looked_through_once(tmp_path):
    path = tmp_path / f"{LABEL}.meta.yaml"
    path.write_text("submission: {name: &n [*n], authors: &a [*a, FILL IN]}", encoding="utf-8")
    problems = "\n".join(check_metadata(path))
    assert "`submission.name` is [[" in problems
    assert "`submission.authors` still says" in problems


def test_files_that_are_no_metadata(tmp_path):
    assert "must be named" in check_metadata(written(tmp_path, METADATA, "meta.yaml"))[0]
    assert "must hold the sections" in check_metadata(written(tmp_path, [1]))[0]
    path = tmp_path / f"{LABEL}.meta.yaml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="not UTF-8"):
        check_metadata(path)
    with pytest.raises(DataError, match="Cannot read"):
        check_metadata(tmp_path / "gone.yaml")


def test_systems_are_pairs_with_labels_of_their_own_and_at_most_four(manifest, tmp_path):
    pairs = [invent_submission(manifest, tmp_path, f"Muster_UNI_task6_{number}", seed=number) for number in (1, 2, 3, 4)]
    outputs, metadata = map(list, zip(*pairs, strict=True))
    assert check_submission(outputs, metadata, manifest) == []
    assert any("not of one system" in problem for problem in check_submission(outputs, metadata[::-1], manifest))
    assert any("2 output files and 1 metadata" in problem for problem in check_submission(outputs[:2], metadata[:1], manifest))
    (tmp_path / "more").mkdir()
    fifth = invent_submission(manifest, tmp_path / "more")
    problems = check_submission([*outputs, fifth[0]], [*metadata, fifth[1]], manifest)
    assert problems == ["5 systems; a team may submit at most 4.", f"Label {LABEL!r} is used by 2 systems; each needs its own number."]


@pytest.mark.parametrize("other", ["Meier_UNI_task6_2", "Muster_TU_task6_2"])
def test_one_call_checks_one_team(manifest, tmp_path, other):
    pairs = [invent_submission(manifest, tmp_path, label) for label in (LABEL, other)]
    outputs, metadata = map(list, zip(*pairs, strict=True))
    (problem,) = check_submission(outputs, metadata, manifest)
    assert problem.startswith(f"Labels begin with Muster_UNI_task6, {other[:-2]}; one team's labels differ in the number only")
