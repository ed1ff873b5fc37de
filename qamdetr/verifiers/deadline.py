"""HTTP for `urllib` in which the time-out holds for a whole request, not for each byte of it."""

from __future__ import annotations

import functools
import http.client
import io
import math
import socket
import time
import urllib.request
from typing import Any


def build_opener() -> urllib.request.OpenerDirector:
    """Make an opener that follows no redirects and whose `timeout` is that of a request from its connection to its last byte."""
    return urllib.request.build_opener(_NoRedirects, _Http, _Https)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirected request would carry crops and key to an address that the user did not name."""

    def redirect_request(self, *_: object) -> None:
        """Follow none."""


class _TimedReader(io.RawIOBase):
    """Reads a socket until a deadline; the socket's own time-out would begin anew with each byte that trickles in."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket, deadline: float) -> None:
        super().__init__()
        self._raw, self._sock, self._deadline = raw, sock, deadline

    def readable(self) -> bool:
        """Return True; see `io.RawIOBase`."""
        return True

    def readinto(self, buffer: Any) -> int | None:  # noqa: ANN401 - as the base class
        """Read what is there; see `io.RawIOBase`.

        Raises:
            TimeoutError: The deadline has passed.
        """
        self._sock.settimeout(_seconds_left(self._deadline))
        return self._raw.readinto(buffer)

    def close(self) -> None:
        """Close the socket's file, too."""
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, deadline: float, sock: socket.socket, *args: Any, **options: Any) -> None:  # noqa: ANN401 - as the base class
        super().__init__(sock, *args, **options)
        self.fp = io.BufferedReader(_TimedReader(self.fp.detach(), sock, deadline))


class _Connection(http.client.HTTPConnection):
    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - as the base class
        super().__init__(*args, **options)
        self._deadline = time.monotonic() + (self.timeout or math.inf)
        self.response_class: Any = functools.partial(_Response, self._deadline)

    def send(self, data: Any) -> None:  # noqa: ANN401 - as the base class
        if self.sock is None:
            self.connect()
        self.sock.settimeout(_seconds_left(self._deadline))
        super().send(data)


class _TlsConnection(_Connection, http.client.HTTPSConnection):
    pass


class _Http(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Connection, req)


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_TlsConnection, req)


def _seconds_left(deadline: float) -> float | None:
    if deadline == math.inf:
        return None
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the time for the request is over")
    return left
