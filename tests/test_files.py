"""Files appear whole or not at all, whoever else writes, fails or is killed."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qamdetr import files
from qamdetr.files import ABANDONED_SECONDS, remove_abandoned, replacing, write_whole


def test_folders_are_made_and_only_the_file_is_left_however_long_its_name(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / ("犬" * 83 + ".json")
    write_whole(path, "犬\nbarks\n")
    assert path.read_bytes() == "犬\nbarks\n".encode()
    assert list(path.parent.iterdir()) == [path]


def test_a_writer_that_fails_leaves_the_old_content_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
        assert (temporary.suffix, temporary.parent) == (".txt", tmp_path), "some writers choose a format by it"
        temporary.write_text("half of the n")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_readers_see_one_writer_or_the_other(tmp_path: Path) -> None:
    path, size = tmp_path / "shared", 200_000

    def write_often(letter: str) -> None:
        for _ in range(30):
            write_whole(path, letter * size)

    write_whole(path, "a" * size)
    processes = [multiprocessing.get_context("fork").Process(target=write_often, args=(letter,)) for letter in "abc"]
    for process in processes:
        process.start()
    while any(process.is_alive() for process in processes):
        assert path.read_text() in {letter * size for letter in "abc"}
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert list(tmp_path.iterdir()) == [path]


_WRITER = """
import os, sys, time
from pathlib import Path
from qamdetr.files import replacing
with replacing(Path(sys.argv[1])) as temporary:
    temporary.write_bytes(b"half")
    print(temporary, flush=True)
    time.sleep(60)
"""


def test_leftovers_of_a_killed_process_go_those_of_a_live_one_stay(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(files.__file__).parents[1])}
    command = [sys.executable, "-c", _WRITER]
    writers = [
        subprocess.Popen([*command, str(tmp_path / name)], stdout=subprocess.PIPE, text=True, env=environment) for name in ("dead", "alive")
    ]
    try:
        dead, alive = (Path(writer.stdout.readline().strip()) for writer in writers)
        writers[0].kill()
        writers[0].wait()
        elsewhere = dead.with_name(f".dead.elsewhere-{writers[0].pid}-0.partial")
        elsewhere.write_text("of another machine")
        (tmp_path / ".mine.partial").write_text("not made by `replacing`")
        assert remove_abandoned(tmp_path) == 1
        assert not dead.exists()
        # Even a live process has long stopped writing to so old a file.
        for path in (alive, elsewhere):
            os.utime(path, (time.time() - ABANDONED_SECONDS - 60,) * 2)
        assert remove_abandoned(tmp_path) == 2
        assert [path.name for path in tmp_path.iterdir()] == [".mine.partial"]
        assert remove_abandoned(tmp_path / "nowhere") == 0
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
            writer.stdout.close()


def test_links_and_devices_stay_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "file")
    write_whole(tmp_path / "link", "one")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "one"
    with pytest.raises(OSError, match="No space left"):
        write_whole(Path("/dev/full"), "x")
    assert Path("/dev/full").is_char_device()
