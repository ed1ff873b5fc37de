"""What the retrieve tab does: a visitor's session, the handlers of its events, and the function behind `/retrieve`."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from qamdetr.errors import AudioError, ConfigError, QamDetrError
from qamdetr.export import to_json_object
from qamdetr.inference.pretrained import DEFAULT_CHECKPOINT
from qamdetr.types import Recording
from qamdetr.ui.examples import Example
from qamdetr.ui.presenters import View, busy_view, empty_view, recording_view, result_view
from qamdetr.ui.shared_retriever import Retriever, SharedRetriever, first_checkpoint

MAX_UPLOAD_BYTES = 500 * 1024**2
MAX_QUERY_CHARACTERS = 500
MAX_TOP_K = 100
KEPT_RECORDINGS = 3
"""Encoded recordings that a session keeps: going back to an earlier one costs nothing, and an hour of features is some 4 MB."""

NO_RECORDING = "No recording yet: upload one, or press an example."
NO_WORDS = "No words yet: describe the sound, such as “a dog barks twice”."

_log = logging.getLogger(__name__)


class Session:
    """What one visitor has opened; lives in `gr.State` and nowhere else.

    Attributes:
        recordings: (checkpoint, path) -> encoded recording, the one used last at the end.
        recording: The open one, or None.
        checkpoint: The model in use; the visitor may choose another.
        example: The example that is open, or None.
        base: View of the open recording without an answer.
        view: What the page shows; put back when something fails.
    """

    def __init__(self) -> None:
        self.recordings: OrderedDict[tuple[str, str], Recording] = OrderedDict()
        self.recording: Recording | None = None
        self.checkpoint = first_checkpoint()
        self.example: Example | None = None
        self.base: View = empty_view()
        self.view: View = empty_view()

    def keep(self, path: str, recording: Recording) -> None:
        """Remember an encoded recording and forget the one that was used longest ago."""
        self.recordings[self.checkpoint, path] = recording
        self.recordings.move_to_end((self.checkpoint, path))
        while len(self.recordings) > KEPT_RECORDINGS:
            self.recordings.popitem(last=False)


class RetrieveHandlers:
    """What happens on the page's events. Generators yield `(session, view)`; a failure first puts the last good view back."""

    def __init__(self, model: SharedRetriever, examples: list[Example]) -> None:
        self._model = model
        self._examples = examples

    def choose_model(self, session: Session, checkpoint: str) -> tuple[Session, str]:
        """Open a checkpoint and use it from now on; one that cannot be opened is explained, and the pocket default takes its place.

        Returns:
            The session, and the checkpoint that is in use.
        """
        session.checkpoint = checkpoint
        self._retriever(session)
        return session, session.checkpoint

    def _retriever(self, session: Session) -> Retriever:
        """Return the session's model; where it cannot be opened, say why and go over to the pocket default, which needs no download."""
        try:
            return self._model.get(session.checkpoint)
        except QamDetrError as error:
            if session.checkpoint == DEFAULT_CHECKPOINT:
                raise
            instead = f"Until then the page uses {DEFAULT_CHECKPOINT}, which needs no download."
            gr.Warning(f"{error} {instead}", title="Not here yet", duration=60)
            session.checkpoint = DEFAULT_CHECKPOINT
            return self._model.get(DEFAULT_CHECKPOINT)

    def open_upload(self, session: Session, path: str | None) -> Iterator[tuple[Session, View]]:
        """Encode an uploaded file as soon as it is there, while the visitor types."""
        if path is None:
            return
        yield from self._open(session, Path(path), Path(path).name, None)

    def open_example(self, session: Session, number: int, query: str, verifier: str, beta: float) -> Iterator[tuple[Session, View]]:
        """Open an example and answer one of its queries."""
        example = self._examples[number]
        yield from self._open(session, example.path, example.title, example)
        yield from self.find(session, query, verifier, beta)

    def find(self, session: Session, query: str, verifier: str, beta: float) -> Iterator[tuple[Session, View]]:
        """Answer a query on the open recording."""
        recording = session.recording
        if recording is None or not (query or "").strip():
            gr.Warning(NO_RECORDING if recording is None else NO_WORDS, title="Almost there")
            yield session, session.view
            return
        try:
            query = checked_query(query)
            yield session, busy_view(f"Looking for “{query}” …")
            # The visitor may have chosen another model since the recording was opened.
            retriever = self._retriever(session)
            session.recording = recording = self._encode(session, Path(recording.path))
            result = retriever.retrieve(recording, query, verifier=verifier, beta=beta)
        except Exception as error:
            yield session, session.view
            raise page_error(error) from error
        session.view = result_view(session.base, result, session.example.windows_of(query) if session.example else None)
        yield session, session.view

    def find_again(self, session: Session, verifier: str, beta: float) -> Iterator[tuple[Session, View]]:
        """Answer the shown query with another verifier or model; does nothing while there is no answer on the page."""
        if session.view["state"] == "result":
            yield from self.find(session, session.view["query"], verifier, beta)

    def close(self, session: Session) -> tuple[Session, View]:
        """Put the recording away; its features stay for the case that it comes back."""
        session.recording, session.example = None, None
        session.base = session.view = empty_view()
        return session, session.view

    def retrieve(
        self, session: Session, audio: str, query: str, top_k: float = 10, verifier: str = "none", beta: float | None = None
    ) -> dict[str, Any]:
        """Find the moments of a recording that match a query; returns what `python -m qamdetr predict --format json` writes per query.

        Args:
            session: The caller's own state; a second query on the same recording does not encode it again.
            audio: The recording: WAV, FLAC, OGG, MP3, or anything ffmpeg reads; at most 500 MB.
            query: What to look for, in words; at most 500 characters.
            top_k: Most moments to return, 1 to 100.
            verifier: `none` (the decoder alone) or `pocket` (each candidate is heard once more).
            beta: Weight of the verifier in the score, 0 to 1; empty for the checkpoint's own.

        Returns:
            `audio, duration, query, found, encoder, verifier, beta, moments: [{start, end, score, decoder_score, foreground, quality,
            verifier_score}]` (best first, seconds) and `saliency` (one value per second).
        """
        try:
            query = checked_query(query)
            if not 1 <= top_k <= MAX_TOP_K:
                raise ConfigError(f"top_k is {top_k:g}; it must be 1 to {MAX_TOP_K}.")
            if beta is not None and not 0 <= beta <= 1:
                raise ConfigError(f"beta is {beta:g}; it must be 0 to 1.")
            if not audio:
                raise AudioError("No recording was given; pass an audio file.")
            recording = self._encode(session, Path(audio))
            result = self._model.get(session.checkpoint).retrieve(recording, query, top_k=int(top_k), verifier=verifier, beta=beta)
        except Exception as error:
            raise page_error(error) from error
        return {**to_json_object(result), "audio": Path(audio).name}

    def _open(self, session: Session, path: Path, title: str, example: Example | None) -> Iterator[tuple[Session, View]]:
        try:
            yield session, busy_view(f"Listening to “{title}” …")
            self._retriever(session)
            recording = self._encode(session, path)
        except Exception as error:
            yield session, session.view
            raise page_error(error) from error
        session.recording, session.example = recording, example
        audio = gr.FileData(path=str(path), orig_name=path.name).model_dump()
        session.base = session.view = recording_view(recording, audio, title)
        yield session, session.view

    def _encode(self, session: Session, path: Path) -> Recording:
        known = session.recordings.get((session.checkpoint, str(path)))
        if known is None:
            size = path.stat().st_size
            if size > MAX_UPLOAD_BYTES:
                raise AudioError(f"{path} has {size / 1024**2:.0f} MB; the limit is {MAX_UPLOAD_BYTES // 1024**2} MB; cut or compress it.")
            try:
                known = self._model.get(session.checkpoint).encode(path)
            except QamDetrError as error:
                # The visitor knows the file by its name; the folder is the server's business.
                raise type(error)(str(error).replace(str(path), path.name)) from error
        session.keep(str(path), known)
        return known


def checked_query(query: str) -> str:
    """Strip a query.

    Raises:
        ConfigError: Empty or too long; nothing is cut silently.
    """
    query = (query or "").strip()
    if not query:
        raise ConfigError("The query is empty; say what to look for, such as “a dog barks twice”.")
    if len(query) > MAX_QUERY_CHARACTERS:
        raise ConfigError(f"The query has {len(query)} characters; the limit is {MAX_QUERY_CHARACTERS}; say it in one sentence.")
    return query


def page_error(error: Exception) -> gr.Error:
    """Turn any failure into one line on the page; only a fault of the program is worth a traceback in the log."""
    if isinstance(error, gr.Error):
        return error
    if isinstance(error, QamDetrError):
        return gr.Error(str(error), print_exception=False)
    _log.error("Unexpected failure", exc_info=error)
    return gr.Error(
        "The program failed in a way nobody foresaw; its log has the details. Nothing you opened is lost.", print_exception=False
    )
