"""What all verifiers are shown: 30 seconds of sound."""

from __future__ import annotations

import pytest
from tiny_system import TinyEncoder, write_sound

from qamdetr.audio import Sound


@pytest.fixture
def recording(tmp_path):
    return TinyEncoder().encode(Sound(write_sound(tmp_path / "walk.wav", 30)))
