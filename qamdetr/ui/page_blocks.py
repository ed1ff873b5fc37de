"""The page as gradio's `Blocks`, with a check between the network and gradio's own handling of what came."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.exceptions import InvalidPathError
from starlette.requests import Request as WebRequest

from qamdetr.errors import AudioError, QamDetrError
from qamdetr.export.text import one_line
from qamdetr.ui.endpoint import ENDPOINT
from qamdetr.ui.endpoint_arguments import addresses, check_raw, file_error, kept_upload, paths
from qamdetr.ui.page_errors import page_error
from qamdetr.ui.settings import AppSettings

_log = logging.getLogger(__name__)


class PageBlocks(gr.Blocks):
    """Refuses what gradio would answer with an error without words, or would do and this page must not.

    A component sees its value only after gradio fetched, moved or turned it into text, hence the check comes before. Calls of `/retrieve`
    leave no session behind, and MCP gets its answer as JSON.
    """

    def __init__(self, settings: AppSettings, **options: Any) -> None:  # noqa: ANN401 - those of gr.Blocks
        super().__init__(**options)
        self._page_settings = settings

    def get_config_file(self) -> Any:  # noqa: ANN401 - gradio's type is not public
        """Describe the page to the browser and to gradio's clients: all of them wait for `/retrieve` in a stream with signs of life."""
        config = super().get_config_file()
        for event in config["dependencies"]:
            if event["api_name"] == ENDPOINT:
                event["queue"] = True
        return config

    async def process_api(self, block_fn: Any, *rest: Any, **options: Any) -> Any:  # noqa: ANN401
        """Answer an event as gradio does; one of `/retrieve` is forgotten afterwards."""
        if getattr(block_fn, "api_name", None) != ENDPOINT:
            return await super().process_api(block_fn, *rest, **options)
        # HTTP comes with gradio's own request, a tool with the web framework's; gradio would give the tool all as Python's repr.
        is_tool = isinstance(options.get("request"), WebRequest)
        try:
            answer = await super().process_api(block_fn, *rest, **options)
        except gr.Error as error:
            raise QamDetrError(error.message) if is_tool else error from error.__cause__
        finally:
            self._forget(options.get("session_hash"))
        if is_tool:
            answer["data"] = [json.dumps(getattr(value, "root", value), ensure_ascii=False) for value in answer["data"]]
        return answer

    def _forget(self, session_hash: str | None) -> None:
        """Drop the session that gradio made for a call, since it would count among the visitors'; one that holds anything stays."""
        holder = getattr(self, "state_holder", None)
        if holder is None or session_hash is None:
            return
        with holder.lock:
            session = holder.session_data.get(session_hash)
            if session is not None and not session.state_data:
                del holder.session_data[session_hash]
                holder.time_last_used.pop(session_hash, None)

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
            # gradio would note a folder as one of its files, and its sweeping of old uploads would end there, for good.
            for path in paths(inputs):
                if _is_folder_in(path, Path(self.GRADIO_CACHE)):
                    raise file_error({"path": path})
        except Exception as error:
            raise page_error(error, shown=False) from error
        try:
            taken: list[Any] = await super().preprocess_data(block_fn, inputs, *rest, **options)
        except gr.Error:
            raise
        except Exception as error:
            if not is_endpoint:
                raise
            raise page_error(_refusal(inputs[0], error), shown=False) from error
        return taken

    def _checked(self, block_fn: Any, inputs: list[Any]) -> list[Any]:  # noqa: ANN401
        check_raw(inputs, self._page_settings.verifiers)
        audio, *words = inputs
        return [kept_upload(audio, Path(block_fn.inputs[0].GRADIO_CACHE)), *words]


def _is_folder_in(path: str, uploads: Path) -> bool:
    try:
        place = Path(path).resolve()
        return place.is_relative_to(uploads.resolve()) and place.is_dir()
    except (OSError, ValueError):  # what can be no path is no folder
        return False


def _refusal(audio: Any, error: Exception) -> Exception:  # noqa: ANN401
    """Say why gradio did not take a file; what is no matter of the file stays what it is, and is logged as such."""
    if addresses(audio):
        _log.warning("A recording could not be fetched: %s", one_line(f"{type(error).__name__}: {error}"))
        return file_error(audio)
    return file_error(audio) if isinstance(error, (InvalidPathError, FileNotFoundError)) else error
