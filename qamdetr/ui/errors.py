"""Failures as the one line that a visitor or a program reads."""

from __future__ import annotations

import html
import logging

import gradio as gr

from qamdetr.errors import QamDetrError

_log = logging.getLogger(__name__)


def as_text(error: Exception | str) -> str:
    """Escape a message for a toast: it may quote names that a visitor chose."""
    return html.escape(str(error), quote=False)


def one_line(error: Exception) -> str:
    """Say any failure in one line, in plain text; only a fault of the program is worth a traceback in the log."""
    if isinstance(error, QamDetrError):
        return str(error)
    _log.error("Unexpected failure", exc_info=error)
    return "The program failed in a way nobody foresaw; its log has the details. Nothing you opened is lost."


def warn(error: Exception, title: str) -> str:
    """Show a failure as a toast where raising it would do harm; returns its line."""
    line = one_line(error)
    gr.Warning(as_text(line), title=title)
    return line


def page_error(error: Exception, *, shown: bool = True) -> gr.Error:
    """Turn any failure into one line, see `one_line`.

    Args:
        error: What happened.
        shown: On the page, where gradio renders the line as HTML; False for programs, which want the words as they are.
    """
    if isinstance(error, gr.Error):
        return error
    line = one_line(error)
    return gr.Error(as_text(line) if shown else line, print_exception=False)
