"""The upper part of the tab that finds moments: recording, queries, model and ranking, what is switched off, and examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import gradio as gr

from qamdetr.config import InferenceConfig
from qamdetr.ui.ablations import components, table_rows
from qamdetr.ui.choices import combo_of, encoder_choices, model_choices, own_beta, verifier_choices
from qamdetr.ui.examples import Example
from qamdetr.ui.queries import MAX_QUERIES
from qamdetr.ui.settings import AppSettings
from qamdetr.verifiers.base import DEFAULT_VERIFIER

AUDIO_SUFFIXES = [".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a", ".aac", ".aif", ".aiff", ".webm", ".mp4", ".mov", ".mkv"]

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
        """What the page's address holds, in the order in which `page_link.writing_script` takes it."""
        return [self.queries, self.model, *self.asked, self.example]


def build_inputs(offered: Mapping[str, str], examples: Sequence[Example], settings: AppSettings) -> Inputs:
    """Lay the inputs out inside the current `gr.Blocks`.

    Args:
        offered: Models, name -> folder; the first is chosen.
        examples: Example recordings.
        settings: Limits, and the verifiers that are offered.
    """
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
