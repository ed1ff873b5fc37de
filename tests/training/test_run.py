"""A run's folder: replaced whole or not at all, never another run's."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from qamdetr.config import Config
from qamdetr.errors import CheckpointError, ConfigError, DataError
from qamdetr.inference.checkpoint import load_checkpoint
from qamdetr.model.qam_detr import QamDetr
from qamdetr.training import run as checkpoint
from qamdetr.training.run import Progress, Run, file_fingerprint, swap_directory


@pytest.fixture
def run(toy_config: Callable[..., Config], tmp_path: Path) -> Run:
    return Run.create(tmp_path / "run", toy_config(), "python train.py --config toy")


def test_a_run_notes_what_it_was_made_of(run: Run, toy_config: Callable[..., Config]) -> None:
    assert run.config() == toy_config()
    facts = run.facts()
    assert facts["command"] == "python train.py --config toy"
    assert facts["train_manifest"] == file_fingerprint(Path(toy_config().data.train_manifest))
    assert len(facts["git_revision"]) >= 7


def test_a_folder_is_never_taken_twice(run: Run, toy_config: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match="--resume"):
        Run.create(run.directory, toy_config(), "")


def test_a_folder_without_a_run_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no run"):
        Run.open(tmp_path)


def test_best_is_a_whole_checkpoint_and_the_next_one_replaces_it(run: Run) -> None:
    config = run.config()
    models = [QamDetr(config.model), QamDetr(config.model)]
    for model in models:
        run.save_best(model, config, "# card")
    loaded, loaded_config = load_checkpoint(run.best_dir)
    assert loaded_config == config
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in models[1].state_dict().items())
    assert (run.best_dir / "README.md").read_text() == "# card"
    assert sorted(path.name for path in run.directory.iterdir()) == ["best", "config.yaml", "run.json"]
    assert sorted(path.name for path in run.best_dir.iterdir()) == ["README.md", "config.yaml", "model.safetensors", "run.json"]


def test_a_failed_save_keeps_the_best_before(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    config = run.config()
    run.save_best(QamDetr(config.model), config, "# first")

    def full_disk(directory: Path, *_args: object, **_kwargs: object) -> None:
        directory.mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_checkpoint", full_disk)
    with pytest.raises(CheckpointError, match="No space left"):
        run.save_best(QamDetr(config.model), config, "# second")
    assert (run.best_dir / "README.md").read_text() == "# first"
    load_checkpoint(run.best_dir)


def test_a_kill_between_the_renames_loses_nothing(run: Run) -> None:
    config = run.config()
    run.save_best(QamDetr(config.model), config, "# only")
    run.best_dir.rename(run.best_dir.with_name("best.old"))
    reopened = Run.open(run.directory)
    assert (reopened.best_dir / "README.md").read_text() == "# only"


def test_state_comes_back_with_its_random_generator(run: Run) -> None:
    accelerator = Accelerator(cpu=True)
    model = accelerator.prepare(torch.nn.Linear(2, 2))
    progress = Progress(epoch=3, step=30, best={"R1@0.7": 12.5}, best_rank=(12.5, 3.0))
    accelerator.register_for_checkpointing(progress)
    run.save_state(accelerator, progress)
    expected_weight, expected_draw = model.weight.clone(), torch.rand(3)

    torch.nn.init.zeros_(model.weight)
    torch.manual_seed(999)
    progress.load_state_dict(Progress().state_dict())
    run.load_state(accelerator)
    assert torch.equal(model.weight, expected_weight)
    assert torch.equal(torch.rand(3), expected_draw)
    assert (progress.epoch, progress.step, progress.best, progress.best_rank) == (3, 30, {"R1@0.7": 12.5}, (12.5, 3.0))

    progress.step = 40
    run.save_state(accelerator, progress)
    (run.directory / "last" / "unfinished").mkdir()
    assert [path.name for path in (run.directory / "last").glob("step-*")] == ["step-00000040"]
    run.load_state(accelerator)
    assert progress.step == 40


def test_a_damaged_state_gives_one_line(run: Run) -> None:
    accelerator = Accelerator(cpu=True)
    accelerator.prepare(torch.nn.Linear(2, 2))
    run.save_state(accelerator, Progress(step=1))
    (weights,) = (run.directory / "last").glob("*/model.safetensors")
    weights.write_bytes(b"half")
    with pytest.raises(CheckpointError, match="cannot be resumed from"):
        run.load_state(accelerator)


def test_lines_of_repeated_epochs_are_dropped(run: Run) -> None:
    for epoch in (1, 2, 3):
        run.log_metrics({"epoch": epoch})
    with (run.directory / "metrics.jsonl").open("a") as file:
        file.write('{"epo')
    run.forget_metrics_after(2)
    assert [json.loads(line) for line in (run.directory / "metrics.jsonl").read_text().splitlines()] == [{"epoch": 1}, {"epoch": 2}]


def test_swap_replaces_whole_folders(tmp_path: Path) -> None:
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text("")
    swap_directory(tmp_path / "new", tmp_path / "old")
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["old", "old/new"]


def test_a_manifest_that_is_not_there_gives_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.train_manifest"):
        file_fingerprint(tmp_path / "gone.jsonl")


def test_two_processes_cannot_train_in_one_folder(run: Run) -> None:
    # A second lock object stands for a second process: the system tells them apart by the open file.
    with run.claimed(), pytest.raises(CheckpointError, match="being trained by another process"), Run(run.directory).claimed():
        pass
    with run.claimed():
        pass


def test_a_claim_ends_with_the_process_that_was_killed(run: Run) -> None:
    code = "import sys, os, signal\nfrom pathlib import Path\nfrom qamdetr.training.run import Run\n"
    code += "with Run(Path(sys.argv[1])).claimed():\n    print('claimed', flush=True)\n    sys.stdin.read()\n"
    with subprocess.Popen([sys.executable, "-c", code, str(run.directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"claimed\n"
        with pytest.raises(CheckpointError, match="another process"), run.claimed():
            pass
        other.kill()
    with run.claimed():
        pass
