"""Opens verifiers by name."""

from __future__ import annotations

from collections.abc import Callable

from qamdetr.config import VerifierConfig
from qamdetr.errors import QamDetrError
from qamdetr.inference.verifiers.base import DEFAULT_VERIFIER, Verifier


def get_verifier(name: str, settings: VerifierConfig | None = None) -> Verifier | None:
    """Make a verifier by name; `none` gives None. Models are loaded when they are first asked, so this is quick.

    Raises:
        QamDetrError: Unknown name, or settings that the verifier cannot use.
    """
    if name == DEFAULT_VERIFIER:
        return None
    if name not in _MAKERS:
        raise QamDetrError(f"Verifier {name!r} is not known; choose one of {', '.join(verifier_names())}.")
    return _MAKERS[name](settings or VerifierConfig())


def verifier_names() -> tuple[str, ...]:
    """All names that `get_verifier` takes."""
    return (DEFAULT_VERIFIER, *_MAKERS)


def _pocket(settings: VerifierConfig) -> Verifier:
    from qamdetr.inference.verifiers.pocket import PocketVerifier

    return PocketVerifier()


_MAKERS: dict[str, Callable[[VerifierConfig], Verifier]] = {"pocket": _pocket}
