"""Field JSONL in and out, and the messages about lines that do not follow the format."""

from __future__ import annotations

import json
import logging

import pytest

from qamdetr.data.manifest import (
    PredictionEntry,
    QueryEntry,
    clamp_windows,
    read_manifest,
    read_predictions,
    write_manifest,
    write_predictions,
)
from qamdetr.errors import DataError

GOOD = {"qid": "a_1", "query": "a dog barks", "vid": "a", "duration": 60, "relevant_windows": [[1, 4.5]]}


def write_lines(path, *lines):
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines), encoding="utf-8")
    return path


def test_reading_and_writing_are_inverse(tmp_path):
    entries = [
        QueryEntry("a_1", "ein Hund bellt - 犬", "a é", 60.5, ((0.0, 4.0), (5.25, 60.5))),
        QueryEntry("a_2", "absent", "a é", 60.5, (), groups=("animal/cat", "animal")),
        QueryEntry("7", "unknown", "b", 300.0, None, numeric_qid=True),
    ]
    path = tmp_path / "deep" / "m.jsonl"
    write_manifest(path, entries)
    assert read_manifest(path) == entries
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert lines[0]["relevant_windows"] == [[0, 4], [5.25, 60.5]]
    assert lines[1]["relevant_windows"] == []
    assert lines[2] == {"qid": 7, "query": "unknown", "duration": 300, "vid": "b"}
    assert [file.name for file in path.parent.iterdir()] == ["m.jsonl"]
    entries = [PredictionEntry("a", "q", "v", ((0.0, 1.5, 0.9), (3.0, 3.0, -1.0))), PredictionEntry("8", "q", "v", (), numeric_qid=True)]
    write_predictions(tmp_path / "p.jsonl", entries)
    assert read_predictions(tmp_path / "p.jsonl") == entries


def test_extra_fields_blank_lines_and_a_byte_order_mark_are_accepted(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text("\ufeff" + json.dumps({**GOOD, "fg_dB": -2.0}) + "\n\n", encoding="utf-8")
    assert [entry.qid for entry in read_manifest(path)] == ["a_1"]


@pytest.mark.parametrize(
    ("change", "field", "told"),
    [
        ({"qid": True}, "qid", "is true"),
        ({"vid": "a\0"}, "vid", "holds a character that is no text"),
        ({"query": "half \ud83d"}, "query", r"half \\ud83d.*holds a character that is no text"),
        ({"duration": "60"}, "duration", 'is "60"'),
        ({"duration": float("nan")}, "duration", "is NaN"),
        ({"groups": "animal/cat"}, "groups", 'is "animal/cat"; it must be a list of paths'),
        ({"relevant_windows": [[1, 2, 3]]}, "relevant_windows", r"holds \[1, 2, 3\]"),
        ({"relevant_windows": [[-1, 2]]}, "relevant_windows", "0 <= start"),
        ({"relevant_windows": [[2, 2]]}, "relevant_windows", "cannot be empty"),
        ({"relevant_windows": [[1, float("inf")]]}, "relevant_windows", "finite"),
    ],
)
def test_a_bad_field_names_file_line_and_field(tmp_path, change, field, told):
    path = write_lines(tmp_path / "m.jsonl", GOOD, {**GOOD, "qid": "a_2", **change})
    with pytest.raises(DataError, match=rf"m\.jsonl, line 2: field `{field}` .*{told}"):
        read_manifest(path)


@pytest.mark.parametrize(
    "lines", [[GOOD, "[" * 100_000], [{**GOOD, "qid": 5}, {**GOOD, "qid": "5"}]], ids=["deep", "one qid in two spellings"]
)
def test_lines_that_cannot_be_read_are_told(tmp_path, lines):
    with pytest.raises(DataError, match="line 2: "):
        read_manifest(write_lines(tmp_path / "m.jsonl", *lines))
    with pytest.raises(DataError, match="Cannot write"):
        write_predictions(tmp_path, [])


def test_windows_past_the_end_are_clamped_counted_and_logged(tmp_path, caplog):
    windows = [[0, 4], [50, 61], [60, 61], [299, 4800]]
    path = write_lines(tmp_path / "m.jsonl", {**GOOD, "relevant_windows": windows}, {**GOOD, "qid": "b", "relevant_windows": [[60, 61]]})
    with caplog.at_level(logging.WARNING):
        entries = read_manifest(path)
    assert entries[0].relevant_windows == ((0, 4), (50, 60))
    assert entries[1].relevant_windows is None, "the empty tuple would claim that the sound is absent"
    assert "4 windows end after" in caplog.text
    raw = read_manifest(path, clamp=False)
    assert raw[0].relevant_windows == tuple(map(tuple, windows))
    assert clamp_windows(raw)[1] == 4


@pytest.mark.parametrize(
    ("name", "queries", "windows", "clamped"),
    [
        ("castella/train", 2182, 6157, 162),
        ("castella/val", 352, 973, 12),
        ("castella/test", 1347, 4175, 99),
        ("clotho_moment/val", 4918, 4918, 0),
        ("clotho_moment/test", 6649, 6649, 0),
        ("dcase2026/evaluation", 177, 0, 0),  # no windows at all
    ],
)
def test_the_fields_own_files_read_whole(shared_dir, name, queries, windows, clamped):
    entries = read_manifest(shared_dir / "data" / f"{name}.jsonl", clamp=False)
    assert len(entries) == queries
    assert sum(len(entry.relevant_windows or ()) for entry in entries) == windows
    clean, changed = clamp_windows(entries)
    assert changed == clamped
    assert all(end <= entry.duration_seconds for entry in clean for _, end in entry.relevant_windows or ())
