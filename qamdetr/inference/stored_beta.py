"""Writes a calibrated weight of the verifier to where retrievers look for it: a checkpoint's configuration, or a system's file."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import yaml

from qamdetr.config import load_config, save_config
from qamdetr.errors import CheckpointError, ConfigError
from qamdetr.files import replacing, write_whole
from qamdetr.inference.checkpoint import CONFIG_FILE

_BETA_LINE = re.compile(r"^beta:[ \t]*[^#\s]+", re.MULTILINE)


def store_in_checkpoint(folder: Path, verifier: str, beta: float) -> Path:
    """Write `inference.beta_by_verifier.{verifier}` into a checkpoint's configuration; every other setting keeps its value.

    Args:
        folder: The checkpoint, as `find_checkpoint` gives it.
        verifier: Name.
        beta: In [0, 1].

    Returns:
        The file that was written, whole or not at all.

    Raises:
        ConfigError: The configuration cannot be read.
        CheckpointError: It cannot be written.
    """
    path = folder / CONFIG_FILE
    config = load_config(path)
    weights = {**config.inference.beta_by_verifier, verifier: beta}
    config = dataclasses.replace(config, inference=dataclasses.replace(config.inference, beta_by_verifier=weights))
    try:
        with replacing(path) as temporary:
            save_config(config, temporary)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be written ({error.strerror or error}); calibrate a copy of the checkpoint, or give --dry-run."
        ) from error
    return path


def store_in_system(path: Path, beta: float) -> None:
    """Write `beta` into a system's YAML file; every other character stays, comments too. It is written whole or not at all.

    Args:
        path: The file.
        beta: In [0, 1].

    Raises:
        ConfigError: It cannot be written, or is laid out in a way that this does not understand.
    """
    line = beta_line(beta)
    unusual = ConfigError(f"{path} is laid out in an unusual way; write `{line}` into it yourself.")
    try:
        old = path.read_bytes().decode("utf-8")
        new, found = _BETA_LINE.subn(line, old)
        if not found:
            new = f"{old.rstrip()}\n{line}\n".lstrip()
        if yaml.safe_load(new) != {**(yaml.safe_load(old) or {}), "beta": beta}:
            raise unusual
        write_whole(path, new)
    except yaml.YAMLError:
        raise unusual from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror or error}); write `{line}` into a copy of it.") from error


def beta_line(beta: float) -> str:
    """Line of a system's file that sets its weight."""
    return yaml.safe_dump({"beta": beta}).strip()
