"""The public endpoint, called as a program calls it, and the README's examples of that."""

from __future__ import annotations

import asyncio
import base64
import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from doubles import HeldRetriever
from event_loops import run_apart

from qamdetr.ui.settings import AppSettings

pytestmark = pytest.mark.slow
gradio_client = pytest.importorskip("gradio_client")

REPOSITORY = Path(__file__).resolve().parents[2]
OWN_ADDRESS = "http://127.0.0.1:7860"


@pytest.fixture(scope="module")
def client(app_url):
    return gradio_client.Client(app_url, verbose=False)


def test_retrieve_answers_with_the_json_of_the_command_line(client, recordings):
    answer = client.predict(gradio_client.handle_file(recordings["walk.wav"]), "a bell rings", api_name="/retrieve")
    assert list(answer) == ["audio", "duration", "query", "found", "encoder", "verifier", "beta", "moments", "saliency", "notes"]
    assert answer["audio"] == "walk.wav"
    assert answer["duration"] == pytest.approx(40.0)
    assert len(answer["saliency"]) == 40
    for moment in answer["moments"]:
        assert list(moment) == ["start", "end", "score", "decoder_score", "foreground", "quality", "verifier_score", "likely"]
        assert 0 <= moment["start"] < moment["end"] <= 40.0


def test_retrieve_takes_its_options_by_name(client, recordings):
    audio = gradio_client.handle_file(recordings["walk.wav"])
    answer = client.predict(
        audio=audio, query="a bell rings", top_k=2, verifier="pocket", beta=0.5, checkpoint="qam-detr-pocket", api_name="/retrieve"
    )
    assert len(answer["moments"]) <= 2
    for moment in answer["moments"]:
        assert moment["score"] == pytest.approx(0.5 * moment["decoder_score"] + 0.5 * moment["verifier_score"], abs=2e-6)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"audio": "broken.wav"}, "broken.wav "),
        ({"query": "  "}, "The query is empty"),
        ({"top_k": 3.7}, "top_k is 3.7; it must be a whole number from 1 to 100"),
        ({"verifier": "oracle"}, "Verifier 'oracle' is not offered here; choose one of none, pocket"),
        ({"checkpoint": "../secret"}, "../secret"),
        ({"audio": "/etc/hostname"}, "audio is '/etc/hostname', which is no uploaded file"),
        ({"audio": gradio_client.handle_file("https://example.org/walk.wav")}, "fetches nothing from other addresses; upload the file"),
    ],
)
def test_mistakes_come_back_as_one_line(client, recordings, arguments, told):
    given = {"audio": "walk.wav", "query": "a bell rings", **arguments}
    if isinstance(given["audio"], str) and given["audio"] in recordings:
        given["audio"] = gradio_client.handle_file(recordings[given["audio"]])
    with pytest.raises(gradio_client.exceptions.AppError) as caught:
        client.predict(api_name="/retrieve", **given)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value).strip()


def reference(path):
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/etc/hostname", "was not uploaded to this page"),
        ("file:///etc/hostname", "was not uploaded to this page"),
        ("http://127.0.0.1:1/walk.wav", "fetches nothing from other addresses; upload the file"),
    ],
)
def test_only_uploads_are_read(app_url, path, told):
    address = f"{app_url}/gradio_api/call/retrieve"
    event = httpx.post(address, json={"data": [reference(path), "a bell rings", 10, "none", None, None]}).json()["event_id"]
    kind, data = httpx.get(f"{address}/{event}", timeout=60).text.strip().split("\n")
    said = json.loads(data.removeprefix("data: "))["error"]
    assert kind == "event: error"
    assert told in said
    assert "hostname" not in said


def readme_blocks(kind):
    section = (REPOSITORY / "README.md").read_text(encoding="utf-8").split("\n## For programs\n")[1].split("\n## ")[0]
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", section, flags=re.MULTILINE | re.DOTALL)
    return [block for language, block in blocks if language == kind]


