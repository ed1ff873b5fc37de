"""What the retrieve tab does on its events."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TypeVar, cast

import gradio as gr

from qamdetr.errors import AudioError, QamDetrError
from qamdetr.inference.checkpoint import DEFAULT_CHECKPOINT
from qamdetr.types import Recording, Result
from qamdetr.ui.ablations import Ask, can_refuse, check_lanes, compared, lane_label, plan
from qamdetr.ui.choices import combo_of, how_to_get_encoder, models_with
from qamdetr.ui.closer_look import CloserLook
from qamdetr.ui.encoding_progress import POLL_SECONDS
from qamdetr.ui.examples import Example
from qamdetr.ui.lane_results import LaneResult, checked_choice
from qamdetr.ui.page_errors import as_text, page_error
from qamdetr.ui.page_link import Offers, PageSettings, read_link
from qamdetr.ui.presenters import View, busy_view, empty_view, recording_view
from qamdetr.ui.queries import checked_queries
from qamdetr.ui.recordings import Recordings
from qamdetr.ui.session import Session
from qamdetr.ui.settings import AppSettings
from qamdetr.ui.shared_retriever import SharedRetriever

NO_RECORDING = "No recording yet: upload or record one, or press an example."
LOST_RECORDING = "This page was idle for so long that its recording is no longer kept; open the recording again."
NO_WORDS = "No words yet: describe the sound, such as “a dog barks twice”."
MICROPHONE_TITLE = "Your recording"

Steps = Iterator[tuple[Session, View]]

_End = TypeVar("_End")
_Work = Generator[tuple[Session, View], None, _End]


class RetrieveHandlers:
    """What happens on the page's events.

    Generators yield `(session, view)`; a failure first puts the last good view back. They wait in the lines of the shared model, not in
    gradio's queue, and say so. What is no longer wanted (put away, cancelled, followed by something else, its page closed) ends at once.
    """

    def __init__(self, model: SharedRetriever, examples: list[Example], settings: AppSettings | None = None) -> None:
        self._model = model
        self._examples = {example.path.stem: example for example in examples}
        self._settings = settings or AppSettings()
        self.recordings = Recordings(model, self._settings, [example.path for example in examples])
        self.closer = CloserLook()

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
        if combo_of(self._model.folder(current)) == combo:
            return session, current
        fitting = models_with(combo, self._model.models())
        if not fitting:
            gr.Warning(as_text(f"{how_to_get_encoder(combo)} Until then the page stays with {current}."), duration=60)
            return session, current
        return self.choose_model(session, fitting[0])

    def checkpoint(self, session: Session) -> str:
        """Return the model in use: the visitor's choice, or the one that the page starts with."""
        return session.checkpoint or self._model.first

    def open_upload(self, session: Session, path: str | None) -> Steps:
        """Encode an uploaded file as soon as it is there, while the visitor types."""
        yield from self._open_file(session, path, Path(path or "").name)

    def open_microphone(self, session: Session, path: str | None) -> Steps:
        """Encode what was recorded, as an upload."""
        yield from self._open_file(session, path, MICROPHONE_TITLE)

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
            yield session, _nothing_new()
            return
        session.stop()
        yield from self._open(session, (example.path, example.title, example))
        if text.strip() and session.idle and session.example is example:
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
        mine = session.asking = object()
        wanted = session.waiting
        try:
            if wanted is not None:
                yield from self._open(session, wanted)
            opened = wanted is None or (session.recording is not None and session.recording.path == str(wanted[0]))
            if opened and session.asking is mine:
                yield from self._find(session, mine, text, verifier, beta, off, rows)
            else:
                yield session, _nothing_new(session)
        finally:
            if session.asking is mine:
                session.asking = None

    def find_again(self, session: Session, verifier: str, beta: float, off: Collection[str] = (), rows: Collection[int] = ()) -> Steps:
        """Answer the shown queries with another verifier, model or comparison; does nothing where these answers are on the page."""
        if session.lanes and session.asks != self._plan(session, verifier, off, rows):
            yield from self.find(session, "\n".join(session.queries), verifier, beta, off, rows)
        else:
            # A page that lost its session keeps what it shows, until it is asked for more than that.
            yield session, _nothing_new(session if session.greeted or session.recording else None)

    def _find(
        self, session: Session, mine: object, text: str, verifier: str, beta: float, off: Collection[str], rows: Collection[int]
    ) -> Steps:
        if session.recording is None or not (text or "").strip():
            gr.Warning(_no_recording(session) if session.recording is None else NO_WORDS)
            yield session, session.view
            return
        try:
            queries = checked_queries(text)
            yield session, busy_view(f"Looking for {_words(queries)} …", cancel=True)
            self._usable_model(session)
            asks = self._plan(session, verifier, off, rows)
            check_lanes(len(queries), len(asks))
            asked = self._ask_all(session, session.recording, queries, asks, beta)
            lanes = yield from _while(lambda: session.asking is mine, asked)
        except Exception as error:
            yield session, session.view
            raise page_error(error) from error
        if lanes is None:
            yield session, _nothing_new(session)
            return
        session.answer(queries, lanes, asks, beta)
        yield session, session.view

    def shown_comparison(self, session: Session) -> tuple[list[str], list[int]] | None:
        """Return the components left out and the rows that the answers on the page were asked with; None without answers."""
        return compared(session.asks) if session.asks else None

    def choose_moments(self, session: Session, event: gr.EventData) -> Session:
        """Remember which moments are chosen for export."""
        session.chosen = checked_choice(event.chosen, session.lanes)
        return session

    def close(self, session: Session) -> tuple[Session, View]:
        """Put the recording away; its features stay for the case that it comes back."""
        session.stop()
        session.recording, session.example = None, None
        session.show(empty_view())
        return session, session.view

    def cancel(self, session: Session) -> tuple[Session, View, dict[str, object] | None, dict[str, object] | None]:
        """End what is going on, and show what was there before.

        Returns:
            The session, its view, and what becomes of the upload and of the microphone: emptied where a recording was being opened.
        """
        source: dict[str, object] | None = gr.skip() if session.waiting is None else None
        session.stop()
        return session, session.view, source, source

    def read_link(self, search: str) -> PageSettings:
        """Read the page's settings out of its address."""
        return read_link(search, Offers(self._model.models(), self._settings.verifiers, list(self._examples)))

    def _plan(self, session: Session, verifier: str, off: Collection[str] | None, rows: Collection[int] | None) -> list[Ask]:
        checkpoint = self.checkpoint(session)
        return plan(checkpoint, verifier, off or (), rows or (), self._model.folder(checkpoint))

    def _usable_model(self, session: Session) -> str:
        """Load the model in use; one that cannot be opened is explained, and the pocket default takes its place."""
        checkpoint = self.checkpoint(session)
        try:
            self._model.open_offered(checkpoint, f"choose {DEFAULT_CHECKPOINT} under Model")
        except QamDetrError as error:
            if checkpoint == DEFAULT_CHECKPOINT:
                raise
            gr.Warning(f"{as_text(error)} Until then the page uses {DEFAULT_CHECKPOINT}.", duration=60)
            checkpoint = DEFAULT_CHECKPOINT
        session.checkpoint = checkpoint
        return checkpoint

    def _open_file(self, session: Session, path: str | None, title: str) -> Steps:
        if path is None:
            yield session, _nothing_new(session)
            return
        session.stop()
        yield from self._open(session, (Path(path), title, None))

    def _open(self, session: Session, wanted: tuple[Path, str, Example | None]) -> Steps:
        """Open a recording; a question may wait for one that is being opened by calling this once more with the same `wanted`."""
        path, title, example = wanted
        session.waiting = wanted
        try:
            yield session, busy_view(f"Opening “{title}” …", cancel=True)
            encoding = self.recordings.encode(session, self._usable_model(session), path, title)
            recording = yield from _while(lambda: session.waiting is wanted, encoding)
        except Exception as error:
            if session.waiting is not wanted:  # nobody wants to know any more, or has been told already
                yield session, _nothing_new(session)
                return
            if isinstance(error, AudioError):
                session.waiting = None  # no other model would read it either
            yield session, session.view
            raise page_error(error) from error
        if recording is None:
            yield session, _nothing_new(session)
            return
        session.recording, session.example, session.waiting = recording, example, None
        audio = gr.FileData(path=str(path), orig_name=path.name).model_dump()
        session.show(recording_view(recording, audio, title, self.closer.open(recording)))
        yield session, session.view

    def _ask_all(
        self, session: Session, recording: Recording, queries: Sequence[str], asks: Sequence[Ask], beta: float
    ) -> _Work[list[LaneResult]]:
        """Ask every model; the answers come back query by query, those of one query side by side."""
        # Another model may read other encoders than those that the recording was opened with; nobody's question waits for that.
        encoded: list[Recording] = []
        for ask in asks:
            heard = yield from self.recordings.encode(session, ask.checkpoint, Path(recording.path), session.base["title"])
            encoded.append(heard)
        answers: list[list[Result]] = []
        with self._model.answering.ticket() as ticket:
            for before in ticket.until_turn(POLL_SECONDS):
                others = "1 other question" if before == 1 else f"{before} other questions"
                yield session, busy_view(f"Waiting for your turn: {others} first …", cancel=True)
            for number, ask in enumerate(asks):
                if len(asks) > 1:
                    yield session, busy_view(f"Looking for {_words(queries)}: {ask.label} …", number / len(asks), cancel=True)
                answers.append(self._ask(ask, encoded[number], queries, beta))
        refusing = {ask.checkpoint: can_refuse(self._model.folder(ask.checkpoint)) for ask in asks}
        truth = session.example.windows_of if session.example else lambda _: None
        return [
            LaneResult(
                lane_label(query, ask, len(queries), len(asks)), ask.how, answers[number][index], truth(query), refusing[ask.checkpoint]
            )
            for index, query in enumerate(queries)
            for number, ask in enumerate(asks)
        ]

    def _ask(self, ask: Ask, recording: Recording, queries: Sequence[str], beta: float) -> list[Result]:
        retriever = self._model.get(ask.checkpoint)
        verifier = self._model.verifier(ask.verifier, retriever)
        return retriever.retrieve_many(recording, queries, verifier=verifier, beta=beta, bypass=ask.bypass)


def _while(wanted: Callable[[], bool], steps: _Work[_End]) -> _Work[_End | None]:
    """Pass steps on while they are wanted, and return what they return; None where they were closed before their end."""
    with closing(steps):
        while wanted():
            try:
                step = next(steps)
            except StopIteration as end:
                return cast("_End", end.value) if wanted() else None
            if wanted():  # else a view that says "busy" would come after the one that ended it
                yield step
    return None


def _no_recording(session: Session) -> str:
    """Say that no recording is open, and why where the page still shows one: gradio gave it a new session in place of one long unused."""
    lost, session.greeted = not session.greeted, True
    return LOST_RECORDING if lost else NO_RECORDING


def _nothing_new(session: Session | None = None) -> View:
    """Show what the page shows: a generator that yields nothing would empty the player. Where all has ended, the view makes sure of it."""
    view: View = session.view if session is not None and session.idle else gr.skip()
    return view


def _words(queries: Sequence[str]) -> str:
    return f"“{queries[0]}”" if len(queries) == 1 else f"{len(queries)} sounds"
