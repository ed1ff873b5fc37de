"""train.py on a toy set: what a user can get wrong gives one line and exit 2, and touches nothing that is there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from qamdetr.config import Config, load_config, save_config
from qamdetr.inference.checkpoint import save_checkpoint
from qamdetr.model.qam_detr import QamDetr
from qamdetr.training.run import Run
from train import main

ToyConfig = Callable[..., Config]
Spoil = Callable[[Path], str]


@pytest.fixture
def own_set(small_toy_folder: Path, small_toy_config: ToyConfig, tmp_path: Path) -> tuple[Path, Path]:
    """A copy of the toy set to spoil, and a configuration file of one epoch on it."""
    folder = tmp_path / "set"
    shutil.copytree(small_toy_folder, folder)
    config = small_toy_config(epochs=1)
    data = replace(config.data, **dict.fromkeys(("train_manifest", "val_manifest"), str(folder / "manifest.jsonl")))
    save_config(replace(config, data=replace(data, feature_dir=str(folder / "features"))), tmp_path / "toy.yaml")
    return folder, tmp_path / "toy.yaml"


def first_vid(folder: Path) -> str:
    vid: str = json.loads((folder / "manifest.jsonl").read_text().splitlines()[0])["vid"]
    return vid


def break_a_line(folder: Path) -> str:
    with (folder / "manifest.jsonl").open("a") as file:
        file.write('{"qid": "half", "query": \n')
    return "manifest.jsonl"


def lose_a_feature(folder: Path) -> str:
    vid = first_vid(folder)
    next(folder.glob(f"features/toy/audio/{vid}.*")).unlink()
    return repr(vid)


def spoil_a_feature(folder: Path) -> str:
    path = next(folder.glob(f"features/toy/audio/{first_vid(folder)}.*"))
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    return "cannot be read (the checksum of"


def one_error_line(text: str) -> str:
    (line,) = [line for line in text.replace("\r", "\n").splitlines() if line.startswith("error: ")]
    assert "Traceback" not in text
    return line


@pytest.mark.parametrize(("spoil", "num_workers"), [(break_a_line, 0), (lose_a_feature, 0), (spoil_a_feature, 0), (spoil_a_feature, 1)])
def test_spoilt_data_is_one_line(
    spoil: Spoil, num_workers: int, own_set: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, config = own_set
    expected = spoil(folder)
    assert main(["--config", str(config), "--name", "run", "--set", f"data.num_workers={num_workers}"]) == 2
    assert expected in one_error_line(capfd.readouterr().err)
    assert not (tmp_path / "run" / "best").exists()


def test_a_checkpoint_of_other_streams_is_one_line(own_set: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = load_config(own_set[1])
    other = replace(config, model=replace(config.model, audio_streams={"clap": 512}, similarity=False))
    save_checkpoint(tmp_path / "clap", QamDetr(other.model), other)
    assert main(["--config", str(own_set[1]), "--name", "run", "--init-from", str(tmp_path / "clap")]) == 2
    assert "its audio streams are clap (512 wide), here they are toy" in one_error_line(capfd.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_a_typo_in_the_configuration_is_one_line(own_set: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    own_set[1].write_text(own_set[1].read_text().replace("learning_rate", "learning_rat"))
    assert main(["--config", str(own_set[1]), "--name", "run"]) == 2
    assert "'train.learning_rat'" in one_error_line(capfd.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_pretrain_then_fine_tune_over_seeds(own_set: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", str(own_set[1]), "--name", "pretrained"]) == 0
    best = tmp_path / "pretrained" / "best"
    command = ["--config", str(own_set[1]), "--name", "tuned", "--init-from", str(best), "--seeds", "3", "4"]
    assert main(command) == 0
    assert [Run(tmp_path / f"tuned-s{seed}").config().train for seed in (3, 4)] == [
        replace(load_config(own_set[1]).train, init_from=str(best), seed=seed) for seed in (3, 4)
    ]
    summary = json.loads((tmp_path / "tuned-seeds.json").read_text())
    assert f"{summary['mean']['mAP']:.2f} ± {summary['std']['mAP']:.2f}" in capsys.readouterr().out


def test_data_report_describes_the_manifests_and_trains_nothing(
    own_set: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, config = own_set
    before = sorted(tmp_path.rglob("*"))
    assert main(["--config", str(config), "--data-report"]) == 0
    queries = (folder / "manifest.jsonl").read_text().count("\n")
    assert str(queries) in capsys.readouterr().out.split()
    assert sorted(tmp_path.rglob("*")) == before
