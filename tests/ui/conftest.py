"""What most tests of the page need."""

from __future__ import annotations

import gradio as gr
import pytest
from doubles import FakeRetriever, write_noise

from qamdetr.config import Config
from qamdetr.ui import ablations, models


@pytest.fixture
def make_audio(tmp_path):
    return lambda name="yard.wav", seconds=20: str(write_noise(tmp_path / name, seconds))


@pytest.fixture
def retriever():
    return FakeRetriever()


@pytest.fixture
def warned(monkeypatch):
    """Warnings that the page has shown."""
    told = []
    monkeypatch.setattr(gr, "Warning", lambda text, **_: told.append(text))
    return told


@pytest.fixture
def ladder(monkeypatch):
    """Checkpoints that need not lie here: what can be bypassed and how they were trained comes from the default configuration."""
    monkeypatch.setattr(ablations, "read_config", lambda _: Config())
    monkeypatch.setattr(models, "available_checkpoints", lambda: ["big", *(row.checkpoint for row in ablations.TABLE_ROWS)])
