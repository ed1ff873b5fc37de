"""The training loop on a toy task: it learns, a seed decides everything, and it keeps its promises about precision and processes."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from stored_features import OwnFeatures
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.optim import AdamW
from toy import ToyConfig, forget_accelerate, toy_settings

from qamdetr.cli import main as command_line
from qamdetr.config import Config, InferenceConfig, TrainConfig, build, load_config
from qamdetr.data.manifest import QueryEntry, read_manifest, write_manifest
from qamdetr.errors import CheckpointError, ConfigError, QamDetrError
from qamdetr.model.qam_detr import QamDetr
from qamdetr.training import loop
from qamdetr.training.data import load_data
from qamdetr.training.loop import ProcessShare, make_optimizer, make_schedule, train, update_average
from qamdetr.training.run import Run
from qamdetr.training.validation import Validation
from qamdetr.types import ModelOutput, TextFeatures

ROOT = Path(__file__).resolve().parents[2]
NUM_PROCESSES = 2


def metrics_of(run: Run) -> list[dict]:
    return [json.loads(line) for line in (run.directory / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["detr", "dense"])
def test_learns_the_toy_task_and_leaves_a_whole_checkpoint(decoder: str, toy_config: ToyConfig, tmp_path: Path) -> None:
    config = toy_config(model={"dropout": 0.0, "input_dropout": 0.0, "decoder": decoder}, epochs=30, batch_size=8, ema_decay=0.9)
    run = train(config, tmp_path / "run", command="python train.py --config toy")

    epochs = metrics_of(run)
    assert epochs[-1]["loss"]["total"] < 0.4 * epochs[0]["loss"]["total"]
    assert max(row["val"]["R1@0.5"] for row in epochs) >= 90
    assert epochs[-1]["val"]["present_score"] > epochs[-1]["val"]["absent_score"]
    answering = load_config(run.best_dir / "config.yaml").inference
    assert 0 < answering.perhaps_threshold <= answering.found_threshold < 1
    assert len(answering.score_calibration) > 2, "scores are calibrated, too"
    card = (run.best_dir / "README.md").read_text()
    assert "python train.py --config toy" in card
    assert f"R1@0.7 | {max(row['val']['R1@0.7'] for row in epochs):g}" in card


@pytest.mark.parametrize(("quality", "decoder"), [(True, "detr"), (False, "detr"), (True, "dense")])
def test_validation_scores_as_serving_does(quality: bool, decoder: str, small_toy_config: ToyConfig, tmp_path: Path) -> None:
    """Also without a quality head, where segments of the saliency had another unit in validation than in serving."""
    config = small_toy_config(model={"quality": quality, "decoder": decoder}, epochs=1)
    config = replace(config, inference=replace(config.inference, segment_threshold=0.3, top_k=100))
    run = train(config, tmp_path / "run")
    manifest, output = config.data.val_manifest, tmp_path / "served.jsonl"
    arguments = ["--checkpoint", str(run.best_dir), "--manifest", manifest, "--from-features", "--top-k", "100", "--output", str(output)]
    assert command_line(["predict", *arguments]) == 0
    rows = {row["qid"]: row["pred_relevant_windows"] for row in map(json.loads, output.read_text().splitlines())}
    best = {entry.qid: (bool(entry.relevant_windows), max(row[2] for row in rows[entry.qid])) for entry in read_manifest(manifest)}
    (epoch,) = metrics_of(run)
    for key, present in (("present_score", True), ("absent_score", False)):
        scores = [score for is_present, score in best.values() if is_present is present]
        assert sum(scores) / len(scores) == pytest.approx(epoch["val"][key], abs=1e-3)


def test_progress_is_told_while_it_goes_on_and_to_the_tracker(
    small_toy_config: ToyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict] = []
    show = Run.show_progress

    def look(self: Run, row: dict) -> None:
        show(self, row)
        seen.append(json.loads((self.directory / "progress.json").read_text()))

    monkeypatch.setattr(Run, "show_progress", look)
    monkeypatch.setattr(loop, "LOOK_EVERY_BATCHES", 2)
    run = train(small_toy_config(epochs=2, tracker="tensorboard"), tmp_path / "run")
    expected = [
        (epoch, batch, stage) for epoch in (1, 2) for batch, stage in ((0, "training"), (2, "training"), (4, "training"), (4, "validation"))
    ]
    assert [(row["epoch"], row["batch"], row["stage"]) for row in seen] == expected
    assert {(row["epochs"], row["batches"], row["step"] - row["batch"]) for row in seen} == {(2, 4, 0), (2, 4, 4)}
    assert (seen[0]["losses"], seen[0]["seconds_per_batch"]) == ({}, None)
    assert min(seen[1]["losses"]["total"], seen[1]["seconds_per_batch"]) > 0
    events = EventAccumulator(str(run.directory / "tensorboard")).Reload()
    scores = [(row["epoch"], pytest.approx(row["val"]["mAP"], rel=1e-5)) for row in metrics_of(run)]
    assert [(event.step, event.value) for event in events.Scalars("val/mAP")] == scores


def test_accumulated_batches_weigh_the_same_and_so_does_a_group_that_is_not_full(
    small_toy_config: ToyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradient of a step is the sum of the gradients of its batches' means, divided by `accumulate_batches`."""
    steps: list[Tensor] = []
    step = AdamW.step

    def keep(self: AdamW, *arguments: object, **options: object) -> object:
        steps.append(torch.cat([p.grad.flatten() for group in self.param_groups for p in group["params"]]))
        return step(self, *arguments, **options)

    monkeypatch.setattr(AdamW, "step", keep)
    still = {"model": {"dropout": 0.0, "input_dropout": 0.0}, "epochs": 1, "batch_size": 5, "learning_rate": 0.0, "clip_norm": 1e9}
    train(small_toy_config(**still), tmp_path / "single")
    train(small_toy_config(**still, accumulate_batches=2), tmp_path / "pairs")
    first, second, third, pair, half = steps
    torch.testing.assert_close(pair, (first + second) / 2, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(half, third / 2, rtol=1e-4, atol=1e-6)


def test_a_run_stops_when_validation_no_longer_rises(small_toy_config: ToyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = iter([3.0, 5.0, 4.0, 5.0, 6.0])
    monkeypatch.setattr(
        loop, "validate", lambda *_: Validation({"R1@0.7": (value := next(ranks)), "mAP": value, "R1@0.5": value}, InferenceConfig())
    )
    run = train(small_toy_config(epochs=5, batch_size=16, early_stop_epochs=2), tmp_path / "run")
    finished = run.facts()["finished"]
    assert (finished["epoch"], finished["best_epoch"], finished["best"]["R1@0.7"]) == (4, 2, 5.0)
    assert len(metrics_of(run)) == 4


def test_fine_tuning_begins_with_the_weights_of_another_checkpoint(small_toy_config: ToyConfig, tmp_path: Path) -> None:
    first = train(small_toy_config(epochs=1), tmp_path / "first")
    start = str(first.best_dir)
    tuned = train(small_toy_config(epochs=1, learning_rate=0.0, init_from=start), tmp_path / "tuned")
    source = load_file(first.best_dir / "model.safetensors")
    assert all(torch.equal(source[name], value) for name, value in load_file(tuned.best_dir / "model.safetensors").items())
    with pytest.raises(CheckpointError, match=r"another model: model\.dim is 32 there, 16 here; give both"):
        train(small_toy_config(model={"dim": 16}, init_from=start), tmp_path / "second")
    assert not (tmp_path / "second").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without GPU does")
def test_a_precision_that_is_not_there_is_refused(small_toy_config: ToyConfig, tmp_path: Path) -> None:
    forget_accelerate()
    with pytest.raises(ConfigError, match="'fp16', which this cpu device lacks"):
        train(small_toy_config(mixed_precision="fp16"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_stops_the_run(small_toy_config: ToyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "compute_losses", lambda output, *_: {"total": output.saliency.sum() * math.nan})
    with pytest.raises(QamDetrError, match=r"The loss became nan near step 4 at train\.learning_rate 0\.002; lower it\."):
        train(small_toy_config(), tmp_path / "run")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"warmup_fraction": 0.1, "schedule": "cosine"}, {0: 0.1, 4: 0.5, 9: 1.0, 55: 0.5, 100: 0.0}),
        ({"warmup_fraction": 0.0}, {0: 1.0, 50: 1.0, 100: 1.0}),
    ],
)
def test_schedules(settings: dict, expected: dict[int, float]) -> None:
    schedule = make_schedule(AdamW([nn.Parameter(torch.zeros(1))]), TrainConfig(**settings), total_steps=100)
    assert {step: schedule.lr_lambdas[0](step) for step in expected} == pytest.approx(expected, abs=1e-9)


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


