"""The folder of uploads; how the app ends is in `tests/test_app_process.py`."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import pytest

from qamdetr.ui.process import LEFT_SECONDS, PREFIX, UploadFolder


@pytest.fixture
def base(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", tempfile.gettempdir())
    return tmp_path


def test_it_is_closed_to_others_takes_all_temporary_files_and_goes_with_its_owner(base, monkeypatch):
    uploads = UploadFolder.make()
    assert (uploads.path.parent, uploads.path.stat().st_mode & 0o077) == (base, 0)
    uploads.use()
    with tempfile.NamedTemporaryFile() as file:
        assert os.environ["GRADIO_TEMP_DIR"] == str(uploads.path) == str(Path(file.name).parent)
    with monkeypatch.context() as forked:
        forked.setattr(os, "getpid", lambda: -1)
        uploads.remove()
    assert uploads.path.is_dir()
    uploads.remove()
    assert list(base.iterdir()) == []


def test_what_was_left_behind_for_long_is_swept_and_nothing_else(base):
    left, running, foreign = base / f"{PREFIX}old", base / f"{PREFIX}new", base / "other-program"
    for folder, age in ((left, LEFT_SECONDS + 60), (running, 0), (foreign, LEFT_SECONDS + 60)):
        (folder / "hash").mkdir(parents=True)
        os.utime(folder, (time.time() - age,) * 2)
    uploads = UploadFolder.make()
    assert [path.exists() for path in (left, running, foreign)] == [False, True, True]
    broken_off, under_way = uploads.path / "tmpold", uploads.path / "tmpnew"
    for path, age in ((broken_off, 7300), (under_way, 0)):
        path.touch()
        os.utime(path, (time.time() - age,) * 2)
    uploads.sweep_unfinished()
    assert [path.exists() for path in (broken_off, under_way)] == [False, True]
