"""The verifiers' names."""

from __future__ import annotations

import pytest

from qamdetr.config import VerifierConfig
from qamdetr.errors import QamDetrError
from qamdetr.verifiers.cache import CachedVerifier
from qamdetr.verifiers.registry import get_verifier, verifier_names


def test_names():
    assert verifier_names() == ("none", "pocket", "qwen2.5-omni", "server")
    assert get_verifier("none") is None
    for name in verifier_names()[1:]:
        assert get_verifier(name, VerifierConfig(url="http://localhost:8000/v1")).name == name
    with pytest.raises(QamDetrError, match=r"Verifier 'x' is not known; choose one of none, pocket, qwen2\.5-omni, server"):
        get_verifier("x")


def test_those_that_listen_are_cached_where_the_settings_say(tmp_path, monkeypatch):
    monkeypatch.setenv("QAMDETR_CACHE", str(tmp_path / "default"))
    for name in ("qwen2.5-omni", "server"):
        made = get_verifier(name, VerifierConfig(url="http://localhost:8000/v1", cache_dir=str(tmp_path / "own")))
        assert isinstance(made, CachedVerifier)
        assert made.folder == tmp_path / "own"
        assert get_verifier(name, VerifierConfig(url="http://localhost:8000/v1")).folder == tmp_path / "default" / "verifier"
        assert made.needs_audio
    assert not get_verifier("pocket").needs_audio


def test_a_server_without_an_address_is_refused_before_anything_is_decoded(monkeypatch):
    monkeypatch.delenv("QAMDETR_VERIFIER_URL", raising=False)
    with pytest.raises(QamDetrError, match=r"Verifier 'server' has no address; set verifier\.url"):
        get_verifier("server")
