"""The page as gradio's `Blocks`, with a check between the network and gradio's own handling of what came."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from qamdetr.errors import AudioError
from qamdetr.ui.endpoint import ENDPOINT
from qamdetr.ui.endpoint_arguments import addresses, check_raw, file_error, kept_upload
from qamdetr.ui.page_errors import page_error
from qamdetr.ui.settings import AppSettings


class PageBlocks(gr.Blocks):
    """Refuses what gradio would answer with an error without words, or would do and this page must not.

    A component sees its value only after gradio fetched, moved or turned it into text, hence the check comes before.
    """

    def __init__(self, settings: AppSettings, **options: Any) -> None:  # noqa: ANN401 - those of gr.Blocks
        super().__init__(**options)
        self._page_settings = settings

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *rest: Any, **options: Any) -> list[Any]:  # noqa: ANN401
        """Check what came, then do as gradio does.

        Raises:
            gr.Error: One line that says what is wrong.
        """
        is_endpoint = block_fn.api_name == ENDPOINT
        try:
            if is_endpoint:
                inputs = self._checked(block_fn, inputs)
            # Fetched files are held in memory whole, whatever their size, and the browser never asks for it.
            if not self._page_settings.mcp and addresses(inputs):
                raise AudioError("This page fetches nothing from other addresses; upload the file (QAMDETR_MCP=1 allows public ones).")
        except Exception as error:
            raise page_error(error, shown=False) from error
        try:
            taken: list[Any] = await super().preprocess_data(block_fn, inputs, *rest, **options)
        except gr.Error:
            raise
        except Exception as error:
            if not is_endpoint:
                raise
            raise page_error(file_error(inputs[1]), shown=False) from error
        return taken

    def _checked(self, block_fn: Any, inputs: list[Any]) -> list[Any]:  # noqa: ANN401
        # gradio puts the session in front, but only where the number of values is right.
        complete = len(inputs) == len(block_fn.inputs)
        session, arguments = (inputs[:1], inputs[1:]) if complete else ([], inputs)
        check_raw(arguments, self._page_settings.verifiers)
        audio, *words = arguments
        return [*session, kept_upload(audio, Path(block_fn.inputs[1].GRADIO_CACHE)), *words]
