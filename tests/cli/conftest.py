"""What the tests of the commands share: a tiny encoder and checkpoint."""

from __future__ import annotations

import pytest
from tiny_system import TinyEncoder, save_tiny

import qamdetr.features.base
from qamdetr import cli


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
