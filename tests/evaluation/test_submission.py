"""What is written for the challenge: lines, windows, metadata and where its values come from."""

from __future__ import annotations

import dataclasses
import json

import pytest
import yaml
from tiny_system import save_tiny

from qamdetr.data.manifest import PredictionEntry, QueryEntry
from qamdetr.errors import DataError
from qamdetr.evaluation import submission
from qamdetr.inference.checkpoint import load_pretrained

MANIFEST = [
    QueryEntry("1", "雨が降る", "b", 60.0, None, numeric_qid=True),
    QueryEntry("q2", "a dog", "a", 61.5, None),
]


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


def test_what_cannot_be_submitted_is_refused():
    good = [predicted(entry, (0.0, 1.0, 1.0)) for entry in MANIFEST]
    with pytest.raises(DataError, match="1 of 2 queries have no prediction, the first is qid 'q2'"):
        submission.output_text(good[:1], MANIFEST)
    with pytest.raises(DataError, match="1 of 2 queries were predicted on another recording"):
        submission.output_text([good[0], dataclasses.replace(good[1], vid="z")], MANIFEST)
    with pytest.raises(DataError, match="1 of 2 queries have no window inside their recording, the first is qid '1'"):
        submission.output_text([predicted(MANIFEST[0], (60.0, 70.0, 1.0)), good[1]], MANIFEST)


@pytest.mark.parametrize(
    ("label", "right"),
    [
        ("Muster_UNI_task6_1", True),
        ("Muster-Frau_UNI_task6_4", True),
        ("Muster_UNI_task6_5", False),
        ("Muster_task6_1", False),
        ("Muster_UNI_task6_1\n", False),
        (7, False),
    ],
)
def test_labels(label, right):
    assert submission.is_label(label) is right


def test_later_parts_win_and_the_rest_stays_open():
    filled = submission.fill_metadata({"system": {"ensemble": "none", "model": {"loss": "L1"}}}, {"system": {"ensemble": "two seeds"}})
    assert filled["system"]["ensemble"] == "two seeds"
    assert filled["system"]["model"]["loss"] == "L1"
    assert filled["submission"]["name"] == submission.PLACEHOLDER
    assert yaml.safe_load(submission.metadata_text(filled)) == filled


def test_a_checkpoint_tells_streams_parameters_and_loss(tmp_path):
    folder = save_tiny(tmp_path / "checkpoint")
    model, config = load_pretrained(folder)
    facts = submission.describe_checkpoint(folder)["system"]["model"]
    assert facts["audio_models"] == list(config.model.audio_streams)
    assert facts["text_models"] == list(config.model.text_streams)
    assert facts["trainable_parameters"] == sum(tensor.numel() for tensor in model.parameters())
    assert f"{config.loss.span:g} x L1" in facts["loss"]


def test_frozen_parameters_are_those_of_the_encoders():
    from qamdetr.features.base import COMBOS, open_streams

    combo = open_streams(*COMBOS["pocket"], name="pocket")
    audio, text = combo.audio["pocket"], combo.text["pocket"]
    modules = [value for encoder in {audio, text} for value in vars(encoder).values() if hasattr(value, "state_dict")]
    expected = sum(parameter.numel() for module in modules for parameter in module.parameters())
    assert submission.describe_checkpoint("qam-detr-pocket")["system"]["model"]["frozen_parameters"] == expected > 0


def test_development_results_are_percent():
    part = submission.development_results({"R1@0.5": 27.56, "R1@0.7": 16.19})
    assert part == {"results": {"development_testing": {"Recall1@0.7": 16.19, "Recall1@0.5": 27.56}}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("submission: {nmae: x}", "unknown fields: submission.nmae"),
        ("submission: QAM-DETR", "unknown fields: submission;"),
        ("submision: {name: x}\nsystem: {modle: {}}", "unknown fields: submision, system.modle"),
        ("- a", "must hold the sections submission, system, results, not list"),
        ("a: [", "not valid YAML"),
    ],
)
def test_metadata_that_the_challenge_does_not_know_is_refused(tmp_path, text, message):
    path = tmp_path / "m.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        submission.read_metadata(path)
    with pytest.raises(DataError, match="Cannot read"):
        submission.read_metadata(tmp_path / "gone.yaml")
