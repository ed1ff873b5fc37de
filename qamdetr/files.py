"""Writes files whole or not at all: to a temporary neighbour first, then renamed. What the error means is the caller's to say."""

from __future__ import annotations

import contextlib
import itertools
import os
import platform
import re
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

ABANDONED_SECONDS = 3600.0
"""A temporary file that nobody has written to for so long was left by a process that was killed."""

_NAME_LETTERS = 40
_HOST = re.sub(r"\W", "", platform.node())[:20]
_MADE = re.compile(r"\..*\.(?P<host>\w*)-(?P<process>\d+)-\d+\.partial(\.[^.]*)?")
_numbers = itertools.count()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; when the block ends well, it takes the place of `path`, else it is removed.

    Missing folders are made, links are followed, and what is no plain file, such as a device, is written to as it is. No two blocks of
    this machine share a temporary path.
    """
    path = path.resolve() if path.is_symlink() else path
    if path.exists() and not path.is_file():
        yield path
        return
    # The suffix stays last, for writers that choose a format by it; a stem cut short keeps a long name within what file systems allow.
    temporary = path.with_name(f".{path.stem[:_NAME_LETTERS]}.{_HOST}-{os.getpid()}-{next(_numbers)}.partial{path.suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes | str) -> None:
    """Write bytes, or text as UTF-8 with plain newlines."""
    with replacing(path) as temporary:
        temporary.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", errors="backslashreplace"))


def cache_folder(part: str) -> Path:
    """Return where a part of the program keeps what it need not make twice: in `$QAMDETR_CACHE`, or in the user's cache folder."""
    own = os.environ.get("QAMDETR_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "qamdetr"
    return Path(own).expanduser() / part


def remove_abandoned(folder: Path) -> int:
    """Remove the temporary files of killed processes, on another machine after `ABANDONED_SECONDS`; return how many there were."""
    removed = 0
    for path in folder.glob(".*.partial*"):
        made = _MADE.fullmatch(path.name)
        with contextlib.suppress(OSError):
            if made and (_is_dead(made) or time.time() - path.stat().st_mtime > ABANDONED_SECONDS):
                path.unlink()
                removed += 1
    return removed


def _is_dead(made: re.Match[str]) -> bool:
    return made["host"] == _HOST and not psutil.pid_exists(int(made["process"]))
