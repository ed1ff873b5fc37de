"""`data-report`: the report of all files reaches stdout."""

from __future__ import annotations

from qamdetr import cli
from qamdetr.data.manifest import QueryEntry, write_manifest
from qamdetr.evaluation.data_report import data_report


def test_the_report_of_all_files_is_printed(tmp_path, capsys):
    paths = [tmp_path / "one.jsonl", tmp_path / "two.jsonl"]
    for number, path in enumerate(paths, start=1):
        write_manifest(path, [QueryEntry(str(i), "q", "v", 60.0, ((0.0, 5.0),)) for i in range(number)])
    assert cli.main(["data-report", *map(str, paths)]) == 0
    assert capsys.readouterr().out.strip() == data_report(paths).strip()
