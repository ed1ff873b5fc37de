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
import pytest
import soundfile

from qamdetr.ui.process import PREFIX

REPOSITORY = Path(__file__).resolve().parents[1]
NEEDS_PROC = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks /proc how much a process has computed")

pytestmark = pytest.mark.slow


def environment(folder, **values):
    return {**os.environ, "GRADIO_TEMP_DIR": str(folder), "QAMDETR_TRAINING": "0", "QAMDETR_WARM_UP": "0", **values}


@pytest.fixture
def port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [("GRADIO_TEMP_DIR", "/dev/null/x", "can be written"), ("GRADIO_SERVER_PORT", "taken", "another program listens")],
)
def test_a_setting_that_cannot_be_used_is_one_line_and_status_2(tmp_path, name, value, remedy):
    with socket.create_server(("127.0.0.1", 0)) as other:
        value = str(other.getsockname()[1]) if value == "taken" else value
        given = environment(tmp_path / "uploads", **{name: value})
        run = subprocess.run([sys.executable, REPOSITORY / "app.py"], env=given, capture_output=True, text=True, timeout=120, check=False)
    assert (run.returncode, run.stdout, len(run.stderr.splitlines())) == (2, "", 1), run.stderr
    assert run.stderr.startswith(f"app.py: {name} is {value!r}")
    assert remedy in run.stderr
    assert not list((tmp_path / "uploads").glob(f"*{PREFIX}*"))


class App:
    """A running `python app.py`."""

    def __init__(self, folder, port):
        self.folder, self.url = folder, f"http://127.0.0.1:{port}/gradio_api"
        self.log = folder / "app.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, REPOSITORY / "app.py"],
                env=environment(folder / "uploads", GRADIO_SERVER_PORT=str(port)),
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.until(lambda: "Running on local URL" in self.said(), "started")

    def said(self):
        return self.log.read_text(encoding="utf-8")

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
        fields = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return sum(int(fields[at]) for at in (11, 12)) / os.sysconf("SC_CLK_TCK")


@pytest.fixture
def app(tmp_path, port):
    running = App(tmp_path, port)
    yield running
    if running.process.poll() is None:
        running.process.kill()
        running.process.wait()


@NEEDS_PROC
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_cleanly_while_a_recording_is_encoded(app, tmp_path, number):
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
