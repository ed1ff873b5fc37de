"""From a visitor's file to an encoded recording: the page's limits, what is encoded already, and how far the work is."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Generator
from contextlib import closing
from hashlib import blake2b
from pathlib import Path
from typing import cast

from qamdetr.audio import stated_seconds
from qamdetr.errors import AudioError, QamDetrError
from qamdetr.types import Recording
from qamdetr.ui.encoding_progress import EncodingRun, StoppedError
from qamdetr.ui.lines import Line
from qamdetr.ui.presenters import View
from qamdetr.ui.session import Encoded, Session
from qamdetr.ui.settings import AppSettings
from qamdetr.ui.shared_retriever import Retriever, SharedRetriever

KEPT_FOR_PROGRAMS = 8
"""Encoded recordings that are kept for all programs together: a second query on one of them costs nothing."""

_BLOCK_BYTES = 1024**2


class Recordings:
    """Encodes files with the models' encoders.

    What is a visitor's is kept in the visitor's session, examples are kept for all. What programs sent is kept for programs, few at a time:
    it is found by its content, so nobody finds it who does not have the file.
    """

    def __init__(self, model: SharedRetriever, settings: AppSettings, examples: Collection[Path] = ()) -> None:
        self._model = model
        self._settings = settings
        self._examples = {str(path) for path in examples}
        self._encoded_examples: dict[tuple[str, str], Recording] = {}
        self._for_programs = Encoded(KEPT_FOR_PROGRAMS)
        self._keeping = threading.Lock()
        # Programs that sent the same file share one place in the line for encoding, but each keeps a thread.
        self._programs = Line(1, settings.queue_length)

    def encode(self, session: Session, checkpoint: str, path: Path, title: str) -> Generator[tuple[Session, View], None, Recording]:
        """Encode a file, or take what is encoded of it; yields meanwhile how far it is, and returns the recording.

        Where the session is encoding this very file already, it waits for that. Closing the generator stops the work.

        Args:
            session: The visitor's.
            checkpoint: The model whose encoders are wanted.
            path: The file.
            title: Name to show.

        Raises:
            QamDetrError: The file is too large, too long or no audio, the model cannot be loaded, or too many others wait.
        """
        retriever = self._model.get(checkpoint)
        steps = self._encode(session, (retriever.encoder.fingerprint, str(path)), retriever, path, title)
        with closing(steps):
            while True:
                try:
                    view = next(steps)
                except StopIteration as end:
                    return cast("Recording", end.value)
                yield session, view

    def encode_for_program(self, checkpoint: str, path: Path, wanted: Callable[[], bool]) -> Recording:
        """Encode a file that a program sent, or take what is encoded of it.

        Args:
            checkpoint: The model whose encoders are wanted.
            path: The file.
            wanted: Whether the program still waits; asked every `encoding_progress.POLL_SECONDS`.

        Raises:
            QamDetrError: As `encode`.
            StoppedError: The program has left, and the work was stopped unless another program waits for it.
        """
        retriever = self._model.get(checkpoint)
        self._check_file(path)
        # What is fetched anew from the same address lies in the same place, and may be another file.
        key = retriever.encoder.fingerprint, f"{path} {_digest(path)}"
        steps = self._encode(self._for_programs, key, retriever, path, path.name)
        with self._programs.ticket(), closing(steps):
            while True:
                try:
                    next(steps)
                except StopIteration as end:
                    return cast("Recording", end.value)
                if not wanted():
                    raise StoppedError

    def _encode(
        self, store: Encoded, key: tuple[str, str], retriever: Retriever, path: Path, title: str
    ) -> Generator[View, None, Recording]:
        known = self._known(store, key)
        while known is None:
            self._check_file(path)
            run = self._run(store, key, retriever, path)
            try:
                yield from run.views(title)
                known = self._checked(run.result, path)
            except StoppedError:
                continue  # whoever waited for it first has left just now
            finally:
                with self._keeping:
                    if store.runs.get(key) is run and run.over:
                        del store.runs[key]
        self._keep(store, key, known)
        return known

    def _run(self, store: Encoded, key: tuple[str, str], retriever: Retriever, path: Path) -> EncodingRun:
        with self._keeping:
            run = store.runs.get(key)
            if run is None or run.over:
                run = store.runs[key] = EncodingRun(retriever, path, self._model.pace, self._model.encoding)
            return run

    def _known(self, store: Encoded, key: tuple[str, str]) -> Recording | None:
        return store.recordings.get(key) or self._encoded_examples.get(key)

    def _keep(self, store: Encoded, key: tuple[str, str], recording: Recording) -> None:
        with self._keeping:
            store.keep(*key, recording)
        if key[1] in self._examples:
            self._encoded_examples[key] = recording

    def _check_file(self, path: Path) -> None:
        """Refuse a file that is too large or says that it is too long, before any work is done on it."""
        if not path.is_file():  # uploads are swept after a while
            raise AudioError(f"{path.name} is no longer kept here; open or upload it again.")
        size = path.stat().st_size
        if size > self._settings.upload_bytes:
            raise AudioError(
                f"{path.name} has {size / 1024**2:.0f} MB; the limit is {self._settings.upload_mb} MB; cut it, or save it as OGG or MP3."
            )
        self._check_length(path, stated_seconds(path) or 0.0)

    def _check_length(self, path: Path, duration_seconds: float) -> None:
        if duration_seconds > self._settings.longest_seconds:
            raise AudioError(
                f"{path.name} lasts {duration_seconds / 60:.1f} minutes; the page takes up to {self._settings.longest_minutes:g}; cut it."
            )

    def _checked(self, encode: Callable[[], Recording], path: Path) -> Recording:
        try:
            recording = encode()
        except QamDetrError as error:
            # The visitor knows the file by its name; the folder is the server's business.
            raise type(error)(str(error).replace(str(path), path.name)) from error
        self._check_length(path, recording.duration_seconds)
        return recording


def _digest(path: Path) -> str:
    digest = blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
