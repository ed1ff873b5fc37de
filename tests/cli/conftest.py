"""What the tests of the commands share: a tiny encoder and checkpoint, and the one line of a mistake."""

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


@pytest.fixture
def told(capsys):
    """Run a command that must fail; returns the one line of the mistake."""

    def run(*args):
        assert cli.main(list(map(str, args))) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("qamdetr: error: ")
        assert err.count("\n") == 1
        return err

    return run
