"""Writes files whole or not at all: to a temporary neighbour first, then renamed. What the error means is the caller's to say."""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import os
import platform
import re
import time
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

ABANDONED_SECONDS = 3600.0
"""A temporary file that nobody has written to for so long is taken for a leftover, wherever its process ran."""

_NAME_LETTERS = 40
_MADE = re.compile(r"\..*\.(?P<machine>[0-9a-f]{8})-(?P<process>\d+)-\d+\.partial(\.[^.]*)?")
_numbers = itertools.count()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; when the block ends well, it takes the place of `path`, else it is removed.

    Missing folders are made. No two blocks share a temporary path, in whatever thread, process or machine they run.

    Raises:
        OSError: The disk refuses.
    """
    with _temporary(path) as temporary:
        yield temporary
        temporary.replace(path)


def write_whole(path: Path, content: bytes | str) -> None:
    """Write bytes, or text as UTF-8 with plain newlines.

    Raises:
        OSError: The disk refuses.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(_to_bytes(content))


def create_whole(path: Path, content: bytes | str) -> bool:
    """Write a file only where there is none yet; of several processes that try at the same moment, one succeeds.

    Returns:
        Whether this call made the file.

    Raises:
        OSError: The disk refuses.
    """
    with _temporary(path) as temporary:
        temporary.write_bytes(_to_bytes(content))
        try:
            os.link(temporary, path)
        except OSError as error:
            if error.errno == errno.EEXIST or path.exists():
                return False
            # This file system has no hard links; the last of several processes wins.
            temporary.replace(path)
        return True


def remove_abandoned(folder: Path) -> int:
    """Remove the temporary files that killed processes left in a folder; return how many there were.

    A file is left alone while its process may still be writing it: one that runs on this machine, or one of another machine whose file
    is younger than `ABANDONED_SECONDS`.
    """
    removed = 0
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            made = _MADE.fullmatch(entry.name)
            with contextlib.suppress(OSError):
                if made and _is_abandoned(made["machine"], int(made["process"]), entry.stat().st_mtime):
                    Path(entry.path).unlink()
                    removed += 1
    return removed


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    # The suffix stays last, for writers that choose a format by it; a stem cut short keeps a long name within what file systems allow.
    name = f".{path.stem[:_NAME_LETTERS]}.{_machine()}-{os.getpid()}-{next(_numbers)}.partial{path.suffix}"
    temporary = path.with_name(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _to_bytes(content: bytes | str) -> bytes:
    return content if isinstance(content, bytes) else content.encode("utf-8", errors="backslashreplace")


@functools.lru_cache(maxsize=1)
def _machine() -> str:
    """Name where process numbers count: 8 hex digits of the machine since it was started, and of the container."""
    parts = [platform.node()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8"))
    with contextlib.suppress(OSError):
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return blake2b(" ".join(parts).encode(errors="surrogateescape"), digest_size=4).hexdigest()


def _is_abandoned(machine: str, process: int, modified: float) -> bool:
    # On Windows, signal 0 is no question but an interruption.
    if machine == _machine() and os.name == "posix":
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        except OSError:
            pass
    return time.time() - modified > ABANDONED_SECONDS
