"""The one model that all visitors share: loaded once, on first use or at start-up, and only read afterwards."""

from __future__ import annotations

import logging
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import soundfile

from qamdetr.errors import QamDetrError
from qamdetr.types import Recording, Result

_log = logging.getLogger(__name__)


class Retriever(Protocol):
    """What the page needs of `qamdetr.inference.retriever.MomentRetriever`."""

    def encode(self, path: str | Path) -> Recording:
        """Read and encode an audio file."""
        ...

    def retrieve(self, recording: Recording, query: str, *, top_k: int = 10, verifier: str = "none", beta: float | None = None) -> Result:
        """Find the moments of an encoded recording that match a query."""
        ...


def load_default_retriever() -> Retriever:
    """Load the default checkpoint; imports the model code only now, so that the page itself comes up fast."""
    from qamdetr.inference.retriever import MomentRetriever

    return MomentRetriever.from_pretrained()


class SharedRetriever:
    """Loads a retriever once, however many visitors ask at the same time."""

    def __init__(self, load: Callable[[], Retriever] = load_default_retriever) -> None:
        self._load = load
        self._lock = threading.Lock()
        self._retriever: Retriever | None = None

    def get(self) -> Retriever:
        """Return the retriever, loading it if nobody has yet.

        Raises:
            QamDetrError: The checkpoint is missing or broken; the next call tries again.
        """
        with self._lock:
            if self._retriever is None:
                self._retriever = self._load()
            return self._retriever

    def warm_up(self) -> None:
        """Load the model and answer one query on three seconds of noise, so that the first visitor does not pay for compilation."""
        noise = 0.1 * np.random.default_rng(0).standard_normal(3 * 16000).astype(np.float32)
        with tempfile.TemporaryDirectory(prefix="qamdetr-") as folder:
            path = Path(folder) / "warm_up.wav"
            soundfile.write(path, noise, 16000)
            retriever = self.get()
            retriever.retrieve(retriever.encode(path), "a sound")

    def warm_up_in_background(self) -> threading.Thread:
        """Start `warm_up` in a thread; a failure is logged and met again, with its message, by the first visitor."""

        def run() -> None:
            try:
                self.warm_up()
            except QamDetrError as error:
                _log.error("The model could not be warmed up: %s", error)
            except Exception:  # a server must come up and say what is wrong, whatever it is
                _log.exception("The model could not be warmed up.")

        thread = threading.Thread(target=run, name="qamdetr-warm-up", daemon=True)
        thread.start()
        return thread
