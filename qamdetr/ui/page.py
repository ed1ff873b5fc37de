"""The page as a whole: heading, tabs, what the model can hear, and how it is launched."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from qamdetr.config import CHECKPOINT_DIR
from qamdetr.inference.checkpoint import DEFAULT_CHECKPOINT
from qamdetr.ui.endpoint import OnlyUploads
from qamdetr.ui.examples import Example, load_examples
from qamdetr.ui.find_tab import FindTab, build_find_tab
from qamdetr.ui.models import SharedRetriever, model_choices
from qamdetr.ui.settings import PASSING_REQUESTS, AppSettings
from qamdetr.ui.train.tab import build_train_tab

CACHE_SECONDS = (3600, 7200)
"""Every hour, uploads older than two hours are deleted."""

MAX_SESSIONS = 1000
"""Visitors and programs that are remembered, a visitor's open recordings with them; beyond that who was away longest starts anew."""

SYSTEM_FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif")
TEXT_SIZE = gr.themes.Size(
    xxs="0.5625rem", xs="0.625rem", sm="0.75rem", md="0.875rem", lg="1rem", xl="1.375rem", xxl="1.625rem", name="text_relative"
)
"""The default theme's sizes, but relative: the page grows with the visitor's own text size."""

MONO_FONT = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")

_HERE = Path(__file__).parent
PAGE_CSS = (_HERE / "page.css").read_text(encoding="utf-8")
FAVICON = _HERE / "favicon.svg"


def build_demo(model: SharedRetriever, settings: AppSettings | None = None, examples: list[Example] | None = None) -> gr.Blocks:
    """Build the page around a shared model.

    Args:
        model: Loads when the first visitor needs it, unless it was warmed up before.
        settings: How the page is run; None for the defaults of one's own machine.
        examples: Example recordings to offer; None reads the project's own.
    """
    settings = settings or AppSettings()
    examples = load_examples() if examples is None else examples
    demo = gr.Blocks(title="QAM-DETR: find a sound in a recording", analytics_enabled=False, delete_cache=CACHE_SECONDS)
    with demo:
        gr.Markdown(
            "# Find a sound in a recording\nSay in your own words what you listen for; QAM-DETR shows the seconds where it happens.",
            elem_classes="qamdetr-heading",
        )
        if settings.training:
            _build_both_tabs(model, settings, examples)
        else:
            _build_find(model, settings, examples)
    demo.queue(max_size=settings.queue_length + PASSING_REQUESTS, default_concurrency_limit=4)
    return demo


def launch_options(settings: AppSettings | None = None) -> dict[str, Any]:
    """Arguments of `demo.launch`: system fonts, nothing fetched from outside, only uploads and the examples are served.

    The address is gradio's default, 127.0.0.1:7860, unless GRADIO_SERVER_NAME and `settings.server_port` say otherwise; behind a proxy,
    GRADIO_ROOT_PATH names the page's address there.
    """
    settings = settings or AppSettings()
    return {
        "theme": _theme(),
        "css": PAGE_CSS,
        "favicon_path": FAVICON,
        "max_file_size": settings.upload_bytes,
        "server_port": settings.server_port,
        "mcp_server": settings.mcp,
        "allowed_paths": [],
        "app_kwargs": {"middleware": [Middleware(OnlyUploads, fetch=settings.mcp)]},
        "state_session_capacity": MAX_SESSIONS,
        "footer_links": ["api", "settings"],
        "run_history": False,
        "enable_monitoring": False,
        # Handlers tell mistakes by `gr.Error`; the text of anything else may hold what is not a visitor's business.
        "show_error": False,
        "ssr_mode": False,
        "strict_cors": True,
    }


def _build_both_tabs(model: SharedRetriever, settings: AppSettings, examples: list[Example]) -> None:
    with gr.Tabs(elem_id="qamdetr-halves") as tabs:
        with gr.Tab("Find", id="find") as find_half:
            find = _build_find(model, settings, examples)
        with gr.Tab("Train", id="train"):
            train = build_train_tab(settings, on_checkpoint=model.offer, root=model.runs)
    # Runs come while the page is open, from the other tab or from a terminal.
    newest = {"outputs": find.model_choice, "api_visibility": "private", "queue": False, "show_progress": "hidden"}
    gr.on([find_half.select, find.model_choice.focus], lambda: gr.update(choices=model_choices(model.models())), **newest)
    taken = find.use(train.used.success, train.checkpoint)
    taken.then(lambda: gr.Tabs(selected="find"), None, tabs, api_visibility="private", queue=False, show_progress="hidden")


def _build_find(model: SharedRetriever, settings: AppSettings, examples: list[Example]) -> FindTab:
    find = build_find_tab(model, examples, settings)
    with gr.Accordion("What this model can and cannot hear", open=False, elem_id="qamdetr-about"):
        gr.Markdown(_about_the_model())
    return find


def _theme() -> gr.themes.Base:
    """Give the default theme calm colours, dark enough for text (contrast 4.5 : 1), and the fonts of the visitor's own system."""
    theme = gr.themes.Default(
        primary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.slate,
        text_size=TEXT_SIZE,
        font=SYSTEM_FONT,
        font_mono=MONO_FONT,
    )
    return theme.set(
        color_accent="*primary_700",
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


CARD_SECTION = "What it can and cannot hear"
"""Heading of the checkpoint card's section that the page quotes."""

HEARING_FALLBACK = (
    "The *pocket* encoder is small, made by this project and runs offline. It knows everyday sounds (animals, weather, water, "
    "machines, speech, instruments, alarms) better than rare ones. It does not understand what is said, who says it, or music by name."
)


def hearing_note(cards: Iterable[str]) -> str:
    """Body of the section `CARD_SECTION` of the first checkpoint card that has one, or a general note."""
    for card in cards:
        heading = re.search(rf"^(#+)\s*{re.escape(CARD_SECTION)}\s*$", card, flags=re.MULTILINE | re.IGNORECASE)
        if heading:
            next_heading = rf"^#{{1,{len(heading[1])}}}\s"  # of the same or a higher level: subsections belong to it
            return re.split(next_heading, card[heading.end() :], maxsplit=1, flags=re.MULTILINE)[0].strip()
    return HEARING_FALLBACK
