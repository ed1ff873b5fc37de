"""Training from the page, in a real browser and for real: clips, scenes, a run with curves, its checkpoint in the other tab."""

from __future__ import annotations

import shutil
import time

import pytest
from doubles import make_clips
from gradio_client import Client, handle_file

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return make_clips(tmp_path_factory.mktemp("clips"), {"low tone": 220, "high tone": 1800})


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def start_app(runs_dir):
    """Starts the whole page on the module's folder of runs; starting it again is what a restart of the app is."""
    from doubles import FakeRetriever

    from qamdetr.ui.models import SharedRetriever
    from qamdetr.ui.page import build_demo, launch_options
    from qamdetr.ui.train.jobs import Jobs
    from qamdetr.ui.train.plans import RUNS_VARIABLE

    started = []
    patch = pytest.MonkeyPatch()
    patch.setenv(RUNS_VARIABLE, str(runs_dir))

    def start():
        demo = build_demo(SharedRetriever(lambda _: FakeRetriever(), runs=runs_dir), examples=[])
        started.append(demo)
        return demo.launch(prevent_thread_lock=True, quiet=True, **launch_options())[1].rstrip("/"), demo

    yield start
    for demo in started:
        demo.close()
    patch.undo()
    jobs = Jobs(runs_dir / ".jobs")
    running = jobs.running()
    if running is not None:
        jobs.stop(running.name)


@pytest.fixture
def open_train(browser, start_app):
    """Opens the tab of a running app; no request may leave the machine and no script may fail."""
    contexts, failures = [], []

    def open_it(url, width=1280, height=900, dark=False, search=""):
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light")
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: failures.append(f"{error}\n{error.stack}"))
        page.on("request", lambda request: None if request.url.startswith((url, "data:", "blob:")) else failures.append(request.url))
        page.goto(url + search)
        show_tab(page)
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert failures == []


def show_tab(page):
    page.get_by_role("tab", name="Train").click()
    page.locator(".qt-panel").wait_for()


def told(page):
    page.wait_for_function("document.querySelector('.qt-told').textContent !== ''")
    return page.locator(".qt-told").inner_text()


def toast(page):
    body = page.locator(".toast-body").last
    body.wait_for()
    return body.inner_text()


def test_the_whole_story(open_train, start_app, clips, runs_dir, shoot):
    url, demo = start_app()
    page = open_train(url)
    page.get_by_text("No runs yet").wait_for()
    shoot(page, "train-empty-desktop")

    page.get_by_role("button", name="Make scenes", exact=True).click()
    assert "no folder" in toast(page)
    assert "no folder" in told(page)
    assert "Error" not in page.locator("#qamdetr-runs").evaluate("panel => panel.textContent")

    page.get_by_label("Folder of clips").fill(str(clips))
    for label, value in (("Scenes to learn from", "6"), ("Scenes to validate on", "3"), ("Shortest", "12"), ("Longest", "16")):
        page.get_by_label(label).fill(value)
    page.get_by_role("button", name="Make scenes", exact=True).click()
    page.locator(".qt-badge.qt-running").wait_for()
    assert "Step" in page.locator(".qt-progress").inner_text()
    page.get_by_role("button", name="Start training").click()
    # The toast of the first mistake may still be there; the new one joins it.
    page.get_by_text("still running").or_(page.get_by_text("No scenes")).first.wait_for()
    page.locator(".qt-badge.qt-finished").wait_for(timeout=120_000)
    page.wait_for_function("document.querySelector('#qamdetr-train-scenes input').value === 'my-scenes'")

    page.get_by_label("Transformer").check()
    page.get_by_label("Epochs").fill("300")
    page.get_by_label("Name of the run").fill("tones")
    page.get_by_role("button", name="Start training").click()
    page.locator(".qt-item[data-id='tones']").wait_for()
    page.wait_for_function("document.querySelectorAll('.qt-chart polyline').length === 4", timeout=120_000)
    page.wait_for_function("document.querySelector('.qt-progress').textContent.includes('left')")
    assert "of 300" in page.locator(".qt-progress").inner_text()
    shoot(page, "train-running-desktop")

    # The app goes down and comes up again: the run goes on, and the new page finds it.
    before = epochs_done(page)
    page.close()
    demo.close()
    url, _ = start_app()
    page = open_train(url)
    page.locator(".qt-stop").wait_for()
    wait_until(lambda: epochs_done(page) > before)
    page.locator(".qt-stop").click()
    assert "Stopping" in told(page)
    page.locator(".qt-resume").wait_for()
    page.locator(".qt-resume").click()
    page.locator(".qt-stop").wait_for()
    page.locator(".qt-stop").click()
    page.locator(".qt-badge.qt-stopped").wait_for()

    page.get_by_role("button", name="3 · Evaluate").click()
    page.get_by_role("button", name="Metrics by window length").click()
    page.locator(".qt-evaluation caption", has_text="tones").wait_for()
    assert page.locator(".qt-evaluation tbody tr").count() == 6
    shoot(page, "train-evaluation-desktop")
    page.get_by_label("Runs to compare").click()
    page.get_by_role("option", name="tones").click()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Table of ablations").click()
    page.locator(".qt-evaluation caption", has_text="side by side").wait_for()

    page.locator(".qt-use").click()
    page.get_by_text("Find now uses run: tones; open a recording.").wait_for()
    page.get_by_label("Describe the sound").wait_for()
    page.get_by_role("button", name="Model and ranking").click()
    page.wait_for_function("document.querySelector('#qamdetr-model input')?.value.startsWith('run: tones ')")
    assert str(runs_dir) not in page.content()


