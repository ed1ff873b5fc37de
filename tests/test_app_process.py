"""The app as a process: how it starts, and above all how it ends."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
import soundfile

REPOSITORY = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.slow


def start(folder, **values):
    """Run `python app.py` with its uploads under a folder; all that it says goes into `app.log` there."""
    given = {"GRADIO_TEMP_DIR": str(folder / "uploads"), "QAMDETR_TRAINING": "0", "QAMDETR_WARM_UP": "0", **values}
    with (folder / "app.log").open("w") as log:
        return subprocess.Popen([sys.executable, REPOSITORY / "app.py"], env={**os.environ, **given}, stdout=log, stderr=subprocess.STDOUT)


def test_a_setting_that_cannot_be_used_is_one_line_and_status_2(tmp_path):
    assert start(tmp_path, GRADIO_TEMP_DIR="/dev/null/x").wait(timeout=120) == 2
    (line,) = (tmp_path / "app.log").read_text(encoding="utf-8").splitlines()
    assert line.startswith("app.py: GRADIO_TEMP_DIR is '/dev/null/x'")
    assert "can be written" in line


class App:
    """A running `python app.py`."""

    def __init__(self, folder):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.folder, self.url = folder, f"http://127.0.0.1:{port}/gradio_api"
        self.process = start(folder, GRADIO_SERVER_PORT=str(port))

    def said(self):
        return (self.folder / "app.log").read_text(encoding="utf-8")

    def until(self, holds, what):
        end = time.monotonic() + 120
        while not holds():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < end, f"It never {what}: {self.said()}"
            time.sleep(0.05)

    def retrieve(self, name, seconds):
        """Send noise as a recording and ask; returns the event's address."""
        noise = 0.1 * np.random.default_rng(0).standard_normal(16000 * seconds).astype(np.float32)
        soundfile.write(self.folder / name, noise, 16000)
        with (self.folder / name).open("rb") as file:
            (kept,) = httpx.post(f"{self.url}/upload", files={"files": (name, file)}, timeout=120).json()
        data = [{"path": kept, "meta": {"_type": "gradio.FileData"}}, "a dog barks", 10, "none", None, None]
        return f"{self.url}/call/retrieve/{httpx.post(f'{self.url}/call/retrieve', json={'data': data}, timeout=120).json()['event_id']}"

    def computed_seconds(self):
        times = psutil.Process(self.process.pid).cpu_times()
        return times.user + times.system


@pytest.fixture
def app(tmp_path):
    running = App(tmp_path)
    yield running
    running.process.kill()
    running.process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_cleanly_while_a_recording_is_encoded(app, tmp_path, number):
    app.until(lambda: "Running on local URL" in app.said(), "started")
    assert "event: complete" in httpx.get(app.retrieve("first.wav", 3), timeout=120).text, "the model is there and compiled"
    before = app.computed_seconds()
    app.retrieve("long.wav", 3600)
    app.until(lambda: app.computed_seconds() > before + 2.0, "encoded")
    begin = time.monotonic()
    app.process.send_signal(number)
    assert app.process.wait(timeout=60) == 0, app.said()
    assert time.monotonic() - begin < 5
    assert list((tmp_path / "uploads").iterdir()) == []
    assert app.said().splitlines()[-1] == "Stopped; the uploads are deleted."
    assert not re.search("Traceback|terminate called", app.said())
