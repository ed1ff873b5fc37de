from __future__ import annotations

import asyncio

import gradio as gr
import pytest

from qamdetr.ui.endpoint_arguments import FILE_MARK
from qamdetr.ui.page_blocks import PageBlocks
from qamdetr.ui.settings import AppSettings


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
    return asyncio.run(page.preprocess_data(event, list(values), None))


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
