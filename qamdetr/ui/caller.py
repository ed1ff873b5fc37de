"""Whether the program that called `/retrieve` still waits for its answer, looked up in the thread that works on it."""

from __future__ import annotations

import asyncio
from concurrent.futures import CancelledError
from typing import Any

from anyio import from_thread
from gradio.context import LocalContext


def caller_waits() -> bool:
    """Say whether somebody still waits for the answer of the call that this thread works on.

    Calls through gradio's queue (its clients, `/call/`) count as left when the caller closes the stream that the answer would come in, or
    cancels; those that never opened it, as waiting. Direct calls (`/run/`, MCP) count as left when the caller's connection is closed. A
    plain call from Python waits.

    Source: gradio 6.31, `queueing.py` (`Queue.clean_events`, `Event.alive`), `mcp.py` (`call_tool`).
    """
    blocks, event_id = LocalContext.blocks.get(None), LocalContext.event_id.get(None)
    if blocks is not None and event_id is not None:
        event = blocks._queue.event_ids_to_events.get(event_id)
        return event is not None and event.alive
    request = LocalContext.request.get(None)
    return request is None or _is_connected(request)


def _is_connected(request: Any) -> bool:  # noqa: ANN401 - gradio's request or the web framework's
    try:
        from_thread.check_cancelled()
        disconnected: bool = from_thread.run(request.is_disconnected)
    except (asyncio.CancelledError, CancelledError):
        return False
    return not disconnected
