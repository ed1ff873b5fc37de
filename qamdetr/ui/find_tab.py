"""The tab that finds moments: open a recording, type queries, look, listen, export. Also the public endpoint `/retrieve`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from qamdetr.audio import AUDIO_SUFFIXES
from qamdetr.config import InferenceConfig
from qamdetr.ui.ablations import ENCODER_ROWS, components, table_rows
from qamdetr.ui.endpoint import Endpoint
from qamdetr.ui.errors import as_text
from qamdetr.ui.examples import Example
from qamdetr.ui.export_panel import build_export_panel
from qamdetr.ui.find import FindHandlers, Session
from qamdetr.ui.link import COPY_SCRIPT, pause_script, weight_script, writing_script
from qamdetr.ui.models import SharedRetriever, combo_of, encoder_choices, model_choices, own_beta, verifier_choices
from qamdetr.ui.player import build_player
from qamdetr.ui.queries import MAX_QUERIES
from qamdetr.ui.settings import AppSettings
from qamdetr.verifiers.base import DEFAULT_VERIFIER

MODEL_LANE: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}
ENCODE_LANE: dict[str, Any] = {"concurrency_id": "encode", "concurrency_limit": 1}
ANSWER_LANE: dict[str, Any] = {"concurrency_id": "answer", "concurrency_limit": 1}
"""Each uses all cores, so one at a time; no lane waits for another. Gradio tells each visitor the own place in the queue."""

QUICK: dict[str, Any] = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}

ANOTHER_LINE = """(text) => {
  const field = document.querySelector("#qamdetr-query textarea");
  setTimeout(() => field?.focus(), 50);
  return !text || text.endsWith("\\n") ? text : text + "\\n";
}"""

TELL_PLAYER = "(beta) => { window.dispatchEvent(new CustomEvent('qamdetr-beta', { detail: beta })); }"


@dataclass(frozen=True)
class FindTab:
    """What other tabs need of this one.

    Attributes:
        session: The visitor's.
        model_choice: The model in use.
        use: `use(event, checkpoint)` makes the model whose name the component `checkpoint` holds the one of this tab when `event` (such
            as `button.click`, or `then` of another event) fires; returns the event.
    """

    session: gr.State
    model_choice: gr.Dropdown
    use: Callable[[Callable[..., Any], gr.components.Component], Any]


def build_find_tab(model: SharedRetriever, examples: list[Example], settings: AppSettings | None = None) -> FindTab:
    """Lay the tab out inside the current `gr.Blocks` and wire its events."""
    settings = settings or AppSettings()
    wiring = _Wiring(model, FindHandlers(model, examples, settings), examples, settings)
    return FindTab(wiring.session, wiring.inputs.model, wiring.use)


class _Wiring:
    """Components and events of the tab."""

    def __init__(self, model: SharedRetriever, handlers: FindHandlers, examples: list[Example], settings: AppSettings) -> None:
        self.model = model
        self.handlers = handlers
        self.session = gr.State(Session(model.first, greeted=False))
        self.inputs: Inputs = build_inputs(model.shipped(), examples, settings)
        self.player = build_player(handlers.closer)
        build_export_panel(self.session, self.inputs.beta)
        self.encode, self.answer = gr.State(""), gr.State("")
        private: dict[str, Any] = {"api_visibility": "private", "trigger_mode": "multiple"}
        # Gradio would fade the player while it waits; the own place in the queue stands where the question does.
        private |= {"show_progress": "minimal", "show_progress_on": self.inputs.queries}
        # What comes later takes the place of what is going on.
        outputs = [self.session, self.player, self.encode, self.answer]
        self.shown: dict[str, Any] = {"outputs": outputs, "concurrency_limit": None, **private}
        self._wire_lanes(private)
        self._wire_recording()
        self._wire_queries()
        self._wire_model()
        self._wire_comparison()
        self._wire_link()
        for example, choice in zip(examples, self.inputs.choices, strict=True):
            self._wire_example(example.path.stem, choice)
        Endpoint(model, handlers.recordings, settings).build()

    def use(self, event: Callable[..., Any], checkpoint: gr.components.Component) -> Any:  # noqa: ANN401 - gradio's type is not public
        """Take a checkpoint that was trained from the page; see `FindTab`."""
        chosen = event(
            self._choose_trained,
            [self.session, checkpoint, self.inputs.verifier],
            self._model_outputs,
            api_visibility="private",
            **MODEL_LANE,
        )
        return chosen.then(self.handlers.find_again, [self.session, *self.inputs.asked], **self.shown)

    @property
    def _model_outputs(self) -> list[Any]:
        inputs = self.inputs
        return [self.session, inputs.model, inputs.encoder, inputs.off, inputs.beta]

    def _wire_lanes(self, private: dict[str, Any]) -> None:
        """Each lane goes to work when its value changes, for what the session wants by then."""
        session, player = self.session, self.player
        encoded = self.encode.change(self.handlers.encode, [session], [session, player, self.answer], **ENCODE_LANE, **private)
        answered = self.answer.change(self.handlers.answer, [session], [session, player], **ANSWER_LANE, **private)
        for event in (encoded, answered):
            self._keep_promises(event)
            event.failure(self.handlers.give_up, [session], [session, player], **QUICK)
        self._show_model(encoded)
        cancelled = {"inputs": [session], "outputs": [session, player, self.inputs.upload, self.inputs.microphone], **QUICK}
        player.cancel(self.handlers.cancel, cancels=[encoded, answered], **cancelled)

    def _wire_recording(self) -> None:
        inputs, handlers = self.inputs, self.handlers
        inputs.replace.upload(lambda path: path, inputs.replace, inputs.upload, **QUICK)
        for source, way_in, opened, other in (
            (inputs.upload, inputs.upload.upload, handlers.open_upload, inputs.microphone),
            (inputs.replace, inputs.replace.upload, handlers.open_upload, inputs.microphone),
            (inputs.microphone, inputs.microphone.stop_recording, handlers.open_microphone, inputs.upload),
        ):
            self._show_model(way_in(opened, [self.session, source], **self.shown))
            way_in(lambda: (None, ""), None, [other, inputs.example], **QUICK).then(**self._write_link)
        gr.on(
            [inputs.upload.clear, inputs.microphone.clear],
            handlers.close,
            [self.session],
            [self.session, self.player],
            **QUICK,
        )
        self.player.select(handlers.choose_moments, [self.session], [self.session], **QUICK)

    def _wire_queries(self) -> None:
        inputs = self.inputs
        asking = [inputs.find.click, inputs.queries.submit]
        asked = gr.on(asking, self.handlers.find, [self.session, inputs.queries, *inputs.asked], **self.shown)
        self._show_model(asked)
        self._keep_promises(asked)
        inputs.another.click(fn=None, inputs=[inputs.queries], outputs=[inputs.queries], js=ANOTHER_LINE)

    def _wire_model(self) -> None:
        inputs, private = self.inputs, {"api_visibility": "private", "show_progress": "minimal", **MODEL_LANE}
        # Not `input`: a dropdown fires that twice for the mouse and not always for the keyboard. What has not changed is passed over.
        for chosen in (
            inputs.model.change(
                self._choose_model, [self.session, inputs.model, inputs.verifier, inputs.off], self._model_outputs, **private
            ),
            inputs.encoder.change(
                self._choose_encoder, [self.session, inputs.encoder, inputs.verifier, inputs.off], self._model_outputs, **private
            ),
            inputs.verifier.input(self._choose_verifier, [self.session, inputs.verifier, inputs.off], [inputs.off, inputs.beta], **QUICK),
        ):
            asked = chosen.then(self.handlers.find_again, [self.session, *inputs.asked], **self.shown)
            asked.then(**self._write_link)
            self._keep_promises(asked)
        inputs.beta.input(fn=None, inputs=[inputs.beta], js=TELL_PLAYER)
        inputs.beta.release(fn=None, inputs=[inputs.beta], outputs=[inputs.beta], js=weight_script())

    def _wire_comparison(self) -> None:
        inputs = self.inputs
        again = {**self.shown, "trigger_mode": "always_last"}  # quick fingers tick several boxes while the first is being answered
        self._keep_promises(gr.on([inputs.off.input, inputs.rows.input], self.handlers.find_again, [self.session, *inputs.asked], **again))
        ticked = inputs.encoder_rows.click(lambda: list(ENCODER_ROWS), None, inputs.rows, **QUICK)
        asked = ticked.then(self.handlers.find_again, [self.session, *inputs.asked], **again)
        asked.then(**self._write_link)
        self._keep_promises(asked)

    def _keep_promises(self, asked: Any) -> None:  # noqa: ANN401 - gradio's type is not public
        """After a question that failed, boxes and address show what is answered."""
        inputs = self.inputs
        asked.failure(self._follow_answers, [self.session], [inputs.off, inputs.rows], **QUICK).then(**self._write_link)

    def _wire_example(self, name: str, choice: gr.Dataset) -> None:
        inputs = self.inputs
        chosen = choice.click(
            lambda sample: (sample[0], None, None, name),
            choice,
            [inputs.queries, inputs.upload, inputs.microphone, inputs.example],
            **QUICK,
        )
        opened = chosen.then(self.handlers.open_example, [self.session, inputs.example, inputs.queries, *inputs.asked], **self.shown)
        self._show_model(opened).then(**self._write_link)

    def _show_model(self, event: Any) -> Any:  # noqa: ANN401 - gradio's type is not public
        """Let the model's dropdown follow when another model had to take the place of the chosen one."""
        inputs = self.inputs
        return event.then(self._follow_model, [self.session, inputs.model, inputs.verifier, inputs.off], self._model_outputs, **QUICK)

    def _wire_link(self) -> None:
        inputs = self.inputs
        asked = [inputs.find.click, inputs.queries.submit, inputs.beta.input, inputs.off.input, inputs.rows.input]
        gr.on(asked, **self._write_link)
        inputs.copy.click(**self._write_link)
        copied = inputs.copy.click(fn=None, outputs=[inputs.copy], js=COPY_SCRIPT)
        copied.then(fn=None, outputs=[inputs.copy], js=pause_script(COPY_LABEL))
        search = gr.Textbox(visible=False)
        page = gr.context.Context.root_block
        if page is None:
            return
        wanted = gr.State("")
        restored = page.load(
            self._restore,
            [self.session, search],
            [wanted, inputs.queries, inputs.verifier, inputs.rows, inputs.example, *self._model_outputs],
            js="(session, _) => [session, window.location.search]",
            api_visibility="private",
            show_progress="hidden",
            concurrency_limit=None,
        )
        restored.then(**self._write_link)  # the address says what is true on the page, not what a link asked for
        # Only a link that names an example runs the model: opening the page itself must not wait for other visitors.
        wanted.change(self.handlers.open_example, [self.session, wanted, inputs.queries, *inputs.asked], **self.shown)

    @property
    def _write_link(self) -> dict[str, Any]:
        return {"fn": None, "inputs": self.inputs.linked, "js": writing_script(self.model.first)}

    def _restore(self, session: Session, search: str) -> tuple[Any, ...]:
        """Bring the settings of a link back; one line says what cannot be used."""
        session.greeted = True
        link = self.handlers.read_link(search)
        if link.warning:
            gr.Warning(as_text(link.warning), title="Not all of this link could be used", duration=60)
        verifier = link.verifier or "none"
        checkpoint = self.handlers.checkpoint(session)
        if link.model is not None:
            session, checkpoint = self.handlers.choose_model(session, link.model)
        _, *model = self._model_updates(session, checkpoint, verifier, link.off)
        if link.beta is not None:
            model[-1] = gr.update(visible=verifier != "none", value=link.beta)
        return link.example or "", link.queries, verifier, list(link.rows), link.example or "", session, *model

    def _choose_model(self, session: Session, checkpoint: str, verifier: str, off: Collection[str]) -> tuple[Any, ...]:
        if checkpoint == self.handlers.checkpoint(session):
            return self._no_updates()
        return self._model_updates(*self.handlers.choose_model(session, checkpoint), verifier, off)

    def _follow_model(self, session: Session, shown: str, verifier: str, off: Collection[str]) -> tuple[Any, ...]:
        checkpoint = self.handlers.checkpoint(session)
        if checkpoint == shown:
            return self._no_updates()
        return self._model_updates(session, checkpoint, verifier, off)

    def _follow_answers(self, session: Session) -> tuple[Any, Any]:
        shown = self.handlers.shown_comparison(session)
        return (gr.skip(), gr.skip()) if shown is None else shown

    def _no_updates(self) -> tuple[Any, ...]:
        return tuple(gr.skip() for _ in self._model_outputs)

    def _choose_encoder(self, session: Session, combo: str, verifier: str, off: Collection[str]) -> tuple[Any, ...]:
        if combo == combo_of(self.model.folder(self.handlers.checkpoint(session))):
            return self._no_updates()
        return self._model_updates(*self.handlers.choose_encoder(session, combo), verifier, off)

    def _choose_trained(self, session: Session, checkpoint: str, verifier: str) -> tuple[Any, ...]:
        session.asks = []  # a run that went on has the same name and other weights
        session, used = self.handlers.choose_model(session, checkpoint)
        if session.recording is None and used == checkpoint:
            gr.Info(as_text(f"Find now uses {used}; open a recording."))
        return self._model_updates(session, used, verifier, ())

    def _choose_verifier(self, session: Session, verifier: str, off: Collection[str]) -> tuple[Any, ...]:
        checkpoint = self.handlers.checkpoint(session)
        return off_update(self.model.folder(checkpoint), verifier, list(off)), self._beta_update(checkpoint, verifier)

    def _model_updates(self, session: Session, checkpoint: str, verifier: str, off: Collection[str]) -> tuple[Any, ...]:
        offered, folder = self.model.models(), self.model.folder(checkpoint)
        return (
            session,
            gr.update(choices=model_choices(offered), value=checkpoint),
            gr.update(choices=encoder_choices(offered), value=combo_of(folder)),
            off_update(folder, verifier, list(off)),
            self._beta_update(checkpoint, verifier),
        )

    def _beta_update(self, checkpoint: str, verifier: str) -> dict[str, Any]:
        """Show the weight where there is a verifier, at what the checkpoint was calibrated to."""
        beta = own_beta(self.model.folder(checkpoint), verifier)
        visible = verifier != "none"
        shown: dict[str, Any] = gr.update(visible=visible) if beta is None else gr.update(visible=visible, value=beta)
        return shown


