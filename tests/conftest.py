"""Fixtures shared by all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED_DIR = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder of real recordings, annotations and golden numbers beside the project; tests that need it skip without it."""
    if not (SHARED_DIR / "README.md").is_file():
        pytest.skip("needs the folder ../shared (real recordings and golden numbers), which is not here")
    return SHARED_DIR
