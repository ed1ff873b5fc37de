"""The training loop on a toy task: it learns, resumes to the bit, and keeps its promises about folders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.optim import AdamW

from qamdetr.config import Config, TrainConfig, load_config, save_config
from qamdetr.errors import CheckpointError, ConfigError, DataError, QamDetrError
from qamdetr.inference.checkpoint import save_checkpoint
from qamdetr.model.qam_detr import QamDetr
from qamdetr.training import loop
from qamdetr.training.loop import make_optimizer, make_schedule, train, update_average
from qamdetr.training.run import Run
from qamdetr.training.validation import Validation

ToyConfig = Callable[..., Config]


def metrics_of(run: Run) -> list[dict]:
    return [json.loads(line) for line in (run.directory / "metrics.jsonl").read_text().splitlines()]


def state_of(run: Run) -> dict[str, torch.Tensor]:
    (state,) = (run.directory / "last").iterdir()
    return load_file(state / "model.safetensors")


def copy_at_epoch(monkeypatch: pytest.MonkeyPatch, epoch: int, target: Path) -> None:
    """Copy the run's folder as it is right after the state of `epoch` was saved: what a kill at that moment leaves."""
    save_state = Run.save_state

    def save_and_copy(self, accelerator, progress):
        save_state(self, accelerator, progress)
        if progress.epoch == epoch:
            shutil.copytree(self.directory, target)

    monkeypatch.setattr(Run, "save_state", save_and_copy)


@pytest.mark.slow
def test_learns_the_toy_task_and_leaves_a_whole_checkpoint(toy_config: ToyConfig, tmp_path: Path) -> None:
    config = toy_config(model={"dropout": 0.0, "input_dropout": 0.0}, epochs=30, batch_size=8, ema_decay=0.9, tracker="tensorboard")
    run = train(config, tmp_path / "run", command="python train.py --config toy")

    epochs = metrics_of(run)
    assert epochs[-1]["loss"]["total"] < 0.4 * epochs[0]["loss"]["total"]
    best = max(row["val"]["R1@0.7"] for row in epochs)
    assert max(row["val"]["R1@0.5"] for row in epochs) >= 90
    assert epochs[-1]["val"]["present_score"] > epochs[-1]["val"]["absent_score"]
    saved = load_config(run.best_dir / "config.yaml")
    assert 0 < saved.inference.found_threshold < 1
    card = (run.best_dir / "README.md").read_text()
    assert "python train.py --config toy" in card
    assert f"R1@0.7 | {best:g}" in card
    assert list((run.directory / "tensorboard").glob("events.*"))


