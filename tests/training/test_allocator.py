"""Freed memory stays with a training process."""

from __future__ import annotations

import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
from qamdetr.training.allocator import keep_freed_memory
import numpy as np
if sys.argv[1] == "kept":
    assert keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(20_000_000)
before = faults()
for _ in range(5):
    np.ones(20_000_000)
print(faults() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc has mallopt")
def test_large_arrays_come_from_memory_that_was_freed_before() -> None:
    pages = {
        how: int(subprocess.run([sys.executable, "-c", FAULTS, how], check=True, capture_output=True, text=True).stdout)
        for how in ("returned", "kept")
    }
    assert pages["kept"] * 10 < pages["returned"]
