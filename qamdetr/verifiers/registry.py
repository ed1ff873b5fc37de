"""Opens verifiers by name."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from qamdetr.config import VerifierConfig
from qamdetr.errors import QamDetrError
from qamdetr.verifiers.base import DEFAULT_VERIFIER, Verifier


def get_verifier(name: str, settings: VerifierConfig | None = None) -> Verifier | None:
    """Make a verifier by name; `none` gives None. Models are loaded when they are first asked, so this is quick.

    Raises:
        QamDetrError: Unknown name, or settings that the verifier cannot use.
    """
    check_verifier(name)
    return None if name == DEFAULT_VERIFIER else _MAKERS[name](settings or VerifierConfig())


def check_verifier(name: str) -> None:
    """Refuse a name that `get_verifier` does not take.

    Raises:
        QamDetrError: Lists those that it takes.
    """
    if name not in verifier_names():
        raise QamDetrError(f"Verifier {name!r} is not known; choose one of {', '.join(verifier_names())}.")


def verifier_names() -> tuple[str, ...]:
    """All names that `get_verifier` takes."""
    return (DEFAULT_VERIFIER, *_MAKERS)


class Verifiers:
    """Makes verifiers by name with the same settings, each once: what a large one has loaded stays loaded."""

    def __init__(self, settings: VerifierConfig) -> None:
        self._settings = settings
        self._made: dict[str, Verifier | None] = {}
        self._lock = threading.Lock()

    def get(self, name: str) -> Verifier | None:
        """Return a verifier; `none` gives None.

        Raises:
            QamDetrError: See `get_verifier`.
        """
        with self._lock:
            if name not in self._made:
                self._made[name] = get_verifier(name, self._settings)
            return self._made[name]


def _pocket(settings: VerifierConfig) -> Verifier:
    from qamdetr.verifiers.pocket import PocketVerifier

    return PocketVerifier()


def _qwen_omni(settings: VerifierConfig) -> Verifier:
    from qamdetr.verifiers.qwen_omni import QwenOmniVerifier

    return _cached(QwenOmniVerifier(settings), settings)


def _server(settings: VerifierConfig) -> Verifier:
    from qamdetr.verifiers.server import open_server

    return _cached(open_server(settings), settings)


def _cached(verifier: Verifier, settings: VerifierConfig) -> Verifier:
    from qamdetr.verifiers.cache import CachedVerifier, default_cache_dir

    return CachedVerifier(verifier, Path(settings.cache_dir).expanduser() if settings.cache_dir else default_cache_dir())


_MAKERS: dict[str, Callable[[VerifierConfig], Verifier]] = {"pocket": _pocket, "qwen2.5-omni": _qwen_omni, "server": _server}
