"""The public endpoint as programs and assistants call it, and the examples of `docs/api.md`."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
from event_loops import run_apart

from qamdetr.inference.checkpoint import load_checkpoint

pytestmark = pytest.mark.slow
gradio_client = pytest.importorskip("gradio_client")

REPOSITORY = Path(__file__).resolve().parents[2]
API_PAGE = (REPOSITORY / "docs" / "api.md").read_text(encoding="utf-8")
PARAMETERS = ["audio", "query", "top_k", "verifier", "beta", "checkpoint"]


@pytest.fixture(scope="module")
def client(app_url):
    return gradio_client.Client(app_url, verbose=False)


def test_retrieve_answers_with_the_json_of_the_command_line(client, recordings):
    audio = gradio_client.handle_file(recordings["walk.wav"])
    answer = client.predict(audio, "a bell rings", 2, "pocket", 0.5, "qam-detr-pocket", api_name="/retrieve")
    assert " ".join(answer) == "audio duration query found tier encoder verifier beta moments saliency clip_seconds notes"
    assert (answer["audio"], answer["duration"], len(answer["saliency"])) == ("walk.wav", pytest.approx(40.0), 80)
    assert 1 <= len(answer["moments"]) <= 2
    knots = load_checkpoint("qam-detr-pocket")[1].inference.score_calibration
    for moment in answer["moments"]:
        assert list(moment) == ["start", "end", "score", "decoder_score", "foreground", "quality", "verifier_score", "likely"]
        probability = np.interp(moment["decoder_score"], *zip(*knots, strict=True))
        assert moment["score"] == pytest.approx(0.5 * probability + 0.5 * moment["verifier_score"], abs=2e-6)


@pytest.mark.parametrize(
    ("audio", "given", "told"),
    [
        ("broken.wav", {}, "broken.wav "),
        ("walk.wav", {"top_k": 3.7}, "top_k is 3.7; it must be"),
        ("walk.wav", {"checkpoint": "../x"}, "../x"),
    ],
)
def test_mistakes_come_back_as_one_line(client, recordings, audio, given, told):
    with pytest.raises(gradio_client.exceptions.AppError) as caught:
        client.predict(gradio_client.handle_file(recordings[audio]), "a bell rings", api_name="/retrieve", **given)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value).strip()


def values(path):
    return {"data": [{"path": path, "meta": {"_type": "gradio.FileData"}}, "a bell rings", 3, "none", None, None]}


@pytest.mark.parametrize("path", ["/etc/hostname", "file:///etc/hostname", "http://127.0.0.1:1/walk.wav"])
def test_only_uploads_are_read(app_url, path):
    address = f"{app_url}/gradio_api/call/retrieve"
    event = httpx.post(address, json=values(path)).json()["event_id"]
    kind, data = httpx.get(f"{address}/{event}", timeout=60).text.strip().split("\n")
    said = json.loads(data.removeprefix("data: "))["error"]
    assert kind == "event: error"
    assert ("fetches nothing from other addresses" if path[:4] == "http" else "was not uploaded to this page") in said
    assert "hostname" not in said


def test_the_examples_of_the_documentation_run(app_url, tmp_path):
    def run(*command):
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        command = [word.replace("http://127.0.0.1:7860", app_url) for word in command]
        run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240, check=False)
        assert run.returncode == 0, run.stderr
        return run.stdout

    (tmp_path / "assets").symlink_to(REPOSITORY / "assets")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", API_PAGE, flags=re.MULTILINE | re.DOTALL)
    at_home, over_http = (run(sys.executable, "-c", block) for language, block in blocks if language == "python")
    assert re.match(r"\d+\.\d-\d+\.\d s  0\.\d\d\n", at_home)
    assert re.search(r"^\d+\.\d+ \d+\.\d+ 0\.\d+$", over_http, flags=re.MULTILINE)
    if shutil.which("curl"):
        said = run("sh", "-c", next(block for language, block in blocks if not language and "curl" in block))
        assert said.startswith("event: complete\ndata: ")
        (answer,) = json.loads(said.split("data: ")[1])
        assert (answer["query"], 1 <= len(answer["moments"]) <= 3) == ("a siren wails", True)


def test_the_documentation_tells_every_argument_of_the_only_endpoint(client):
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    assert list(endpoints) == ["/retrieve"]
    taken = [parameter["parameter_name"] for parameter in endpoints["/retrieve"]["parameters"]]
    assert taken == [name for name in re.findall(r"^\| `(\w+)` \|", API_PAGE, flags=re.MULTILINE) if name in PARAMETERS] == PARAMETERS


def upload(url, sound):
    return httpx.post(f"{url}/gradio_api/upload", files={"files": (sound.name, sound.read_bytes())}).json()[0]


def stream_and_leave(url, sound, begun):
    event = httpx.post(f"{url}/gradio_api/call/retrieve", json=values(upload(url, sound))).json()["event_id"]
    with httpx.stream("GET", f"{url}/gradio_api/call/retrieve/{event}", timeout=60):
        begun()


def post_and_leave(url, sound, begun):
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{url}/gradio_api/run/retrieve", json=values(upload(url, sound)), timeout=2)
    begun()


def cancel_the_job(url, sound, begun):
    client = gradio_client.Client(url, verbose=False)
    job = client.submit(gradio_client.handle_file(sound), "a bell rings", api_name="/retrieve")
    begun()
    job.cancel()


def close_the_tools_connection(url, sound, begun):
    path = upload(url, sound)

    async def ask(session):
        asked = asyncio.create_task(session.call_tool("retrieve", {"audio": f"{url}/gradio_api/file={path}", "query": "a bell rings"}))
        await asyncio.to_thread(begun)
        return asked

    with_tools(url, ask)


@pytest.mark.parametrize("leave", [stream_and_leave, post_and_leave, cancel_the_job, close_the_tools_connection])
def test_the_work_for_a_caller_who_left_stops_and_the_place_is_free(held, recordings, leave):
    url, _, retriever = held
    leave(url, recordings["long.wav"], lambda: retriever.begun.acquire(timeout=20) or pytest.fail("nothing began"))
    # The Python client tells of a cancelled job when the server speaks next, 15 seconds later at most.
    assert retriever.ended.acquire(timeout=30), "it goes on for nobody"
    answer = httpx.post(f"{url}/gradio_api/run/retrieve", json=values(upload(url, recordings["walk.wav"])), timeout=10).json()
    assert answer["data"][0]["audio"] == "walk.wav"


def with_tools(url, use):
    """Connect as an assistant does, and return what `use(session)` returns."""
    from mcp import ClientSession
    from mcp.client.streamable_http import streamable_http_client

    async def connect():
        async with streamable_http_client(f"{url}/gradio_api/mcp/") as (read, write, _), ClientSession(read, write) as session:
            await session.initialize()
            return await use(session)

    return run_apart(connect())


MISTAKES = [
    ({"query": " "}, "The query is empty"),
    ({"top_k": 101}, "top_k is 101; it must be a whole number from 1 to 100"),
    ({"verifier": "oracle"}, "Verifier 'oracle' is not offered here"),
    ({"audio": "data:text/plain;base64,aGVsbG8="}, "file.txt cannot be decoded as audio"),
    ({"audio": "/etc/hostname"}, "audio is '/etc/hostname', which is no uploaded file"),
    ({"audio": "file:///etc/hostname"}, "audio is 'file:///etc/hostname', which is no uploaded file"),
    ({"audio": "http://10.0.0.1/walk.wav"}, "The recording could not be fetched from 'http://10.0.0.1/walk.wav'; it must be a public"),
    ({"audio": "http://127.0.0.1:1/gradio_api/file=/etc/hostname"}, "The recording could not be fetched"),
]


def test_the_same_function_is_the_only_tool_of_the_model_context_protocol(held, recordings):
    url, sound = held[0], recordings["walk.wav"]
    inside = "data:audio/wav;base64," + base64.b64encode(sound.read_bytes()).decode()
    ways = [{"audio": inside, "top_k": 2}, {"audio": f"{url}/gradio_api/file={upload(url, sound)}", "top_k": 2}]

    async def use(session):
        offered = (await session.list_tools()).tools, (await session.list_resources()).resources, (await session.list_prompts()).prompts
        asked = [{"audio": inside, "query": "a bell rings", **given} for given in (*ways, *(wrong for wrong, _ in MISTAKES))]
        return offered, [await session.call_tool("retrieve", given) for given in asked]

    ((tool,), resources, prompts), answers = with_tools(url, use)
    assert (tool.name, resources, prompts) == ("retrieve", [], [])
    assert "Look at `found` first" in tool.description
    assert (list(tool.inputSchema["properties"]), tool.inputSchema["required"]) == (PARAMETERS, ["audio", "query"])
    assert [answer.isError for answer in answers] == [False] * 2 + [True] * len(MISTAKES)
    texts = [answer.content[0].text for answer in answers]
    assert [(told["duration"], len(told["moments"])) for told in map(json.loads, texts[:2])] == [(40.0, 2)] * 2
    for text, (_, told) in zip(texts[2:], MISTAKES, strict=True):
        assert text.startswith(told)
        assert "\n" not in text
