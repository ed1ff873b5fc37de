"""The app as visitors and programs meet it: running servers, and one real browser that may talk to nobody else."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import threading
from pathlib import Path

import pytest

os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": tempfile.mkdtemp()}  # workers' apps delete each other's uploads
REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "tests" / "ui"))  # for the fake retriever, where no trained checkpoint is at hand

BROWSER_ARGUMENTS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"),  # a microphone that beeps, and may be used without asking
]


@pytest.fixture(scope="session")
def recordings(tmp_path_factory) -> dict[str, Path]:
    """Audio to upload, by name; one of them is no audio at all, and the stand-in for a model reads "long.wav" for ever."""
    from doubles import write_noise

    folder = tmp_path_factory.mktemp("recordings")
    paths = {name: write_noise(folder / name, seconds) for name, seconds in (("walk.wav", 40), ("long.wav", 20), ("short.wav", 20))}
    (folder / "broken.wav").write_text("this is text, not audio")
    return paths | {"broken.wav": folder / "broken.wav"}


@pytest.fixture(scope="session")
def examples():
    from qamdetr.ui.examples import load_examples

    return load_examples()


@pytest.fixture(scope="session")
def launch():
    """Starts a page and gives its address and its `Blocks`."""
    from qamdetr.ui.page import build_demo, launch_options

    running = []

    def start(model, settings=None, examples=()):
        demo = build_demo(model, settings, examples)
        running.append(demo)
        return demo.launch(prevent_thread_lock=True, quiet=True, **launch_options(settings))[1].rstrip("/"), demo

    yield start
    for demo in running:
        demo.close()


@pytest.fixture(scope="session")
def app_url(launch, examples):
    """Address of the page with the shipped model."""
    from qamdetr.ui.models import SharedRetriever

    model = SharedRetriever()
    model.warm_up()
    return launch(model, None, examples)[0]


@pytest.fixture(scope="session")
def held_page(launch, recordings):
    """Address and `Blocks` of a page with room for one who waits, serving MCP, and the stand-in that works until it is let go."""
    from doubles import HeldRetriever

    from qamdetr.ui.examples import Example
    from qamdetr.ui.models import SharedRetriever
    from qamdetr.ui.settings import AppSettings

    settings, retriever = AppSettings(queue_length=1, mcp=True, training=False), HeldRetriever()
    model = SharedRetriever(lambda _: retriever, settings)
    url, demo = launch(model, settings, [Example(recordings["walk.wav"], "A yard", {"a dog barks": ()})])
    yield url, demo, retriever
    retriever.let_go.set()


@pytest.fixture
def held(held_page):
    url, demo, retriever = held_page
    retriever.let_go.clear()
    retriever.begun, retriever.ended = threading.Semaphore(0), threading.Semaphore(0)
    yield url, demo, retriever
    retriever.let_go.set()


@pytest.fixture(scope="session")
def browser():
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs chromium on the PATH (Debian: apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the Python package playwright")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=chromium, args=BROWSER_ARGUMENTS)
        yield running
        running.close()


@pytest.fixture
def open_page(browser, request):
    """Opens a page in a fresh profile; at the end no request may have left the machine and no script may have failed."""
    contexts, foreign, failures = [], [], []

    def open_it(url=None, search=""):
        url = url or request.getfixturevalue("app_url")

        def guard(route):
            # Nothing outside is reachable from the page, whatever network the machine has.
            if route.request.url.startswith((url, "data:", "blob:")):
                route.continue_()
            else:
                foreign.append(route.request.url)
                route.abort()

        context = browser.new_context(viewport={"width": 1280, "height": 900})
        contexts.append(context)
        context.route("**/*", guard)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: failures.append(str(error)))
        page.on("dialog", lambda dialog: (failures.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.goto(url + search)
        page.wait_for_selector(".qd-player")
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert foreign == []
    assert failures == []
