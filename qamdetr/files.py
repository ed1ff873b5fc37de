"""Writes files whole or not at all: to a temporary neighbour first, then renamed. What the error means is the caller's to say."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; when the block ends well, it takes the place of `path`, else it is removed.

    Missing folders are made. Each process and thread has a temporary path of its own.

    Raises:
        OSError: The disk refuses.
    """
    # The suffix stays last, for writers that choose a format by it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.{threading.get_ident()}.partial{path.suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes | str) -> None:
    """Write bytes, or text as UTF-8 with plain newlines.

    Raises:
        OSError: The disk refuses.
    """
    data = content if isinstance(content, bytes) else content.encode("utf-8", errors="backslashreplace")
    with replacing(path) as temporary:
        temporary.write_bytes(data)
