"""A real HTTP server with an OpenAI-compatible chat endpoint, whose answers a test scripts."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import math
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import soundfile


@dataclass
class Reply:
    """One HTTP answer: `body` is JSON, or bytes as they are."""

    body: object
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay_seconds: float = 0.0
    hang_up: bool = False
    missing_bytes: int = 0  # announced, but never sent


def chat(**logprobs):
    """A chat answer whose first token has these alternatives."""
    listed = [{"token": token, "logprob": value, "bytes": list(token.encode())} for token, value in logprobs.items()]
    first = max(listed, key=lambda item: item["logprob"])
    logprobs = {"content": [{**first, "top_logprobs": listed}]}
    message = {"role": "assistant", "content": first["token"]}
    return {"object": "chat.completion", "choices": [{"index": 0, "message": message, "logprobs": logprobs, "finish_reason": "length"}]}


def by_loudness(request):
    """Louder crops are likelier; returns a chat answer."""
    sound, _ = soundfile.read(io.BytesIO(base64.b64decode(request["messages"][1]["content"][0]["input_audio"]["data"])))
    share = min(0.99, max(0.01, float((sound**2).mean()) * 3))
    return Reply(chat(Yes=math.log(share), No=math.log(1 - share)))


class FakeServer:
    """Answers `script` first, in turn, then `otherwise(request)`; remembers all requests."""

    def __init__(self, url, script, otherwise):
        self.url, self.script, self.otherwise = url, list(script), otherwise
        self.models = Reply({"object": "list", "data": [{"id": "tiny-omni", "object": "model"}]})
        self.models_asked = self.running = self.most_running = 0
        self.requests, self.headers = [], []
        self.lock = threading.Lock()

    def reply(self, path, headers, body):
        if path == "/v1/models":
            self.models_asked += 1
            return self.models
        request = json.loads(body)
        with self.lock:
            self.requests.append(request)
            self.headers.append(headers)
            return self.script.pop(0) if self.script else self.otherwise(request)


@contextlib.contextmanager
def serving(*script, otherwise=by_loudness):
    class Handler(BaseHTTPRequestHandler):
        def answer(self):
            with server.lock:
                server.running += 1
                server.most_running = max(server.most_running, server.running)
            try:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                reply = server.reply(self.path, dict(self.headers), body)
                time.sleep(reply.delay_seconds)
            finally:  # before the client hears of it: it may send the next request at once
                with server.lock:
                    server.running -= 1
            if reply.hang_up:
                self.close_connection = True
                return
            content = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
            with contextlib.suppress(OSError):
                self.send_response(reply.status)
                for name, value in {**reply.headers, "Content-Length": str(len(content) + reply.missing_bytes)}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

        do_GET = do_POST = answer  # noqa: N815 - the library's names

        def log_message(self, *_):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server = FakeServer(f"http://127.0.0.1:{http.server_address[1]}/v1", script, otherwise)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