def test_a_killed_run_ends_with_the_same_weights_as_one_that_never_stopped(
    toy_config: ToyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = toy_config(epochs=3, ema_decay=0.9)
    copy_at_epoch(monkeypatch, 2, tmp_path / "killed")
    whole = train(config, tmp_path / "whole")
    with (tmp_path / "killed" / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "st')

    resumed = train(Run.open(tmp_path / "killed").config(), tmp_path / "killed", resume=True)

    expected = state_of(whole)
    found = state_of(resumed)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    best, resumed_best = (load_file(run.best_dir / "model.safetensors") for run in (whole, resumed))
    assert all(torch.equal(best[name], resumed_best[name]) for name in best)
    drop_time = [{key: value for key, value in row.items() if key != "seconds"} for row in metrics_of(whole)]
    assert drop_time == [{key: value for key, value in row.items() if key != "seconds"} for row in metrics_of(resumed)]


def test_a_seed_decides_everything(toy_config: ToyConfig, tmp_path: Path) -> None:
    first, again, other = (train(toy_config(epochs=1, seed=seed), tmp_path / f"run{i}") for i, seed in enumerate((0, 0, 1)))
    assert all(torch.equal(a, b) for a, b in zip(state_of(first).values(), state_of(again).values(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(state_of(first).values(), state_of(other).values(), strict=True))


def test_accumulated_batches_make_one_step(toy_config: ToyConfig, tmp_path: Path) -> None:
    run = train(toy_config(epochs=1, batch_size=8, accumulate_batches=4), tmp_path / "run")
    assert metrics_of(run)[0]["step"] == 2  # 64 queries, 8 batches, 4 batches per step


def test_accumulated_batches_weigh_the_same_and_so_does_a_group_that_is_not_full(
    small_toy_config: ToyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradient of a step is the sum of the gradients of its batches' means, divided by `accumulate_batches`."""
    steps: list[list[torch.Tensor]] = []
    step = AdamW.step

    def keep(self: AdamW, *arguments: object, **options: object) -> object:
        steps.append([p.grad.clone() for group in self.param_groups for p in group["params"]])
        return step(self, *arguments, **options)

    monkeypatch.setattr(AdamW, "step", keep)
    still = {"model": {"dropout": 0.0, "input_dropout": 0.0}, "epochs": 1, "batch_size": 5, "learning_rate": 0.0, "clip_norm": 1e9}
    train(small_toy_config(**still), tmp_path / "single")
    single, steps[:] = list(steps), []
    train(small_toy_config(**still, accumulate_batches=2), tmp_path / "pairs")
    assert (len(single), len(steps)) == (3, 2)
    for first, second, pair in zip(single[0], single[1], steps[0], strict=True):
        torch.testing.assert_close(pair, (first + second) / 2, rtol=1e-4, atol=1e-6)
    for alone, found in zip(single[2], steps[1], strict=True):
        torch.testing.assert_close(found, alone / 2, rtol=1e-4, atol=1e-6)


def test_a_run_stops_when_validation_no_longer_rises(small_toy_config: ToyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = iter([3.0, 5.0, 4.0, 5.0, 6.0])
    monkeypatch.setattr(
        loop, "validate", lambda *_: Validation({"R1@0.7": (value := next(ranks)), "mAP": value, "R1@0.5": value}, found_threshold=0.0)
    )
    run = train(small_toy_config(epochs=5, batch_size=16, early_stop_epochs=2), tmp_path / "run")
    finished = run.facts()["finished"]
    assert (finished["epoch"], finished["best_epoch"], finished["best"]["R1@0.7"]) == (4, 2, 5.0)
    assert len(metrics_of(run)) == 4


def test_tracked_values_are_those_of_the_metrics(small_toy_config: ToyConfig, tmp_path: Path) -> None:
    run = train(small_toy_config(epochs=2, batch_size=16, tracker="tensorboard"), tmp_path / "run")
    events = EventAccumulator(str(run.directory / "tensorboard")).Reload()
    for key, name in (("loss", "train/total"), ("val", "val/mAP")):
        expected = [(row["epoch"], pytest.approx(row[key][name.split("/")[1]], rel=1e-5)) for row in metrics_of(run)]
        assert [(event.step, event.value) for event in events.Scalars(name)] == expected


def test_a_run_never_overwrites_another(toy_config: ToyConfig, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "precious").write_text("x")
    with pytest.raises(ConfigError, match="holds another run"):
        train(toy_config(), tmp_path / "taken")
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["precious"]


def test_fine_tuning_begins_with_the_weights_of_another_checkpoint(toy_config: ToyConfig, tmp_path: Path) -> None:
    first = train(toy_config(epochs=1), tmp_path / "first")
    tuned = train(toy_config(epochs=1, learning_rate=0.0, init_from=str(first.best_dir)), tmp_path / "tuned")
    source = load_file(first.best_dir / "model.safetensors")
    assert all(torch.equal(source[name], value) for name, value in load_file(tuned.best_dir / "model.safetensors").items())


def test_missing_features_stop_the_run_before_it_begins(toy_config: ToyConfig, tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.jsonl"
    lines = [{"qid": f"q{i}", "query": "never seen", "vid": f"v{i}", "duration": 40, "relevant_windows": [[1, 5]]} for i in range(3)]
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = toy_config()
    incomplete = replace(config, data=replace(config.data, train_manifest=str(manifest)))
    with pytest.raises(DataError, match=r"3 recordings \('v0', 'v1', 'v2'\) and 1 query \('never seen'\).*qamdetr extract"):
        train(incomplete, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_stops_the_run(toy_config: ToyConfig, tmp_path: Path) -> None:
    with pytest.raises(QamDetrError, match=r"train\.learning_rate"):
        train(toy_config(epochs=3, learning_rate=1e30, clip_norm=1e30), tmp_path / "run")


def test_an_unknown_tracker_is_refused(toy_config: ToyConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tensorbord"):
        train(toy_config(tracker="tensorbord"), tmp_path / "run")


def test_a_tracker_that_is_not_installed_is_refused(toy_config: ToyConfig, tmp_path: Path) -> None:
    installed = {str(kind) for kind in get_available_trackers()}
    absent = next(str(kind) for kind in LoggerType if str(kind) not in {*installed, "all"})
    with pytest.raises(ConfigError, match=f"'{absent}', whose package is not installed"):
        train(toy_config(tracker=absent), tmp_path / "run")


def test_weights_of_another_model_are_refused(toy_config: ToyConfig, tmp_path: Path) -> None:
    first = train(toy_config(epochs=1), tmp_path / "first")
    config = toy_config(init_from=str(first.best_dir))
    narrower = replace(config, model=replace(config.model, dim=16))
    with pytest.raises(CheckpointError, match=r"another model: model\.dim is 32 there, 16 here"):
        train(narrower, tmp_path / "second")


def test_a_checkpoint_of_other_streams_names_them(small_toy_config: ToyConfig, tmp_path: Path) -> None:
    other = replace(small_toy_config().model, audio_streams={"clap": 512}, dim=16)
    save_checkpoint(tmp_path / "other", QamDetr(replace(other, similarity=False)), small_toy_config())
    save_config(replace(small_toy_config(), model=replace(other, similarity=False)), tmp_path / "other" / "config.yaml")
    with pytest.raises(CheckpointError, match=r"audio streams are clap \(512 wide\), here they are toy \(16 wide\) \+ level \(1 wide\)"):
        train(small_toy_config(init_from=str(tmp_path / "other")), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_schedule_warms_up_and_falls_to_zero() -> None:
    optimizer = AdamW([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = make_schedule(optimizer, TrainConfig(warmup_fraction=0.1, schedule="cosine"), total_steps=100)
    rates = []
    for _ in range(100):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates[:10] == pytest.approx([0.1 * step for step in range(1, 11)])
    assert rates[55] == pytest.approx(0.5)
    assert schedule.get_last_lr()[0] == pytest.approx(0.0, abs=1e-9)


def test_constant_schedule_stays() -> None:
    optimizer = AdamW([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = make_schedule(optimizer, TrainConfig(warmup_fraction=0.0), total_steps=10)
    optimizer.step()
    schedule.step()
    assert schedule.get_last_lr() == [1.0]


def test_optimizer_spares_vectors_and_the_scans_own_parameters(toy_config: ToyConfig) -> None:
    model = QamDetr(toy_config().model)
    decayed, spared = make_optimizer(model, TrainConfig(weight_decay=0.3)).param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.3, 0.0)
    spared_ids = {id(p) for p in spared["params"]}
    assert id(model.encoder.layers[0].forward_branch.A_log) in spared_ids
    assert all(p.ndim >= 2 for p in decayed["params"])
    assert len(decayed["params"]) + len(spared["params"]) == len(list(model.parameters()))


def test_average_follows_the_model_and_forgets_the_start() -> None:
    model, average = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    nn.init.constant_(average.weight, -50.0)
    nn.init.constant_(model.weight, 2.0)
    for step in range(1, 301):
        update_average(average, model, 0.99, step)
    assert average.weight.item() == pytest.approx(2.0, abs=0.01)
