"""Tells whether a recording is still the one that was encoded: the hash of its file, and what makes hashing it again needless."""

from __future__ import annotations

import os
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

_SAMPLE_BYTES = 1 << 16
_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class AudioStamp:
    """What a file shows at a glance. A file of the same stamp is taken for the same one.

    An edit moves the times, and what sets `modified_ns` back (`cp -p`, `rsync -a`, `touch -r`) moves `changed_ns`. Copying or unpacking
    to a system without `changed_ns` may give two different recordings the same time and size, but not the same samples.

    Attributes:
        size_bytes: Length of the file.
        modified_ns: When it was last written, as the file says.
        changed_ns: When content, name or rights last changed, as the file system alone says; 0 where it does not (Windows).
        sample: `quick_key` of it.
    """

    size_bytes: int
    modified_ns: int
    changed_ns: int
    sample: str

    @classmethod
    def of(cls, path: Path) -> AudioStamp:
        """Look at a file.

        Raises:
            OSError: It cannot be read.
        """
        status = path.stat()
        # On Windows, st_ctime is when the file was made.
        changed_ns = status.st_ctime_ns if os.name == "posix" else 0
        return cls(status.st_size, status.st_mtime_ns, changed_ns, quick_key(path))


@dataclass(frozen=True)
class AudioIdentity:
    """A file's content (`content_key`), and its stamp from before the content was read."""

    key: str
    stamp: AudioStamp

    @classmethod
    def of(cls, path: Path) -> AudioIdentity:
        """Read a file.

        Raises:
            OSError: It cannot be read.
        """
        stamp = AudioStamp.of(path)
        return cls(content_key(path), stamp)


def content_key(path: Path) -> str:
    """Return 16 hex digits that change with any byte of a file (BLAKE2b; about a second per GB).

    Raises:
        OSError: The file cannot be read.
    """
    digest = blake2b(digest_size=8)
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def quick_key(path: Path) -> str:
    """Return 16 hex digits of a file's size and of three stretches of 64 KiB, at its beginning, middle and end.

    Takes no longer for a long file, but does not see every edit.

    Raises:
        OSError: The file cannot be read.
    """
    size = path.stat().st_size
    digest = blake2b(str(size).encode(), digest_size=8)
    with path.open("rb") as file:
        for begin in (0, size // 2, max(size - _SAMPLE_BYTES, 0)):
            file.seek(begin)
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()
