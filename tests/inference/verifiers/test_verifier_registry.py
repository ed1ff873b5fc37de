"""The verifiers' names."""

from __future__ import annotations

import pytest

from qamdetr.errors import QamDetrError
from qamdetr.inference.verifiers.registry import get_verifier, verifier_names


def test_names():
    assert get_verifier("none") is None
    for name in verifier_names()[1:]:
        assert get_verifier(name).name == name
    with pytest.raises(QamDetrError, match=r"Verifier 'x' is not known; choose one of none, pocket"):
        get_verifier("x")
