"""The models that all visitors share: each loaded once, on first use or at start-up, and only read afterwards."""

from __future__ import annotations

import logging
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import soundfile

from qamdetr.config import Config, VerifierConfig
from qamdetr.errors import QamDetrError
from qamdetr.inference.checkpoint import WEIGHTS_FILE
from qamdetr.types import Recording, Result
from qamdetr.ui.encoding_progress import Encodes, EncodingPace, EncodingRun
from qamdetr.ui.lines import Line
from qamdetr.ui.offered_models import OfferedModels
from qamdetr.ui.settings import AppSettings
from qamdetr.verifiers.base import Verifier

KEPT_MODELS = 8
"""Checkpoints that stay loaded: the six rows of Table 1 and two more, all of a few MB; the encoders are shared. The one used longest ago
goes first."""

WARM_UP_SECONDS = (3, 30)
"""The first recording pays for compilation; the second shows how fast this machine is, which progress is judged by."""

_log = logging.getLogger(__name__)


class Retriever(Encodes, Protocol):
    """What the page needs of `qamdetr.inference.retriever.MomentRetriever`."""

    @property
    def config(self) -> Config:
        """Configuration of its checkpoint."""
        ...

    def retrieve_many(
        self,
        recording: Recording,
        queries: Sequence[str],
        *,
        top_k: int = 10,
        verifier: str | Verifier = "none",
        beta: float | None = None,
        bypass: Collection[str] = (),
    ) -> list[Result]:
        """Find the moments of an encoded recording that match each query."""
        ...


def load_retriever(checkpoint: str) -> Retriever:
    """Load a checkpoint; imports the model code only now, so that the page itself comes up fast."""
    from qamdetr.ui.gpu import open_retriever

    return cast("Retriever", open_retriever(checkpoint))  # its encoders come with fingerprint and streams


class SharedRetriever:
    """Loads each checkpoint once, however many visitors ask at the same time."""

    def __init__(
        self, load: Callable[[str], Retriever] = load_retriever, settings: AppSettings | None = None, runs: Path | None = None
    ) -> None:
        """Load nothing yet.

        Args:
            load: Makes a retriever from the name or folder of a checkpoint.
            settings: Names the checkpoint that the page starts with, and where large verifiers are; None for the defaults.
            runs: Folder of the runs whose checkpoints are offered; None offers none.
        """
        self._load = load
        self._settings = settings or AppSettings()
        self._lock = threading.Lock()
        self._models = OfferedModels(self._settings.checkpoint, runs)
        self._retrievers: OrderedDict[str, tuple[int, Retriever]] = OrderedDict()
        self._verifiers: dict[tuple[str, VerifierConfig], Verifier | None] = {}
        self.runs = runs
        self.pace = EncodingPace()
        # Each uses all cores, and an hour of sound takes gigabytes while it is encoded; a question must not wait for somebody's hour.
        self.encoding = Line(1, self._settings.queue_length)
        self.answering = Line(1, self._settings.queue_length)

    @property
    def first(self) -> str:
        """Name of the checkpoint that the page starts with."""
        return self._models.first

    def shipped(self) -> dict[str, str]:
        """Map the models that are there whatever was trained; see `OfferedModels.shipped`."""
        return self._models.shipped()

    def models(self) -> dict[str, str]:
        """Map all that a visitor may choose: the page's first model, the pocket default, the others that lie here, and what was trained.

        Returns:
            Name -> what `find_checkpoint` takes, which is the server's business.
        """
        return self._models.all()

    def offered(self) -> list[str]:
        """List the names of `models`."""
        return list(self.models())

    def folder(self, name: str) -> str:
        """Return what `find_checkpoint` takes for the name of a model."""
        return self._models.folder(name)

    def offer(self, name: str, checkpoint: Path) -> None:
        """Offer the model of a run, also one that the list of the newest is too short for.

        Args:
            name: Its name, see `offered_models.run_model`.
            checkpoint: Its folder.
        """
        self._models.add_run(name, checkpoint)

    def get(self, checkpoint: str | None = None) -> Retriever:
        """Return the retriever of a checkpoint, loading it if nobody has yet, or if its training went on meanwhile.

        Args:
            checkpoint: One of `offered`; None for the first of them.

        Raises:
            QamDetrError: The checkpoint or one of its encoders is missing or broken; the next call tries again.
        """
        name = checkpoint or self.first
        folder = self.folder(name)
        with self._lock:
            written_ns = _written_ns(folder)
            if name not in self._retrievers or self._retrievers[name][0] != written_ns:
                self._retrievers[name] = (written_ns, self._open(name, folder))
            self._retrievers.move_to_end(name)
            while len(self._retrievers) > KEPT_MODELS:
                self._retrievers.popitem(last=False)
            return self._retrievers[name][1]

    def open_offered(self, checkpoint: str, remedy: str) -> None:
        """Load a model that a visitor or a program names.

        Args:
            checkpoint: Its name.
            remedy: What else to do where its encoders are not here.

        Raises:
            QamDetrError: Not offered, or it or its encoders are not here.
        """
        if checkpoint not in self.models():
            raise self._models.refusal(checkpoint)
        try:
            self.get(checkpoint)
        except QamDetrError as error:
            raise type(error)(str(error).replace("use combo 'pocket'", remedy)) from error

    def verifier(self, name: str, retriever: Retriever) -> str | Verifier:
        """Return what a retriever takes as verifier: the name, or a verifier made with the model or address that the settings name.

        Raises:
            QamDetrError: Settings that the verifier cannot use.
        """
        if name not in {"qwen2.5-omni", "server"}:
            return name
        from qamdetr.ui.gpu import open_verifier

        trained = retriever.config.verifier
        with self._lock:
            if (name, trained) not in self._verifiers:
                self._verifiers[name, trained] = open_verifier(name, self._settings, trained)
            return self._verifiers[name, trained] or name

    def _open(self, name: str, folder: str) -> Retriever:
        try:
            return self._load(folder)
        except QamDetrError as error:
            # Visitors know the model by its name; the folder is the server's business.
            raise type(error)(str(error).replace(folder, name)) from error

    def warm_up(self) -> None:
        """Load the model and answer one query on noise, so that the first visitor does not pay for compilation."""
        rng = np.random.default_rng(0)
        with tempfile.TemporaryDirectory(prefix="qamdetr-") as folder:
            retriever = self.get()
            for seconds in WARM_UP_SECONDS:
                path = Path(folder) / "warm_up.wav"
                soundfile.write(path, 0.1 * rng.standard_normal(seconds * 16000).astype(np.float32), 16000)
                recording = EncodingRun(retriever, path, self.pace).run()
            retriever.retrieve_many(recording, ["a sound"])

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


def _written_ns(folder: str) -> int:
    """When the weights of a checkpoint were written; 0 for one that is given by its name, and does not change."""
    try:
        return (Path(folder) / WEIGHTS_FILE).stat().st_mtime_ns
    except OSError:
        return 0
