"""What the page's first tab does: opens recordings, answers questions, and remembers what a visitor has open.

Work that takes long waits in gradio's queue, in two lanes: `encode` and `answer`, so that nobody's question waits for somebody's hour. Both
are generators, which gradio closes when the visitor leaves; they stop by themselves when the session wants something else.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from qamdetr.audio import stated_seconds
from qamdetr.errors import AudioError, QamDetrError
from qamdetr.features.base import LISTEN, Step
from qamdetr.inference.checkpoint import DEFAULT_CHECKPOINT
from qamdetr.inference.rerank import second_threshold
from qamdetr.types import Recording
from qamdetr.ui.ablations import Ask, check_lanes, compared, lane_label, plan
from qamdetr.ui.errors import as_text, page_error
from qamdetr.ui.examples import Example
from qamdetr.ui.lanes import LaneResult, View, busy_view, checked_choice, empty_view, recording_view, result_view
from qamdetr.ui.link import Offers, PageSettings, read_link
from qamdetr.ui.models import SharedRetriever, combo_of, encoder_key, how_to_get_encoder, models_with
from qamdetr.ui.player import CloserLook
from qamdetr.ui.queries import checked_queries
from qamdetr.ui.settings import AppSettings

KEPT_RECORDINGS = 6
"""Encoded recordings that a session keeps, each by one set of encoders: going back to one costs nothing; an hour is some 4 MB."""

NO_RECORDING = "No recording yet: upload or record one, or press an example."
LOST_RECORDING = "This page was idle for so long that its recording is no longer kept; open the recording again."
NO_WORDS = "No words yet: describe the sound, such as “a dog barks twice”."
MICROPHONE_TITLE = "Your recording"


class Wanted(NamedTuple):
    """A recording that is to be opened."""

    path: Path
    title: str
    example: Example | None = None


@dataclass(frozen=True)
class Question:
    """What is asked, and of whom.

    Attributes:
        text: One query per line.
        verifier: Who looks at the candidates.
        beta: Its weight, in [0, 1].
        off: Components that a second answer leaves out (`ablations.components`).
        rows: Rows of Table 1 that answer as well.
    """

    text: str
    verifier: str = "none"
    beta: float = 0.0
    off: Collection[str] = ()
    rows: Collection[int] = ()


class Kept:
    """Encoded recordings by (version of the encoders, path); the one used longest ago goes first."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._recordings: OrderedDict[tuple[str, str], Recording] = OrderedDict()

    def get(self, key: tuple[str, str]) -> Recording | None:
        """Look one up."""
        return self._recordings.get(key)

    def keep(self, key: tuple[str, str], recording: Recording) -> None:
        """Remember one."""
        self._recordings[key] = recording
        self._recordings.move_to_end(key)
        while len(self._recordings) > self._most:
            self._recordings.popitem(last=False)


class Session:
    """What one visitor has opened; lives in `gr.State` and nowhere else.

    Attributes:
        greeted: The page has loaded with this session, or has been told that it lost an earlier one.
        kept: The visitor's encoded recordings.
        recording: The open one, or None.
        wanted: A recording that is being opened, or could not be for want of a model or a place in the queue; or None.
        encoding: What of that the lane `encode` works on.
        question: What is to be answered, or None; whoever takes it away ends the answering.
        checkpoint: The model in use; the visitor may choose another.
        example: The example that is open, or None.
        queries: What was asked last.
        lanes: The answers on the page.
        asks: The models that gave them.
        chosen: What goes into an export: `(lane, index in the moments of its result)`; None = untouched: the likely moments.
        base: View of the open recording without an answer.
        view: What the page shows; put back when something fails.
    """

    def __init__(self, checkpoint: str = "", *, greeted: bool = True) -> None:
        self.greeted = greeted
        self.kept = Kept(KEPT_RECORDINGS)
        self.recording: Recording | None = None
        self.wanted: Wanted | None = None
        self.encoding: Wanted | None = None
        self.question: Question | None = None
        self.checkpoint = checkpoint
        self.example: Example | None = None
        self.queries: list[str] = []
        self.show(empty_view())

    def stop(self) -> None:
        """End what is going on: nobody waits for a recording or an answer any more."""
        self.wanted, self.question = None, None

    @property
    def idle(self) -> bool:
        """Whether nothing is going on, so that the page may show `view`."""
        return self.wanted is None and self.question is None

    def show(self, base: View) -> None:
        """Show a recording, or nothing, without an answer."""
        self.base = self.view = base
        self.lanes: list[LaneResult] = []
        self.asks: list[Ask] = []
        self.chosen: list[tuple[int, int]] | None = None

    def answer(self, queries: Sequence[str], lanes: Sequence[LaneResult], asks: Sequence[Ask]) -> None:
        """Show answers on the open recording."""
        self.queries, self.lanes, self.asks = list(queries), list(lanes), list(asks)
        self.chosen = None
        self.view = result_view(self.base, self.lanes)


