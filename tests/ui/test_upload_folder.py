from __future__ import annotations

import os
import tempfile
import time

import pytest

from qamdetr.errors import ConfigError
from qamdetr.ui.upload_folder import LOCK_FILE, PREFIX, UploadFolder, sweep


@pytest.fixture
def base(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", tempfile.gettempdir())
    return tmp_path


def left_behind(base, name=f"{PREFIX}old"):
    folder = base / name
    (folder / "hash").mkdir(parents=True)
    (folder / LOCK_FILE).touch()
    (folder / "hash" / "yard.wav").touch()
    return folder


def test_it_is_closed_to_others_and_goes_with_all_that_is_in_it(base):
    uploads = UploadFolder.make()
    assert uploads.path.parent == base
    assert uploads.path.stat().st_mode & 0o077 == 0
    (uploads.path / "hash").mkdir()
    (uploads.path / "hash" / "yard.wav").touch()
    uploads.remove()
    assert list(base.iterdir()) == []


def test_gradio_and_temporary_files_are_sent_there(base):
    uploads = UploadFolder.make()
    uploads.use()
    assert os.environ["GRADIO_TEMP_DIR"] == str(uploads.path)
    with tempfile.NamedTemporaryFile() as file:
        assert file.name.startswith(str(uploads.path))


def test_only_what_nobody_holds_is_swept(base, tmp_path_factory):
    running, left = UploadFolder.make(), left_behind(base)
    elsewhere = left_behind(tmp_path_factory.mktemp("elsewhere"))
    (base / f"{PREFIX}link").symlink_to(elsewhere)
    foreign, without_lock = left_behind(base, "other-program"), base / f"{PREFIX}no-lock"
    without_lock.mkdir()
    sweep(base)
    assert not left.exists()
    assert all(path.exists() for path in (running.path, foreign, without_lock, elsewhere / "hash" / "yard.wav"))


def test_uploads_that_broke_off_go_after_a_while_and_whole_ones_are_gradios_business(base):
    uploads = UploadFolder.make()
    (uploads.path / "hash").mkdir()
    old, fresh, whole = (uploads.path / name for name in ("tmpold", "tmpnew", "hash/yard.wav"))
    for path in (old, fresh, whole):
        path.touch()
    for path in (old, whole):
        os.utime(path, (time.time() - 7300,) * 2)
    uploads.sweep_unfinished()
    assert [path.exists() for path in (old, fresh, whole)] == [False, True, True]


def test_a_forked_process_leaves_it_to_its_owner(base, monkeypatch):
    uploads = UploadFolder.make()
    with monkeypatch.context() as forked:
        forked.setattr(os, "getpid", lambda: -1)
        uploads.remove()
    assert uploads.path.is_dir()


def test_a_folder_that_cannot_be_written_is_one_line(base, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", "/dev/null/x")
    with pytest.raises(ConfigError, match=r"^GRADIO_TEMP_DIR is '/dev/null/x' .*can be written\.$"):
        UploadFolder.make()
