"""Make the README's pictures of the page again: serves the page on a free port, drives it in chromium, writes to `docs/figures`.

    python -m benchmarks.pictures [--output docs/figures]

Needs chromium on the PATH and the Python package playwright (part of the developers' extra).
"""

from __future__ import annotations

import argparse
import io
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from qamdetr.ui.examples import load_examples
from qamdetr.ui.models import SharedRetriever
from qamdetr.ui.page import build_demo, launch_options
from qamdetr.ui.settings import AppSettings

ASSETS = Path(__file__).resolve().parents[1] / "assets"
MOST_PNG_BYTES = 150_000
MOST_ANIMATION_BYTES = 700_000
QUERY = "someone plays the piano"
STILL = "*, *::before, *::after { animation: none !important; transition: none !important; caret-color: transparent !important }"


@contextmanager
def served(model: SharedRetriever, *, with_examples: bool) -> Iterator[str]:
    """Serve the page; yields its address."""
    demo = build_demo(model, AppSettings(training=with_examples), load_examples() if with_examples else [])
    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, **launch_options())
    try:
        yield url
    finally:
        demo.close()


def open_page(browser: Browser, url: str, width: int, height: int, *, scale: float = 1.5, dark: bool = False) -> Page:
    """Open the page in a fresh profile."""
    context = browser.new_context(
        viewport={"width": width, "height": height}, device_scale_factor=scale, color_scheme="dark" if dark else "light"
    )
    page = context.new_page()
    page.goto(url)
    page.wait_for_selector(".qd-empty")
    page.add_style_tag(content=STILL)
    return page


def press_example(page: Page, tab: str, query: str) -> None:
    """Open an example and wait for the answer."""
    if page.get_by_role("tab", name=tab).is_visible():
        page.get_by_role("tab", name=tab).click()
    else:  # on a narrow page, tabs without room are in a menu
        page.locator(".qamdetr-examples .overflow-menu > button").click()
        page.locator(".qamdetr-examples .overflow-dropdown button", has_text=tab).click()
    page.locator(".qamdetr-example:visible").get_by_text(query, exact=True).click()
    settle(page, query)


def settle(page: Page, query: str) -> None:
    """Wait until an answer stands still."""
    page.locator(".qd-message", has_text=query).wait_for()
    page.locator(".qd-player[aria-busy='false']").wait_for()
    page.wait_for_timeout(1200)


def scroll_to(page: Page, selector: str) -> None:
    """Bring an element to the top of the window."""
    page.locator(selector).evaluate("node => window.scrollTo(0, node.getBoundingClientRect().top + window.scrollY - 12)")
    page.wait_for_timeout(400)


def choose_verifier(page: Page) -> None:
    """Let the pocket verifier look at the candidates."""
    page.get_by_role("button", name="Model and ranking").click()
    page.get_by_role("radio", name="Pocket").click()
    page.locator(".qd-caption", has_text="Verifier: pocket").first.wait_for()
    page.wait_for_timeout(800)


def answer(browser: Browser, url: str) -> bytes:
    """Show an answer with found moments, true moments and the verifier's scatter."""
    page = open_page(browser, url, 1180, 900)
    press_example(page, "A living room", QUERY)
    choose_verifier(page)
    page.get_by_role("button", name="Model and ranking").click()
    page.locator(".qd-more").click()
    page.mouse.move(2, 2)
    page.wait_for_timeout(800)
    return page.locator(".qd-player").screenshot()


def comparison(browser: Browser, url: str) -> bytes:
    """Show the full model beside itself without a component, and beside a baseline that was trained without it."""
    page = open_page(browser, url, 1180, 900)
    press_example(page, "A living room", QUERY)
    page.get_by_role("button", name="Look inside").click()
    page.get_by_label("3-way fusion", exact=True).check()
    page.locator(".qd-section", has_text="bypassed in the full model").wait_for()
    page.get_by_label("1: DETR-style baseline").check()
    page.locator(".qd-section", has_text="Row 1").wait_for()
    page.wait_for_timeout(1000)
    page.evaluate("window.scrollTo(0, 0)")  # boxes are told from the edge of the window
    top, bottom = page.locator(".qd-message").bounding_box(), page.locator(".qd-plot").bounding_box()
    assert top is not None
    assert bottom is not None
    height = bottom["y"] + bottom["height"] - top["y"]
    return page.screenshot(
        full_page=True, clip={"x": top["x"] - 12, "y": top["y"] - 12, "width": bottom["width"] + 24, "height": height + 24}
    )


