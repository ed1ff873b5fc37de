"""What the retrieve tab does on its events, and the function behind `/retrieve`."""

from __future__ import annotations

import html
import logging
from collections.abc import Collection, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from qamdetr.errors import AudioError, ConfigError, QamDetrError
from qamdetr.export import to_json_object
from qamdetr.inference.pretrained import DEFAULT_CHECKPOINT
from qamdetr.types import Recording, Result
from qamdetr.ui.ablations import Ask, check_lanes, lane_label, plan
from qamdetr.ui.choices import combo_of, how_to_get_encoder, models_with
from qamdetr.ui.examples import Example
from qamdetr.ui.page_link import Offers, PageSettings, read_link
from qamdetr.ui.presenters import LaneResult, View, busy_view, checked_choice, empty_view, recording_view
from qamdetr.ui.queries import checked_queries, checked_query
from qamdetr.ui.recordings import Recordings
from qamdetr.ui.session import Session
from qamdetr.ui.settings import AppSettings
from qamdetr.ui.shared_retriever import SharedRetriever

MAX_TOP_K = 100

NO_RECORDING = "No recording yet: upload or record one, or press an example."
NO_WORDS = "No words yet: describe the sound, such as “a dog barks twice”."
MICROPHONE_TITLE = "Your recording"

Steps = Iterator[tuple[Session, View]]

_log = logging.getLogger(__name__)


