"""The app as a process: how it starts, and above all how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import soundfile

from qamdetr.ui.process import PREFIX

REPOSITORY = Path(__file__).resolve().parents[1]
NEEDS_PROC = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks /proc how much a process has computed")


def environment(folder, **values):
    return {**os.environ, "GRADIO_TEMP_DIR": str(folder), "QAMDETR_TRAINING": "0", "QAMDETR_WARM_UP": "0", **values}


def refused(tmp_path, **values):
    run = subprocess.run(
        [sys.executable, REPOSITORY / "app.py"],
        env=environment(tmp_path / "uploads", **values),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 2, run.stderr
    assert run.stdout == ""
    assert len(run.stderr.splitlines()) == 1, run.stderr
    assert not list((tmp_path / "uploads").glob(f"*{PREFIX}*"))
    return run.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("GRADIO_SERVER_PORT", "abc", "1 to 65535"),
        ("GRADIO_TEMP_DIR", "/dev/null/x", "can be written"),
        ("QAMDETR_VERIFIER_MODEL", "/nonexistent", "correct the path"),
        ("QAMDETR_QUEUE_LENGTH", "-1", "from 1 to 1000"),
    ],
)
def test_a_setting_that_cannot_be_used_is_one_line_and_status_2(tmp_path, name, value, remedy):
    told = refused(tmp_path, **{name: value})
    assert told.startswith("app.py: ")
    assert all(part in told for part in (name, repr(value), remedy)), told


@pytest.mark.slow
def test_a_port_that_was_asked_for_and_is_taken_is_not_left_for_another(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        told = refused(tmp_path, GRADIO_SERVER_PORT=str(port))
    assert f"GRADIO_SERVER_PORT is '{port}'" in told
    assert "another program listens" in told


class App:
    """A running `python app.py`."""

    def __init__(self, folder, **values):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.folder = folder
        self.url = f"http://127.0.0.1:{port}/gradio_api"
        self.log = (folder.parent / f"{folder.name}-{port}.log").open("w+", encoding="utf-8")
        self.process = subprocess.Popen(
            [sys.executable, REPOSITORY / "app.py"],
            env=environment(folder, GRADIO_SERVER_PORT=str(port), **values),
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )
        self.until(lambda: "Running on local URL" in self.said(), "started")

    def said(self):
        return Path(self.log.name).read_text(encoding="utf-8")

    def until(self, holds, what, seconds=120.0):
        end = time.monotonic() + seconds
        while not holds():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < end, f"It never {what}: {self.said()}"
            time.sleep(0.05)

    def ask(self, path, body, kind):
        request = urllib.request.Request(self.url + path, data=body, headers={"Content-Type": kind})
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)

    def upload(self, path):
        head = f'--qd\r\nContent-Disposition: form-data; name="files"; filename="{path.name}"\r\n\r\n'.encode()
        (kept,) = self.ask("/upload", head + path.read_bytes() + b"\r\n--qd--\r\n", "multipart/form-data; boundary=qd")
        return Path(kept)

    def retrieve(self, kept):
        data = {"data": [{"path": str(kept), "meta": {"_type": "gradio.FileData"}}, "a dog barks", 10, "none", None, None]}
        return self.ask("/call/retrieve", json.dumps(data).encode(), "application/json")["event_id"]

    def answer(self, event):
        with urllib.request.urlopen(f"{self.url}/call/retrieve/{event}", timeout=120) as stream:
            return stream.read().decode()

    def computed_seconds(self):
        fields = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return sum(int(fields[at]) for at in (11, 12)) / os.sysconf("SC_CLK_TCK")

    def end(self, number):
        """Send a signal; returns the exit status and how long it took."""
        begin = time.monotonic()
        self.process.send_signal(number)
        return self.process.wait(timeout=60), time.monotonic() - begin


@pytest.fixture
def start(tmp_path):
    apps = []

    def begin(**values):
        apps.append(App(tmp_path / "uploads", **values))
        return apps[-1]

    yield begin
    for app in apps:
        if app.process.poll() is None:
            app.process.kill()
            app.process.wait()
        app.log.close()


def noise(path, seconds):
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(16000 * seconds).astype(np.float32), 16000)
    return path


@NEEDS_PROC
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_cleanly_while_a_recording_is_encoded(tmp_path, start, number):
    app = start()
    first, long = app.upload(noise(tmp_path / "first.wav", 3)), app.upload(noise(tmp_path / "long.wav", 3600))
    assert "event: complete" in app.answer(app.retrieve(first)), "the model is there and compiled"
    before = app.computed_seconds()
    app.retrieve(long)
    app.until(lambda: app.computed_seconds() > before + 2.0, "encoded")
    status, seconds = app.end(number)
    assert status == 0, app.said()
    assert seconds < 5
    assert list((tmp_path / "uploads").iterdir()) == []
    assert app.said().splitlines()[-1] == "Stopped; the uploads are deleted."
    assert not re.search("Traceback|terminate called", app.said())