FILE_TYPES = ["audio", "video", *AUDIO_SUFFIXES]

COPY_LABEL = "Copy link"

OFF_WORDS = (
    "The network is trained with all its components; here its answer without some of them stands beside the full one. Each answer says "
    "whether its model was *trained this way* or is the full model with a component *bypassed*."
)
ROWS_WORDS = (
    "Models of their own, each trained with one component more, all on the same scenes for three epochs: compare them with one another. "
    "BiMamba or Transformer cannot be bypassed in a trained model, only trained in its place: rows 1 and 2 differ in nothing else."
)


@dataclass(frozen=True)
class Inputs:
    """The components that handlers read and write."""

    upload: gr.File
    replace: gr.UploadButton
    microphone: gr.Audio
    queries: gr.Textbox
    find: gr.Button
    another: gr.Button
    copy: gr.Button
    encoder: gr.Dropdown
    model: gr.Dropdown
    verifier: gr.Radio
    beta: gr.Slider
    off: gr.CheckboxGroup
    rows: gr.CheckboxGroup
    encoder_rows: gr.Button
    example: gr.Textbox
    choices: Sequence[gr.Dataset]

    @property
    def asked(self) -> list[gr.components.Component]:
        """How queries are answered, in the order in which handlers take it: verifier, weight, what is left out, rows."""
        return [self.verifier, self.beta, self.off, self.rows]

    @property
    def linked(self) -> list[gr.components.Component]:
        """What the page's address holds, in the order in which `link.writing_script` takes it."""
        return [self.queries, self.model, *self.asked, self.example]


