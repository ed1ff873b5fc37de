"""A toy task in a joint space of 16 dimensions, where the query's direction marks the clips of its windows; fixtures of runs on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from stored_features import OwnFeatures
from torch.nn.functional import normalize

from qamdetr.config import Config, build
from qamdetr.data.manifest import QueryEntry, write_manifest
from qamdetr.types import TextFeatures

ToyConfig = Callable[..., Config]

JOINT_DIM = 16
SOUNDS = ("a dog barks", "rain falls", "a bell rings", "a man speaks", "glass breaks", "an engine runs")


def make_toy_set(folder: Path, num_recordings: int, seed: int) -> None:
    """Write `manifest.jsonl` and the features of its recordings and queries under `folder`; one query in four is of an absent sound."""
    rng = np.random.default_rng(seed)
    directions = normalize(torch.randn(len(SOUNDS), JOINT_DIM, generator=torch.Generator().manual_seed(0)), dim=-1)
    cache = OwnFeatures(folder / "features")
    for sound, direction in zip(SOUNDS, directions, strict=True):
        cache.write_text(sound, {"toy": TextFeatures(direction.repeat(3, 1), ((0, 0), (0, 3), (3, len(sound))), direction)})
    entries = []
    for number in range(num_recordings):
        vid, num_clips = f"scene-{seed}-{number}", int(rng.integers(32, 48))
        begin = int(rng.integers(0, num_clips - 12))
        end = begin + int(rng.integers(4, 12))
        sound = int(rng.integers(len(SOUNDS)))
        clips = 0.1 * torch.from_numpy(rng.standard_normal((num_clips, JOINT_DIM), dtype=np.float32))
        clips[begin:end] += directions[sound]
        cache.write_audio(vid, {"toy": clips, "level": clips.norm(dim=-1, keepdim=True)})
        absent = (sound + 1) % len(SOUNDS)
        entries.append(QueryEntry(f"{vid}_0", SOUNDS[sound], vid, float(num_clips), ((float(begin), float(end)),)))
        if number % 3 == 0:
            entries.append(QueryEntry(f"{vid}_1", SOUNDS[absent], vid, float(num_clips), ()))
    write_manifest(folder / "manifest.jsonl", entries)


def toy_settings(folder: Path, output_dir: Path, model: dict | None = None, **train: object) -> dict:
    """Nested settings of a small model on the toy task in `folder`; keyword arguments change the train section, `model` the model's."""
    return {
        "model": {
            "audio_streams": {"toy": JOINT_DIM, "level": 1},
            "text_streams": {"toy": JOINT_DIM},
            "dim": 32,
            "num_heads": 4,
            "ffn_dim": 64,
            "dropout": 0.1,
            "input_dropout": 0.1,
            "similarity": True,
            "encoder_layers": 1,
            "mamba_state": 4,
            "num_moment_queries": 5,
            **(model or {}),
        },
        "data": {
            "train_manifest": str(folder / "manifest.jsonl"),
            "val_manifest": str(folder / "manifest.jsonl"),
            "feature_dir": str(folder / "features"),
            "combo": "toy",
        },
        "train": {
            "mixed_precision": "no",  # whatever the CPU can do
            "epochs": 2,
            "batch_size": 16,
            "learning_rate": 2e-3,
            "clip_norm": 1.0,
            "schedule": "cosine",
            "output_dir": str(output_dir),
            "tracker": "",
            **train,
        },
    }


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    make_toy_set(folder, num_recordings=48, seed=1)
    return folder


@pytest.fixture
def toy_config(toy_folder: Path, tmp_path: Path) -> ToyConfig:
    """Gives the configuration of `toy_settings` on the toy set."""
    return lambda model=None, **train: build(Config, toy_settings(toy_folder, tmp_path, model, **train))


@pytest.fixture(scope="session")
def small_toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy set of 14 queries, for what needs many runs and no learning."""
    folder = tmp_path_factory.mktemp("small-toy")
    make_toy_set(folder, num_recordings=10, seed=3)
    return folder


@pytest.fixture
def small_toy_config(small_toy_folder: Path, tmp_path: Path) -> ToyConfig:
    """As `toy_config`, on the small set with batches of 4; without the scan, which would compile."""

    def make(model: dict | None = None, **train: object) -> Config:
        settings = toy_settings(small_toy_folder, tmp_path, {"encoder": "transformer", **(model or {})}, **{"batch_size": 4, **train})
        return build(Config, settings)

    return make


def forget_accelerate() -> None:
    """Accelerate keeps one precision per process."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
