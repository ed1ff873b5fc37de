"""The app as a visitor meets it: a running server, and a real browser that may talk to nobody else."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "tests" / "ui"))  # for the fake retriever, where no trained checkpoint is at hand

SCREENSHOT_DIR = REPOSITORY / "build" / "screenshots"
BROWSER_ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream",  # a microphone that beeps, and may be used without asking
    "--use-fake-ui-for-media-stream",
]


def bursts(seconds: int, rate_hz: int = 16000) -> np.ndarray:
    """Faint noise with five tone bursts: something to look at, and short to encode."""
    rng = np.random.default_rng(0)
    samples = 0.02 * rng.standard_normal(seconds * rate_hz)
    time = np.arange(int(1.5 * rate_hz)) / rate_hz
    for start in np.linspace(0.1, 0.85, 5) * seconds:
        at = int(start * rate_hz)
        samples[at : at + time.size] += 0.5 * np.hanning(time.size) * np.sin(2 * np.pi * rng.uniform(300, 900) * time)
    return samples.astype(np.float32)


@pytest.fixture(scope="session")
def recordings(tmp_path_factory) -> dict[str, Path]:
    """Audio to upload, by name; one of them is no audio at all."""
    folder = tmp_path_factory.mktemp("recordings")
    paths = {name: folder / name for name in ("walk.wav", "street.flac", "broken.wav")}
    soundfile.write(paths["walk.wav"], bursts(40), 16000)
    soundfile.write(paths["street.flac"], bursts(60), 16000)
    paths["broken.wav"].write_text("this is text, not audio")
    return paths


@pytest.fixture(scope="session")
def examples(tmp_path_factory):
    from qamdetr.ui.examples import Example, load_examples

    shipped = load_examples()
    if shipped:
        return shipped
    path = tmp_path_factory.mktemp("assets") / "yard.flac"
    soundfile.write(path, bursts(30), 16000)
    return [Example(path, "A yard, 30 s", {"a dog barks": ((3.0, 5.5), (13.0, 15.0)), "nothing like a whale": ()})]


@pytest.fixture(scope="session")
def app_url(examples):
    """Address of the running app, with the shipped checkpoint where there is one and the fake retriever elsewhere."""
    from doubles import FakeRetriever

    from qamdetr.config import CHECKPOINT_DIR
    from qamdetr.inference.checkpoint import DEFAULT_CHECKPOINT
    from qamdetr.ui.models import SharedRetriever
    from qamdetr.ui.page import build_demo, launch_options

    trained = (CHECKPOINT_DIR / DEFAULT_CHECKPOINT / "model.safetensors").is_file()
    model = SharedRetriever() if trained else SharedRetriever(lambda _: FakeRetriever())
    model.warm_up()
    demo = build_demo(model, examples=examples)
    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, **launch_options())
    yield url.rstrip("/")
    demo.close()


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
def open_page(browser, app_url):
    """Opens the app in a fresh profile; at the end no request may have left the machine and no script may have failed."""
    contexts, foreign, failures = [], [], []

    def guard(route):
        # Nothing outside is reachable from the page, whatever network the machine has.
        if route.request.url.startswith((app_url, "data:", "blob:")):
            route.continue_()
        else:
            foreign.append(route.request.url)
            route.abort()

    def open_it(width=1280, height=900, dark=False):
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light")
        contexts.append(context)
        context.route("**/*", guard)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: failures.append(str(error)))
        page.on("dialog", lambda dialog: (failures.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.goto(app_url)
        page.wait_for_selector(".qd-empty")
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert foreign == []
    assert failures == []


@pytest.fixture
def shoot():
    """Keeps a screenshot of the whole page as an artefact."""

    def keep(page, name):
        SCREENSHOT_DIR.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=SCREENSHOT_DIR / f"{name}.png", full_page=True)

    return keep
