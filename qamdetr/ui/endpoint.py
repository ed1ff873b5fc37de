"""The public endpoint `/retrieve`: what programs call over HTTP, through gradio's clients, and as a tool of the Model Context Protocol."""

from __future__ import annotations

import asyncio
import json
import math
import re
import threading
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from concurrent.futures import CancelledError
from contextlib import closing, contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import gradio as gr
from anyio import from_thread
from gradio.context import LocalContext
from gradio.events import api
from gradio.processing_utils import save_base64_to_cache, ssrf_protected_download
from gradio.utils import get_upload_folder

from qamdetr.errors import AudioError, ConfigError, QamDetrError
from qamdetr.export.text import to_json_object
from qamdetr.inference.checkpoint import DEFAULT_CHECKPOINT
from qamdetr.types import Recording
from qamdetr.ui.errors import one_line, page_error
from qamdetr.ui.find import Kept, Recordings
from qamdetr.ui.models import SharedRetriever
from qamdetr.ui.queries import checked_query
from qamdetr.ui.settings import AppSettings

MAX_TOP_K = 100

MAX_PROGRAMS = 16
"""Calls that are worked on or wait for one another, each with a thread; beyond half of it, those through gradio's queue wait there."""

KEPT_FOR_PROGRAMS = 8
"""Encoded recordings that are kept for all programs together: a second query on one of them costs nothing."""

POLL_SECONDS = 0.5
"""Between two looks whether the caller still waits."""

FILE_MARK = {"_type": "gradio.FileData"}

_SERVED = re.compile(r"https?://[^/]+/(?:.*/)?gradio_api/file=(.+)")
_MAX_SHOWN = 60
_HOW_TO_UPLOAD = (
    'upload the file (gradio_client does so for handle_file("walk.wav")), then pass {"path": what the upload returned, '
    '"meta": {"_type": "gradio.FileData"}}'
)


class StoppedError(Exception):
    """The caller has left."""


