"""Which process a number means: numbers are given out again, and a job may only ever end its own process."""

from __future__ import annotations

import subprocess
from pathlib import Path


def process_identity(pid: int) -> str:
    """Tell this process from any other that has had, or will have, its number; empty where it does not run."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return "" if Path("/proc/self/stat").exists() else _identity_elsewhere(pid)
    except OSError:
        return ""
    # Field 3 is the state (Z: ended, but its parent has not asked yet), field 22 the start in ticks since the machine started.
    return "" if fields[0] in "ZX" else f"{boot} {fields[19]}"


def _identity_elsewhere(pid: int) -> str:
    """As `process_identity`, on systems without /proc."""
    try:
        told = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout.split()
    except OSError:
        return ""
    return "" if not told or told[0].startswith("Z") else " ".join(told[1:])