def build_inputs(offered: Mapping[str, str], examples: Sequence[Example], settings: AppSettings) -> Inputs:
    """Lay the inputs out inside the current `gr.Blocks`."""
    with gr.Row(elem_classes="qamdetr-inputs"):
        with gr.Column(scale=1, min_width=280):
            upload, replace, microphone = _recording_inputs(settings)
        with gr.Column(scale=2, min_width=300):
            queries, find, another, copy = _query_inputs()
    choices = _example_choices(examples)
    with gr.Row(elem_classes="qamdetr-options"):
        with gr.Accordion("Model and ranking", open=False, elem_id="qamdetr-ranking"):
            encoder, model, verifier, beta = _model_inputs(offered, settings)
        with gr.Accordion("Look inside: switch components off", open=False, elem_id="qamdetr-inside"):
            off, rows, encoder_rows = _comparison_inputs(offered)
    example = gr.Textbox(visible=False)
    return Inputs(
        upload, replace, microphone, queries, find, another, copy, encoder, model, verifier, beta, off, rows, encoder_rows, example, choices
    )


def off_update(checkpoint: str, verifier: str, chosen: Sequence[str] = ()) -> dict[str, object]:
    """Update what can be left out, which depends on model and verifier; what is chosen stays where it is still there."""
    known = components(checkpoint, verifier)
    names = {name for _, name in known}
    update: dict[str, object] = gr.update(choices=known, value=[name for name in chosen if name in names])
    return update


