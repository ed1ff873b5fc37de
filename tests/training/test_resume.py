"""A run that is killed, or whose disk is full, at any moment loses nothing that was saved and ends as if nothing had happened."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
import yaml
from accelerate import Accelerator
from faulty_process import run_train
from safetensors.torch import load_file
from toy import ToyConfig, forget_accelerate, toy_settings

from qamdetr.config import Config, build, save_config
from qamdetr.errors import CheckpointError, ConfigError
from qamdetr.inference.checkpoint import load_checkpoint
from qamdetr.training.loop import train
from qamdetr.training.run import Progress, Run
from train import main

ROOT = Path(__file__).resolve().parents[2]


def plain(value: object) -> object:
    """A saved value in which tensors are lists, so that `==` compares everything to the bit."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if key != "seconds"}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value.tolist() if hasattr(value, "tolist") else value


def contents(directory: Path) -> dict[str, object]:
    """All that a finished run left, but for times: weights, averaged weights, optimiser, schedule, generators, metrics, best."""
    (state,) = directory.glob("last/*")
    found: dict[str, object] = {"weights": plain(load_file(state / "model.safetensors"))}
    found |= {path.name: plain(torch.load(path, weights_only=False)) for path in sorted(state.iterdir()) if path.suffix in (".bin", ".pkl")}
    found["best"] = plain(load_file(directory / "best" / "model.safetensors"))
    found["metrics"] = [plain(json.loads(line)) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    found["finished"] = json.loads((directory / "run.json").read_text())["finished"]
    return found


@pytest.fixture(scope="module")
def reference(small_toy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], dict[str, object], list[str]]:
    """How a run was started that nothing interrupted, what it left, and the moments that it came to."""
    folder = tmp_path_factory.mktemp("reference")
    train_settings = {"batch_size": 4, "epochs": 2, "save_every_steps": 2, "ema_decay": 0.9}
    settings = toy_settings(small_toy_folder, folder, {"encoder": "transformer"}, **train_settings)
    settings["data"] |= {"crop_probability": 0.5, "text_noise": 0.1}
    (folder / "toy.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    arguments = ["--config", str(folder / "toy.yaml"), "--name", "run"]
    status, errors, moments = run_train(arguments, folder / "run")
    assert status == 0, errors
    return arguments, contents(folder / "run"), moments


MOMENTS = {  # the n-th that contains a text
    "making the folder": (".new/config.yaml", 0),
    "mid-epoch state half copied": ("open last/unfinished/run.json", 0),
    "mid-epoch state complete, not yet named": ("os.rename last/unfinished", 0),
    "second best checkpoint half written": ("open .best.new/run.json", -1),
    "second best checkpoint written, the first moved away": ("os.rename .best.new", -1),
    "metrics appended, state not saved": ("os.mkdir last", 2),
    "second epoch, mid-epoch state named": ("os.rename last/unfinished", 2),
    "noting that it is finished": ("os.rename .run.", -1),
}
FAULTS = [("kill", name) for name in MOMENTS]
FAULTS += [("full", name) for name, (text, _) in MOMENTS.items() if not text.startswith("os.rename")]


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "name"), FAULTS)
def test_killed_or_on_a_full_disk_at_any_moment_it_ends_as_if_nothing_had_been(
    fault: Literal["kill", "full"], name: str, reference: tuple[list[str], dict[str, object], list[str]], tmp_path: Path
) -> None:
    (started, left, moments), (text, occurrence) = reference, MOMENTS[name]
    moment = [position for position, passed in enumerate(moments) if text in passed][occurrence]
    arguments, directory = [*started, "--set", f"train.output_dir={tmp_path}"], tmp_path / "run"
    status, errors, _ = run_train(arguments, directory, fault=fault, moment=moment)
    assert status == (-signal.SIGKILL if fault == "kill" else 2), errors
    assert "best checkpoint" not in name or any(load_checkpoint(folder) for folder in directory.glob("best*"))
    if fault == "full":
        (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
        assert "No space left on device" in line
        assert "Traceback" not in errors
        assert not list(tmp_path.rglob("unfinished")) + list(tmp_path.rglob(".*.new"))

    again = ["--resume", str(directory)] if directory.is_dir() else arguments
    status, errors, _ = run_train(again, directory)
    assert status == 0, errors
    assert contents(directory) == left
    names = {path.name for path in directory.iterdir() if not path.name.startswith(".")}
    assert names == {"best", "config.yaml", "last", "metrics.jsonl", "progress.json", "run.json"}


def test_a_writer_that_fails_inside_a_library_is_a_full_disk_too(
    small_toy_config: ToyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(CheckpointError, match=r"Cannot save .*what was saved before is kept"):
        train(small_toy_config(epochs=1), tmp_path / "run")
    assert not list(tmp_path.rglob("unfinished"))


def stop_after(train_it: Callable[[], object], is_time: Callable[[Progress], bool]) -> None:
    """Train until a state was saved at the right time."""
    save_state = Run.save_state

    def save_and_stop(self: Run, accelerator: Accelerator, progress: Progress) -> None:
        save_state(self, accelerator, progress)
        if is_time(progress):
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "save_state", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            train_it()


def test_a_run_in_bf16_is_resumed_to_the_bit(small_toy_config: ToyConfig, tmp_path: Path) -> None:
    states = []
    for name in ("whole", "stopped"):
        forget_accelerate()
        config = small_toy_config(epochs=2, save_every_steps=2, mixed_precision="bf16")
        if name == "stopped":
            stop_after(lambda: train(config, tmp_path / "stopped"), lambda progress: bool(progress.epoch == 1 and progress.batches))  # noqa: B023
            forget_accelerate()
        train(config, tmp_path / name, resume=name == "stopped")
        states.append(contents(tmp_path / name))
    forget_accelerate()
    assert states[0] == states[1]


@pytest.fixture(scope="module")
def stopped(small_toy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped in its second epoch."""
    folder = tmp_path_factory.mktemp("stopped")
    config = build(Config, toy_settings(small_toy_folder, folder, {"encoder": "transformer"}, batch_size=4, save_every_steps=2))
    stop_after(lambda: train(config, folder / "run"), lambda progress: bool(progress.epoch == 1 and progress.batches))
    return folder / "run"


def test_what_changed_since_the_state_was_saved_is_named(stopped: Path, tmp_path: Path) -> None:
    run = Run.open(Path(shutil.copytree(stopped, tmp_path / "run")))
    config = run.config()
    faster = replace(config, train=replace(config.train, learning_rate=0.01))
    with pytest.raises(CheckpointError, match=r"another configuration \(train\.learning_rate was 0\.002, is 0\.01\)"):
        train(faster, run.directory, resume=True)

    fingerprint = run.facts()["data_fingerprint"]
    with pytest.raises(CheckpointError, match=r"is a run of 1 process.*here are 2"):
        run.check_unchanged(config, fingerprint, 2)

    manifest = Path(config.data.train_manifest)
    shorter = tmp_path / "shorter.jsonl"
    shorter.write_text("".join(manifest.read_text().splitlines(keepends=True)[:-1]))
    other_data = replace(config, data=replace(config.data, train_manifest=str(shorter)))
    for folder in (run.directory, *run.directory.glob("last/*")):
        save_config(other_data, folder / "config.yaml")
    with pytest.raises(CheckpointError, match=f"trained on data {fingerprint}, but"):
        train(other_data, run.directory, resume=True)


def test_a_fine_tuned_run_is_resumed_without_the_checkpoint_that_it_began_with(small_toy_config: ToyConfig, tmp_path: Path) -> None:
    source = train(small_toy_config(epochs=1, batch_size=16), tmp_path / "source").best_dir
    config = small_toy_config(epochs=1, init_from=str(source), save_every_steps=1)
    stop_after(lambda: train(config, tmp_path / "run"), lambda _: True)
    source.rename(tmp_path / "moved")
    assert train(config, tmp_path / "run", resume=True).finished


def test_a_run_says_where_it_comes_from_and_a_finished_one_is_left_as_it_is(small_toy_config: ToyConfig, tmp_path: Path) -> None:
    run = train(small_toy_config(epochs=1, seed=5), tmp_path / "run", command="python train.py --config toy")
    facts = Run(run.best_dir).facts()
    assert (facts["command"], facts["seed"]) == ("python train.py --config toy", 5)
    assert {len(facts[key]) for key in ("data_fingerprint", "train_manifest", "val_manifest")} == {16}
    assert facts["packages"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert facts.items() <= run.facts().items()
    before = {path: path.stat().st_mtime_ns for path in run.directory.rglob("*")}
    train(run.config(), run.directory, resume=True)
    assert {path: path.stat().st_mtime_ns for path in run.directory.rglob("*")} == before
    with pytest.raises(ConfigError, match="holds another run; choose another --name or continue it with --resume"):
        train(small_toy_config(), run.directory)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(bytes(content))


LOST = "cannot be resumed from"
DAMAGE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "a flipped bit in the weights": ("last/*/model.safetensors", flip_a_bit, LOST + r" .model\.safetensors changed on the disk"),
    "half a file": ("last/*/optimizer.bin", lambda path: path.write_bytes(path.read_bytes()[:99]), LOST),
    "no checksums": ("last/*/sums.json", Path.unlink, LOST),
    "damaged facts": ("run.json", lambda path: path.write_text("{"), r"run\.json cannot be read"),
    "damaged metrics": ("metrics.jsonl", lambda path: path.write_text("[1]\nx\n"), r"metrics\.jsonl is damaged"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_run_is_refused_in_one_line(damage: str, stopped: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pattern, spoil, message = DAMAGE[damage]
    shutil.copytree(stopped, tmp_path / "run")
    (path,) = (tmp_path / "run").glob(pattern)
    spoil(path)
    assert main(["--resume", str(tmp_path / "run")]) == 2
    errors = capfd.readouterr().err
    assert re.search(f"^error: .*{message}", errors, re.MULTILINE)
    assert "Traceback" not in errors


def test_a_claim_keeps_others_out_and_ends_with_the_process_that_was_killed(tmp_path: Path) -> None:
    code = "import sys\nfrom pathlib import Path\nfrom qamdetr.training.run import Run\n"
    code += "with Run(Path(sys.argv[1])).claimed():\n    print('claimed', flush=True)\n    sys.stdin.read()\n"
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"claimed\n"
        with pytest.raises(CheckpointError, match="being trained by another process"), Run(tmp_path).claimed():
            pass
        other.kill()
    with Run(tmp_path).claimed():
        pass