@pytest.mark.parametrize(
    ("abilities", "wanted", "expected"),
    [({}, "auto", "no"), ({"avx512_bf16": True}, "auto", "bf16"), ({"amx_bf16": True}, "auto", "bf16"), ({"amx_bf16": True}, "no", "no")],
)
def test_bf16_is_chosen_where_the_processor_multiplies_in_it(
    abilities: dict[str, bool], wanted: str, expected: str, small_toy_config: ToyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: abilities, raising=False)
    assert loop.choose_precision(small_toy_config(mixed_precision=wanted).train) == expected


def test_bf16_trains_with_losses_in_float32(small_toy_config: ToyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.dtype] = []
    compute_losses = loop.compute_losses

    def look(output: ModelOutput, *arguments: Any) -> dict[str, torch.Tensor]:
        seen.extend([output.saliency.dtype, output.decoder.logits.dtype])
        return compute_losses(output, *arguments)

    monkeypatch.setattr(loop, "compute_losses", look)
    totals = []
    for precision in ("bf16", "no"):
        forget_accelerate()
        (row,) = metrics_of(train(small_toy_config(epochs=1, mixed_precision=precision), tmp_path / precision))
        totals.append(row["loss"]["total"])
    forget_accelerate()
    assert set(seen) == {torch.float32}
    assert totals[0] != totals[1]
    assert totals[0] == pytest.approx(totals[1], rel=0.05)


