"""The page as a whole: heading, tabs, what the model can hear, and how it is launched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from qamdetr.config import CHECKPOINT_DIR
from qamdetr.inference.pretrained import DEFAULT_CHECKPOINT
from qamdetr.ui.examples import Example, load_examples
from qamdetr.ui.presenters import hearing_note
from qamdetr.ui.retrieve_handlers import MAX_UPLOAD_BYTES
from qamdetr.ui.retrieve_tab import build_retrieve_tab
from qamdetr.ui.shared_retriever import SharedRetriever

MAX_WAITING = 32
"""Requests that may wait; later ones are told that the queue is full instead of hanging."""

CACHE_SECONDS = (3600, 7200)
"""Every hour, uploads older than two hours are deleted."""

SYSTEM_FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif")
MONO_FONT = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")

PAGE_CSS = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")


def build_demo(model: SharedRetriever, examples: list[Example] | None = None) -> gr.Blocks:
    """Build the page around a shared model.

    Args:
        model: Loads when the first visitor needs it, unless it was warmed up before.
        examples: Example recordings to offer; None reads the project's own.
    """
    demo = gr.Blocks(title="QAM-DETR: find a sound in a recording", analytics_enabled=False, delete_cache=CACHE_SECONDS)
    with demo:
        gr.Markdown(
            "# Find a sound in a recording\nSay in your own words what you listen for; QAM-DETR shows the seconds where it happens.",
            elem_classes="qamdetr-heading",
        )
        build_retrieve_tab(model, load_examples() if examples is None else examples)
        with gr.Accordion("What this model can and cannot hear", open=False, elem_id="qamdetr-about"):
            gr.Markdown(_about_the_model())
    demo.queue(max_size=MAX_WAITING, default_concurrency_limit=4)
    return demo


def launch_options() -> dict[str, Any]:
    """Arguments of `demo.launch`: system fonts, nothing fetched from outside, only uploads and the examples are served.

    The address is gradio's default, 127.0.0.1:7860, unless GRADIO_SERVER_NAME and GRADIO_SERVER_PORT say otherwise.
    """
    return {
        "theme": _theme(),
        "css": PAGE_CSS,
        "max_file_size": MAX_UPLOAD_BYTES,
        "footer_links": ["api", "settings"],
        "run_history": False,
        "enable_monitoring": False,
        "ssr_mode": False,
        "strict_cors": True,
    }


def _theme() -> gr.themes.Base:
    """Give the default theme calm colours, dark enough for text (contrast 4.5 : 1), and the fonts of the visitor's own system."""
    theme = gr.themes.Default(primary_hue=gr.themes.colors.teal, neutral_hue=gr.themes.colors.slate, font=SYSTEM_FONT, font_mono=MONO_FONT)
    return theme.set(
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
    )


def _about_the_model() -> str:
    """Quote the checkpoint's card, or that of the encoders that lie beside it."""
    cards = [CHECKPOINT_DIR / DEFAULT_CHECKPOINT / "README.md", *sorted(CHECKPOINT_DIR.glob("*/README.md"))]
    return hearing_note(card.read_text(encoding="utf-8") for card in cards if card.is_file())