def test_a_run_outlives_the_app_in_list_and_link_and_a_removed_one_is_said(open_train, start_app, runs_dir, recordings):
    from doubles import row, write_run

    write_run(runs_dir / "second", [row(1, 5.0)], checkpoint=True)
    url, _ = start_app()
    page = open_train(url, search="/?q=rain&model=run%3A+second")
    page.get_by_role("tab", name="Find").click()
    page.get_by_role("button", name="Model and ranking").click()
    model = page.locator("#qamdetr-model input")
    page.wait_for_function("document.querySelector('#qamdetr-model input').value.startsWith('run: second ')")
    assert "model=run%3A+second" in page.url
    assert page.locator(".toast-body").count() == 0

    # What is trained while the page is open is in the list when it is opened.
    write_run(runs_dir / "third", [row(1, 5.0)], checkpoint=True)
    page.locator("#qamdetr-query textarea").click()  # elsewhere, so that the list is opened anew
    model.click()
    page.get_by_role("option", name="run: third").click()
    page.wait_for_function("location.search.includes('third')")
    client = Client(url, verbose=False)
    answer = client.predict(handle_file(recordings["walk.wav"]), "rain", checkpoint="run: third", api_name="/retrieve")
    assert answer["moments"]
    assert str(runs_dir) not in str(answer)
    client.close()

    shutil.rmtree(runs_dir / "second")
    page.goto(f"{url}/?q=rain&model=run%3A+second&beta=7")
    assert "model “run: second” (qam-detr-pocket is used)" in toast(page)
    assert "“7”" in toast(page)
    page.wait_for_function("location.search === '?q=rain'")
    assert page.locator(".toast-body").count() == 1


def epochs_done(page):
    text = page.locator(".qt-item[data-id='tones'] .qt-brief").inner_text()
    return int(text.split()[0])


def wait_until(happens, seconds=60):
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end
        time.sleep(0.3)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_phone_has_room_for_everything(open_train, start_app, runs_dir, shoot, dark):
    write_hostile_run(runs_dir)
    page = open_train(start_app()[0], width=390, height=844, dark=dark)
    page.locator(".qt-item").first.wait_for()
    page.locator(".qt-item[data-id^='hostile']").click()
    page.locator(".qt-chart").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator(".qt-panel img").count() == 0
    shoot(page, f"train-phone-{'dark' if dark else 'light'}")


def write_hostile_run(folder):
    """A run of somebody who gives folders names of his own."""
    from doubles import row, write_run

    if not (folder / "hostile").exists():
        name = "<img src=x onerror=alert(1)> ${7*7} {{value}}"
        rows = [row(epoch, 3.0 * epoch, loss=8.0 / epoch) for epoch in range(1, 8)]
        write_run(folder / "hostile" / name, rows, epochs=10, checkpoint=True)
