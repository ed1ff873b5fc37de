"""From a visitor's file to an encoded recording: the page's limits, what is encoded already, and how far the work is."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path

from qamdetr.audio import stated_seconds
from qamdetr.errors import AudioError, QamDetrError
from qamdetr.types import Recording
from qamdetr.ui.encoding_progress import EncodingRun
from qamdetr.ui.presenters import View
from qamdetr.ui.session import Session
from qamdetr.ui.settings import AppSettings
from qamdetr.ui.shared_retriever import SharedRetriever


class Recordings:
    """Encodes files with the models' encoders; holds nothing of a visitor, whose session keeps what is encoded."""

    def __init__(self, model: SharedRetriever, settings: AppSettings) -> None:
        self._model = model
        self._settings = settings

    def encode(self, session: Session, checkpoint: str, path: Path, title: str) -> Generator[tuple[Session, View], None, Recording]:
        """Encode a file, or take what the session holds of it; yields meanwhile how far it is, and returns the recording.

        Args:
            session: The visitor's.
            checkpoint: The model whose encoders are wanted.
            path: The file.
            title: Name to show.

        Raises:
            QamDetrError: The file is too large, too long or no audio, or the model cannot be loaded.
        """
        retriever = self._model.get(checkpoint)
        encoder = retriever.encoder.fingerprint
        known = session.recordings.get((encoder, str(path)))
        if known is None:
            self._check_file(path)
            run = EncodingRun(retriever, path, self._model.pace)
            for view in run.views(title):
                yield session, view
            known = self._checked(run.result, path)
        session.keep(encoder, str(path), known)
        return known

    def encode_now(self, session: Session, checkpoint: str, path: Path) -> Recording:
        """Do as `encode`, for callers that want no news on the way.

        Raises:
            QamDetrError: As `encode`.
        """
        retriever = self._model.get(checkpoint)
        encoder = retriever.encoder.fingerprint
        known = session.recordings.get((encoder, str(path)))
        if known is None:
            self._check_file(path)
            known = self._checked(EncodingRun(retriever, path, self._model.pace).run, path)
        session.keep(encoder, str(path), known)
        return known

    def _check_file(self, path: Path) -> None:
        """Refuse a file that is too large or says that it is too long, before any work is done on it."""
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