class Recordings:
    """Encodes files with the models' encoders, within the page's limits.

    What is a visitor's is kept in the visitor's session, examples are kept for all.
    """

    def __init__(self, model: SharedRetriever, settings: AppSettings, examples: Collection[Path] = ()) -> None:
        self._model = model
        self._settings = settings
        self._examples = {str(path) for path in examples}
        self._for_all = Kept(8 * max(1, len(self._examples)))

    def known(self, kept: Kept, checkpoint: str, path: Path, name: str = "") -> Recording | None:
        """Return what is encoded of a file already, with the encoders of a model.

        Args:
            kept: Where to look, besides the examples.
            checkpoint: The model.
            path: The file.
            name: What it is kept as, where its path does not tell it from others.
        """
        key = encoder_key(self._model.get(checkpoint)), name or str(path)
        return kept.get(key) or self._for_all.get(key)

    def encoding(self, kept: Kept, checkpoint: str, path: Path, name: str = "") -> Generator[Step, None, None]:
        """Encode a file unless it is `known`, and keep it; yields meanwhile how far it is. Closing the generator stops the work.

        Raises:
            QamDetrError: The file is too large, too long or no audio, or the model cannot be loaded.
        """
        recording = self.known(kept, checkpoint, path, name)
        retriever = self._model.get(checkpoint)
        if recording is None:
            self._check_file(path)
            try:
                recording = yield from retriever.encoding(path, max_seconds=self._settings.longest_seconds)
            except QamDetrError as error:  # the visitor knows the file by its name; the folder is the server's business
                raise error.about(path.name) from error
        (self._for_all if str(path) in self._examples else kept).keep((encoder_key(retriever), name or str(path)), recording)

    def _check_file(self, path: Path) -> None:
        """Refuse a file that is too large or says that it is too long, before any work is done on it."""
        if not path.is_file():  # uploads are swept after a while
            raise AudioError(f"{path.name} is no longer kept here", "open or upload it again")
        size, limit = path.stat().st_size, self._settings.upload_mb
        if size > self._settings.upload_bytes:
            raise AudioError(f"{path.name} has {size / 1024**2:.0f} MB; the limit is {limit} MB", "cut it, or save it as OGG or MP3")
        minutes = (stated_seconds(path) or 0.0) / 60
        if minutes > self._settings.longest_minutes:
            raise AudioError(f"{path.name} lasts {minutes:.1f} minutes; the page takes up to {self._settings.longest_minutes:g}", "cut it")


Update = tuple[Session, View, Any, Any]
"""The session, what the page shows, and a new value of the lane that has work to do (`encode`, `answer`), or `gr.skip()`."""


