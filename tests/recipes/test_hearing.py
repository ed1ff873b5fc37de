"""The benchmark behind the model cards, on a checkpoint that knows nothing and on answers whose numbers are known."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tiny_system import recording_of, tiny_retriever

from benchmarks import hearing
from benchmarks.hearing import Asked, measure, naming, retrieval, trust
from qamdetr.data.manifest import QueryEntry, write_manifest
from qamdetr.inference.retriever import MomentRetriever
from qamdetr.types import Moment
from recipes.pocket.sound_bank.build import ESC50_GROUPS, RealSound, unseen_wordings


def answered(rows: list[tuple[float, bool, bool]]) -> Asked:
    """Queries of eight recordings by `(score, present, right)`; what is right is right to the millisecond."""
    retriever, recording = tiny_retriever(), recording_of(torch.zeros(20, 8))
    blank = retriever.retrieve(recording, "x")
    entries, results = [], []
    for number, (score, present, right) in enumerate(rows):
        window = (2.0, 4.0) if right else (10.0, 15.0)
        moment = Moment(*window, score, 1.0, score, score=score)
        entries.append(QueryEntry(str(number), "x", f"v{number % 8}", 20.0, ((2.0, 4.0),) if present else ()))
        results.append(replace(blank, found=score >= 0.5, moments=(moment,)))
    return Asked("few", Path(), entries, {}, results)


def test_answers_are_counted_as_they_should_be() -> None:
    rows = [(0.9, True, True)] * 6 + [(0.9, True, False)] * 2 + [(0.2, False, False)] * 6 + [(0.6, False, False)] * 2
    asked = answered(rows)
    found = {row.name: row for row in (*retrieval(asked), *trust(asked))}
    wanted = {
        "few, R1@0.7": (75, 8), "few, R1@0.7 of moments <= 2 s": (75, 8), "few, absent recognised": (75, 8), "few, present lost": (0, 8),
        "few, AUC": (100, 16), "few, calibration error": (100 * (8 * 0.15 + 6 * 0.2 + 2 * 0.6) / 16, 16),
    }  # fmt: skip
    assert {name: (pytest.approx(found[name].value), found[name].n) for name in wanted} == wanted
    assert all(found[name].low <= found[name].value <= found[name].high for name in wanted)
    assert found["few, present lost"].low == found["few, present lost"].high == 0


def test_takes_of_one_recording_do_not_narrow_the_interval() -> None:
    rng = np.random.default_rng(0)
    right = rng.integers(0, 2, 40).astype(float)
    apart = measure("x", right, [str(number) for number in range(40)])
    taken = measure("x", np.repeat(right, 5), np.repeat(np.arange(40), 5).astype(str).tolist())
    assert (taken.low, taken.value, taken.high, taken.n) == (apart.low, apart.value, apart.high, 200)
    assert 10 < apart.high - apart.low < 40


def test_each_turn_of_naming_uses_one_sentence_of_each_kind() -> None:
    wordings = {"a": ["a1", "a2", "a3"], "b": ["b1", "b2"]}
    clips = [RealSound(Path(f"4-{number}-A.ogg"), group, 4, "fold4", "", "", "") for number, group in enumerate("aab")]

    def scores(sentences: list[str]) -> np.ndarray:
        assert sentences in (["a1", "b1"], ["a2", "b2"])
        return np.array([[1, 0], [1, 0] if sentences[0] == "a1" else [0, 1], [1, 0]])

    assert naming(scores, clips, wordings).tolist() == [1.0, 0.5, 0.0]


def test_the_whole_benchmark_on_a_tiny_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    wordings = unseen_wordings()
    rows = []
    for number, kind in enumerate(("Cat", "Cow", "Cat")):
        file = f"esc50/{kind}_4-{number}-A.ogg"
        rows.append((file, kind, kind, "4", "CC0", "Ann", f"freesound {number}", "1"))
        (tmp_path / "sounds" / "esc50").mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / "sounds" / file, 0.3 * rng.standard_normal(24_000), 8000)
    (tmp_path / "esc10").mkdir()
    for path, table in (
        ("esc10/attribution.csv", [("file", "class", "fold", "license", "author", "title", "source_id")]),
        ("sounds/clips.csv", [("file", "label", "caption", "fold", "licence", "author", "source", "teacher_rank"), *rows]),
    ):
        with (tmp_path / path).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(table)
    for name in ("fifty", "val"):
        (tmp_path / "scenes" / name / "audio").mkdir(parents=True)
        entries = []
        for number in range(3):
            soundfile.write(tmp_path / "scenes" / name / "audio" / f"{name}_{number}.flac", 0.3 * rng.uniform(-1, 1, 64_000), 8000)
            for turn, (group, windows) in enumerate((("animal/cat", ((1.0, 3.0),)), ("animal/cow", ((2.0, 7.0),)), ("fire", ()))):
                entries.append(QueryEntry(f"{name}_{number}_{turn}", wordings[group][number], f"{name}_{number}", 8.0, windows))
        write_manifest(tmp_path / "scenes" / name / "manifest.jsonl", entries)
    monkeypatch.setattr(MomentRetriever, "from_pretrained", lambda name: tiny_retriever())
    report = tmp_path / "hearing.json"
    earlier = tmp_path / "earlier.json"
    earlier.write_text(json.dumps({"checkpoint": "older", "measures": [asdict(measure("fifty, mAP", [0.1234], ["a"]))]}))
    monkeypatch.setattr(hearing, "RESAMPLES", 20)
    command = ["--real", str(tmp_path), "--scenes", str(tmp_path / "scenes"), "--checkpoint", "tiny", "--output", str(report)]
    hearing.main([*command, "--limit", "2", "--against", str(earlier)])
    printed = capsys.readouterr().out
    content = json.loads(report.read_text(encoding="utf-8"))
    named = {row["name"]: row for row in content["measures"]}
    steady = "silence in front, same top window"
    assert {"naming, forty other kinds", "fifty, mAP", "fifty, AUC", "nonsense called found", steady} <= set(named)
    assert named["naming, forty other kinds"]["n"] == 1
    assert named["naming, ten kinds"]["n"] == 0
    assert named["nonsense called found"]["n"] == 200
    assert (named["fifty, present lost"]["n"], named["fifty, absent recognised"]["n"]) == (4, 2)
    assert set(content["kinds"]) == set(ESC50_GROUPS)
    assert content["kinds"]["cat"]["naming"]["n"] == 1
    assert content["kinds"]["cow"]["R1@0.7"]["n"] == 2
    assert [label.split(" ")[0] for label in content["baselines"]] == ["cosine", "cosine"]
    (line,) = [line for line in printed.splitlines() if line.startswith("fifty, mAP")]
    assert line.split()[2:4] == [">=", "52"]
    assert line.endswith("12.3 (1)")  # the earlier run's
