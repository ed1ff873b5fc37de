"""The models that all visitors share: each loaded once, on first use or at start-up, and only read afterwards."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import soundfile

from qamdetr.errors import QamDetrError
from qamdetr.inference.pretrained import DEFAULT_CHECKPOINT, available_checkpoints
from qamdetr.types import Recording, Result

CHECKPOINT_VARIABLE = "QAMDETR_CHECKPOINT"
"""Environment variable with the checkpoint, by name or folder, that the page starts with; without it, the pocket default."""

KEPT_MODELS = 3
"""Checkpoints that stay loaded; the one used longest ago goes first."""

_log = logging.getLogger(__name__)


class Retriever(Protocol):
    """What the page needs of `qamdetr.inference.retriever.MomentRetriever`."""

    def encode(self, path: str | Path) -> Recording:
        """Read and encode an audio file."""
        ...

    def retrieve(self, recording: Recording, query: str, *, top_k: int = 10, verifier: str = "none", beta: float | None = None) -> Result:
        """Find the moments of an encoded recording that match a query."""
        ...


def load_retriever(checkpoint: str) -> Retriever:
    """Load a checkpoint; imports the model code only now, so that the page itself comes up fast."""
    from qamdetr.inference.retriever import MomentRetriever

    return MomentRetriever.from_pretrained(checkpoint)


def first_checkpoint() -> str:
    """Name or folder of the checkpoint that the page starts with."""
    return os.environ.get(CHECKPOINT_VARIABLE) or DEFAULT_CHECKPOINT


def offered_checkpoints() -> list[str]:
    """List what a visitor may choose: the one that the page starts with, the pocket default, then the others that lie here."""
    return list(dict.fromkeys([first_checkpoint(), DEFAULT_CHECKPOINT, *available_checkpoints()]))


class SharedRetriever:
    """Loads each checkpoint once, however many visitors ask at the same time."""

    def __init__(self, load: Callable[[str], Retriever] = load_retriever) -> None:
        self._load = load
        self._lock = threading.Lock()
        self._retrievers: OrderedDict[str, Retriever] = OrderedDict()

    def get(self, checkpoint: str | None = None) -> Retriever:
        """Return the retriever of a checkpoint, loading it if nobody has yet.

        Args:
            checkpoint: One of `offered_checkpoints`; None for the first of them.

        Raises:
            QamDetrError: The checkpoint or one of its encoders is missing or broken; the next call tries again.
        """
        checkpoint = checkpoint or first_checkpoint()
        with self._lock:
            if checkpoint not in self._retrievers:
                self._retrievers[checkpoint] = self._load(checkpoint)
            self._retrievers.move_to_end(checkpoint)
            while len(self._retrievers) > KEPT_MODELS:
                self._retrievers.popitem(last=False)
            return self._retrievers[checkpoint]

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