class FindHandlers:
    """What happens on the page's events. A failure leaves on the page what it showed, with one line."""

    def __init__(self, model: SharedRetriever, examples: list[Example], settings: AppSettings | None = None) -> None:
        self._model = model
        self._examples = {example.path.stem: example for example in examples}
        self._settings = settings or AppSettings()
        self.recordings = Recordings(model, self._settings, [example.path for example in examples])
        self.closer = CloserLook()

    def checkpoint(self, session: Session) -> str:
        """Return the model in use: the visitor's choice, or the one that the page starts with."""
        return session.checkpoint or self._model.first

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

    def open_upload(self, session: Session, path: str | None, title: str = "") -> Update:
        """Open an uploaded file as soon as it is there, while the visitor types."""
        if path is None:
            return _nothing_new(session)
        return self._want(session, Wanted(Path(path), title or Path(path).name))

    def open_microphone(self, session: Session, path: str | None) -> Update:
        """Open what was recorded, as an upload."""
        return self.open_upload(session, path, MICROPHONE_TITLE)

    def open_example(self, session: Session, name: str, text: str, *asked: Any) -> Update:  # noqa: ANN401 - see `Question`
        """Open an example by the stem of its file and answer its query; does nothing without one. `asked` is the rest of a `Question`."""
        example = self._examples.get(name)
        if example is None:
            return session, gr.skip(), gr.skip(), gr.skip()
        wanted = Wanted(example.path, example.title, example)
        return self._want(session, wanted, Question(text, *asked) if text.strip() else None)

    def find(self, session: Session, text: str, *asked: Any) -> Update:  # noqa: ANN401 - see `Question`
        """Answer queries, one per line, on the open recording, or on the one that is being opened; `asked` as in `open_example`."""
        if session.recording is None and session.wanted is None:
            gr.Warning(_no_recording(session))
        elif not (text or "").strip():
            gr.Warning(NO_WORDS)
        else:
            return self._ask(session, Question(text, *asked))
        return session, session.view if session.idle else gr.skip(), gr.skip(), gr.skip()

    def find_again(self, session: Session, *asked: Any) -> Update:  # noqa: ANN401 - see `Question`
        """Answer the shown queries with another verifier, model or comparison; does nothing where these answers are on the page."""
        question = Question("\n".join(session.queries), *asked)
        if session.lanes and session.asks != self._plan(session, question):
            return self._ask(session, question)
        # A page that lost its session keeps what it shows, until it is asked for more than that.
        return _nothing_new(session) if session.greeted or session.recording else (session, gr.skip(), gr.skip(), gr.skip())

    def encode(self, session: Session) -> Generator[tuple[Session, View, Any], None, None]:
        """Open the recording that the session wants, and encode it for whom it asks; at the end the lane `answer` gets its turn."""
        wanted = session.encoding = session.wanted
        try:
            if wanted is not None:
                checkpoint = self._usable_model(session)
                for view in self._progress(session, checkpoint, wanted.path, wanted.title, lambda: session.wanted is wanted):
                    yield session, view, gr.skip()
                if session.wanted is wanted:
                    self._show(session, wanted)
                    yield session, session.view, gr.skip()
            session.encoding = None
            question, recording = session.question, session.recording
            if question is not None and recording is not None:
                # Another model may read other encoders than those that the recording was opened with.
                for checkpoint in self._missing(session, question):
                    path, title = Path(recording.path), session.base["title"]
                    for view in self._progress(session, checkpoint, path, title, lambda: session.question is question):
                        yield session, view, gr.skip()
            yield session, _shown(session), gr.skip() if session.question is None else _now()
        except Exception as error:
            if wanted is not None and session.wanted is not wanted:  # nobody wants to know any more, or has been told already
                yield session, _shown(session), gr.skip()
                return
            session.question = None
            if isinstance(error, AudioError):
                session.wanted = None  # no other model would read it either
            yield session, session.view, gr.skip()
            raise page_error(error) from error
        finally:
            if session.encoding is wanted:
                session.encoding = None

    def answer(self, session: Session) -> Generator[tuple[Session, View], None, None]:
        """Answer the session's question; the answers come back query by query, those of one query side by side."""
        question, recording = session.question, session.recording
        if question is None or recording is None or session.wanted is not None:
            yield session, _shown(session)
            return
        try:
            queries = checked_queries(question.text)
            asks = self._plan(session, question)
            answers = []
            for number, ask in enumerate(asks):
                model = f": {ask.label}" if len(asks) > 1 else ""
                yield session, busy_view(f"Looking for {_words(queries)}{model} …", number / len(asks) if number else None, cancel=True)
                title = session.base["title"]
                for view in self._progress(session, ask.checkpoint, Path(recording.path), title, lambda: session.question is question):
                    yield session, view
                if session.question is not question:
                    yield session, _shown(session)
                    return
                answers.append(self._answers_of(session, ask, recording, queries, question.beta, len(asks)))
        except Exception as error:
            session.question = None if session.question is question else session.question
            yield session, session.view
            raise page_error(error) from error
        if session.question is question:
            session.question = None
            session.answer(queries, [lane for of_query in zip(*answers, strict=True) for lane in of_query], asks)
        yield session, _shown(session)

    def give_up(self, session: Session) -> tuple[Session, View]:
        """Show what was there before, after what found no place in the queue; a recording waits for the next question."""
        session.question = None
        return session, session.view

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
        source: dict[str, object] | None = gr.skip() if session.wanted is None else None
        session.stop()
        return session, session.view, source, source

    def read_link(self, search: str) -> PageSettings:
        """Read the page's settings out of its address."""
        return read_link(search, Offers(self._model.models(), self._settings.verifiers, list(self._examples)))

    def _want(self, session: Session, wanted: Wanted, question: Question | None = None) -> Update:
        session.wanted, session.question = wanted, question
        try:
            return self._go(session)
        except Exception as error:
            session.question = None
            raise page_error(error) from error

    def _ask(self, session: Session, question: Question) -> Update:
        try:
            check_lanes(len(checked_queries(question.text)), len(self._plan(session, question)))
            session.question = question
            return self._go(session)
        except Exception as error:
            session.question = None
            raise page_error(error) from error

    def _go(self, session: Session) -> Update:
        """Show what is here already, and leave the rest to the two lanes."""
        wanted, question = session.wanted, session.question
        if wanted is not None and session.encoding is wanted:
            return session, gr.skip(), gr.skip(), gr.skip()  # the question is answered when that is ready
        checkpoint = self._usable_model(session)
        if wanted is not None:
            if self.recordings.known(session.kept, checkpoint, wanted.path) is None:
                return session, busy_view(f"Opening “{wanted.title}” …", cancel=True), _now(), gr.skip()
            self._show(session, wanted)
        if question is None:
            return session, session.view, gr.skip(), gr.skip()
        busy = busy_view(f"Looking for {_words(checked_queries(question.text))} …", cancel=True)
        if self._missing(session, question):
            return session, busy, _now(), gr.skip()
        return session, busy, gr.skip(), _now()

    def _progress(
        self, session: Session, checkpoint: str, path: Path, title: str, goes_on: Callable[[], bool]
    ) -> Generator[View, None, None]:
        """Encode a file while `goes_on()`; yields what the page shows meanwhile."""
        with closing(self.recordings.encoding(session.kept, checkpoint, path)) as steps:
            for step in steps:
                if not goes_on():
                    return
                stream = "" if step.stage == LISTEN else f": stream {step.stage}"
                yield busy_view(f"Listening to “{title}”{stream} …", step.share, cancel=True)

    def _show(self, session: Session, wanted: Wanted) -> None:
        recording = self.recordings.known(session.kept, self.checkpoint(session), wanted.path)
        assert recording is not None
        session.recording, session.example, session.wanted = recording, wanted.example, None
        audio = gr.FileData(path=str(wanted.path), orig_name=wanted.path.name).model_dump()
        session.show(recording_view(recording, audio, wanted.title, self.closer.open(recording)))

    def _plan(self, session: Session, question: Question) -> list[Ask]:
        checkpoint = self.checkpoint(session)
        return plan(checkpoint, question.verifier, question.off or (), question.rows or (), self._model.folder(checkpoint))

    def _missing(self, session: Session, question: Question) -> list[str]:
        """Models whose encoders have not heard the open recording."""
        asked = dict.fromkeys(ask.checkpoint for ask in self._plan(session, question))
        path = Path(session.recording.path) if session.recording is not None else Path()
        return [checkpoint for checkpoint in asked if self.recordings.known(session.kept, checkpoint, path) is None]

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
            self._model.get(checkpoint)
        session.checkpoint = checkpoint
        return checkpoint

    def _answers_of(
        self, session: Session, ask: Ask, recording: Recording, queries: Sequence[str], beta: float, num_asks: int
    ) -> list[LaneResult]:
        heard = self.recordings.known(session.kept, ask.checkpoint, Path(recording.path)) or recording
        retriever = self._model.get(ask.checkpoint)
        verifier = self._model.verifier(ask.verifier, retriever)
        results = retriever.retrieve_many(heard, queries, verifier=verifier, beta=beta, bypass=ask.bypass)
        own = retriever.config.inference
        truth = session.example.windows_of if session.example else lambda _: None
        labels = [lane_label(query, ask, len(queries), num_asks) for query in queries]
        thresholds = [second_threshold(own.found_threshold, own.perhaps_threshold, verified=each.verifier != "none") for each in results]
        asked = zip(labels, results, thresholds, strict=True)
        return [LaneResult(label, ask.how, result, truth(result.query), threshold) for label, result, threshold in asked]


def _nothing_new(session: Session) -> Update:
    return session, _shown(session), gr.skip(), gr.skip()


def _shown(session: Session) -> View:
    """Show what the page shows: a generator that yields nothing would empty the player. Where all has ended, the view makes sure of it."""
    view: View = session.view if session.idle else gr.skip()
    return view


def _now() -> str:
    """Return a value that a lane has not had, so that it goes to work."""
    return secrets.token_hex(8)


def _no_recording(session: Session) -> str:
    """Say that no recording is open, and why where the page still shows one: gradio gave it a new session in place of one long unused."""
    lost, session.greeted = not session.greeted, True
    return LOST_RECORDING if lost else NO_RECORDING


def _words(queries: Sequence[str]) -> str:
    return f"“{queries[0]}”" if len(queries) == 1 else f"{len(queries)} sounds"
