"""A run that is killed, or whose disk is full, at any moment loses nothing that was saved and ends as if nothing had happened."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import yaml
from faulty_process import run_train
from safetensors.torch import load_file
from toy import toy_settings

from qamdetr.config import Config, config_to_dict
from qamdetr.errors import CheckpointError
from qamdetr.inference.checkpoint import load_checkpoint
from qamdetr.training.loop import train
from qamdetr.training.run import Run

ROOT = Path(__file__).resolve().parents[2]

ToyConfig = Callable[..., Config]


def write_config(config: Config, path: Path) -> Path:
    path.write_text(yaml.safe_dump(config_to_dict(config), sort_keys=False))
    return path


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


@dataclass(frozen=True)
class Reference:
    """A run that nothing interrupted: how it was started, what it left, and the moments that it came to."""

    arguments: list[str]
    contents: dict[str, object]
    moments: list[str]


@pytest.fixture(scope="module")
def reference(small_toy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reference]:
    folder = tmp_path_factory.mktemp("reference")
    settings = toy_settings(
        small_toy_folder, folder, {"encoder": "transformer"}, batch_size=4, epochs=2, save_every_steps=2, ema_decay=0.9
    )  # fmt: skip
    settings["data"] |= {"crop_probability": 0.5, "text_noise": 0.1}
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    arguments = ["--config", str(path), "--name", "run"]
    status, errors, moments = run_train(arguments, folder / "run")
    assert status == 0, errors
    yield Reference(arguments, contents(folder / "run"), moments)


def nth(moments: list[str], text: str, occurrence: int) -> int:
    """Position of the n-th moment that contains `text`."""
    return [position for position, moment in enumerate(moments) if text in moment][occurrence]


MOMENTS = {
    "making the folder": (".new/config.yaml", 0),
    "before the first state": ("os.mkdir last", 0),
    "mid-epoch state half copied": ("open last/unfinished/run.json", 0),
    "mid-epoch state complete, not yet named": ("os.rename last/unfinished", 0),
    "best checkpoint half written": ("open .best.new/README.md", 0),
    "metrics not yet appended": ("open metrics.jsonl", 0),
    "metrics appended, state not saved": ("os.mkdir last", 2),
    "deleting the state before": ("os.rmdir", 1),
    "second epoch, mid-epoch state named": ("os.rename last/unfinished", 2),
    "noting that it is finished": ("os.rename .run.", -1),
}


def moment_of(reference: Reference, name: str) -> int:
    text, occurrence = MOMENTS[name]
    return nth(reference.moments, text, occurrence)


@pytest.mark.slow
@pytest.mark.parametrize("name", MOMENTS)
def test_killed_at_any_moment_it_ends_as_if_it_had_not_been(name: str, reference: Reference, tmp_path: Path) -> None:
    arguments = [*reference.arguments, "--set", f"train.output_dir={tmp_path}"]
    directory = tmp_path / "run"
    status, errors, _ = run_train(arguments, directory, fault="kill", moment=moment_of(reference, name))
    assert status == -signal.SIGKILL, errors

    again = ["--resume", str(directory)] if directory.is_dir() else arguments
    status, errors, _ = run_train(again, directory)
    assert status == 0, errors
    assert contents(directory) == reference.contents
    names = {path.name for path in directory.iterdir() if not path.name.startswith(".")}
    assert names == {"best", "config.yaml", "last", "metrics.jsonl", "progress.json", "run.json"}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, (moment, _) in MOMENTS.items() if moment.startswith(("open", "os.mkdir", ".new"))])
def test_a_full_disk_gives_one_line_and_loses_nothing(name: str, reference: Reference, tmp_path: Path) -> None:
    arguments = [*reference.arguments, "--set", f"train.output_dir={tmp_path}"]
    directory = tmp_path / "run"
    status, errors, _ = run_train(arguments, directory, fault="full", moment=moment_of(reference, name))
    assert status == 2
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "No space left on device" in lines[0]
    assert "Traceback" not in errors
    assert not list(tmp_path.rglob("unfinished")) + list(tmp_path.rglob(".*.new"))

    again = ["--resume", str(directory)] if directory.is_dir() else arguments
    status, errors, _ = run_train(again, directory)
    assert status == 0, errors
    assert contents(directory) == reference.contents


@pytest.mark.slow
def test_a_process_killed_from_outside_is_resumed(reference: Reference, tmp_path: Path) -> None:
    arguments = [*reference.arguments, "--set", f"train.output_dir={tmp_path}", "--threads", "1"]
    process = subprocess.Popen([sys.executable, str(ROOT / "train.py"), *arguments], cwd=ROOT, stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob("run/last/step-*")) and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert list(tmp_path.glob("run/last/step-*"))
    status, errors, _ = run_train(["--resume", str(tmp_path / "run")], tmp_path / "run")
    assert status == 0, errors
    assert contents(tmp_path / "run") == reference.contents


@pytest.mark.parametrize(
    "failure", [RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"), OSError(28, "No space")]
)
def test_a_writer_that_fails_inside_a_library_is_a_full_disk_too(
    failure: Exception, small_toy_config: ToyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(small_toy_config(epochs=1), tmp_path / "run")
    before = sorted(path.name for path in tmp_path.glob("run/last/*"))
    save = torch.save

    def fail(value: object, path: Path, *_: object, **__: object) -> None:
        Path(path).write_bytes(b"half")
        raise failure

    longer = replace(run.config(), train=replace(run.config().train, epochs=2))
    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(CheckpointError, match=r"Cannot save .*what was saved before is kept"):
        train(longer, tmp_path / "longer")
    monkeypatch.setattr(torch, "save", save)
    assert sorted(path.name for path in tmp_path.glob("run/last/*")) == before
    load_checkpoint(tmp_path / "longer" / "best")
    assert not list((tmp_path / "longer").rglob("unfinished"))


def killed_run(small_toy_config: ToyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **train_section: object) -> Run:
    """A run that was stopped right after its first state was saved."""
    save_state = Run.save_state

    def save_and_stop(self: Run, *arguments: object) -> None:
        save_state(self, *arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save_state", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            train(small_toy_config(save_every_steps=1, **train_section), tmp_path / "run")
    return Run.open(tmp_path / "run")


def test_what_changed_since_the_state_was_saved_is_named(
    small_toy_config: ToyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = killed_run(small_toy_config, tmp_path, monkeypatch)
    config = run.config()
    faster = replace(config, train=replace(config.train, learning_rate=0.01))
    with pytest.raises(CheckpointError, match=r"another configuration \(train\.learning_rate was 0\.002, is 0\.01\)"):
        train(faster, run.directory, resume=True)

    fingerprint = run.facts()["data_fingerprint"]
    run.check_unchanged(config, fingerprint, 1)
    with pytest.raises(CheckpointError, match=r"is a run of 1 process.*here are 2"):
        run.check_unchanged(config, fingerprint, 2)

    manifest = Path(config.data.train_manifest)
    shorter = tmp_path / "shorter.jsonl"
    shorter.write_text("".join(manifest.read_text().splitlines(keepends=True)[:-1]))
    other_data = replace(config, data=replace(config.data, train_manifest=str(shorter)))
    for folder in (run.directory, *run.directory.glob("last/*")):
        write_config(other_data, folder / "config.yaml")
    with pytest.raises(CheckpointError, match=f"trained on data {fingerprint}, but"):
        train(other_data, run.directory, resume=True)


def test_a_run_of_an_earlier_version_is_refused(small_toy_config: ToyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = killed_run(small_toy_config, tmp_path, monkeypatch)
    facts = {key: value for key, value in run.facts().items() if key != "data_fingerprint"}
    (run.directory / "run.json").write_text(json.dumps(facts))
    with pytest.raises(CheckpointError, match="earlier version"):
        train(run.config(), run.directory, resume=True)


def test_a_fine_tuned_run_is_resumed_without_the_checkpoint_that_it_began_with(
    small_toy_config: ToyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = train(small_toy_config(epochs=1), tmp_path / "source").best_dir
    run = killed_run(small_toy_config, tmp_path, monkeypatch, epochs=1, init_from=str(source))
    source.rename(tmp_path / "moved")
    assert train(run.config(), run.directory, resume=True).finished


def test_every_checkpoint_says_where_it_comes_from(small_toy_config: ToyConfig, tmp_path: Path) -> None:
    config = small_toy_config(epochs=1, seed=5)
    run = train(config, tmp_path / "run", command="python train.py --config toy")
    (state,) = run.directory.glob("last/*")
    for folder in (run.best_dir, state):
        facts = Run(folder).facts()
        assert facts["command"] == "python train.py --config toy"
        assert facts["seed"] == Run(folder).config().train.seed == 5
        assert facts["git_revision"] == run.facts()["git_revision"]
        assert len(facts["data_fingerprint"]) == 16
        assert facts["packages"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert run.finished
    assert run.facts()["finished"]["epoch"] == 1


def test_a_finished_run_is_left_as_it_is(small_toy_config: ToyConfig, tmp_path: Path) -> None:
    run = train(small_toy_config(epochs=1), tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in run.directory.rglob("*")}
    train(run.config(), run.directory, resume=True)
    assert {path: path.stat().st_mtime_ns for path in run.directory.rglob("*")} == before
