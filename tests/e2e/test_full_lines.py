"""Both lines as full as the settings allow: whoever waits keeps a thread, and enough are left for everybody else."""

from __future__ import annotations

import json
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
from fake import FakeRetriever

from qamdetr.ui.settings import MOST_WAITING, AppSettings

pytestmark = pytest.mark.slow

ANSWER_SECONDS = 20
"""Far less than callers are held; a machine that does other things answers within it."""


class HeldRetriever(FakeRetriever):
    """Reads files called "long…" and answers queries with "slow" in them when it is let go."""

    def __init__(self):
        super().__init__()
        self.let_go = threading.Event()

    def encode(self, path, on_stage=None):
        if Path(path).name.startswith("long"):
            assert self.let_go.wait(100)
        return super().encode(path, on_stage)

    def retrieve_many(self, recording, queries, **options):
        if "slow" in queries[0]:
            assert self.let_go.wait(100)
        return super().retrieve_many(recording, queries, **options)


@pytest.fixture
def running():
    from qamdetr.ui.demo import build_demo, launch_options
    from qamdetr.ui.shared_retriever import SharedRetriever

    settings = AppSettings(queue_length=MOST_WAITING, training=False)
    retriever = HeldRetriever()
    shared = SharedRetriever(lambda _: retriever, settings)
    demo = build_demo(shared, settings, [])
    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, **launch_options(settings))
    yield f"{url}gradio_api", shared
    retriever.let_go.set()
    demo.close()


def post(url, body, kind):
    with urllib.request.urlopen(urllib.request.Request(url, data=body, headers={"Content-Type": kind}), timeout=120) as answer:
        return json.load(answer)


def upload(url, path):
    head = f'--qd\r\nContent-Disposition: form-data; name="files"; filename="{path.name}"\r\n\r\n'.encode()
    (kept,) = post(f"{url}/upload", head + path.read_bytes() + b"\r\n--qd--\r\n", "multipart/form-data; boundary=qd")
    return kept


def noise(folder, name, seed):
    """Each seed is another file: callers with the same one wait together."""
    path = folder / f"{name}.wav"
    soundfile.write(path, 0.1 * np.random.default_rng(seed).standard_normal(8000), 8000)
    return path


def call(url, kept, query, seconds=120):
    """Call `/retrieve`; returns the stream's text."""
    data = {"data": [{"path": kept, "meta": {"_type": "gradio.FileData"}}, query, 10, "none", None, None]}
    event = post(f"{url}/call/retrieve", json.dumps(data).encode(), "application/json")["event_id"]
    with urllib.request.urlopen(f"{url}/call/retrieve/{event}", timeout=seconds) as stream:
        return stream.read().decode()


def full(line):
    with line._moved:
        return len(line._tickets) == MOST_WAITING + 1


def until(holds):
    pause = threading.Event()
    for _ in range(300):
        if holds():
            return
        pause.wait(0.1)
    raise AssertionError("The line never filled.")


def test_with_both_lines_full_everybody_else_is_answered_at_once(running, tmp_path):
    url, model = running
    short, *long = (upload(url, noise(tmp_path, name, seed)) for seed, name in enumerate(["short", *["long"] * (MOST_WAITING + 2)]))
    with ThreadPoolExecutor(2 * MOST_WAITING + 2) as callers:
        asking = [callers.submit(call, url, short, "slow") for _ in range(MOST_WAITING + 1)]
        until(lambda: full(model.answering))
        encoding = [callers.submit(call, url, kept, "a dog barks") for kept in long[1:]]
        until(lambda: full(model.encoding))
        answer = call(url, long[0], "a dog barks", ANSWER_SECONDS)
        assert f"{MOST_WAITING} requests are waiting already" in answer
        assert not any(caller.done() for caller in asking + encoding)
        model.get().let_go.set()
        assert all("event: complete" in caller.result() for caller in asking + encoding)