def _recording_inputs(settings: AppSettings) -> tuple[gr.File, gr.UploadButton, gr.Audio]:
    with gr.Tabs(elem_classes="qamdetr-ways-in"):
        with gr.Tab("Upload"):
            upload = gr.File(
                label=f"Up to {settings.upload_mb} MB, {_length_words(settings.longest_minutes)}",
                file_types=FILE_TYPES,
                height="9.4rem",
                elem_id="qamdetr-upload",
            )
            # A file that is there leaves no room to drop or choose another.
            replace = gr.UploadButton("Another recording", file_types=FILE_TYPES, size="sm", elem_id="qamdetr-replace")
        with gr.Tab("Record"):
            microphone = gr.Audio(
                label="Microphone",
                sources=["microphone"],
                type="filepath",
                editable=False,
                buttons=[],
                elem_id="qamdetr-microphone",
            )
    return upload, replace, microphone


def _query_inputs() -> tuple[gr.Textbox, gr.Button, gr.Button, gr.Button]:
    with gr.Row(elem_classes="qamdetr-query"):
        queries = gr.Textbox(
            label="Describe the sound",
            info=f"One per line, up to {MAX_QUERIES}; each gets a lane.",
            placeholder="a dog barks twice",
            lines=1,
            max_lines=MAX_QUERIES,
            scale=5,
            min_width=200,
            elem_id="qamdetr-query",
        )
        find = gr.Button("Find", variant="primary", scale=1, min_width=90, elem_id="qamdetr-find")
    with gr.Row(elem_classes="qamdetr-tools"):
        another = gr.Button("Another sound", size="sm", min_width=120, scale=0, elem_id="qamdetr-another")
        copy = gr.Button(COPY_LABEL, size="sm", min_width=120, scale=0, elem_id="qamdetr-copy")
    return queries, find, another, copy


