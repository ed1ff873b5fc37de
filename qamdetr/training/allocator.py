"""How the C library hands memory to a training process."""

from __future__ import annotations

import ctypes
import sys

# `mallopt`'s parameters, from glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4

_LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let this process keep the memory of freed tensors for the next ones, until it ends; returns whether that could be arranged.

    glibc gives every block above 32 MB, the size of one activation, back to the system at once, and takes it anew, page by page and
    filled with zeros, in the next line: a tenth of a CPU training step. Training frees and takes the same sizes over and over, so its
    peak grows little (`docs/performance.md`); a server that idles between visitors should give memory back, so it does not call this.

    Source: `man mallopt`.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library, such as musl
        return False
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, _LARGEST_INT))
