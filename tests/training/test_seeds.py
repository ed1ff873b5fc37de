"""Several seeds of one experiment: each run stands by itself, none is run twice, and the summary says what they found."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from qamdetr.config import Config
from qamdetr.errors import ConfigError
from qamdetr.training.loop import train
from qamdetr.training.run import Run
from train import seeds_table, train_seeds

ToyConfig = Callable[..., Config]


def rows(directory: Path) -> list[dict]:
    """The metrics of a run, but for times."""
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def test_a_stopped_command_goes_on_and_sums_up(small_toy_config: ToyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_toy_config(epochs=1)
    save_state = Run.save_state

    def stop_at_seed_1(self: Run, *arguments: object) -> None:
        save_state(self, *arguments)
        if self.directory.name == "toy-s1":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save_state", stop_at_seed_1)
        with pytest.raises(KeyboardInterrupt):
            train_seeds(config, "toy", [0, 1])
    first = {path: path.stat().st_mtime_ns for path in (tmp_path / "toy-s0").rglob("*")}
    assert Run(tmp_path / "toy-s0").finished
    assert not Run(tmp_path / "toy-s1").finished

    summary = train_seeds(config, "toy", [0, 1])
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "toy-s0").rglob("*")} == first
    assert json.loads((tmp_path / "toy-seeds.json").read_text())["mean"] == summary["mean"]
    found = [max(row["val"]["mAP"] for row in rows(tmp_path / f"toy-s{seed}")) for seed in (0, 1)]
    assert summary["mean"]["mAP"] == pytest.approx(statistics.mean(found))
    assert summary["std"]["mAP"] == pytest.approx(statistics.stdev(found), abs=1e-4)
    table = seeds_table(summary).splitlines()
    assert [line.split()[0] for line in table] == ["seed", "0", "1", "mean"]

    alone = train(replace(config, train=replace(config.train, seed=1)), tmp_path / "alone")
    assert rows(alone.directory) == rows(tmp_path / "toy-s1")


def test_folders_of_another_experiment_are_not_continued(small_toy_config: ToyConfig, tmp_path: Path) -> None:
    train_seeds(small_toy_config(epochs=1), "toy", [0])
    with pytest.raises(ConfigError, match="another configuration"):
        train_seeds(small_toy_config(epochs=2), "toy", [0, 1])
    assert not (tmp_path / "toy-s1").exists()


def test_one_seed_has_no_deviation(small_toy_config: ToyConfig) -> None:
    summary = train_seeds(small_toy_config(epochs=1), "toy", [7])
    assert set(summary["std"].values()) == {None}
    assert "±" not in seeds_table(summary)


def test_a_seed_named_twice_is_refused(small_toy_config: ToyConfig) -> None:
    with pytest.raises(ConfigError, match="each seed once"):
        train_seeds(small_toy_config(), "toy", [1, 1])