def _model_inputs(offered: Mapping[str, str], settings: AppSettings) -> tuple[gr.Dropdown, gr.Dropdown, gr.Radio, gr.Slider]:
    first, folder = next(iter(offered.items()))
    model = gr.Dropdown(
        model_choices(offered),
        value=first,
        label="Model",
        info="A model brings the encoders that it was trained on.",
        elem_id="qamdetr-model",
    )
    encoder = gr.Dropdown(
        encoder_choices(offered),
        value=combo_of(folder),
        label="Encoders",
        info="Choosing others takes the first model that was trained on them.",
        elem_id="qamdetr-encoder",
    )
    verifier = gr.Radio(
        verifier_choices(settings),
        value=DEFAULT_VERIFIER,
        label="Verifier",
        info="A second opinion on each candidate, which ranking weighs in.",
        elem_id="qamdetr-verifier",
    )
    calibrated = own_beta(folder, DEFAULT_VERIFIER)
    beta = gr.Slider(
        0,
        1,
        value=InferenceConfig().beta if calibrated is None else calibrated,
        step=0.05,
        label="β: weight of the verifier",
        info="0 ranks by the decoder alone, 1 by the verifier alone. Moves at once, without asking the model again.",
        visible=False,
        buttons=[],
        elem_id="qamdetr-beta",
    )
    return encoder, model, verifier, beta


def _comparison_inputs(offered: Mapping[str, str]) -> tuple[gr.CheckboxGroup, gr.CheckboxGroup, gr.Button]:
    gr.Markdown(OFF_WORDS, elem_classes="qamdetr-note")
    off = gr.CheckboxGroup(components(next(iter(offered.values()))), label="Compare with the same model without", elem_id="qamdetr-off")
    there = table_rows(offered)
    rows = gr.CheckboxGroup(
        [(f"{row.number}: {row.label}", row.number) for row in there],
        label="Compare with the rows of Table 1, trained this way",
        info=ROWS_WORDS,
        visible=bool(there),
        elem_id="qamdetr-rows",
    )
    with gr.Row(elem_classes="qamdetr-tools"):
        encoder_rows = gr.Button(
            "Transformer against BiMamba", size="sm", scale=0, min_width=220, visible=len(there) > 1, elem_id="qamdetr-encoder-rows"
        )
    return off, rows, encoder_rows


def _example_choices(examples: Sequence[Example]) -> list[gr.Dataset]:
    if not examples:
        return []
    gr.set_static_paths([example.path for example in examples])
    choices = []
    gr.Markdown("Or try an example:", elem_classes="qamdetr-note")
    with gr.Tabs(elem_classes="qamdetr-examples"):
        for example in examples:
            with gr.Tab(example.name):
                choices.append(
                    gr.Dataset(
                        label=f"{example.description} Press what to listen for.".strip(),
                        components=["textbox"],
                        samples=[[query] for query in example.truth],
                        type="values",
                        elem_classes="qamdetr-example",
                    )
                )
    return choices


def _length_words(minutes: float) -> str:
    return f"{minutes / 60:g} h" if minutes >= 60 and minutes % 30 == 0 else f"{minutes:g} min"
