"""Where the weights of Qwen2.5-Omni lie on this machine, and how to get them."""

from __future__ import annotations

import json
import logging
import re
import shlex
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path

from qamdetr.errors import CheckpointError
from qamdetr.features.store import quick_key

_log = logging.getLogger(__name__)

DEFAULT_MODEL = "Qwen/Qwen2.5-Omni-7B"
"""The report names no size; this is the larger of the two. Where it does not fit, `Qwen/Qwen2.5-Omni-3B` takes half the memory."""

DOWNLOAD_GIGABYTES: Mapping[str, int] = {DEFAULT_MODEL: 22, "Qwen/Qwen2.5-Omni-3B": 12}
"""Size of the published files in bfloat16; they hold the talker, too, which is not loaded."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_REACH_SECONDS = 8.0
_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
_PATTERNS = ("*.json", "*.safetensors", "merges.txt")


def locate_model(model: str) -> Path:
    """Return the folder of a model: a local one, or the hub's cache, into which it is downloaded where the hub can be reached.

    `HF_HOME`, `HF_HUB_CACHE`, `HF_ENDPOINT` and `HF_HUB_OFFLINE` mean what they mean everywhere.

    Args:
        model: Folder, hub id, or `id@revision`; empty = `DEFAULT_MODEL`.

    Raises:
        CheckpointError: It is not here and cannot be downloaded; one line says how to get it.
    """
    model = model or DEFAULT_MODEL
    folder = check_model(model)
    if folder is not None:
        return folder
    repo, _, revision = model.partition("@")
    return _cached(repo, revision or None) or _download(repo, revision or None)


def check_model(model: str) -> Path | None:
    """Say whether a name can be that of a model, without asking any network.

    Args:
        model: Folder, hub id, or `id@revision`.

    Returns:
        The folder where it is one; None for a hub id.

    Raises:
        CheckpointError: Neither, or a folder that lacks a file.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        if missing := _missing_file(folder):
            raise CheckpointError(f"{folder} has no {missing}; give a folder with the whole of Qwen2.5-Omni in the hub's layout.")
        return folder
    if not _HUB_ID.fullmatch(model):
        raise CheckpointError(
            f"verifier.model is {model!r}, which is no folder here; correct the path, or give a hub id such as {DEFAULT_MODEL}."
        )
    return None


def is_here(model: str) -> bool:
    """Whether `locate_model` would find a model without asking any network."""
    model = model or DEFAULT_MODEL
    folder = Path(model).expanduser()
    if folder.is_dir():
        return not _missing_file(folder)
    repo, _, revision = model.partition("@")
    return _HUB_ID.fullmatch(model) is not None and _cached(repo, revision or None) is not None


def files_fingerprint(folder: Path) -> str:
    """Return 16 hex digits that change with the files that decide a model's answers, without reading gigabytes; see `quick_key`.

    Raises:
        CheckpointError: A file cannot be read.
    """
    digest = blake2b(digest_size=8)
    try:
        for path in sorted(path for pattern in _PATTERNS for path in folder.glob(pattern)):
            digest.update(f"{path.name} {quick_key(path)}".encode())
    except OSError as error:
        raise CheckpointError(f"{error.filename} cannot be read ({error.strerror}); download the model again.") from error
    return digest.hexdigest()


def _missing_file(folder: Path) -> str:
    """Name of a file that a complete model has and this folder lacks; empty when it is complete."""
    needed = ["config.json", "preprocessor_config.json"]
    if not (folder / "tokenizer.json").is_file():
        needed += ["vocab.json", "merges.txt"]
    try:
        index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"]
    except (OSError, ValueError, KeyError):
        needed.append(_SINGLE)
    else:
        needed += sorted(set(index.values()))
    if not (folder / "preprocessor_config.json").is_file() and (folder / "processor_config.json").is_file():
        needed.remove("preprocessor_config.json")  # newer versions of Transformers save it under this name
    return next((name for name in needed if not (folder / name).is_file()), "")


def _cached(repo: str, revision: str | None) -> Path | None:
    """Folder of the snapshot in the hub's cache; None unless it is complete."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repo, revision=revision, local_files_only=True))
    except Exception:  # the hub's client has many errors for "not here"
        return None
    return None if _missing_file(folder) else folder


def _download(repo: str, revision: str | None) -> Path:
    from huggingface_hub import HfApi, constants, snapshot_download

    if constants.HF_HUB_OFFLINE:
        raise CheckpointError(_how_to_get(repo, revision, "HF_HUB_OFFLINE is set"))
    try:
        # Asked first because snapshot_download itself knows no limit of time.
        HfApi().model_info(repo, revision=revision, timeout=_REACH_SECONDS)
        _log.warning("Downloading %s%s to %s; this happens once.", repo, _size(repo), constants.HF_HUB_CACHE)
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=list(_PATTERNS), etag_timeout=_REACH_SECONDS))
    except Exception as error:  # the hub's client and the HTTP library beneath it raise classes of their own
        reason = (" ".join(str(error).split()) or type(error).__name__)[:160]
        raise CheckpointError(_how_to_get(repo, revision, reason)) from error
    if missing := _missing_file(folder):
        raise CheckpointError(f"{repo} has no {missing}; verifier 'qwen2.5-omni' needs a model such as {DEFAULT_MODEL}.")
    return folder


def _size(repo: str) -> str:
    return f" (about {DOWNLOAD_GIGABYTES[repo]} GB)" if repo in DOWNLOAD_GIGABYTES else ""


def _how_to_get(repo: str, revision: str | None, reason: str) -> str:
    command = shlex.join(["hf", "download", repo, *(["--revision", revision] if revision else [])])
    return (
        f"The verifier needs {repo}{_size(repo)}, which is not on this machine and cannot be downloaded ({reason}): run `{command}` where "
        "there is a network, set verifier.model to a local folder, or use verifier 'pocket', which needs no download."
    )
