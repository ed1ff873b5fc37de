"""The training entry: users' mistakes give one line and exit 2."""

from __future__ import annotations

from pathlib import Path

import pytest

from train import main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "nope"], "No config 'nope'"),
        (["--config", "pocket", "--set", "train.epoch=3"], "Unknown key 'train.epoch'"),
        (["--config", "pocket", "--set", "data.train_manifest="], "data.train_manifest"),
        (["--config", "pocket", "--set", "data.train_manifest=gone.jsonl"], "data.train_manifest=gone.jsonl"),
        (["--config", "pocket", "--set", "train.tracker=tensorbord"], "'tensorbord'"),
        (
            ["--config", "pocket", "--data-report", "--set", "data.train_manifest=''", "--set", "data.val_manifest=''"],
            "data.train_manifest and data.val_manifest: no file is named",
        ),
        (["--config", "pocket", "--seeds", "1", "1"], "each seed once"),
        (["--resume", "nowhere"], "nowhere holds no run"),
    ],
)
def test_mistakes_give_one_line_and_exit_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--config", "pocket", "--resume", "x"],
        ["--resume", "x", "--set", "a.b=c"],
        ["--resume", "x", "--seeds", "1"],
        ["--resume", "x", "--init-from", "y"],
        ["--resume", "x", "--data-report"],
        ["--config", "pocket", "--seeds"],
        ["--config", "pocket", "--threads", "0"],
    ],
)
def test_impossible_combinations_of_arguments_exit_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
