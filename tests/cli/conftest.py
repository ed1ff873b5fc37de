"""What the tests of the commands share: a tiny encoder and checkpoint, and a verifier that says what it is told to."""

from __future__ import annotations

import pytest
from tiny_system import TinyEncoder, save_tiny

import qamdetr.features.base
from qamdetr import cli
from qamdetr.errors import QamDetrError
from qamdetr.verifiers import base as registry


@pytest.fixture
def encoder(monkeypatch):
    encoder = TinyEncoder()
    encoder.fingerprint = "tiny-1"
    monkeypatch.setattr(qamdetr.features.base, "open_streams", lambda *streams, name, **options: encoder)
    return encoder


@pytest.fixture
def predict(tmp_path, encoder, capsys):
    """Run `predict` with a tiny checkpoint; returns (exit status, stdout, stderr)."""
    checkpoint = save_tiny(tmp_path / "checkpoint")

    def run(*args):
        status = cli.main(["predict", "--checkpoint", str(checkpoint), *map(str, args)])
        return status, *capsys.readouterr()

    return run


class Oracle:
    """Scores a window as `says(recording, query, window)` does; may be missing, and fails for the queries in `deaf`."""

    name, needs_audio = "oracle", False

    def __init__(self):
        self.says, self.deaf, self.missing, self.asked, self.settings = None, (), False, [], []

    @property
    def identity(self):
        return f"oracle {self.settings[-1].model} {self.deaf}"

    def check(self):
        if self.missing:
            raise QamDetrError("The oracle has left; call it back.")

    def verify(self, recording, query, text, candidates):
        self.asked.append((recording.name, query))
        if query in self.deaf:
            raise RuntimeError("it is out\nof order")
        return [self.says(recording, query, candidate.window) for candidate in candidates]


@pytest.fixture
def oracle(monkeypatch):
    """A verifier `oracle`; its `settings` are those that it was opened with."""
    oracle = Oracle()
    monkeypatch.setitem(registry.VERIFIERS, "oracle", lambda settings: oracle.settings.append(settings) or oracle)
    return oracle