def run_example(command, folder):
    """Where the examples are at hand, as in the repository's folder, and anything may be written."""
    if not (folder / "assets").exists():
        (folder / "assets").symlink_to(REPOSITORY / "assets")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_the_readmes_python_examples_run(app_url, tmp_path):
    at_home, batch, over_http = (
        run_example([sys.executable, "-c", block.replace(OWN_ADDRESS, app_url)], tmp_path) for block in readme_blocks("python")
    )
    assert re.match(r"\d+\.\d-\d+\.\d s  0\.\d\d\n", at_home)
    assert batch == ""
    with (tmp_path / "moments.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["recording"] for row in rows} <= {path.name for path in (REPOSITORY / "assets").glob("*.ogg")}
    assert any(row["sound"] == "a siren wails" and row["recording"] == "street.ogg" for row in rows)
    assert all(float(row["start"]) < float(row["end"]) for row in rows)
    assert re.search(r"^\d+\.\d+ \d+\.\d+ 0\.\d+$", over_http, flags=re.MULTILINE)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_readmes_shell_example_runs(app_url, tmp_path):
    example = next(block for block in readme_blocks("") if "curl" in block)
    said = run_example(["sh", "-c", example.replace(OWN_ADDRESS, app_url)], tmp_path)
    assert said.startswith("event: complete\ndata: ")
    (answer,) = json.loads(said.split("data: ")[1])
    assert answer["query"] == "a siren wails"
    assert 1 <= len(answer["moments"]) <= 3


def test_the_readme_tells_every_argument_and_its_default(client):
    parameters = client.view_api(return_format="dict")["named_endpoints"]["/retrieve"]["parameters"]
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", readme, flags=re.MULTILINE))
    assert [parameter["parameter_name"] for parameter in parameters] == [
        name for name in rows if name in {p["parameter_name"] for p in parameters}
    ]
    for parameter in parameters:
        default = rows[parameter["parameter_name"]].strip("` ")
        if not parameter["parameter_has_default"]:
            assert default == "required"
        elif parameter["parameter_default"] is not None:
            assert default == str(parameter["parameter_default"])


@pytest.fixture(scope="module")
def held():
    """Address, retriever and page of an app that nobody else uses."""
    url, retriever, demo = launch_held(AppSettings(mcp=True, training=False))
    yield url, retriever, demo
    retriever.let_go.set()
    demo.close()


def upload(url, sound):
    with sound.open("rb") as file:
        (path,) = httpx.post(f"{url}/gradio_api/upload", files={"files": (sound.name, file)}).json()
    return path


def values(path):
    return {"data": [reference(path), "a bell rings", 3, "none", None, None]}


def stream_and_leave(url, sound, begun):
    path = upload(url, sound)
    event = httpx.post(f"{url}/gradio_api/call/retrieve", json=values(path)).json()["event_id"]
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
def test_the_work_for_a_caller_who_left_stops_and_the_place_is_free(held, recordings, leave, tmp_path):
    url, retriever, _ = held
    sound = Path(shutil.copy(recordings["walk.wav"], tmp_path / "long.wav"))
    leave(url, sound, lambda: retriever.begun.acquire(timeout=20) or pytest.fail("nothing began"))
    assert retriever.ended.acquire(timeout=10), "it goes on for nobody"
    answer = httpx.post(f"{url}/gradio_api/run/retrieve", json=values(upload(url, recordings["walk.wav"])), timeout=10).json()
    assert answer["data"][0]["audio"] == "walk.wav"


@pytest.fixture(scope="module")
def tool_url():
    """Address of a page that serves MCP, with a retriever that costs nothing."""
    url, _, demo = launch_held(AppSettings(mcp=True, training=False))
    yield url
    demo.close()


def launch_held(settings):
    """Launch a page whose retriever reads files called "long…" for ever; returns its address, the retriever and the page."""
    from qamdetr.ui.models import SharedRetriever
    from qamdetr.ui.page import build_demo, launch_options

    retriever = HeldRetriever()
    demo = build_demo(SharedRetriever(lambda _: retriever, settings), settings, [])
    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, **launch_options(settings))
    return url.rstrip("/"), retriever, demo


