"""What most tests of the page need."""

from __future__ import annotations

import pytest
from doubles import FakeRetriever, write_noise


@pytest.fixture
def make_audio(tmp_path):
    return lambda name="yard.wav", seconds=20: str(write_noise(tmp_path / name, seconds))


@pytest.fixture
def retriever():
    return FakeRetriever()