class Endpoint:
    """Answers one query on one recording, and stops when its caller has left.

    What programs sent is kept for programs, few at a time: it is found by its content, so nobody finds it who does not have the file.
    """

    def __init__(self, model: SharedRetriever, recordings: Recordings, settings: AppSettings | None = None) -> None:
        self._model = model
        self._recordings = recordings
        self._settings = settings or AppSettings()
        self._kept = Kept(KEPT_FOR_PROGRAMS)
        self._encoding, self._answering = threading.Lock(), threading.Lock()
        self._room = threading.BoundedSemaphore(MAX_PROGRAMS)

    def build(self) -> None:
        """Add `/retrieve` to the current `gr.Blocks`."""
        # Without `queue`, MCP calls the function itself and not over HTTP, through one client for all: only so it is seen who has left.
        api(self.retrieve, api_name="retrieve", queue=False, concurrency_limit=MAX_PROGRAMS // 2)

    def retrieve(
        self,
        audio: str,
        query: str,
        top_k: int = 10,
        verifier: str = "none",
        beta: float | None = None,
        checkpoint: str | None = None,
        request: gr.Request | None = None,
    ) -> dict[str, Any]:
        """Find the moments of a recording that match a query, with scores, best first; times are in seconds.

        The answer is what `python -m qamdetr predict --format json` writes per query: `audio, duration, query, found, tier, encoder,
        verifier, beta, moments: [{start, end, score, decoder_score, foreground, quality, verifier_score, likely}], saliency: [per clip],
        clip_seconds, notes`.
        Look at `found` first: when it is false, `tier` says whether the sound is perhaps there, and `notes` whether the words are known.
        Then take the moments that are `likely`; the others are what else came into question.

        In the Model Context Protocol (MCP), `audio` is the address of a file that was uploaded to this page, a public http or https address
        that gives the file itself, or the file as `data:audio/wav;base64,...`; paths, private addresses and this machine's are refused.

        A mistake comes back as one line that says what, the limit and the remedy: a file that is no audio, too large or too long; an empty
        or overlong query; an option of the wrong kind or out of range; a model that is not offered or whose encoders are not here; too many
        callers at once.

        Args:
            audio: The recording (WAV, FLAC, OGG, MP3, anything FFmpeg reads): an uploaded file. In MCP: an address or `data:;base64,...`.
            query: What to look for, in words; at most 500 characters. English, unless the model's encoders know other languages.
            top_k: Most moments to return, 1 to 100.
            verifier: Second opinion on each candidate: `none`, `pocket`, or `qwen2.5-omni` or `server` where the page offers them.
            beta: Weight of the verifier in the score, 0 to 1; leave it out for the checkpoint's own.
            checkpoint: Name of the model, as the page lists them; leave it out for the one that the page starts with.
            request: Gradio's.

        Returns:
            The JSON object described above.
        """
        is_tool = request is not None and not isinstance(request, gr.Request)  # which gets the web framework's own
        try:
            answer = self._retrieve(audio, query, top_k, verifier, beta, checkpoint)
        except StoppedError:
            raise gr.Error("The caller has left.", print_exception=False) from None  # which nobody reads
        except Exception as error:
            raise QamDetrError(one_line(error)) if is_tool else page_error(error, shown=False) from error
        # Gradio would show a tool's caller a dictionary as Python writes it.
        return json.dumps(answer, ensure_ascii=False) if is_tool else answer  # type: ignore[return-value]

    def _retrieve(self, audio: object, query: object, top_k: object, verifier: object, beta: object, name: object) -> dict[str, Any]:
        words = _checked_query(query)
        number = int(_checked_number("top_k", top_k, 1, MAX_TOP_K, "10", whole=True))
        weight = None if beta is None else _checked_number("beta", beta, 0, 1, "the checkpoint's own")
        if not isinstance(verifier, str) or verifier not in self._settings.verifiers:
            raise ConfigError(f"Verifier {shown(verifier)} is not offered here", f"choose one of {', '.join(self._settings.verifiers)}")
        if name is not None and not isinstance(name, str):
            remedy = "leave it out for the one that the page starts with"
            raise ConfigError(f"checkpoint is {shown(name)}; it must be a model's name", remedy)
        if not self._room.acquire(blocking=False):
            raise QamDetrError(f"Too many at once: {MAX_PROGRAMS} calls are being answered, which is the limit", "try again in a moment")
        try:
            path = self._file(audio)
            checkpoint = name or self._model.first
            self._model.open_offered(checkpoint, f"pass checkpoint={DEFAULT_CHECKPOINT!r}")
            recording = self._encode(checkpoint, path)
            retriever = self._model.get(checkpoint)
            second = self._model.verifier(verifier, retriever)
            with _turn(self._answering):
                (result,) = retriever.retrieve_many(recording, [words], top_k=number, verifier=second, beta=weight)
        finally:
            self._room.release()
        return {**to_json_object(result), "audio": path.name}

    def _encode(self, checkpoint: str, path: Path) -> Recording:
        # What is fetched anew from the same address lies in the same place, and may be another file.
        name = f"{path} {_digest(path)}"
        with _turn(self._encoding), closing(self._recordings.encoding(self._kept, checkpoint, path, name)) as steps:
            for _ in steps:
                _stop_if_left()
        recording = self._recordings.known(self._kept, checkpoint, path, name)
        assert recording is not None
        return recording

    def _file(self, audio: object) -> Path:
        """Find the file that a program means; where it lies is not told to the caller.

        Raises:
            AudioError: It was not uploaded here, and is no public address or `data:` that the page may fetch.
        """
        uploads = get_upload_folder()
        if isinstance(audio, dict) and isinstance(audio.get("path"), str) and audio["path"]:
            if _is_upload(audio["path"]) and audio.get("meta") == FILE_MARK:
                return Path(audio["path"]).resolve()
            raise self._not_here(audio["path"])
        if not isinstance(audio, str) or not audio:
            what = "No recording was given" if not audio else f"audio is {shown(audio)}, which is no uploaded file"
            raise AudioError(what, _HOW_TO_UPLOAD)
        served = _SERVED.fullmatch(audio)  # MCP clients name uploads of this page so
        if served and _is_upload(unquote(served[1])):
            return Path(unquote(served[1])).resolve()
        if not _is_address(audio) and not audio.startswith("data:"):
            raise AudioError(f"audio is {shown(audio)}, which is no uploaded file", _HOW_TO_UPLOAD)
        if not self._settings.mcp:
            raise self._not_here(audio)
        try:
            return Path(ssrf_protected_download(audio, uploads) if _is_address(audio) else save_base64_to_cache(audio, uploads))
        except Exception as error:
            raise self._not_here(audio) from error

    def _not_here(self, path: str) -> AudioError:
        if not _is_address(path):
            return AudioError("The recording was not uploaded to this page, or is no longer kept", _HOW_TO_UPLOAD)
        if not self._settings.mcp:
            remedy = "upload the file (QAMDETR_MCP=1 allows public ones)"
            return AudioError("This page fetches nothing from other addresses", remedy)
        limit = "it must be a public address that gives the file itself, and none of this machine or its network"
        return AudioError(f"The recording could not be fetched from {shown(path)}; {limit}", "upload the file")


class OnlyUploads:
    """Between the network and gradio: references to files that are not uploads of this page are taken for plain words.

    Gradio would fetch what they name and hold it in memory whole, whatever its size; and it would note a folder as one of its files, and
    its sweeping of old uploads would end there, for good.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], *, fetch: bool) -> None:
        """Wrap an ASGI application; `fetch` lets gradio fetch from addresses, which it does from public ones only."""
        self._app = app
        self._fetch = fetch

    async def __call__(self, scope: MutableMapping[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[..., Any]) -> None:
        """Pass a request on."""
        of_events = scope["type"] == "http" and scope["method"] == "POST" and re.search(r"/(queue/join|call|run|api)\b", scope["path"])
        if not of_events:
            await self._app(scope, receive, send)
            return
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        with suppress(ValueError):
            body = json.dumps(self._without_others(json.loads(body))).encode()
        parts = [{"type": "http.request", "body": body, "more_body": False}]
        scope["headers"] = [(key, value) for key, value in scope["headers"] if key != b"content-length"]

        async def received() -> Any:  # noqa: ANN401 - an ASGI message
            return parts.pop() if parts else await receive()

        await self._app(scope, received, send)

    def _without_others(self, value: Any) -> Any:  # noqa: ANN401 - whatever JSON holds
        if isinstance(value, list):
            return [self._without_others(item) for item in value]
        if not isinstance(value, dict):
            return value
        kept = {key: self._without_others(item) for key, item in value.items()}
        path = kept.get("path")
        if isinstance(path, str) and "meta" in kept and not (_is_upload(path) or (self._fetch and _is_address(path))):
            del kept["meta"]
        return kept


def shown(value: object) -> str:
    """Show a value in a message: one line, and not all of a long one."""
    text = " ".join(repr(value).split())
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


def _is_upload(path: str) -> bool:
    try:
        place = Path(path).resolve()
        return place.is_relative_to(Path(get_upload_folder()).resolve()) and place.is_file()
    except (OSError, ValueError):  # what can be no path
        return False


def _is_address(path: str) -> bool:
    return path.lower().startswith(("http:", "https:"))


def _checked_query(query: object) -> str:
    if query is not None and not isinstance(query, str):
        raise ConfigError(f"query is {shown(query)}; it must be text, one query a call, such as “a dog barks twice”.")
    return checked_query(query or "")


def _checked_number(name: str, value: object, least: float, most: float, otherwise: str, *, whole: bool = False) -> float:
    """Return a number as it came; refuse text, booleans, what is out of range, and fractions where it must be whole."""
    number = value if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
    if not least <= number <= most or (whole and number != int(number)):
        kind = "a whole number" if whole else "a number"
        raise ConfigError(f"{name} is {shown(value)}; it must be {kind} from {least:g} to {most:g}", f"leave it out for {otherwise}")
    return number


def _digest(path: Path) -> str:
    digest = blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1024**2):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def _turn(lock: threading.Lock) -> Iterator[None]:
    while not lock.acquire(timeout=POLL_SECONDS):
        _stop_if_left()
    try:
        yield
    finally:
        lock.release()


def _stop_if_left() -> None:
    if not caller_waits():
        raise StoppedError


def caller_waits() -> bool:
    """Say whether somebody still waits for the answer of the call that this thread works on; gradio cannot stop a function.

    Calls through gradio's queue (its clients, `/call/`) count as left when the caller closes the stream that the answer would come in, or
    cancels; those that never opened it, as waiting. Direct calls (`/run/`, MCP) count as left when the caller's connection is closed. A
    plain call from Python waits.

    Source: gradio 6.31, `queueing.py` (`Queue.clean_events`, `Event.alive`), `mcp.py` (`call_tool`).
    """
    blocks, event_id = LocalContext.blocks.get(None), LocalContext.event_id.get(None)
    if blocks is not None and event_id is not None:
        event = blocks._queue.event_ids_to_events.get(event_id)
        return event is not None and event.alive
    request: Any = LocalContext.request.get(None)
    if request is None:
        return True
    try:
        from_thread.check_cancelled()
        disconnected: bool = from_thread.run(request.is_disconnected)
    except (asyncio.CancelledError, CancelledError):
        return False
    return not disconnected