@given(
    batches=st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=9), min_size=1, max_size=4),
    num_processes=st.integers(1, 5),
)  # fmt: skip
def test_shares_hold_each_item_equally_often_and_are_never_empty(batches: list[list[int]], num_processes: int) -> None:
    shares = [list(ProcessShare(batches, index, num_processes)) for index in range(num_processes)]
    for number, batch in enumerate(batches):
        parts = [share[number] for share in shares]
        assert all(parts)
        joined = sorted(item for part in parts for item in part)
        assert joined == sorted(batch * (len(joined) // len(batch)))
        assert len(joined) == len(batch) or len(batch) < num_processes
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def uneven_set(folder: Path) -> None:
    """Two recordings with two queries each: one with several windows, and one that is absent there but true of the other recording.

    Only the two present queries can be each other's negatives. A process that has these two holds all windows and all negative pairs.
    """
    generator = torch.Generator().manual_seed(0)
    cache = OwnFeatures(folder / "features")
    windows = {"a": ((2.0, 7.0), (12.0, 16.0)), "b": ((1.0, 4.0), (9.0, 15.0), (20.0, 23.5))}
    words = {"a": "a dog barks", "b": "rain falls"}
    for word in words.values():
        tokens = torch.randn(3, 8, generator=generator)
        cache.write_text(word, {"toy": TextFeatures(tokens, ((0, 0), (0, 3), (3, len(word))))})
    entries = []
    for vid, other in (("a", "b"), ("b", "a")):
        cache.write_audio(vid, {"toy": torch.randn(24, 8, generator=generator)})
        entries.append(QueryEntry(f"{vid}0", words[vid], vid, 24.0, windows[vid]))
        entries.append(QueryEntry(f"{vid}1", words[other], vid, 24.0, ()))
    write_manifest(folder / "manifest.jsonl", entries)


def uneven_settings(folder: Path, decoder: str) -> dict:
    """One optimiser step on all four queries, without dropout; the seed is one whose order gives one process both present queries."""
    small = {"audio_streams": {"toy": 8}, "text_streams": {"toy": 8}, "dim": 16, "num_heads": 2, "ffn_dim": 16, "similarity": False}
    small["decoder"] = decoder
    still = {"encoder": "transformer", "dropout": 0.0, "input_dropout": 0.0}
    settings = toy_settings(folder, folder, small | still, epochs=1, batch_size=4, clip_norm=1e9)
    settings["loss"] = {"quality_targets": "all", "saliency_clip": 1.0, "saliency_negative": "mean"}
    settings["data"]["negative_share"] = 1.0  # of a smaller one, each process draws its own
    for seed in range(100):
        settings["train"]["seed"] = seed
        data = load_data(build(Config, settings))
        (share,) = ProcessShare(data.sampler, 0, NUM_PROCESSES)
        if {data.train.entries[index].qid for index in share} in ({"a0", "b0"}, {"a1", "b1"}):
            return settings
    raise AssertionError("no seed orders the four queries so")


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["detr", "dense"])
def test_two_processes_give_the_gradients_of_one(decoder: str, tmp_path: Path) -> None:
    uneven_set(tmp_path)
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(uneven_settings(tmp_path, decoder), sort_keys=False))
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    launch = {"one": [], "two": ["-m", "torch.distributed.run", "--nproc_per_node", str(NUM_PROCESSES), "--standalone"]}
    gradients, rows = [], []
    for name, launcher in launch.items():
        command = [sys.executable, *launcher, str(ROOT / "train.py"), "--config", str(tmp_path / "toy.yaml"), "--name", name]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        (state,) = (tmp_path / name).glob("last/*")
        moments = torch.load(state / "optimizer.bin")["state"].values()
        gradients.append([moment["exp_avg"] / 0.1 for moment in moments])  # after one step: a tenth of the gradient
        rows.append(json.loads((tmp_path / name / "metrics.jsonl").read_text()))
    assert json.loads((tmp_path / "two" / "run.json").read_text())["num_processes"] == NUM_PROCESSES
    assert any(bool(gradient.abs().max() > 1e-3) for gradient in gradients[0])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)
    assert rows[1]["loss"] == pytest.approx(rows[0]["loss"], rel=1e-4, abs=2e-5)
    assert rows[0]["step"] == rows[1]["step"] == 1
