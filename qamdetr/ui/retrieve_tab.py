"""The tab that finds moments: open a recording, type a query, look, listen. Also the public endpoint `/retrieve`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from qamdetr.config import InferenceConfig
from qamdetr.ui.examples import Example
from qamdetr.ui.presenters import View, empty_view
from qamdetr.ui.retrieve_handlers import MAX_UPLOAD_BYTES, RetrieveHandlers, Session
from qamdetr.ui.shared_retriever import SharedRetriever, offered_checkpoints

MODEL_QUEUE: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}
"""Everything that runs the model waits in one line: one run uses all cores, and a query typed while its recording is still being
encoded then finds it encoded."""

VERIFIERS: tuple[tuple[str, str], ...] = (
    ("None: the decoder's own scores", "none"),
    ("Pocket: each candidate is heard once more", "pocket"),
)
AUDIO_SUFFIXES = [".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a", ".aac", ".aif", ".aiff", ".webm", ".mp4", ".mov", ".mkv"]


_HERE = Path(__file__).parent
PLAYER_CSS = (_HERE / "player.css").read_text(encoding="utf-8")
PLAYER_JS = "".join((_HERE / name).read_text(encoding="utf-8") for name in ("player_drawing.js", "player.js"))


def build_retrieve_tab(model: SharedRetriever, examples: list[Example]) -> None:
    """Lay the tab out inside the current `gr.Blocks` and wire its events."""
    handlers = RetrieveHandlers(model, examples)
    session = gr.State(Session())
    with gr.Row(elem_classes="qamdetr-inputs"):
        upload = gr.File(
            label=f"Recording (up to {MAX_UPLOAD_BYTES // 1024**2} MB)",
            file_types=["audio", "video", *AUDIO_SUFFIXES],
            height=150,
            min_width=260,
            elem_id="qamdetr-upload",
        )
        with gr.Column(scale=2, min_width=300):
            with gr.Row(elem_classes="qamdetr-query"):
                query = gr.Textbox(
                    label="Describe the sound",
                    placeholder="a dog barks twice",
                    max_lines=1,
                    scale=5,
                    min_width=200,
                    elem_id="qamdetr-query",
                )
                find = gr.Button("Find", variant="primary", scale=1, min_width=90, elem_id="qamdetr-find")
            with gr.Accordion("Model and ranking", open=False, elem_id="qamdetr-ranking"):
                offered = offered_checkpoints()
                model_choice = gr.Dropdown(
                    offered,
                    value=offered[0],
                    label="Model",
                    info="A model brings its encoders. Those of pocket and ladder models are here; others may need a download first.",
                    elem_id="qamdetr-model",
                )
                verifier = gr.Radio(list(VERIFIERS), value="none", label="Verifier", elem_id="qamdetr-verifier")
                beta = gr.Slider(
                    0,
                    1,
                    value=InferenceConfig().beta,
                    step=0.05,
                    label="β: weight of the verifier",
                    info="0 ranks by the decoder alone, 1 by the verifier alone. Moves at once, without asking the model again.",
                    visible=False,
                    buttons=[],
                    elem_id="qamdetr-beta",
                )
    choices = _example_choices(examples)
    player = gr.HTML(
        value=empty_view(),
        html_template='<div class="qd-player"></div>',
        css_template=PLAYER_CSS,
        js_on_load=PLAYER_JS,
        apply_default_css=False,
        elem_id="qamdetr-player",
    )
    shown: dict[str, Any] = {"outputs": [session, player], "show_progress": "minimal", "api_visibility": "private", **MODEL_QUEUE}
    upload.upload(handlers.open_upload, [session, upload], **shown)
    upload.clear(handlers.close, [session], [session, player], api_visibility="private", show_progress="hidden")
    gr.on([find.click, query.submit], handlers.find, [session, query, verifier, beta], **shown)
    chosen = model_choice.input(
        handlers.choose_model, [session, model_choice], [session, model_choice], api_visibility="private", **MODEL_QUEUE
    )
    chosen.then(handlers.find_again, [session, verifier, beta], **shown)
    verifier.input(
        lambda name: gr.update(visible=name != "none"), verifier, beta, api_visibility="private", queue=False, show_progress="hidden"
    )
    verifier.input(handlers.find_again, [session, verifier, beta], **shown)
    beta.input(fn=None, inputs=[beta], js="(beta) => { window.dispatchEvent(new CustomEvent('qamdetr-beta', { detail: beta })); }")
    for number, choice in enumerate(choices):
        _wire_example(handlers, number, choice, session, upload, query, verifier, beta, shown)
    _build_endpoint(handlers, session)


def _example_choices(examples: list[Example]) -> list[gr.Dataset]:
    if not examples:
        return []
    gr.set_static_paths([example.path for example in examples])
    with gr.Row(elem_classes="qamdetr-examples"):
        return [
            gr.Dataset(
                label=f"Example: {example.title}",
                components=["textbox"],
                samples=[[query] for query in example.truth],
                type="values",
                min_width=300,
                elem_classes="qamdetr-example",
            )
            for example in examples
        ]


def _wire_example(
    handlers: RetrieveHandlers,
    number: int,
    choice: gr.Dataset,
    session: gr.State,
    upload: gr.File,
    query: gr.Textbox,
    verifier: gr.Radio,
    beta: gr.Slider,
    shown: dict[str, Any],
) -> None:
    chosen = choice.click(
        lambda sample: (sample[0], None), choice, [query, upload], api_visibility="private", queue=False, show_progress="hidden"
    )

    def open_example(mine: Session, text: str, name: str, weight: float) -> Iterator[tuple[Session, View]]:
        yield from handlers.open_example(mine, number, text, name, weight)

    chosen.then(open_example, [session, query, verifier, beta], **shown)


def _build_endpoint(handlers: RetrieveHandlers, session: gr.State) -> None:
    """Add the one public endpoint; its components are never shown and only describe the arguments."""
    audio = gr.Audio(type="filepath", label="Recording", visible=False)
    query = gr.Textbox(label="Query", visible=False)
    top_k = gr.Number(10, label="Most moments to return, 1 to 100", visible=False)
    verifier = gr.Radio([name for _, name in VERIFIERS], value="none", label="Verifier", visible=False)
    beta = gr.Number(None, label="Weight of the verifier, 0 to 1; empty for the checkpoint's own", visible=False)
    answer = gr.JSON(label="Moments", visible=False)
    trigger = gr.Button(visible=False)
    trigger.click(handlers.retrieve, [session, audio, query, top_k, verifier, beta], answer, api_name="retrieve", **MODEL_QUEUE)
