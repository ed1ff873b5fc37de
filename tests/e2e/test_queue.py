"""Several visitors at once, in real browsers: who waits is told, what is put away stops, and nobody's hour keeps another from an answer."""

from __future__ import annotations

import time

import httpx
import pytest
from visitor import answered, ask, opened, press_example, settled, strip, upload

from qamdetr.ui.settings import PASSING_REQUESTS

pytestmark = pytest.mark.slow


def happened(semaphore, page):
    """Wait for the model; this thread lets the browser's requests through meanwhile."""
    end = time.monotonic() + 20
    while not (done := semaphore.acquire(timeout=0.01)) and time.monotonic() < end:
        page.evaluate("1")
    return done


def test_what_is_put_away_cancelled_replaced_or_closed_stops_and_the_next_in_the_queue_gets_its_place(open_page, held, recordings):
    url, _, model = held
    first, second = open_page(url), open_page(url)

    def begin():
        upload(first, recordings["long.wav"])
        strip(first, "Listening to “long.wav”").wait_for()

    begin()
    upload(second, recordings["short.wav"])
    strip(second, "Opening “short.wav”").wait_for()
    second.locator("#qamdetr-query").get_by_text("queue: 1/1").first.wait_for()
    field = first.locator("#qamdetr-upload")
    field.get_by_label("Clear").or_(field.get_by_label("Remove this file")).first.click()
    first.locator(".qd-empty").wait_for()
    settled(first)
    assert happened(model.ended, second), "the encoding went on"
    opened(second, "short.wav")

    press_example(first, "a dog barks")
    begin()
    first.get_by_role("button", name="Cancel").click()
    settled(first)
    assert happened(model.ended, second)
    assert first.locator(".qd-section").count() == 1, "what was there before is there again"
    field.get_by_text("Click to Upload").wait_for()

    begin()
    press_example(first, "a dog barks")
    assert happened(model.ended, second)
    upload(first, recordings["short.wav"])
    opened(first, "short.wav")
    with first.expect_file_chooser() as chooser:
        first.get_by_role("button", name="Another recording").click()
    chooser.value.set_files(recordings["long.wav"])
    strip(first, "Listening to “long.wav”").wait_for()
    first.context.close()
    assert happened(model.ended, second), "nobody looks, and still it works"


def test_a_question_does_not_wait_for_somebody_elses_encoding_and_who_waits_is_told(open_page, held, recordings):
    url, demo, model = held
    first, second, third = (open_page(url) for _ in range(3))
    for page in (second, third):
        press_example(page, "a dog barks")
    upload(first, recordings["long.wav"])
    strip(first, "Listening to “long.wav”").wait_for()
    assert happened(model.begun, second)
    ask(second, "rain")
    answered(second, "rain")
    assert strip(first, "Listening to “long.wav”").count() == 1, "that one is still being encoded"
    ask(first, "thunder")  # answered when its recording is ready

    ask(second, "a slow river")
    strip(second, "Looking for “a slow river”").wait_for()
    assert happened(model.begun, second)
    ask(third, "rain")
    strip(third, "Looking for “rain”").wait_for()
    third.locator("#qamdetr-query").get_by_text("queue: 1/1").first.wait_for()
    model.let_go.set()
    for page, name, words in ((second, "A yard", "a slow river"), (third, "A yard", "rain"), (first, "long.wav", "thunder")):
        answered(page, words)
        assert page.locator(".qd-title").inner_text() == name
        assert page.locator(".qd-section").count() == 1, "an answer is seen by who asked"
    assert first.evaluate("document.querySelector('audio').src") != second.evaluate("document.querySelector('audio').src")

    model.let_go.clear()
    ask(second, "a slow river")
    strip(second, "Looking for “a slow river”").wait_for()
    assert happened(model.begun, second)
    (lane,) = {number for number, event in demo.fns.items() if event.concurrency_id == "answer"}
    for number in range(1 + PASSING_REQUESTS):
        body = {"data": [None], "fn_index": lane, "session_hash": f"other{number}"}
        httpx.post(f"{url}/gradio_api/queue/join", json=body).raise_for_status()
    ask(third, "thunder")
    third.get_by_text("This application is currently busy. Please try again.").first.wait_for()
    answered(third, "rain")
    model.let_go.set()
    settled(second)
    ask(third, "thunder")
    answered(third, "thunder")
