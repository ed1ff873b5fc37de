"""`/retrieve` as a function: what it keeps, what it refuses, what gradio gets to see. Over HTTP and MCP: `tests/e2e/test_programs.py`."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor

import gradio as gr
import pytest
from doubles import HeldRetriever, write_noise
from event_loops import run_apart

from qamdetr.ui.endpoint import FILE_MARK, KEPT_FOR_PROGRAMS, MAX_PROGRAMS, Endpoint, OnlyUploads
from qamdetr.ui.find import Recordings
from qamdetr.ui.models import SharedRetriever
from qamdetr.ui.settings import AppSettings


@pytest.fixture(autouse=True)
def uploads(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    (tmp_path / "uploads").mkdir()
    return tmp_path / "uploads"


def reference(path):
    return {"path": str(path), "meta": FILE_MARK}


@pytest.fixture
def make_audio(uploads):
    return lambda name="yard.wav", seconds=20: reference(write_noise(uploads / name, seconds))


def make_endpoint(retriever):
    model = SharedRetriever(lambda _: retriever)
    return Endpoint(model, Recordings(model, AppSettings()))


@pytest.fixture
def endpoint(retriever):
    return make_endpoint(retriever)


def test_recordings_are_known_by_their_content_and_few_are_kept(endpoint, retriever, make_audio):
    for query in ("a dog", "rain"):
        endpoint.retrieve(make_audio(), query)
    assert (retriever.encoded, retriever.queries) == (["yard.wav"], ["a dog", "rain"])
    assert endpoint.retrieve(make_audio(seconds=12), "a dog")["duration"] == 12.0, "another file in the same place"
    names = [f"{number}.wav" for number in range(KEPT_FOR_PROGRAMS + 1)]
    files = [make_audio(name, seconds=1) for name in names]
    for file in [*files, files[-1], files[0]]:
        endpoint.retrieve(file, "a dog")
    assert retriever.encoded[2:] == [*names, names[0]]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"query": "x" * 501}, "The query has 501 characters; the limit is 500"),
        ({"query": ["a bell"]}, r"query is \['a bell'\]; it must be text"),
        *(({"top_k": value}, "top_k is .*; it must be a whole number from 1 to 100") for value in (True, float("nan"))),
        ({"beta": 1.5}, "beta is 1.5; it must be a number from 0 to 1"),
        ({"verifier": 3}, "Verifier 3 is not offered here; choose one of none, pocket"),
        ({"checkpoint": 5}, "checkpoint is 5; it must be a model's name"),
        ({"audio": None}, "No recording was given; upload the file"),
        ({"audio": {"path": "/etc/hostname"}}, "was not uploaded to this page"),
        ({"audio": reference("gone.wav")}, "was not uploaded to this page, or is no longer kept"),
    ],
)
def test_what_cannot_be_used_is_one_line_before_anything_is_done(endpoint, retriever, make_audio, changed, told):
    given = {"audio": make_audio(), "query": "a dog", **changed}
    with pytest.raises(gr.Error, match=told) as caught:
        endpoint.retrieve(**given)
    assert "\n" not in caught.value.message
    assert retriever.encoded == []


def test_too_many_at_once_are_told(make_audio):
    held = HeldRetriever()
    endpoint, long = make_endpoint(held), make_audio("long.wav")
    with ThreadPoolExecutor(MAX_PROGRAMS) as pool:
        calls = [pool.submit(endpoint.retrieve, long, "a dog") for _ in range(MAX_PROGRAMS)]
        assert held.begun.acquire(timeout=10)
        while endpoint._room.acquire(blocking=False):  # until all are in
            endpoint._room.release()
        with pytest.raises(gr.Error, match=f"Too many at once: {MAX_PROGRAMS} calls are being answered"):
            endpoint.retrieve(make_audio(), "a dog")
        held.let_go.set()
        assert {call.result(timeout=30)["query"] for call in calls} == {"a dog"}
    assert held.encoded == ["long.wav"]


@pytest.mark.parametrize("fetch", [False, True])
def test_gradio_sees_references_to_uploads_and_no_others(make_audio, uploads, fetch):
    seen = []

    async def app(scope, receive, send):
        seen.append(json.loads((await receive())["body"]))

    def post(value):
        async def receive():
            return {"body": json.dumps(value).encode(), "more_body": False}

        scope = {"type": "http", "method": "POST", "path": "/gradio_api/queue/join", "headers": [(b"content-length", b"9")]}
        run_apart(asyncio.wait_for(OnlyUploads(app, fetch=fetch)(scope, receive, None), 10))
        return seen.pop()

    mine, public = make_audio(), reference("https://example.org/a.wav")
    assert post({"data": [mine, {"deep": [mine]}]}) == {"data": [mine, {"deep": [mine]}]}
    for path in ("/etc/hostname", uploads, f"{uploads}/../x", "file:///etc/hostname", "\0"):
        assert post([reference(path)]) == [{"path": str(path)}]
    assert post([public]) == ([public] if fetch else [{"path": public["path"]}])