def phone(browser: Browser, url: str) -> bytes:
    """Show the page on a phone, in the dark."""
    page = open_page(browser, url, 390, 844, scale=2, dark=True)
    press_example(page, "A living room", QUERY)
    scroll_to(page, ".qd-message")
    return page.screenshot()


def animation(browser: Browser, url: str) -> list[tuple[Image.Image, int]]:
    """Type, find, see the lanes appear, move the slider: frames with the milliseconds that each stays."""
    page = open_page(browser, url, 1000, 1060, scale=1)
    frames: list[tuple[Image.Image, int]] = []

    def shoot(milliseconds: int) -> None:
        with Image.open(io.BytesIO(page.screenshot())) as image:
            frames.append((image.convert("RGB"), milliseconds))

    page.locator("#qamdetr-upload input[type=file]").set_input_files(ASSETS / "living-room.ogg")
    page.locator(".qd-title", has_text="living-room").wait_for()
    page.get_by_role("button", name="Model and ranking").click()
    page.get_by_role("radio", name="Pocket").click()
    page.wait_for_timeout(1000)
    scroll_to(page, "#qamdetr-query")
    shoot(900)
    field = page.get_by_label("Describe the sound")
    for end in range(3, len(QUERY) + 3, 3):
        field.fill(QUERY[:end])
        shoot(180)
    page.get_by_role("button", name="Find").click()
    settle(page, QUERY)
    shoot(1200)
    page.locator(".qd-more").click()
    page.mouse.move(2, 2)
    scroll_to(page, "#qamdetr-beta")
    page.wait_for_timeout(1000)
    shoot(2200)
    slider = page.locator("#qamdetr-beta input[type=range]")
    steps = [0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 0.8, 0.6, 0.4, 0.2, 0.0]
    for beta in steps:
        slider.fill(str(beta))
        page.locator(".qd-caption", has_text=f"{beta:.2f} · verifier").wait_for()
        page.wait_for_timeout(250)
        shoot(1500 if beta in (1.0, 0.0) else 350)
    return frames


def write_png(path: Path, png: bytes) -> None:
    """Write a screenshot with at most 256 colours, which is all that such pictures need."""
    with Image.open(io.BytesIO(png)) as image:
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    _tell(path, MOST_PNG_BYTES)


def write_animation(path: Path, frames: list[tuple[Image.Image, int]]) -> None:
    """Write frames as an animated WebP that starts again for ever."""
    first, *rest = [image for image, _ in frames]
    durations = [milliseconds for _, milliseconds in frames]
    first.save(path, save_all=True, append_images=rest, duration=durations, loop=0, lossless=True, method=4, minimize_size=True)
    _tell(path, MOST_ANIMATION_BYTES)


def _tell(path: Path, most_bytes: int) -> None:
    size = path.stat().st_size
    print(f"{path}  {size / 1000:.0f} kB{'  TOO LARGE' if size > most_bytes else ''}")


def main() -> None:
    """Write the pictures and say how large they are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs/figures"))
    output: Path = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("There is no chromium on the PATH; install it (Debian: apt-get install chromium).")
    model = SharedRetriever()
    model.warm_up()
    pictures: dict[str, Callable[[Browser, str], bytes]] = {"answer": answer, "comparison": comparison, "phone": phone}
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        with served(model, with_examples=True) as url:
            for name, take in pictures.items():
                write_png(output / f"page-{name}.png", take(browser, url))
        with served(model, with_examples=False) as url:
            write_animation(output / "page-in-motion.webp", animation(browser, url))
        browser.close()


if __name__ == "__main__":
    main()
