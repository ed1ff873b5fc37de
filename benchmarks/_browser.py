"""What the benchmarks that need a real browser share."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]


def chromium_path() -> str | None:
    """Where chromium is, or None; None also without the Python package that drives it."""
    if importlib.util.find_spec("playwright") is None:
        return None
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


NO_BROWSER = "No browser here (needs chromium on the PATH and the Python package playwright): what needs one is not measured."


@contextmanager
def running_browser(chromium: str) -> Iterator[Browser]:
    """Start chromium; its pages draw sixty frames a second."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield browser
        browser.close()