def with_tools(url, use):
    """Connect as an assistant does, and return what `use(session)` returns."""
    from mcp import ClientSession
    from mcp.client.streamable_http import streamable_http_client

    async def connect():
        async with streamable_http_client(f"{url}/gradio_api/mcp/") as (read, write, _), ClientSession(read, write) as session:
            await session.initialize()
            return await use(session)

    return run_apart(connect())


def test_the_same_function_is_the_only_tool_of_the_model_context_protocol(tool_url):
    async def listed(session):
        return (await session.list_tools()).tools, (await session.list_resources()).resources, (await session.list_prompts()).prompts

    (tool,), resources, prompts = with_tools(tool_url, listed)
    assert tool.name == "retrieve"
    assert tool.description.startswith("Find the moments of a recording that match a query")
    assert "Look at `found` first" in tool.description
    arguments = tool.inputSchema["properties"]
    assert list(arguments) == ["audio", "query", "top_k", "verifier", "beta", "checkpoint"]
    assert tool.inputSchema["required"] == ["audio", "query"]
    assert [arguments[name].get("type") for name in arguments] == ["string", "string", "integer", "string", None, None]
    # gradio takes the first line of each description.
    assert all(argument["description"].endswith(".") for argument in arguments.values())
    assert resources == prompts == []


def test_a_tool_takes_the_file_itself_and_the_address_of_an_upload(tool_url, recordings):
    sound = recordings["walk.wav"].read_bytes()
    (path,) = httpx.post(f"{tool_url}/gradio_api/upload", files={"files": ("walk.wav", sound)}).json()
    ways = ["data:audio/wav;base64," + base64.b64encode(sound).decode(), f"{tool_url}/gradio_api/file={path}"]

    async def asked(session):
        return [await session.call_tool("retrieve", {"audio": audio, "query": "a bell rings", "top_k": 2}) for audio in ways]

    for answer in with_tools(tool_url, asked):
        assert not answer.isError
        told = json.loads(answer.content[0].text)
        assert told["duration"] == 40.0
        assert len(told["moments"]) == 2


MISTAKES = [
    ({"query": " "}, "The query is empty"),
    ({"top_k": 101}, "top_k is 101; it must be a whole number from 1 to 100"),
    ({"top_k": 3.7}, "Input validation error: 3.7 is not of type 'integer'"),
    ({"verifier": "oracle"}, "Verifier 'oracle' is not offered here"),
    ({"audio": "data:text/plain;base64,aGVsbG8="}, "file.txt is "),
    ({"audio": "/etc/hostname"}, "audio is '/etc/hostname', which is no uploaded file"),
    ({"audio": "file:///etc/hostname"}, "audio is 'file:///etc/hostname', which is no uploaded file"),
    ({"audio": "http://10.0.0.1/walk.wav"}, "The recording could not be fetched from 'http://10.0.0.1/walk.wav'; it must be a public"),
    ({"audio": "http://127.0.0.1:1/gradio_api/file=/etc/hostname"}, "The recording could not be fetched"),
]


def test_mistakes_of_a_tools_caller_are_told_in_one_line(tool_url, recordings):
    audio = "data:audio/wav;base64," + base64.b64encode(recordings["walk.wav"].read_bytes()).decode()

    async def asked(session):
        return [await session.call_tool("retrieve", {"audio": audio, "query": "a bell rings", **wrong}) for wrong, _ in MISTAKES]

    for answer, (_, told) in zip(with_tools(tool_url, asked), MISTAKES, strict=True):
        assert answer.isError
        assert answer.content[0].text.startswith(told)
        assert "\n" not in answer.content[0].text
