"""Asks an HTTP server for JSON, with time-outs, retries and one line for whatever goes wrong."""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import json
import socket
import ssl
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, NoReturn
from urllib.parse import urlsplit

from qamdetr.errors import QamDetrError

_FIRST_WAIT_SECONDS = 0.5
_MAX_ANSWER_BYTES = 16 << 20
_SHOWN_LETTERS = 160


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirected request would carry crops and key to an address that the user did not name."""

    def redirect_request(self, *_: object) -> None:
        """Follow none."""


_opener = urllib.request.build_opener(_NoRedirects)


class _Again(Exception):  # noqa: N818 - not an error yet
    """Something that may go better on another try."""

    def __init__(self, message: str, wait_seconds: float | None = None) -> None:
        super().__init__(message)
        self.wait_seconds = wait_seconds


@dataclass(frozen=True)
class JsonClient:
    """Sends requests to one server; threads may share it.

    Attributes:
        url: Base address, such as `http://localhost:8000/v1`.
        key: Bearer token, or empty; is never shown.
        timeout_seconds: How long the server may be silent; also the longest wait that it may ask for.
        retries: Further tries after a broken connection, HTTP 429 or 5xx, with waits that double from half a second. Silence and other
            HTTP errors are final.
    """

    url: str
    key: str = field(default="", repr=False)
    timeout_seconds: float = 60.0
    retries: int = 2

    def __post_init__(self) -> None:
        """Check the address.

        Raises:
            QamDetrError: It is not HTTP, or holds a password.
        """
        try:
            parts = urlsplit(self.url)
            usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            usable = False
        if not usable:
            raise QamDetrError(f"{self.url!r} is not an HTTP address; give one such as http://localhost:8000/v1.")
        if parts.username or parts.password:
            raise QamDetrError("The server's address holds a user name or password; give keys in the environment, not in the address.")
        object.__setattr__(self, "url", self.url.rstrip("/"))

    def get(self, path: str) -> Any:  # noqa: ANN401 - JSON
        """Ask for `path` under the base address.

        Raises:
            QamDetrError: See `post`.
        """
        return self._ask(path, None)

    def post(self, path: str, body: object) -> Any:  # noqa: ANN401 - JSON
        """Send JSON to `path` under the base address and return the JSON of the answer.

        Raises:
            QamDetrError: No connection, silence, an HTTP error, or an answer that is not JSON.
        """
        return self._ask(path, json.dumps(body).encode())

    def _ask(self, path: str, body: bytes | None) -> Any:  # noqa: ANN401 - JSON
        wait_seconds = _FIRST_WAIT_SECONDS
        for tries_left in range(self.retries, -1, -1):
            try:
                return self._try(path, body)
            except _Again as problem:  # noqa: PERF203 - a few tries
                asked = problem.wait_seconds
                if not tries_left:
                    raise QamDetrError(f"{problem} (tried {self.retries + 1} times)") from problem
                if asked is not None and asked > self.timeout_seconds:
                    raise QamDetrError(
                        f"{problem} It asks to wait {asked:.0f} s, more than verifier.timeout_seconds ({self.timeout_seconds:g})."
                    ) from problem
                time.sleep(wait_seconds if asked is None else max(asked, wait_seconds))
                wait_seconds *= 2
        raise AssertionError("the last try returns or raises")

    def _try(self, path: str, body: bytes | None) -> Any:  # noqa: ANN401 - JSON
        headers = {"Accept": "application/json", "User-Agent": "qamdetr"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(f"{self.url}/{path}", data=body, headers=headers)
        try:
            with _opener.open(request, timeout=self.timeout_seconds) as answer:
                content = answer.read(_MAX_ANSWER_BYTES)
        except urllib.error.HTTPError as error:
            with error:
                self._refused(error)
        except (OSError, http.client.HTTPException) as error:
            self._unreachable(error)
        try:
            return json.loads(content)
        except ValueError:
            raise QamDetrError(
                f"The answer of {self.url} is not JSON; check that the address is that of an OpenAI-compatible API."
            ) from None

    def _refused(self, error: urllib.error.HTTPError) -> NoReturn:
        told = b""
        with contextlib.suppress(OSError, http.client.HTTPException):
            told = error.read(4096)
        message = f"{self.url} answers HTTP {error.code}{self._shown(told)}."
        if error.code == 429 or error.code >= 500:
            raise _Again(message, _retry_after_seconds(error.headers.get("Retry-After")))
        if error.code in {401, 403}:
            message += " Set the key in the environment variable QAMDETR_VERIFIER_API_KEY."
        elif error.code == 404:
            message += " Check verifier.url (it ends with /v1 as a rule) and verifier.model."
        elif 300 <= error.code < 400:
            message += " Redirects are not followed; give the final address."
        raise QamDetrError(message)

    def _unreachable(self, error: OSError | http.client.HTTPException) -> NoReturn:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, TimeoutError):
            raise QamDetrError(
                f"{self.url} gave no answer within {self.timeout_seconds:g} s; raise verifier.timeout_seconds or lower verifier.batch_size."
            ) from error
        message = (
            f"Cannot connect to {self.url} ({' '.join(str(reason).split()) or type(reason).__name__}); check that the server runs there."
        )
        if isinstance(reason, (ssl.SSLCertVerificationError, socket.gaierror)):
            raise QamDetrError(message) from error
        raise _Again(message) from error

    def _shown(self, told: bytes) -> str:
        """Return the server's own words for a message, without the key."""
        text = told.decode("utf-8", errors="replace")
        with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
            parsed = json.loads(text)
            inner = parsed.get("error", parsed)
            text = str(inner["message"] if isinstance(inner, dict) else inner)
        if self.key:
            text = text.replace(self.key, "***")
        text = " ".join(text.split())[:_SHOWN_LETTERS].rstrip(".")
        return f" ({text})" if text else ""


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
