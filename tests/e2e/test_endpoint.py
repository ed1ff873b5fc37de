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
        assert list(moment) == ["start", "end", "score", "decoder_score", "foreground", "quality", "verifier_score"]
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
    ("file", "query", "options", "told"),
    [
        ("broken.wav", "a bell rings", {}, "broken.wav"),
        ("walk.wav", "  ", {}, "empty"),
        ("walk.wav", "x" * 501, {}, "501"),
        ("walk.wav", "a bell rings", {"top_k": 0}, "1 to 100"),
        ("walk.wav", "a bell rings", {"beta": 1.5}, "1.5"),
        ("walk.wav", "a bell rings", {"checkpoint": "../secret"}, "../secret"),
    ],
)
def test_mistakes_come_back_as_one_line(client, recordings, file, query, options, told):
    with pytest.raises(gradio_client.exceptions.AppError) as caught:
        client.predict(audio=gradio_client.handle_file(recordings[file]), query=query, api_name="/retrieve", **options)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value).strip()
    assert "Traceback" not in str(caught.value)


def test_files_of_the_server_cannot_be_read(app_url):
    # Raw HTTP: the Python client would upload its own file of that name.
    stolen = {"path": "/etc/hostname", "meta": {"_type": "gradio.FileData"}}
    call = f"{app_url}/gradio_api/call/retrieve"
    event = httpx.post(call, json={"data": [stolen, "a bell rings", 10, "none", None, None]}).json()["event_id"]
    answer = httpx.get(f"{call}/{event}", timeout=60).text
    assert answer.startswith("event: error")
    assert "hostname" not in answer


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


def test_the_same_function_is_a_tool_of_the_model_context_protocol(recordings):
    pytest.importorskip("mcp", reason="needs the extra `mcp`: pip install 'gradio[mcp]'")
    from fake import FakeRetriever

    from qamdetr.ui.demo import build_demo, launch_options
    from qamdetr.ui.settings import AppSettings
    from qamdetr.ui.shared_retriever import SharedRetriever

    settings = AppSettings(mcp=True, training=False)
    demo = build_demo(SharedRetriever(lambda _: FakeRetriever(), settings), settings, [])
    with pytest.warns(UserWarning, match="State"):  # each call of a tool starts with an empty session, which is what we want
        _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, **launch_options(settings))
    try:
        tools, answer, mistake = asyncio.run(_call_tool(f"{url}gradio_api/mcp/", recordings["walk.wav"].read_bytes()))
    finally:
        demo.close()
    assert [tool.name for tool in tools] == ["retrieve"]
    described = tools[0].inputSchema
    assert list(described["properties"]) == ["audio", "query", "top_k", "verifier", "beta", "checkpoint"]
    assert described["required"] == ["audio", "query"]
    assert all(len(argument["description"]) > 20 for argument in described["properties"].values())
    assert not answer.isError
    assert "'duration': 40.0" in answer.content[0].text
    assert mistake.isError
    assert mistake.content[0].text.startswith("The query is empty")


async def _call_tool(url, sound):
    from mcp import ClientSession
    from mcp.client.streamable_http import streamablehttp_client

    audio = "data:audio/wav;base64," + base64.b64encode(sound).decode()
    async with streamablehttp_client(url) as (read, write, _), ClientSession(read, write) as session:
        await session.initialize()
        tools = (await session.list_tools()).tools
        answer = await session.call_tool("retrieve", {"audio": audio, "query": "a bell rings"})
        mistake = await session.call_tool("retrieve", {"audio": audio, "query": " "})
        return tools, answer, mistake