class RetrieveHandlers:
    """What happens on the page's events. Generators yield `(session, view)`; a failure first puts the last good view back."""

    def __init__(self, model: SharedRetriever, examples: list[Example], settings: AppSettings | None = None) -> None:
        self._model = model
        self._examples = {example.path.stem: example for example in examples}
        self._settings = settings or AppSettings()
        self._recordings = Recordings(model, self._settings)

    def choose_model(self, session: Session, checkpoint: str) -> tuple[Session, str]:
        """Open a checkpoint and use it from now on; one that cannot be opened is explained, and the pocket default takes its place.

        Returns:
            The session, and the checkpoint that is in use.
        """
        session.checkpoint = checkpoint
        try:
            return session, self._usable_model(session)
        except QamDetrError as error:
            raise page_error(error) from error

    def choose_encoder(self, session: Session, combo: str) -> tuple[Session, str]:
        """Choose the first model that was trained on a combo of encoders; where there is none, say what to do and change nothing.

        Returns:
            The session, and the checkpoint that is in use.
        """
        current = self.checkpoint(session)
        if combo_of(current) == combo:
            return session, current
        fitting = models_with(combo, self._model.offered())
        if not fitting:
            gr.Warning(f"{how_to_get_encoder(combo)} Until then the page stays with {current}.", title="Not here yet", duration=60)
            return session, current
        return self.choose_model(session, fitting[0])

    def checkpoint(self, session: Session) -> str:
        """Return the model in use: the visitor's choice, or the one that the page starts with."""
        return session.checkpoint or self._model.first

    def open_upload(self, session: Session, path: str | None) -> Steps:
        """Encode an uploaded file as soon as it is there, while the visitor types."""
        if path is not None:
            yield from self._open(session, Path(path), Path(path).name, None)

    def open_microphone(self, session: Session, path: str | None) -> Steps:
        """Encode what was recorded, as an upload."""
        if path is not None:
            yield from self._open(session, Path(path), MICROPHONE_TITLE, None)

    def open_example(
        self, session: Session, name: str, text: str, verifier: str, beta: float, off: Collection[str] = (), rows: Collection[int] = ()
    ) -> Steps:
        """Open an example and answer its query; does nothing without one.

        Args:
            session: The visitor's.
            name: Stem of the example's file; empty = none.
            text: See `find`.
            verifier: See `find`.
            beta: See `find`.
            off: See `find`.
            rows: See `find`.
        """
        example = self._examples.get(name)
        if example is None:
            return
        yield from self._open(session, example.path, example.title, example)
        if text.strip():
            yield from self.find(session, text, verifier, beta, off, rows)

    def find(self, session: Session, text: str, verifier: str, beta: float, off: Collection[str] = (), rows: Collection[int] = ()) -> Steps:
        """Answer queries on the open recording.

        Args:
            session: The visitor's.
            text: One query per line.
            verifier: Who looks at the candidates.
            beta: Its weight, in [0, 1].
            off: Components that a second answer leaves out (`ablations.components`).
            rows: Rows of Table 1 that answer as well.
        """
        if session.waiting is not None:
            yield from self._open(session, *session.waiting)
        if session.recording is None or not (text or "").strip():
            gr.Warning(NO_RECORDING if session.recording is None else NO_WORDS, title="Almost there")
            yield session, session.view
            return
        try:
            queries = checked_queries(text)
            yield session, busy_view(f"Looking for {_words(queries)} …")
            asks = plan(self._usable_model(session), verifier, off or (), rows or ())
            check_lanes(len(queries), len(asks))
            lanes = yield from self._ask_all(session, session.recording, queries, asks, beta)
        except Exception as error:
            yield session, session.view
            raise page_error(error) from error
        session.answer(queries, lanes, asks, beta)
        yield session, session.view

    def find_again(self, session: Session, verifier: str, beta: float, off: Collection[str] = (), rows: Collection[int] = ()) -> Steps:
        """Answer the shown queries with another verifier, model or comparison; does nothing where these answers are on the page."""
        if session.lanes and session.asks != plan(self.checkpoint(session), verifier, off or (), rows or ()):
            yield from self.find(session, "\n".join(session.queries), verifier, beta, off, rows)
        else:
            yield session, session.view  # a generator that yields nothing would empty the player

    def choose_moments(self, session: Session, event: gr.EventData) -> Session:
        """Remember which moments are chosen for export."""
        session.chosen = checked_choice(event.chosen, session.lanes)
        return session

    def close(self, session: Session) -> tuple[Session, View]:
        """Put the recording away; its features stay for the case that it comes back."""
        session.recording, session.example, session.waiting = None, None, None
        session.show(empty_view())
        return session, session.view

    def read_link(self, search: str) -> PageSettings:
        """Read the page's settings out of its address."""
        return read_link(search, Offers(self._model.offered(), self._settings.verifiers, list(self._examples)))

    def retrieve(
        self,
        session: Session,
        audio: str,
        query: str,
        top_k: float = 10,
        verifier: str = "none",
        beta: float | None = None,
        checkpoint: str | None = None,
    ) -> dict[str, Any]:
        """Find the moments of a recording that match a query; returns what `python -m qamdetr predict --format json` writes per query.

        Mistakes come back as one line that says what, the limit and the remedy: a file that is no audio, too large or too long; an empty or
        overlong query; an option out of range; a model that is not offered or whose encoders are not here; a full queue.

        Args:
            session: The caller's own state; a second query on the same recording does not encode it again.
            audio: The recording: WAV, FLAC, OGG, MP3, or anything ffmpeg reads; up to the size and length that the page states.
            query: What to look for, in words; at most 500 characters. English, unless the model's encoders know other languages.
            top_k: Most moments to return, 1 to 100.
            verifier: Second opinion on each candidate: `none`, `pocket`, or `qwen2.5-omni` or `server` where the page offers them.
            beta: Weight of the verifier in the score, 0 to 1; empty for the checkpoint's own.
            checkpoint: Name of the model, as the page lists them; empty for the one that the page starts with.

        Returns:
            `audio, duration, query, found, encoder, verifier, beta, moments: [{start, end, score, decoder_score, foreground, quality,
            verifier_score}], saliency: [per second]`; times are seconds, moments are best first, and `found` is false when the best is
            below the model's threshold: "not in this recording".
        """
        try:
            query = checked_query(query)
            if not 1 <= top_k <= MAX_TOP_K:
                raise ConfigError(f"top_k is {top_k:g}; it must be from 1 to {MAX_TOP_K}.")
            if beta is not None and not 0 <= beta <= 1:
                raise ConfigError(f"beta is {beta:g}; it must lie between 0 (decoder alone) and 1 (verifier alone).")
            if verifier not in self._settings.verifiers:
                raise ConfigError(f"Verifier {verifier!r} is not offered here; choose one of {', '.join(self._settings.verifiers)}.")
            if not audio:
                raise AudioError("No recording was given; pass an audio file.")
            name = checkpoint or self._model.first
            self._open_model(name, f"pass checkpoint={DEFAULT_CHECKPOINT!r}")
            recording = self._recordings.encode_now(session, name, Path(audio))
            ask = Ask(name, (), verifier, "", "")
            result = self._ask(ask, recording, [query], beta, top_k=int(top_k))[0]
        except Exception as error:
            raise page_error(error, shown=False) from error
        return {**to_json_object(result), "audio": Path(audio).name}

    def _usable_model(self, session: Session) -> str:
        """Load the model in use; one that cannot be opened is explained, and the pocket default takes its place."""
        checkpoint = self.checkpoint(session)
        try:
            self._open_model(checkpoint, f"choose {DEFAULT_CHECKPOINT} under Model")
        except QamDetrError as error:
            if checkpoint == DEFAULT_CHECKPOINT:
                raise
            gr.Warning(f"{_as_text(error)} Until then the page uses {DEFAULT_CHECKPOINT}.", title="Not here yet", duration=60)
            checkpoint = DEFAULT_CHECKPOINT
        session.checkpoint = checkpoint
        return checkpoint

    def _open_model(self, checkpoint: str, remedy: str) -> None:
        """Load an offered model.

        Args:
            checkpoint: Its name.
            remedy: What else to do where its encoders are not here.

        Raises:
            QamDetrError: Not offered, or it or its encoders are not here.
        """
        offered = self._model.offered()
        if checkpoint not in offered:
            raise ConfigError(f"Model {checkpoint!r} is not offered here; choose one of {', '.join(offered)}.")
        try:
            self._model.get(checkpoint)
        except QamDetrError as error:
            raise type(error)(str(error).replace("use combo 'pocket'", remedy)) from error

    def _open(self, session: Session, path: Path, title: str, example: Example | None) -> Steps:
        mine = session.waiting = (path, title, example)
        try:
            yield session, busy_view(f"Opening “{title}” …")
            recording = yield from self._recordings.encode(session, self._usable_model(session), path, title)
        except Exception as error:
            if isinstance(error, AudioError):
                session.waiting = None  # no other model would read it either
            yield session, session.view
            raise page_error(error) from error
        if session.waiting is not mine:  # put away, or followed by another, while it was being encoded
            yield session, session.view
            return
        session.recording, session.example, session.waiting = recording, example, None
        audio = gr.FileData(path=str(path), orig_name=path.name).model_dump()
        session.show(recording_view(recording, audio, title))
        yield session, session.view

    def _ask_all(
        self, session: Session, recording: Recording, queries: Sequence[str], asks: Sequence[Ask], beta: float
    ) -> Generator[tuple[Session, View], None, list[LaneResult]]:
        """Ask every model; the answers come back query by query, those of one query side by side."""
        answers: list[list[Result]] = []
        for number, ask in enumerate(asks):
            if len(asks) > 1:
                yield session, busy_view(f"Looking for {_words(queries)}: {ask.label} …", number / len(asks))
            # Another model may read other encoders than those that the recording was opened with.
            encoded = yield from self._recordings.encode(session, ask.checkpoint, Path(recording.path), session.base["title"])
            answers.append(self._ask(ask, encoded, queries, beta))
        truth = session.example.windows_of if session.example else lambda _: None
        return [
            LaneResult(lane_label(query, ask, len(queries), len(asks)), ask.how, answers[number][index], truth(query))
            for index, query in enumerate(queries)
            for number, ask in enumerate(asks)
        ]

    def _ask(self, ask: Ask, recording: Recording, queries: Sequence[str], beta: float | None, *, top_k: int = 10) -> list[Result]:
        retriever = self._model.get(ask.checkpoint)
        verifier = self._model.verifier(ask.verifier, retriever)
        return retriever.retrieve_many(recording, queries, top_k=top_k, verifier=verifier, beta=beta, bypass=ask.bypass)


def _words(queries: Sequence[str]) -> str:
    return f"“{queries[0]}”" if len(queries) == 1 else f"{len(queries)} sounds"


def _as_text(error: Exception) -> str:
    """Escape a message for a toast: it may quote names that a visitor chose."""
    return html.escape(str(error), quote=False)


def page_error(error: Exception, *, shown: bool = True) -> gr.Error:
    """Turn any failure into one line; only a fault of the program is worth a traceback in the log.

    Args:
        error: What happened.
        shown: On the page, where gradio renders the line as HTML; False for programs, which want the words as they are.
    """
    if isinstance(error, gr.Error):
        return error
    if isinstance(error, QamDetrError):
        return gr.Error(_as_text(error) if shown else str(error), print_exception=False)
    _log.error("Unexpected failure", exc_info=error)
    return gr.Error(
        "The program failed in a way nobody foresaw; its log has the details. Nothing you opened is lost.", print_exception=False
    )
