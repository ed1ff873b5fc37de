"""Several visitors at once, in real browsers: who waits is told, what is put away stops, and nobody's hour keeps another from an answer."""

from __future__ import annotations

import threading

import httpx
import numpy as np
import pytest
import soundfile
from doubles import HeldRetriever

from qamdetr.ui.examples import Example
from qamdetr.ui.settings import PASSING_REQUESTS

pytestmark = pytest.mark.slow

# The thread of a test also lets the browser's requests through: it waits for the page first, and for the model only then.


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    folder = tmp_path_factory.mktemp("queue")
    paths = {name: folder / f"{name}.wav" for name in ("example", "long", "short")}
    for path in paths.values():
        soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(20 * 8000), 8000)
    return paths


@pytest.fixture(scope="module")
def running(audio):
    """The app with room for one who waits, and what its model does."""
    from qamdetr.ui.models import SharedRetriever
    from qamdetr.ui.page import build_demo, launch_options
    from qamdetr.ui.settings import AppSettings

    settings = AppSettings(queue_length=1)
    retriever = HeldRetriever()
    demo = build_demo(SharedRetriever(lambda _: retriever, settings), settings, [Example(audio["example"], "A yard", {"a dog barks": ()})])
    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, **launch_options(settings))
    yield url.rstrip("/"), retriever, demo
    retriever.let_go.set()
    demo.close()


@pytest.fixture(scope="module")
def app_url(running):
    return running[0]


@pytest.fixture
def model(running):
    retriever = running[1]
    retriever.let_go.clear()
    retriever.begun, retriever.ended = threading.Semaphore(0), threading.Semaphore(0)
    yield retriever
    retriever.let_go.set()


def upload(page, path):
    page.locator("#qamdetr-upload input[type=file]").set_input_files(path)


def strip(page, words):
    return page.locator(".qd-player[aria-busy='true'] .qd-busy-text", has_text=words)


def settled(page):
    return page.locator(".qd-player[aria-busy='false']")


def ask(page, words):
    page.get_by_label("Describe the sound").fill(words)
    page.get_by_role("button", name="Find", exact=True).click()


def open_example(page):
    page.locator(".qamdetr-example").get_by_text("a dog barks", exact=True).click()
    page.locator(".qd-section").wait_for()


def test_the_next_in_the_queue_is_told_so_and_gets_the_place_of_what_is_put_away(open_page, model, audio):
    first, second = open_page(), open_page()
    upload(first, audio["long"])
    strip(first, "Listening to “long.wav”").wait_for()
    upload(second, audio["short"])
    strip(second, "Opening “short.wav”").wait_for()
    second.locator("#qamdetr-query").get_by_text("queue: 1/1").first.wait_for()
    first.locator("#qamdetr-upload").get_by_label("Clear").or_(
        first.locator("#qamdetr-upload").get_by_label("Remove this file")
    ).first.click()
    first.locator(".qd-empty").wait_for()
    settled(first).wait_for()
    assert model.ended.acquire(timeout=10), "the encoding went on"
    second.locator(".qd-title", has_text="short.wav").wait_for()
    settled(second).wait_for()


def test_the_strip_s_cancel_button_and_a_closed_page_stop_it_too(open_page, model, audio):
    page = open_page()
    open_example(page)
    upload(page, audio["long"])
    strip(page, "Listening to “long.wav”").wait_for()
    page.get_by_role("button", name="Cancel").click()
    settled(page).wait_for()
    assert model.ended.acquire(timeout=10)
    assert page.locator(".qd-section").count() == 1, "what was there before is there again"
    page.locator("#qamdetr-upload").get_by_text("Click to Upload").wait_for()
    upload(page, audio["long"])
    strip(page, "Listening to “long.wav”").wait_for()
    page.context.close()
    assert model.ended.acquire(timeout=30), "nobody looks, and still it works"


def test_another_recording_takes_the_place_of_one_that_is_being_encoded(open_page, model, audio):
    page = open_page()
    upload(page, audio["long"])
    strip(page, "Listening to “long.wav”").wait_for()
    open_example(page)
    settled(page).wait_for()
    assert model.ended.acquire(timeout=10)
    with page.expect_file_chooser() as chooser:
        upload(page, audio["short"])
        page.locator(".qd-title", has_text="short.wav").wait_for()
        page.get_by_role("button", name="Another recording").click()
    model.let_go.set()
    chooser.value.set_files(audio["long"])
    page.locator(".qd-title", has_text="long.wav").wait_for()
    page.locator("#qamdetr-upload .file-preview", has_text="long").wait_for()
    settled(page).wait_for()


def test_a_question_does_not_wait_for_somebody_elses_encoding(open_page, model, audio):
    first, second = open_page(), open_page()
    open_example(second)
    upload(first, audio["long"])
    strip(first, "Listening to “long.wav”").wait_for()
    ask(second, "rain")
    second.locator(".qd-message", has_text="rain").wait_for()
    assert strip(first, "Listening to “long.wav”").count() == 1, "that one is still being encoded"
    ask(first, "thunder")
    model.let_go.set()
    first.locator(".qd-message", has_text="thunder").wait_for()
    settled(first).wait_for()


def test_who_waits_is_told_and_who_finds_the_queue_full_keeps_the_page(open_page, model, running, shoot):
    url, _, demo = running
    pages = [open_page() for _ in range(3)]
    for page in pages:
        open_example(page)
    ask(pages[0], "a slow train")
    strip(pages[0], "Looking for “a slow train”").wait_for()
    assert model.begun.acquire(timeout=10)
    ask(pages[1], "rain")
    strip(pages[1], "Looking for “rain”").wait_for()
    pages[1].locator("#qamdetr-query").get_by_text("queue: 1/1").first.wait_for()
    shoot(pages[1], "waiting-desktop")
    (lane,) = {number for number, event in demo.fns.items() if event.concurrency_id == "answer"}
    for number in range(PASSING_REQUESTS):
        body = {"data": [None], "fn_index": lane, "session_hash": f"other{number}"}
        httpx.post(f"{url.rstrip('/')}/gradio_api/queue/join", json=body).raise_for_status()
    ask(pages[2], "thunder")
    pages[2].get_by_text("This application is currently busy. Please try again.").first.wait_for()
    settled(pages[2]).wait_for()
    pages[2].locator(".qd-message", has_text="a dog barks").wait_for()
    model.let_go.set()
    for page, words in zip(pages, ("a slow train", "rain"), strict=False):
        page.locator(".qd-message", has_text=words).wait_for()
        settled(page).wait_for()
    ask(pages[2], "thunder")
    pages[2].locator(".qd-message", has_text="thunder").wait_for()
