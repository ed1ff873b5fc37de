"""`encoder.json` of a feature cache: which encoders made the features, so that whoever reads them can open the same ones again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qamdetr.errors import DataError
from qamdetr.files import create_whole, write_whole

RECORD_FILE = "encoder.json"


@dataclass(frozen=True)
class EncoderRecord:
    """What made the features of a cache.

    Attributes:
        fingerprint: Version of the encoders; empty for a cache that nobody claimed.
        models: Each big encoder's stream -> the hub id or folder in the place of its default, empty for the default. No streams at all
            where there is nothing to choose (pocket), or where the cache was filled before this was noted.
        dtype: Of the big encoders' weights; empty likewise.
    """

    fingerprint: str = ""
    models: Mapping[str, str] = field(default_factory=dict)
    dtype: str = ""

    @property
    def settings(self) -> str:
        """Say type and models in words, for a message; empty when they are not known."""
        return describe_settings(self.models, self.dtype) if self.dtype else ""


def describe_settings(models: Mapping[str, str], dtype: str) -> str:
    """Say the settings of the big encoders in words: `bfloat16, laion_clap=/models/clap, ms_clap=default`."""
    return ", ".join([dtype, *(f"{stream}={model or 'default'}" for stream, model in sorted(models.items()))])


def read_record(cache_dir: Path) -> EncoderRecord:
    """Read the record of a cache; an empty one where there is none.

    Args:
        cache_dir: `{feature_dir}/{combo}`.

    Raises:
        DataError: It is damaged.
    """
    path = cache_dir / RECORD_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        models = {str(stream): str(model) for stream, model in values.get("models", {}).items()}
        return EncoderRecord(str(values["fingerprint"]), models, str(values.get("dtype", "")))
    except (FileNotFoundError, NotADirectoryError):
        return EncoderRecord()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        remedy = _extract_command(cache_dir, EncoderRecord())
        raise DataError(f"{path} cannot be read ({error}); delete the folder {cache_dir} and run `{remedy}`.") from error


def write_record(cache_dir: Path, record: EncoderRecord, *, replace: bool) -> None:
    """Write the record of a cache, or, without `replace`, leave the one that is there.

    Raises:
        OSError: The disk refuses.
    """
    values: dict[str, Any] = {"fingerprint": record.fingerprint}
    if record.dtype:
        values |= {"dtype": record.dtype, "models": dict(record.models)}
    (write_whole if replace else create_whole)(cache_dir / RECORD_FILE, json.dumps(values))


def extract_remedy(cache_dir: Path, planned: EncoderRecord | None = None, *, verify: bool = False) -> str:
    """Say which command fills a cache, with the settings that filled it so far.

    Args:
        cache_dir: `{feature_dir}/{combo}`.
        planned: What is to fill it where nothing is noted yet.
        verify: Whether the command must look for damage in what is there.
    """
    try:
        record = read_record(cache_dir)
    except DataError:
        record = EncoderRecord()
    command = _extract_command(cache_dir, record if record.dtype else planned or record)
    return f"run `{command}{' --verify' * verify}`"


def _extract_command(cache_dir: Path, record: EncoderRecord) -> str:
    options = [*("--combo", cache_dir.name), *("--manifest", "JSONL"), *("--feature-dir", str(cache_dir.parent))]
    if record.dtype not in ("", "float32"):
        options += ["--dtype", record.dtype]
    for stream, model in sorted(record.models.items()):
        options += ["--encoder", f"{stream}={model}"] if model else []
    return shlex.join(["python", "-m", "qamdetr", "extract", *options])
