"""The report on manifests: the field's own numbers on the field's files, and every count on small ones."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from qamdetr.errors import DataError
from qamdetr.evaluation.data_report import PastEnd, data_report, summarise_manifest

# Field notes: queries, recordings, windows; percent of at most 1, 3 and 10 s; queries with more than five windows, the most; past the end.
FIELD = {
    "train": ((2182, 876, 6157), (15, 47, 78), (306, 32), 162),
    "val": ((352, 178, 973), (10, 41, 73), (39, 25), 12),
    "test": ((1347, 566, 4175), (14, 47, 78), (201, 24), 99),
}


def write(path: Path, *lines: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"qid": f"q{i}", "query": "a dog", **line}) + "\n" for i, line in enumerate(lines)))
    return path


def row(report: str, label: str) -> list[str]:
    """Cells of the row `label`, without their units."""
    (line,) = [line for line in report.splitlines() if line.strip().startswith(label + "  ")]
    return [cell for cell in line.strip()[len(label) :].split() if cell not in ("s", "%")]


@pytest.mark.parametrize("split", FIELD)
def test_castella_has_the_numbers_of_the_field_notes(shared_dir: Path, split: str) -> None:
    counts, percents, crowded, past_end = FIELD[split]
    summary = summarise_manifest(shared_dir / "data" / "castella" / f"{split}.jsonl")
    assert (summary.queries, summary.recordings, summary.windows) == counts
    # The notes rounded to one decimal first, halves up then: 46.4999 % stands there as 47.
    assert tuple(math.floor(round(100 * share, 1) + 0.5) for share in summary.width_shares.values()) == percents
    assert (summary.crowded_queries, summary.most_windows) == crowded
    assert summary.past_end == past_end
    assert summary.median_width_seconds == 4
    assert 59 <= summary.shortest_seconds <= summary.longest_seconds == 300
    assert (summary.absent_queries, summary.unknown_queries) == (0, 0)


def test_the_broken_window_of_castella_is_named(shared_dir: Path) -> None:
    path = shared_dir / "data" / "castella" / "train.jsonl"
    assert summarise_manifest(path).furthest == PastEnd("67AE9ZKvECs_1", (299.0, 4800.0), 299.0)
    assert "162 windows end after their recording, furthest [299, 4800] of query 67AE9ZKvECs_1 in 299 s" in data_report([path])


@pytest.mark.parametrize(("split", "queries"), [("val", 4918), ("test", 6649)])
def test_clotho_moment_has_one_window_per_query(shared_dir: Path, split: str, queries: int) -> None:
    summary = summarise_manifest(shared_dir / "data" / "clotho_moment" / f"{split}.jsonl")
    assert (summary.queries, summary.windows, summary.most_windows, summary.past_end) == (queries, queries, 1, 0)
    assert summary.median_width_seconds == pytest.approx(20, abs=1)
    assert summary.shortest_seconds == summary.longest_seconds == 60


def test_the_evaluation_set_has_no_windows_to_report(shared_dir: Path) -> None:
    path = shared_dir / "data" / "dcase2026" / "evaluation.jsonl"
    summary = summarise_manifest(path)
    assert (summary.queries, summary.recordings, summary.windows, summary.unknown_queries) == (177, 100, 0, 177)
    assert summary.median_width_seconds is None
    assert row(data_report([path]), "median width") == ["-"]


def test_every_count_of_a_small_file(tmp_path: Path) -> None:
    path = write(
        tmp_path / "toy" / "m.jsonl",
        {"vid": "a", "duration": 60, "relevant_windows": [[21.1, 22.1], [0, 3], [50, 61], [60, 70]]},
        {"vid": "a", "duration": 60, "relevant_windows": []},
        {"vid": "b", "duration": 30.5},
        {"vid": "c", "duration": 90, "relevant_windows": [[second, second + 0.5] for second in range(6)]},
    )
    summary = summarise_manifest(path)
    assert (summary.queries, summary.recordings, summary.windows) == (4, 3, 10)
    assert summary.width_shares == {1: 0.7, 3: 0.8, 10: 0.9}  # 22.1 - 21.1 counts as one second
    assert summary.median_width_seconds == 0.5
    assert (summary.crowded_queries, summary.most_windows) == (1, 6)
    assert (summary.past_end, summary.outside) == (2, 1)
    assert summary.furthest == PastEnd("q0", (60.0, 70.0), 60.0)
    assert (summary.absent_queries, summary.unknown_queries) == (1, 1)
    assert (summary.shortest_seconds, summary.longest_seconds) == (30.5, 90)


def test_the_table_has_a_column_for_each_file_in_order(tmp_path: Path) -> None:
    paths = [
        write(tmp_path / name / "m.jsonl", *[{"vid": "a", "duration": 60, "relevant_windows": [[0, 4]]}] * count)
        for count, name in enumerate("xyzuv", start=1)
    ]
    blocks = data_report(paths).split("\n\n")
    assert [block.splitlines()[0].split() for block in blocks] == [[f"{name}/m.jsonl" for name in names] for names in ("xyzu", "v")]
    assert [row(block, "queries") for block in blocks] == [["1", "2", "3", "4"], ["5"]]
    assert row(blocks[1], "of at most 3 s") == ["0.0"]
    assert row(blocks[1], "of at most 10 s") == ["100.0"]
    assert row(blocks[1], "longest recording") == ["60"]
    assert "past the end" in blocks[0]
    assert len(blocks) == 2, "no file has windows past the end, so no line about them"
    assert len({len(line) for line in blocks[0].splitlines()}) == 1


def test_a_bad_file_is_named(tmp_path: Path) -> None:
    good = {"vid": "a", "duration": 60}
    with pytest.raises(DataError, match=r"bad\.jsonl, line 2: field `duration`"):
        data_report([write(tmp_path / "good.jsonl", good), write(tmp_path / "bad.jsonl", good, {**good, "duration": -1})])
