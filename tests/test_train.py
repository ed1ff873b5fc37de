"""train.py: spoilt data gives one line and exit 2 (the golden lines hold all other mistakes); several seeds are summed up."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from toy import ToyConfig, small_toy_config, small_toy_folder

from qamdetr.config import load_config, save_config
from qamdetr.errors import ConfigError
from qamdetr.training.run import Run
from train import main, seeds_table, train_seeds

__all__ = ["small_toy_config", "small_toy_folder"]  # fixtures

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="processes are ended by signals")
def test_accelerate_adds_no_traceback_to_the_line(tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("accelerate")), "launch", "--cpu", str(ROOT / "train.py"), "--config", "pocket"]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1].startswith("error: There is no file data.train_manifest=")
    assert "Traceback" not in done.stderr


@pytest.fixture
def own_set(small_toy_folder: Path, small_toy_config: ToyConfig, tmp_path: Path) -> tuple[Path, Path]:
    """A copy of the toy set to spoil, and a configuration file of one epoch on it."""
    folder = tmp_path / "set"
    shutil.copytree(small_toy_folder, folder)
    config = small_toy_config(epochs=1)
    data = replace(config.data, **dict.fromkeys(("train_manifest", "val_manifest"), str(folder / "manifest.jsonl")))
    save_config(replace(config, data=replace(data, feature_dir=str(folder / "features"))), tmp_path / "toy.yaml")
    return folder, tmp_path / "toy.yaml"


@pytest.mark.parametrize("num_workers", [0, 1])
def test_spoilt_data_is_one_line(num_workers: int, own_set: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder, config = own_set
    vid = json.loads((folder / "manifest.jsonl").read_text().splitlines()[0])["vid"]
    path = next(folder.rglob(f"features/**/{vid}.*"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    assert main(["--config", str(config), "--name", "run", "--set", f"data.num_workers={num_workers}"]) == 2
    text = capfd.readouterr().err
    (line,) = [line for line in text.replace("\r", "\n").splitlines() if line.startswith("error: ")]
    assert "cannot be read" in line
    assert "Traceback" not in text
    assert not (tmp_path / "run" / "best").exists()


def test_data_report_describes_the_manifests_and_trains_nothing(own_set: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(own_set[0].parent.rglob("*"))
    assert main(["--config", str(own_set[1]), "--data-report"]) == 0
    assert str((own_set[0] / "manifest.jsonl").read_text().count("\n")) in capsys.readouterr().out.split()
    assert sorted(own_set[0].parent.rglob("*")) == before


def rows(directory: Path) -> list[dict]:
    """The metrics of a run, but for times."""
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def test_pretrain_then_fine_tune_over_seeds_and_go_on_after_a_stop(
    own_set: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--config", str(own_set[1]), "--name", "pretrained"]) == 0
    best = tmp_path / "pretrained" / "best"
    command = ["--config", str(own_set[1]), "--name", "tuned", "--init-from", str(best), "--seeds", "3", "4"]
    save_state = Run.save_state

    def stop_at_seed_4(self: Run, *arguments: object) -> None:
        save_state(self, *arguments)  # type: ignore[arg-type]
        if self.directory.name == "tuned-s4":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save_state", stop_at_seed_4)
        assert main(command) == 130
    assert "give the same command again" in capsys.readouterr().err
    first = {path: path.stat().st_mtime_ns for path in (tmp_path / "tuned-s3").rglob("*")}
    assert Run(tmp_path / "tuned-s3").finished
    assert not Run(tmp_path / "tuned-s4").finished

    assert main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "tuned-s3").rglob("*")} == first
    for seed in (3, 4):
        assert Run(tmp_path / f"tuned-s{seed}").config().train == replace(load_config(own_set[1]).train, init_from=str(best), seed=seed)
    summary = json.loads((tmp_path / "tuned-seeds.json").read_text())
    found = [max(row["val"]["mAP"] for row in rows(tmp_path / f"tuned-s{seed}")) for seed in (3, 4)]
    assert summary["mean"]["mAP"] == pytest.approx(statistics.mean(found))
    assert summary["std"]["mAP"] == pytest.approx(statistics.stdev(found), abs=1e-4)
    assert f"{summary['mean']['mAP']:.2f} ± {summary['std']['mAP']:.2f}" in capsys.readouterr().out
    assert main([*command[:-3], "--set", "train.seed=4", "--name", "alone"]) == 0
    assert rows(tmp_path / "alone") == rows(tmp_path / "tuned-s4")


def test_one_seed_has_no_deviation_and_another_experiment_is_not_continued(small_toy_config: ToyConfig, tmp_path: Path) -> None:
    assert "±" not in seeds_table(train_seeds(small_toy_config(epochs=1), "toy", [7]))
    with pytest.raises(ConfigError, match="another configuration"):
        train_seeds(small_toy_config(epochs=2), "toy", [7, 8])
    assert not (tmp_path / "toy-s8").exists()
