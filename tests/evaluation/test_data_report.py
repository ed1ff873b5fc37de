"""The report on manifests: the field's own numbers on the field's files, and every count on small ones."""

from __future__ import annotations

import json
import math

import pytest

from qamdetr.evaluation.data_report import data_report, describe_manifest

# Field notes: queries, recordings, windows; percent of at most 1, 3 and 10 s; queries with more than five windows, the most; past the end.
FIELD = {
    "castella/train": ((2182, 876, 6157), (15, 47, 78), (306, 32), 162),
    "castella/val": ((352, 178, 973), (10, 41, 73), (39, 25), 12),
    "castella/test": ((1347, 566, 4175), (14, 47, 78), (201, 24), 99),
}


def write(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"qid": f"q{i}", "query": "a dog", **line}) + "\n" for i, line in enumerate(lines)))
    return path


def numbers(path, *labels):
    """Cells of the report by the begin of their label, as numbers."""
    cells, _ = describe_manifest(path)
    found = [next(text for name, text in cells.items() if name.strip().startswith(label)) for label in labels]
    return tuple(float(text.split()[0]) for text in found)


@pytest.mark.parametrize("split", FIELD)
def test_castella_has_the_numbers_of_the_field_notes(shared_dir, split):
    counts, percents, crowded, past_end = FIELD[split]
    path = shared_dir / "data" / f"{split}.jsonl"
    assert numbers(path, "queries", "recordings", "windows") == counts
    # The notes rounded halves up.
    assert tuple(math.floor(value + 0.5) for value in numbers(path, *(f"of at most {limit} s" for limit in (1, 3, 10)))) == percents
    assert numbers(path, "queries with more", "most windows", "past the end", "median width") == (*crowded, past_end, 4)
    assert numbers(path, "queries of absent", "queries with unknown", "longest") == (0, 0, 300)
    if split == "castella/train":
        broken = "162 windows end after their recording, furthest [299, 4800] of query 67AE9ZKvECs_1 in 299 s"
        assert broken in data_report([path])


def test_the_evaluation_set_has_no_windows(shared_dir):
    path = shared_dir / "data" / "dcase2026" / "evaluation.jsonl"
    assert numbers(path, "queries", "recordings", "windows", "queries with unknown") == (177, 100, 0, 177)
    assert describe_manifest(path)[0]["  median width"] == "-"


def test_every_count_of_a_small_file(tmp_path):
    path = write(
        tmp_path / "toy" / "m.jsonl",
        {"vid": "a", "duration": 60, "relevant_windows": [[21.1, 22.1], [0, 3], [50, 61], [60, 70]]},
        {"vid": "a", "duration": 60, "relevant_windows": []},
        {"vid": "b", "duration": 30.5},
        {"vid": "c", "duration": 90, "relevant_windows": [[second, second + 0.5] for second in range(6)]},
    )
    cells, note = describe_manifest(path)
    assert list(cells.values()) == [
        *("toy/m.jsonl", "4", "3", "10"),
        *("70.0 %", "80.0 %", "90.0 %", "0.5 s"),  # 22.1 - 21.1 counts as one second
        *("2", "1", "1", "6", "1", "1", "30.5 s", "90 s"),
    ]
    assert "toy/m.jsonl: 2 windows end after their recording, furthest [60, 70] of query q0 in 60 s" in note


def test_the_table_has_a_column_for_each_file_in_order(tmp_path):
    line = {"vid": "a", "duration": 60, "relevant_windows": [[0, 4]]}
    rows = data_report([write(tmp_path / name / "m.jsonl", *[line] * count) for count, name in enumerate("xyz", start=1)]).splitlines()
    assert [row.split() for row in rows[:2]] == [["x/m.jsonl", "y/m.jsonl", "z/m.jsonl"], ["queries", "1", "2", "3"]]
    assert len({len(row) for row in rows}) == 1, "no file has windows past the end, so no line about them"
