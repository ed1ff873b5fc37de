from __future__ import annotations

import re
from pathlib import Path

import pytest
from fake import FakeRetriever

from qamdetr.ui import demo as demo_module
from qamdetr.ui import player
from qamdetr.ui.demo import build_demo, launch_options
from qamdetr.ui.examples import Example
from qamdetr.ui.settings import MOST_THREADS, MOST_WAITING, PASSING_REQUESTS, AppSettings
from qamdetr.ui.shared_retriever import SharedRetriever

UI_DIR = Path(demo_module.__file__).parent
SETTINGS = AppSettings(queue_length=7, upload_mb=30)


def build(folder, settings):
    audio = folder / "yard.wav"
    audio.touch()
    return build_demo(
        SharedRetriever(lambda _: FakeRetriever(), settings), settings, [Example(audio, "A yard", {"a dog barks": ((1.0, 2.0),)})]
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return build(tmp_path_factory.mktemp("assets"), SETTINGS)


def labels(page, kind):
    return [component["props"].get("label") for component in page.config["components"] if component["type"] == kind]


def test_retrieve_is_the_only_public_endpoint_and_documents_its_arguments(page):
    endpoints = page.get_api_info()["named_endpoints"]
    assert list(endpoints) == ["/retrieve"]
    parameters = {parameter["parameter_name"]: parameter for parameter in endpoints["/retrieve"]["parameters"]}
    assert list(parameters) == ["audio", "query", "top_k", "verifier", "beta", "checkpoint"]
    assert [name for name, parameter in parameters.items() if not parameter["parameter_has_default"]] == ["audio", "query"]
    assert "moments" in endpoints["/retrieve"]["description"]


def test_every_other_event_is_private(page):
    public = [fn.api_name for fn in page.fns.values() if fn.api_visibility != "private"]
    assert public == ["retrieve"]


def test_models_are_loaded_one_at_a_time_and_the_queue_is_bounded(page):
    groups = {fn.api_name: fn.concurrency_id for fn in page.fns.values() if fn.concurrency_id == "model"}
    assert len(groups) >= 2
    assert all(fn.concurrency_limit == 1 for fn in page.fns.values() if fn.concurrency_id == "model")
    assert page._queue.max_size == 7 + PASSING_REQUESTS
    assert page.delete_cache == demo_module.CACHE_SECONDS


def test_threads_are_left_when_both_lines_are_full():
    fullest = launch_options(AppSettings(queue_length=MOST_WAITING))["max_threads"]
    in_the_lines = 2 * (MOST_WAITING + 1)
    assert fullest == MOST_THREADS
    assert fullest - in_the_lines > PASSING_REQUESTS / 2


def test_a_port_that_was_named_is_the_only_one_tried():
    assert launch_options(AppSettings(server_port=8080))["server_port"] == 8080
    assert launch_options(AppSettings())["server_port"] is None


def test_no_session_and_no_path_of_the_server_is_sent_with_the_page(page):
    states = [component for component in page.config["components"] if component["type"] == "state"]
    assert states
    assert all("value" not in component["props"] for component in states)


def test_the_training_tab_is_there_only_where_it_is_allowed(page, tmp_path):
    assert {"Find", "Train"} <= set(labels(page, "tabitem"))
    without = build(tmp_path, AppSettings(training=False))
    assert "Train" not in labels(without, "tabitem")
    assert len(without.fns) < len(page.fns), "its events are not there either"
    assert list(without.get_api_info()["named_endpoints"]) == ["/retrieve"]


def test_the_page_serves_uploads_and_examples_and_nothing_else():
    options = launch_options(SETTINGS)
    assert options["allowed_paths"] == []
    assert options["max_file_size"] == 30 * 1024**2
    assert options["strict_cors"]
    assert not any(options[name] for name in ("ssr_mode", "run_history", "enable_monitoring", "show_error", "mcp_server"))
    assert launch_options(AppSettings(mcp=True))["mcp_server"]
    assert options["favicon_path"].is_file()


def test_player_is_a_static_template_that_never_parses_user_text():
    assert "{{" not in player.PLAYER_CSS
    assert "${" not in player.PLAYER_CSS
    for forbidden in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert forbidden not in player.PLAYER_JS
    for forbidden in ("decodeAudioData", "fetch(", "XMLHttpRequest"):
        assert forbidden not in player.PLAYER_JS


def test_nothing_on_the_page_comes_from_another_host():
    for path in [file for ending in ("css", "js", "svg") for file in UI_DIR.glob(f"*.{ending}")]:
        hosts = set(re.findall(r"https?://[^\s\"')]+", path.read_text(encoding="utf-8")))
        assert hosts <= {"http://www.w3.org/2000/svg"}, path.name
    assert not launch_options()["theme"]._stylesheets
