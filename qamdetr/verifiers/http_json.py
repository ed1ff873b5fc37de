"""Asks an HTTP server for JSON, with time-outs, retries and one line for whatever goes wrong."""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import json
import re
import socket
import ssl
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from datetime import datetime, timezone
from html import escape
from typing import Any, NoReturn
from urllib.parse import quote, urlsplit

from qamdetr.errors import QamDetrError
from qamdetr.verifiers import deadline

KEY_VARIABLE = "QAMDETR_VERIFIER_API_KEY"

_FIRST_WAIT_SECONDS = 0.5
_MAX_ANSWER_BYTES = 16 << 20
_MAX_REFUSAL_BYTES = 64 << 10
_PIECE_BYTES = 64 << 10
_SHOWN_LETTERS = 160
_VISIBLE_ASCII = re.compile(r"[!-~]*")

_opener = deadline.build_opener()


class UnreachableError(QamDetrError):
    """The server gave no answer, or was too busy or broken for one at every try."""


class _RefusedError(QamDetrError):
    """An HTTP error."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class _Again(Exception):  # noqa: N818 - not an error yet
    """Something that may go better on another try."""

    def __init__(self, message: str, wait_seconds: float | None = None, status: int | None = None) -> None:
        super().__init__(message)
        self.wait_seconds = wait_seconds
        self.status = status


@dataclass(frozen=True)
class JsonClient:
    """Sends requests to one server; threads may share it.

    Attributes:
        url: Base address, such as `http://localhost:8000/v1`.
        key: Bearer token, or empty; blanks and line ends around it do not count. Is never shown, also where the server repeats it.
        timeout_seconds: How long one request may take, from the connection to the last byte of the answer; also the longest wait that
            the server may ask for.
        retries: Further tries after a broken connection, HTTP 429 or 5xx, with waits that double from half a second. Silence and other
            HTTP errors are final.
    """

    url: str
    key: str = field(default="", repr=False)
    timeout_seconds: float = 60.0
    retries: int = 2

    def __post_init__(self) -> None:
        """Check address and key.

        Raises:
            QamDetrError: The address is not HTTP, or holds a password, a query or blanks; the key holds what no HTTP header can.
        """
        object.__setattr__(self, "key", self.key.strip())
        if not _VISIBLE_ASCII.fullmatch(self.key):
            raise QamDetrError(f"The key in {KEY_VARIABLE} holds blanks or characters outside ASCII; set it to the key alone.")
        object.__setattr__(self, "url", _usable_url(self.url.strip()))

    def get(self, path: str) -> Any:  # noqa: ANN401 - JSON
        """Ask for `path` under the base address.

        Raises:
            QamDetrError: See `post`.
        """
        return self._ask(path, None, None)

    def post(self, path: str, body: object, stop: threading.Event | None = None) -> Any:  # noqa: ANN401 - JSON
        """Send JSON to `path` under the base address and return the JSON of the answer.

        Args:
            path: Without a slash in front.
            body: Anything that JSON can hold.
            stop: Once it is set, there are no further tries.

        Raises:
            UnreachableError: No connection, silence, or HTTP 429 or 5xx at every try.
            QamDetrError: Another HTTP error, or an answer that is not JSON.
        """
        return self._ask(path, json.dumps(body).encode(), stop)

    def reach(self, path: str) -> None:
        """Ask once whether the server is there and takes the key; any other HTTP answer will do.

        Raises:
            QamDetrError: No connection, silence, HTTP 401 or 403.
        """
        try:
            self._exchange(path, None)
        except _Again as problem:
            if problem.status is None:
                raise UnreachableError(self.masked(str(problem))) from None
        except _RefusedError as refusal:
            if refusal.status in {401, 403}:
                raise

    def masked(self, text: str) -> str:
        """Return the text without the key, as it is or escaped for JSON, an address or HTML."""
        forms = {self.key, self.key.replace("/", "\\/"), json.dumps(self.key)[1:-1], quote(self.key), quote(self.key, ""), escape(self.key)}
        for form in sorted(forms - {""}, key=len, reverse=True):
            text = text.replace(form, "***")
        return text

    def _ask(self, path: str, body: bytes | None, stop: threading.Event | None) -> Any:  # noqa: ANN401 - JSON
        stop = stop or threading.Event()
        wait_seconds = _FIRST_WAIT_SECONDS
        for tried in range(1, self.retries + 2):
            try:
                return self._read_json(self._exchange(path, body))
            except _Again as problem:  # noqa: PERF203 - a few tries
                asked = problem.wait_seconds
                told = self.masked(str(problem))
                if asked is not None and asked > self.timeout_seconds:
                    raise UnreachableError(
                        f"{told} It asks to wait {asked:.0f} s, more than verifier.timeout_seconds ({self.timeout_seconds:g})."
                    ) from None
                if tried > self.retries or stop.wait(wait_seconds if asked is None else max(asked, wait_seconds)):
                    raise UnreachableError(f"{told} (tried {tried} times)") from None
                wait_seconds *= 2
        raise AssertionError("the last try returns or raises")

    def _exchange(self, path: str, body: bytes | None) -> bytes:
        """Send one request and return the body of the answer."""
        headers = {"Accept": "application/json", "User-Agent": "qamdetr"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        try:
            request = urllib.request.Request(f"{self.url}/{path}", data=body, headers=headers)
            with _opener.open(request, timeout=self.timeout_seconds) as answer:
                return self._read(answer)
        except urllib.error.HTTPError as error:
            with error:
                self._refused(error)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._unreachable(error, waits_for_model=body is not None)

    def _read(self, answer: http.client.HTTPResponse) -> bytes:
        content = bytearray()
        while piece := answer.read(_PIECE_BYTES):
            content += piece
            if len(content) > _MAX_ANSWER_BYTES:
                raise QamDetrError(
                    self.masked(f"The answer of {self.url} is longer than {_MAX_ANSWER_BYTES >> 20} MiB; check that it is a chat server.")
                )
        if answer.length:  # read() in pieces does not mind an early end
            raise http.client.IncompleteRead(bytes(content), answer.length)
        return bytes(content)

    def _read_json(self, content: bytes) -> Any:  # noqa: ANN401 - JSON
        try:
            return json.loads(content)
        except RecursionError:
            fault = "is nested too deeply"
        except ValueError:
            fault = "is not JSON" if content.strip() else "is empty"
        raise QamDetrError(
            self.masked(f"The answer of {self.url} {fault}; check that the address is that of an OpenAI-compatible API.")
        ) from None

    def _refused(self, error: urllib.error.HTTPError) -> NoReturn:
        told = b""
        with contextlib.suppress(OSError, http.client.HTTPException):
            told = error.read(_MAX_REFUSAL_BYTES)
        message = f"{self.url} answers HTTP {error.code}{self._shown(told)}."
        if error.code == 429 or error.code >= 500:
            raise _Again(message, _retry_after_seconds(error.headers.get("Retry-After")), error.code) from None
        if error.code in {401, 403}:
            message += f" Set the key in the environment variable {KEY_VARIABLE}."
        elif error.code == 404:
            message += " Check verifier.url (it ends with /v1 as a rule) and verifier.model."
        elif 300 <= error.code < 400:
            message += " Redirects are not followed; give the final address."
        raise _RefusedError(self.masked(message), error.code) from None

    def _unreachable(self, error: Exception, *, waits_for_model: bool) -> NoReturn:
        """Tell why there is no answer. The cause is not chained: a traceback of it could show the headers, and the key among them."""
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, TimeoutError):
            remedy = (
                "raise verifier.timeout_seconds or lower verifier.batch_size" if waits_for_model else "check that the server runs there"
            )
            raise UnreachableError(self.masked(f"{self.url} gave no answer within {self.timeout_seconds:g} s; {remedy}.")) from None
        if isinstance(reason, ValueError) and not isinstance(reason, OSError):
            raise QamDetrError(self.masked(f"No request can be sent to {self.url}; check that address and {KEY_VARIABLE}.")) from None
        if isinstance(reason, http.client.IncompleteRead):
            raise _Again(f"The answer of {self.url} broke off after {len(reason.partial)} bytes; check the server and what lies between.")
        told = " ".join(str(reason).split()) or type(reason).__name__
        message = f"Cannot connect to {self.url} ({self.masked(told)[:_SHOWN_LETTERS]}); check that the server runs there."
        if isinstance(reason, (ssl.SSLCertVerificationError, socket.gaierror)):
            raise UnreachableError(self.masked(message)) from None
        raise _Again(message) from None

    def _shown(self, told: bytes) -> str:
        """Return the server's own words for a message, without the key."""
        text = told.decode("utf-8", errors="replace")
        with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError, RecursionError):
            parsed = json.loads(text)
            inner = parsed.get("error", parsed)
            text = str(inner.get("message") or json.dumps(inner, ensure_ascii=False)) if isinstance(inner, dict) else str(inner)
        text = " ".join(self.masked(text).split())[:_SHOWN_LETTERS].rstrip(".")
        return f" ({text})" if text else ""


def _usable_url(url: str) -> str:
    """Return the address without slashes at its end. What may hold a secret is not quoted.

    Raises:
        QamDetrError: See `JsonClient`.
    """
    if "@" in url:
        raise QamDetrError("The server's address holds a user name or password; give keys in the environment, not in the address.")
    if "?" in url or "#" in url:
        raise QamDetrError("The server's address holds a `?` or `#`; end it with its path, as in http://localhost:8000/v1.")
    if not _VISIBLE_ASCII.fullmatch(url):
        raise QamDetrError(f"The server's address {url!r} holds blanks or characters outside ASCII; write them as %20 and the like.")
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable:
        raise QamDetrError(f"{url!r} is not an HTTP address; give one such as http://localhost:8000/v1.")
    return url.rstrip("/")


def _retry_after_seconds(value: str | None) -> float | None:
    """Seconds that a `Retry-After` header asks for, in either of its forms; None without one that can be read."""
    if not value:
        return None
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, float(value))
    with contextlib.suppress(ValueError, TypeError):
        moment = email.utils.parsedate_to_datetime(value)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
        return max(0.0, (moment - datetime.now(timezone.utc)).total_seconds())
    return None
