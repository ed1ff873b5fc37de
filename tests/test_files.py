"""Files appear whole or not at all, whoever else writes, fails or is killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from qamdetr import files
from qamdetr.files import ABANDONED_SECONDS, create_whole, remove_abandoned, replacing, write_whole

SIZE = 200_000


def test_folders_are_made_and_only_the_file_is_left(tmp_path: Path) -> None:
    write_whole(tmp_path / "a" / "b" / "notes.txt", "犬\nbarks\n")
    assert (tmp_path / "a" / "b" / "notes.txt").read_bytes() == "犬\nbarks\n".encode()
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["notes.txt"]


def test_the_suffix_stays_last_for_writers_that_choose_by_it(tmp_path: Path) -> None:
    with replacing(tmp_path / "figure.png") as temporary:
        assert (temporary.suffix, temporary.parent) == (".png", tmp_path)
        temporary.write_bytes(b"x")


def test_a_writer_that_fails_leaves_the_old_content_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
        temporary.write_text("half of the n")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_that_refuses_is_told_and_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("old")

    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:3])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    for write in (write_whole, create_whole):
        with pytest.raises(OSError, match="No space left"):
            write(path, "new content")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_names_as_long_as_file_systems_allow_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("犬" * 83 + ".json")
    write_whole(path, "{}")
    assert path.read_text() == "{}"


def _write_often(path: Path, letter: str) -> None:
    for _ in range(30):
        write_whole(path, letter * SIZE)


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_readers_see_one_writer_or_the_other(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "shared"
    write_whole(path, "a" * SIZE)
    if kind == "threads":
        with ThreadPoolExecutor(3) as pool:
            running = [pool.submit(_write_often, path, letter) for letter in "abc"]
            seen = _watch(path, lambda: not all(future.done() for future in running))
    else:
        processes = [multiprocessing.get_context("fork").Process(target=_write_often, args=(path, letter)) for letter in "abc"]
        for process in processes:
            process.start()
        seen = _watch(path, lambda: any(process.is_alive() for process in processes))
        assert [process.exitcode for process in processes] == [0, 0, 0]
    assert seen <= {"a" * SIZE, "b" * SIZE, "c" * SIZE}
    assert list(tmp_path.iterdir()) == [path]


def _watch(path: Path, busy: Callable[[], bool]) -> set[str]:
    seen = {path.read_text()}
    while busy():
        seen.add(path.read_text())
    return seen


@pytest.mark.parametrize("links", [True, False])
def test_of_two_that_create_a_file_the_second_is_told(links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not links:

        def refuse(*args: object) -> None:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
    assert create_whole(tmp_path / "owner", "first")
    assert not create_whole(tmp_path / "owner", "second")
    assert (tmp_path / "owner").read_text() == "first"
    assert len(list(tmp_path.iterdir())) == 1


def _create(path: Path, letter: str) -> bool:
    return create_whole(path, letter * SIZE)


def test_of_many_that_create_a_file_at_once_one_succeeds(tmp_path: Path) -> None:
    for number in range(20):
        path = tmp_path / str(number)
        with ThreadPoolExecutor(4) as pool:
            made = list(pool.map(lambda letter, path=path: _create(path, letter), "abcd"))
        assert sum(made) == 1
        assert path.read_text() == "abcd"[made.index(True)] * SIZE


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
    command = [sys.executable, "-c", _WRITER]
    environment = {**os.environ, "PYTHONPATH": str(Path(files.__file__).parents[1])}
    writers = [
        subprocess.Popen([*command, str(tmp_path / name)], stdout=subprocess.PIPE, text=True, env=environment) for name in ("dead", "alive")
    ]
    try:
        dead, alive = (Path(writer.stdout.readline().strip()) for writer in writers)
        writers[0].kill()
        assert writers[0].wait() == -signal.SIGKILL
        (tmp_path / ".mine.partial").write_text("not made by `replacing`")
        assert remove_abandoned(tmp_path) == 1
        assert not dead.exists()
        assert alive.exists()
        # Even a live process has long stopped writing to so old a file.
        os.utime(alive, (time.time() - ABANDONED_SECONDS - 60,) * 2)
        assert remove_abandoned(tmp_path) == 1
        assert [path.name for path in tmp_path.iterdir()] == [".mine.partial"]
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
            writer.stdout.close()


def test_files_of_another_machine_are_judged_by_their_age(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_machine", lambda: "0" * 8)
    monkeypatch.setattr(os, "getpid", lambda: 2**22 + 1)  # above what Linux gives to processes
    with replacing(tmp_path / "x.safetensors") as temporary:
        temporary.write_bytes(b"half")
        monkeypatch.setattr(files, "_machine", lambda: "1" * 8)
        assert remove_abandoned(tmp_path) == 0
        monkeypatch.setattr(files, "_machine", lambda: "0" * 8)
        assert remove_abandoned(tmp_path) == 1
        temporary.write_bytes(b"half")
    assert remove_abandoned(tmp_path / "nowhere") == 0
