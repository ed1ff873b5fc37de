"""How long until something happens? Imports, the first answer of a script, and the app from its start to the first answer.

    python -m benchmarks.start [--repeats 5]

Every run is a process of its own, as a user starts it. Of the app: until the page answers over HTTP, until it can be used in a browser,
until an example is answered; beside it an empty gradio page. Kernels and bytecode are cached by a first run that does not count, except in
the row that says so.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks._browser import NO_BROWSER, chromium_path, running_browser
from benchmarks._timing import Target, print_targets, write_json

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).resolve().parents[1]
MOST_SECONDS = 180
IMPORT_LIMIT_SECONDS = 1.0

RETRIEVER = "from qamdetr.inference.retriever import MomentRetriever"
SCRIPTS = {
    "import qamdetr": "import qamdetr",
    "import torch": "import torch",
    RETRIEVER: RETRIEVER,
    "script to its first answer": f"""{RETRIEVER}
retriever = MomentRetriever.from_pretrained()
retriever.retrieve(retriever.encode("assets/living-room.ogg"), "someone plays the piano")""",
}
EMPTY_PAGE = "import gradio as gr\nwith gr.Blocks() as demo:\n    gr.Textbox()\ndemo.launch()"
APP, EMPTY = "app.py", "an empty gradio page"
COMMANDS = {APP: ["app.py"], EMPTY: ["-c", EMPTY_PAGE]}


def script_seconds(code: str, environment: Mapping[str, str] | None = None) -> float:
    """Run code in a fresh Python and return the seconds that it took, the start of Python left out."""
    timed = "import time\nbegin = time.perf_counter()\n" + code + "\nprint(time.perf_counter() - begin)"
    command = [sys.executable, "-c", timed]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **(environment or {})}, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.split()[-1])


def first_import_seconds() -> float:
    """Import `qamdetr` with no bytecode at hand, neither of it nor of what it imports."""
    with tempfile.TemporaryDirectory() as empty:
        return script_seconds(SCRIPTS["import qamdetr"], {"PYTHONPYCACHEPREFIX": empty})


@contextmanager
def started(command: list[str], port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server on a port, and end it afterwards."""
    environment = {**os.environ, "GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False"}
    server = subprocess.Popen([sys.executable, *command], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield server
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=MOST_SECONDS)


def wait_for_page(url: str, server: subprocess.Popen[bytes]) -> None:
    """Return when the page answers."""
    end = time.perf_counter() + MOST_SECONDS
    while time.perf_counter() < end:
        if server.poll() is not None:
            raise SystemExit(f"The server ended with status {server.returncode} before its page answered; start it by hand to see why.")
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.005)  # nothing tells when a port opens
    raise SystemExit(f"The page did not answer in {MOST_SECONDS} s; start the server by hand to see why.")


def server_seconds(name: str, browser: Browser | None) -> dict[str, float]:
    """Start a server; return the seconds from there to each thing that a visitor waits for."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    begin = time.perf_counter()
    with started(COMMANDS[name], port) as server:
        wait_for_page(url, server)
        reached = {"answers over HTTP": time.perf_counter() - begin}
        if browser is None:
            return reached
        with browser.new_context() as context:
            page = context.new_page()
            page.set_default_timeout(1000 * MOST_SECONDS)
            page.goto(url)
            if name == EMPTY:
                page.locator("textarea").wait_for()
                return {**reached, "can be used": time.perf_counter() - begin}
            example = page.locator(".qamdetr-example button").first
            page.locator(".qd-empty").wait_for()
            example.wait_for()
            reached["can be used"] = time.perf_counter() - begin
            example.click()
            page.locator(".qd-message").wait_for()
            page.locator(".qd-table tbody tr").first.wait_for()
            reached["has answered an example"] = time.perf_counter() - begin
        return reached


def servers(repeats: int, browser: Browser | None) -> dict[str, float]:
    """Start both servers in turns; return the medians."""
    rows: dict[str, list[float]] = {}
    for repeat in range(repeats + 1):
        for name in COMMANDS:
            for what, seconds in server_seconds(name, browser).items():
                if repeat:
                    rows.setdefault(f"{name} {what}", []).append(seconds)
    return {name: statistics.median(values) for name, values in rows.items()}


def main() -> None:
    """Print the table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("build/benchmarks/start.json"))
    arguments = parser.parse_args()

    measured: dict[str, list[float]] = {name: [] for name in SCRIPTS}
    for repeat in range(arguments.repeats + 1):
        for name, code in SCRIPTS.items():
            seconds = script_seconds(code)
            if repeat:
                measured[name].append(seconds)
    rows = {name: statistics.median(values) for name, values in measured.items()}
    rows["import qamdetr, no bytecode yet"] = statistics.median(first_import_seconds() for _ in range(arguments.repeats))
    chromium = chromium_path()
    if chromium is None:
        print(NO_BROWSER)
        rows |= servers(arguments.repeats, None)
    else:
        with running_browser(chromium) as browser:
            rows |= servers(arguments.repeats, browser)

    print(f"Seconds from the start, medians of {arguments.repeats} processes each")
    for name, seconds in rows.items():
        print(f"  {name:<72}{seconds:8.3f} s")
    ratio = rows[f"{APP} answers over HTTP"] / rows[f"{EMPTY} answers over HTTP"]
    print(f"  {'app.py / an empty gradio page, until HTTP':<72}{ratio:8.2f} x")
    targets = print_targets([Target("import qamdetr", rows["import qamdetr"], IMPORT_LIMIT_SECONDS, "s")])
    write_json(arguments.output, {"seconds": rows, "repeats": arguments.repeats, "app_over_empty_page": ratio, "targets": targets})


if __name__ == "__main__":
    main()
