"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Triton reads this where it is first imported: GPU kernels are tested on the CPU, step by step. With 0 they are tested on a GPU.
os.environ.setdefault("TRITON_INTERPRET", "1")

settings.register_profile("patient", deadline=None)  # a busy machine is no failure
settings.load_profile("patient")

ASSETS = Path(__file__).resolve().parents[1] / "assets"
SHARED_DIR = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def hub_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Every pretrained encoder in small: stream -> its folder, as `open_streams(models=…)` takes it."""
    from hub_models import tiny_hub

    return tiny_hub(tmp_path_factory.mktemp("hub"))


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder of real recordings, annotations and golden numbers beside the project; tests that need it skip without it."""
    if not (SHARED_DIR / "README.md").is_file():
        pytest.skip("needs the folder ../shared (real recordings and golden numbers), which is not here")
    return SHARED_DIR


@pytest.fixture(scope="session")
def shipped():
    """The default checkpoint."""
    from qamdetr.inference.retriever import MomentRetriever

    return MomentRetriever.from_pretrained()


@pytest.fixture(scope="session")
def examples(shipped):
    """The example recordings, encoded: file -> recording; all shipped checkpoints share their encoders."""
    return {path.name: shipped.encode(path) for path in sorted(ASSETS.glob("*.ogg"))}
