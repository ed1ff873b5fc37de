from __future__ import annotations

import contextlib

import gradio as gr
import pytest
from event_loops import run_apart
from fake import FakeRetriever
from gradio.exceptions import InvalidPathError
from gradio.state_holder import StateHolder

from qamdetr.ui.endpoint import ENDPOINT, Endpoint
from qamdetr.ui.endpoint_arguments import FILE_MARK
from qamdetr.ui.page_blocks import PageBlocks
from qamdetr.ui.recordings import Recordings
from qamdetr.ui.settings import AppSettings
from qamdetr.ui.shared_retriever import SharedRetriever


@pytest.fixture
def fetched(monkeypatch):
    """Addresses that gradio would have fetched."""
    asked = []

    async def download(url, cache_dir):
        asked.append(url)
        raise OSError("no network in tests")

    monkeypatch.setattr(gr.processing_utils, "async_ssrf_protected_download", download)
    return asked


def send(settings, *values):
    """Send values to a page's private event that takes a file and a text."""
    with PageBlocks(settings) as page:
        file, text = gr.Audio(type="filepath"), gr.Textbox()
        gr.Button().click(lambda *_: None, [file, text], api_visibility="private")
    (event,) = page.fns.values()
    return run_apart(page.preprocess_data(event, list(values), None))


@pytest.mark.parametrize("place", [0, 1])
def test_no_event_makes_the_page_fetch(fetched, place):
    values = [None, "words"]
    values[place] = {"path": "http://10.0.0.1/a.wav", "meta": FILE_MARK}
    with pytest.raises(gr.Error, match="fetches nothing from other addresses; upload the file"):
        send(AppSettings(), *values)
    assert fetched == []


def test_with_mcp_gradio_fetches(fetched):
    with pytest.raises(OSError, match="no network"):
        send(AppSettings(mcp=True), {"path": "http://10.0.0.1/a.wav", "meta": FILE_MARK}, "words")
    assert fetched == ["http://10.0.0.1/a.wav"]


def test_an_address_in_words_is_words(fetched):
    assert send(AppSettings(), None, "http://10.0.0.1/a.wav") == [None, "http://10.0.0.1/a.wav"]
    assert fetched == []


def retrieve_page(settings):
    model = SharedRetriever(lambda _: FakeRetriever(), settings)
    with PageBlocks(settings) as page:
        kept = gr.State("a visitor's")
        gr.Button().click(lambda value: value, kept, kept, api_name="greet")
        Endpoint(model, Recordings(model, settings), settings).build()
    return page


def fn_named(page, name):
    return next(fn for fn in page.fns.values() if fn.api_name == name)


@pytest.mark.parametrize("number", [0, 5, 7])
def test_a_wrong_number_of_values_is_told_whatever_it_is(number):
    page = retrieve_page(AppSettings())
    values = [None, "a", 3, "none", None, None, 1][:number]
    with pytest.raises(gr.Error, match=f"{number} values came; /retrieve takes 6, in this order: audio, query"):
        run_apart(page.preprocess_data(fn_named(page, ENDPOINT), values, None))


@pytest.mark.parametrize(
    ("error", "told", "logged"),
    [
        (InvalidPathError("/secret"), "was not uploaded to this page", False),
        (FileNotFoundError("/secret"), "was not uploaded to this page", False),
        (ZeroDivisionError("/secret"), "failed in a way nobody foresaw", True),
    ],
)
def test_only_what_is_the_files_fault_is_called_so(monkeypatch, caplog, error, told, logged):
    async def fail(*_, **__):
        raise error

    monkeypatch.setattr(gr.Blocks, "preprocess_data", fail)
    page = retrieve_page(AppSettings())
    values = [{"path": "/uploads/a.wav", "meta": FILE_MARK}, "a dog", 3, "none", None, None]
    with pytest.raises(gr.Error, match=told) as caught:
        run_apart(page.preprocess_data(fn_named(page, ENDPOINT), values, None))
    assert "secret" not in str(caught.value)
    assert ("ZeroDivisionError" in caplog.text) == logged


def test_a_folder_is_no_upload(tmp_path, monkeypatch):
    (tmp_path / "abc").mkdir()
    page = retrieve_page(AppSettings())
    monkeypatch.setattr(page, "GRADIO_CACHE", str(tmp_path))
    values = [{"path": str(tmp_path / "abc"), "meta": FILE_MARK}, "a dog", 3, "none", None, None]
    with pytest.raises(gr.Error, match="was not uploaded to this page"):
        run_apart(page.preprocess_data(fn_named(page, ENDPOINT), values, None))


def test_a_call_of_the_endpoint_leaves_no_session_and_takes_none_that_holds_something():
    page = retrieve_page(AppSettings())
    page.state_holder = holder = StateHolder()
    holder.blocks = page

    def call(name, session_hash, values):
        with contextlib.suppress(gr.Error):
            run_apart(page.process_api(block_fn=fn_named(page, name), inputs=values, state=holder[session_hash], session_hash=session_hash))

    call("greet", "visitor", [None])
    for session_hash in ("program", "visitor"):
        call(ENDPOINT, session_hash, [None, "a dog", 3, "none", None, None])
    assert list(holder.session_data) == ["visitor"]


def test_gradios_clients_wait_for_the_endpoint_in_a_stream():
    page = retrieve_page(AppSettings())
    (queued,) = [event["queue"] for event in page.get_config_file()["dependencies"] if event["api_name"] == ENDPOINT]
    assert queued
    assert not fn_named(page, ENDPOINT).queue
