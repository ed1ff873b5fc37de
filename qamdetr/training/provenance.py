"""Where a checkpoint comes from: code, packages, data, settings; and whether a run may be continued with those of today."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import Any

import qamdetr
from qamdetr.config import Config, config_to_dict
from qamdetr.errors import DataError

_PACKAGES = ("accelerate", "numba", "numpy", "safetensors", "scipy", "torch")
"""Those that a number of a run may depend on."""


def collect_facts(config: Config, *, command: str, data_fingerprint: str, num_processes: int) -> dict[str, Any]:
    """Note what a run is made of, as plain JSON values.

    Raises:
        DataError: A manifest cannot be read.
    """
    return {
        "command": command,
        "seed": config.train.seed,
        "git_revision": git_revision(),
        "python": sys.version.split()[0],
        "packages": package_versions(),
        "num_processes": num_processes,
        "data_fingerprint": data_fingerprint,
        "train_manifest": file_fingerprint(Path(config.data.train_manifest)),
        "val_manifest": file_fingerprint(Path(config.data.val_manifest)),
    }


def git_revision() -> str:
    """Commit of the code, with `+changes` where the working tree differs; `unknown` outside a repository."""
    root = Path(__file__).resolve().parents[2]
    try:
        revision = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=root, capture_output=True, text=True, check=True).stdout
        changes = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=root, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return revision.strip() + ("+changes" if changes.strip() else "")


def package_versions() -> dict[str, str]:
    """Version of this package and of those that its numbers may depend on."""
    return {"qamdetr": qamdetr.__version__, **{name: version(name) for name in _PACKAGES}}


def file_fingerprint(path: Path) -> str:
    """Return 16 hex digits of a file's whole content.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        return blake2b(path.read_bytes(), digest_size=8).hexdigest()
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror or error}; check data.train_manifest and data.val_manifest.") from error


def changed_settings(saved: Config, wanted: Config) -> list[str]:
    """Name the settings that differ, each with both values."""
    before, now = dict(_leaves(config_to_dict(saved))), dict(_leaves(config_to_dict(wanted)))
    return [f"{key} was {before.get(key)!r}, is {now.get(key)!r}" for key in {**before, **now} if before.get(key) != now.get(key)]


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
