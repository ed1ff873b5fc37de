"""From a visitor's file to an encoded recording: the page's limits, what is encoded already, and how far the work is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator
from pathlib import Path

from qamdetr.audio import stated_seconds
from qamdetr.errors import AudioError, QamDetrError
from qamdetr.types import Recording
from qamdetr.ui.encoding_progress import EncodingRun, StoppedError
from qamdetr.ui.presenters import View
from qamdetr.ui.session import Session
from qamdetr.ui.settings import AppSettings
from qamdetr.ui.shared_retriever import Retriever, SharedRetriever


class Recordings:
    """Encodes files with the models' encoders. What is a visitor's is kept in the visitor's session, examples are kept for all."""

    def __init__(self, model: SharedRetriever, settings: AppSettings, examples: Collection[Path] = ()) -> None:
        self._model = model
        self._settings = settings
        self._examples = {str(path) for path in examples}
        self._encoded_examples: dict[tuple[str, str], Recording] = {}

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
        key = retriever.encoder.fingerprint, str(path)
        known = self._known(session, key)
        while known is None:
            self._check_file(path)
            run = session.runs.get(key)
            if run is None or run.over:
                run = session.runs[key] = EncodingRun(retriever, path, self._model.pace, self._model.encoding)
            try:
                for view in run.views(title):
                    yield session, view
                known = self._checked(run.result, path)
            except StoppedError:
                continue  # whoever waited for it first has left just now
            finally:
                if session.runs.get(key) is run and run.over:
                    del session.runs[key]
        self._keep(session, key, known)
        return known

    def encode_now(self, session: Session, checkpoint: str, path: Path) -> Recording:
        """Do as `encode`, for callers that want no news on the way.

        Raises:
            QamDetrError: As `encode`.
        """
        retriever = self._model.get(checkpoint)
        key = retriever.encoder.fingerprint, str(path)
        known = self._known(session, key)
        if known is None:
            self._check_file(path)
            known = self._checked(lambda: self._encode_in_turn(retriever, path), path)
        self._keep(session, key, known)
        return known

    def _encode_in_turn(self, retriever: Retriever, path: Path) -> Recording:
        with self._model.encoding.turn():
            return EncodingRun(retriever, path, self._model.pace).run()

    def _known(self, session: Session, key: tuple[str, str]) -> Recording | None:
        return session.recordings.get(key) or self._encoded_examples.get(key)

    def _keep(self, session: Session, key: tuple[str, str], recording: Recording) -> None:
        session.keep(*key, recording)
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
