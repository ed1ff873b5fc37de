"""Several processes take the optimiser steps of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from stored_features import OwnFeatures
from torch import Tensor
from torch.utils.data import DataLoader

from qamdetr.config import Config, config_from_dict
from qamdetr.data.dataset import LabelledBatch
from qamdetr.data.manifest import QueryEntry, write_manifest
from qamdetr.model.losses import compute_losses
from qamdetr.model.qam_detr import QamDetr
from qamdetr.training.data import TrainingData, load_data
from qamdetr.training.loop import ProcessShare, batches_after
from qamdetr.types import TextFeatures

ROOT = Path(__file__).resolve().parents[2]
NUM_PROCESSES = 2


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


@pytest.mark.parametrize("num_done", [0, 1, 3])
def test_skipped_batches_are_not_read_and_draw_nothing(num_done: int) -> None:
    read: list[int] = []

    def collate(items: list[int]) -> list[int]:
        read.extend(items)
        return items

    loader = DataLoader(range(7), batch_size=2, collate_fn=collate)  # type: ignore[arg-type]
    torch.manual_seed(0)
    expected = torch.get_rng_state() if num_done else None
    assert list(batches_after(loader, num_done)) == [[0, 1], [2, 3], [4, 5], [6]][num_done:]
    assert read == list(range(7))[2 * num_done :]
    if expected is not None:
        assert torch.equal(torch.get_rng_state(), expected)


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


def uneven_settings(folder: Path, **loss: object) -> dict:
    """One optimiser step on all four queries, without dropout; the seed is one whose order gives one process both present queries."""
    settings = {
        "model": {
            "audio_streams": {"toy": 8}, "text_streams": {"toy": 8}, "dim": 16, "num_heads": 2, "ffn_dim": 16, "dropout": 0.0,
            "input_dropout": 0.0, "encoder": "transformer", "encoder_layers": 1, "num_moment_queries": 5,
        },
        "loss": loss,
        "data": {
            "train_manifest": str(folder / "manifest.jsonl"), "val_manifest": str(folder / "manifest.jsonl"),
            "feature_dir": str(folder / "features"), "combo": "toy",
        },
        "train": {"epochs": 1, "batch_size": 4, "clip_norm": 1e9, "tracker": "", "output_dir": str(folder)},
    }  # fmt: skip
    for seed in range(100):
        settings["train"]["seed"] = seed
        data = load_data(config_from_dict(settings))
        (share,) = ProcessShare(data.sampler, 0, NUM_PROCESSES)
        if {data.train.entries[index].qid for index in share} in ({"a0", "b0"}, {"a1", "b1"}):
            return settings
    raise AssertionError("no seed orders the four queries so")


def shares_of(data: TrainingData, num_processes: int) -> list[LabelledBatch]:
    """The only batch of the set, cut for so many processes."""
    collate = data.train_loader.collate_fn
    return [
        collate([data.train[index] for index in share])
        for process in range(num_processes)
        for share in ProcessShare(data.sampler, process, num_processes)
    ]


def gradients_of(model: QamDetr, batches: list[LabelledBatch], config: Config) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Average over processes of gradients and losses, where each divides by the mean of the processes' counts."""
    counts: list[list[int]] = []
    for batch in batches:
        counts.append([])
        output = model(batch.batch, batch.targets.negative_index)
        compute_losses(output, batch.batch, batch.targets, config.loss, lambda count: counts[-1].append(count) or 1.0)
    means = [sum(column) / len(batches) for column in zip(*counts, strict=True)]
    model.zero_grad()
    sums: dict[str, float] = {}
    for batch in batches:
        divisors = iter(means)
        output = model(batch.batch, batch.targets.negative_index)
        losses = compute_losses(output, batch.batch, batch.targets, config.loss, lambda _, left=divisors: max(next(left), 1 / len(batches)))
        (losses["total"] / len(batches)).backward()
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + value.item() / len(batches)
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}, sums


@pytest.mark.parametrize(
    "loss",
    [
        {},
        {"label_loss": "varifocal", "quality_targets": "all"},
        {"saliency_clip": 1.0, "saliency_negative": "mean", "auxiliary": False},
    ],
)
def test_joined_counts_make_uneven_shares_exact(loss: dict, tmp_path: Path) -> None:
    uneven_set(tmp_path)
    config = config_from_dict(uneven_settings(tmp_path, **loss))
    data = load_data(config)
    torch.manual_seed(1)
    model = QamDetr(config.model).eval()
    (whole,), parts = shares_of(data, 1), shares_of(data, NUM_PROCESSES)
    assert sorted(sum(part.targets.num_spans) for part in parts) == [0, 5]
    assert sorted(int((part.targets.negative_index >= 0).sum()) for part in parts) == [0, 2]
    for part in parts:  # data-parallel training waits for a gradient of every parameter in every process
        assert gradients_of(model, [part], config)[0].keys() == dict(model.named_parameters()).keys()
    expected, expected_losses = gradients_of(model, [whole], config)
    found, found_losses = gradients_of(model, parts, config)
    assert found_losses == pytest.approx(expected_losses, rel=1e-5, abs=1e-6)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


_DRIVER = """
import os, sys, torch
from torch.optim import AdamW
from train import main

step = AdamW.step

def step_and_keep(self, *arguments, **options):
    if int(os.environ.get("RANK", 0)) == 0:
        torch.save([p.grad for group in self.param_groups for p in group["params"]], sys.argv[1])
    return step(self, *arguments, **options)

AdamW.step = step_and_keep
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow
def test_two_processes_give_the_gradients_of_one(tmp_path: Path) -> None:
    uneven_set(tmp_path)
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(uneven_settings(tmp_path), sort_keys=False))
    (tmp_path / "driver.py").write_text(_DRIVER)
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    launch: dict[str, list[str]] = {
        "one": [],
        "two": ["-m", "torch.distributed.run", "--nproc_per_node", str(NUM_PROCESSES), "--standalone"],
    }
    for name, launcher in launch.items():
        command = [sys.executable, *launcher, str(tmp_path / "driver.py"), str(tmp_path / f"{name}.pt")]
        command += ["--config", str(tmp_path / "toy.yaml"), "--name", name]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "two" / "run.json").read_text())["num_processes"] == NUM_PROCESSES
    one, two = (torch.load(tmp_path / f"{name}.pt") for name in launch)
    assert any(bool(gradient.abs().max() > 1e-3) for gradient in one)
    for expected, found in zip(one, two, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    first, second = (json.loads((tmp_path / name / "metrics.jsonl").read_text()) for name in launch)
    assert second["loss"] == pytest.approx(first["loss"], rel=1e-4, abs=2e-5)
    assert first["step"] == second["step"] == 1
