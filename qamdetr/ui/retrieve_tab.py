"""The tab that finds moments: open a recording, type queries, look, listen, export. Also the public endpoint `/retrieve`."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import gradio as gr

from qamdetr.ui.ablations import ENCODER_ROWS
from qamdetr.ui.choices import combo_of, encoder_choices, model_choices, own_beta
from qamdetr.ui.endpoint import Endpoint
from qamdetr.ui.examples import Example
from qamdetr.ui.export_panel import build_export_panel
from qamdetr.ui.page_errors import as_text
from qamdetr.ui.page_link import COPY_SCRIPT, pause_script, weight_script, writing_script
from qamdetr.ui.player import build_player
from qamdetr.ui.retrieve_handlers import RetrieveHandlers
from qamdetr.ui.retrieve_inputs import COPY_LABEL, Inputs, build_inputs, off_update
from qamdetr.ui.session import Session
from qamdetr.ui.settings import AppSettings
from qamdetr.ui.shared_retriever import SharedRetriever

MODEL_QUEUE: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}
"""Loading a model: one at a time."""

LINED: dict[str, Any] = {"concurrency_limit": None}
"""What encodes or answers waits in the lines of the shared model, where it can say so; gradio's own queue says nothing."""

QUICK: dict[str, Any] = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}

ANOTHER_LINE = """(text) => {
  const field = document.querySelector("#qamdetr-query textarea");
  setTimeout(() => field?.focus(), 50);
  return !text || text.endsWith("\\n") ? text : text + "\\n";
}"""

TELL_PLAYER = "(beta) => { window.dispatchEvent(new CustomEvent('qamdetr-beta', { detail: beta })); }"


@dataclass(frozen=True)
class RetrieveTab:
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


def build_retrieve_tab(model: SharedRetriever, examples: list[Example], settings: AppSettings | None = None) -> RetrieveTab:
    """Lay the tab out inside the current `gr.Blocks` and wire its events.

    Args:
        model: The models.
        examples: Example recordings to offer.
        settings: How the page is run; None for the defaults of one's own machine.
    """
    settings = settings or AppSettings()
    wiring = _Wiring(model, RetrieveHandlers(model, examples, settings), examples, settings)
    return RetrieveTab(wiring.session, wiring.inputs.model, wiring.use)


class _Wiring:
    """Components and events of the tab."""

    def __init__(self, model: SharedRetriever, handlers: RetrieveHandlers, examples: list[Example], settings: AppSettings) -> None:
        self.model = model
        self.handlers = handlers
        self.session = gr.State(Session(model.first, greeted=False))
        self.inputs: Inputs = build_inputs(model.shipped(), examples, settings)
        self.player = build_player(handlers.closer)
        build_export_panel(self.session, self.inputs.beta)
        self.shown: dict[str, Any] = {
            "outputs": [self.session, self.player],
            "show_progress": "minimal",
            "api_visibility": "private",
            "trigger_mode": "multiple",  # what comes later takes the place of what is going on
            **LINED,
        }
        self._wire_recording()
        self._wire_queries()
        self._wire_model()
        self._wire_comparison()
        self._wire_link()
        for example, choice in zip(examples, self.inputs.choices, strict=True):
            self._wire_example(example.path.stem, choice)
        Endpoint(model, handlers.recordings, settings).build()

    def use(self, event: Callable[..., Any], checkpoint: gr.components.Component) -> Any:  # noqa: ANN401 - gradio's type is not public
        """Take a checkpoint that was trained from the page; see `RetrieveTab`."""
        chosen = event(
            self._choose_trained,
            [self.session, checkpoint, self.inputs.verifier],
            self._model_outputs,
            api_visibility="private",
            **MODEL_QUEUE,
        )
        return chosen.then(self.handlers.find_again, [self.session, *self.inputs.asked], **self.shown)

    @property
    def _model_outputs(self) -> list[Any]:
        inputs = self.inputs
        return [self.session, inputs.model, inputs.encoder, inputs.off, inputs.beta]

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
        self.player.cancel(handlers.cancel, [self.session], [self.session, self.player, inputs.upload, inputs.microphone], **QUICK)
        self.player.select(handlers.choose_moments, [self.session], [self.session], **QUICK)

    def _wire_queries(self) -> None:
        inputs = self.inputs
        asking = [inputs.find.click, inputs.queries.submit]
        asked = gr.on(asking, self.handlers.find, [self.session, inputs.queries, *inputs.asked], **self.shown)
        self._show_model(asked)
        self._keep_promises(asked)
        inputs.another.click(fn=None, inputs=[inputs.queries], outputs=[inputs.queries], js=ANOTHER_LINE)

    def _wire_model(self) -> None:
        inputs, private = self.inputs, {"api_visibility": "private", "show_progress": "minimal", **MODEL_QUEUE}
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
