"""Runs on the toy task of `toy`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from toy import make_toy_set, toy_settings

from qamdetr.config import Config, config_from_dict


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    make_toy_set(folder, num_recordings=48, seed=1)
    return folder


@pytest.fixture
def toy_config(toy_folder: Path, tmp_path: Path) -> Callable[..., Config]:
    """Gives the configuration of `toy_settings` on the toy set."""

    def make(model: dict | None = None, **train: object) -> Config:
        return config_from_dict(toy_settings(toy_folder, tmp_path, model, **train))

    return make


@pytest.fixture(scope="session")
def small_toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy set of 14 queries, for what needs many runs and no learning."""
    folder = tmp_path_factory.mktemp("small-toy")
    make_toy_set(folder, num_recordings=10, seed=3)
    return folder


@pytest.fixture
def small_toy_config(small_toy_folder: Path, tmp_path: Path) -> Callable[..., Config]:
    """As `toy_config`, on the small set with batches of 4; without the scan, which would compile."""

    def make(model: dict | None = None, **train: object) -> Config:
        train = {"batch_size": 4, **train}
        return config_from_dict(toy_settings(small_toy_folder, tmp_path, {"encoder": "transformer", **(model or {})}, **train))

    return make
