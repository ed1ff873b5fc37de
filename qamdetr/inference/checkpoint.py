"""Checkpoint folders: `model.safetensors` + `config.yaml` + `README.md` (the card); found by name or by path."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

import qamdetr.config
from qamdetr.config import Config, InferenceConfig, load_config, save_config
from qamdetr.errors import CheckpointError, ConfigError
from qamdetr.files import replacing, write_whole
from qamdetr.kernels import speed_up
from qamdetr.model.qam_detr import QamDetr

DEFAULT_CHECKPOINT, OPEN_CHECKPOINT = "qam-detr-pocket", "qam-detr-open"
WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.yaml"
CARD_FILE = "README.md"

_BETA_LINE = re.compile(r"^beta:[ \t]*[^#\s]+", re.MULTILINE)


def load_checkpoint(name_or_dir: str | Path = DEFAULT_CHECKPOINT, overrides: Sequence[str] = ()) -> tuple[QamDetr, Config]:
    """Load a checkpoint for inference, on the CPU, in float32 and `eval()`; see `find_checkpoint` for its name.

    `overrides` are `section.key=value` changes of the settings it was saved with; the network stays as it is.

    Raises:
        CheckpointError: Nothing there, a file missing or damaged, or weights that do not fit the configuration.
    """
    folder = find_checkpoint(name_or_dir)
    try:
        config = load_config(folder / CONFIG_FILE)
        with torch.device("meta"):  # sizes that do not fit the weights are told before they take memory
            expected = QamDetr(config.model).state_dict()
        weights = _read_weights(folder, config.weights_sha256, expected)
        model = speed_up(QamDetr(config.model))
    except ConfigError as error:
        raise CheckpointError(error.what, error.remedy, folder) from error
    model.load_state_dict({name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in weights.items()})
    if any(override.partition("=")[0].partition(".")[0] == "model" for override in overrides):
        raise ConfigError("--set changes the model section; the weights fit the network that they were trained in: leave it out.")
    return model.eval(), load_config(folder / CONFIG_FILE, [*_split(name_or_dir)[1], *overrides])


def _read_weights(folder: Path, sha256: str, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read weights that are whole, finite and of the names and shapes expected."""
    path, remedy = folder / WEIGHTS_FILE, f"{WEIGHTS_FILE} and {CONFIG_FILE} must come from the same training run"
    try:
        weights = load_file(path)
        digest = hash_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{WEIGHTS_FILE} is damaged ({error})", "copy it again", folder) from error
    for problem, names in (("missing", expected.keys() - weights.keys()), ("unknown", weights.keys() - expected.keys())):
        if names:
            raise CheckpointError(f"the weights of {len(names)} parameters are {problem}, such as {min(names)}", remedy, folder)
    for name, tensor in expected.items():
        found, wanted = tuple(weights[name].shape), tuple(tensor.shape)
        if found != wanted:
            raise CheckpointError(f"{name} has shape {found}, the configuration makes {wanted}", remedy, folder)
    if sha256 and digest != sha256:  # checkpoints that were saved before their hash was noted are taken as they are
        what = f"{WEIGHTS_FILE} is not what was saved; its hash is {digest[:8]}…, {CONFIG_FILE} says {sha256[:8]}…"
        raise CheckpointError(what, "copy the whole folder again", folder)
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{name} holds values that are not finite", "copy the folder again, or train anew", folder)
    return weights


def save_checkpoint(folder: str | Path, model: QamDetr, config: Config, card_text: str = "", *, half: bool = False) -> None:
    """Write weights, configuration and card (empty leaves it as it is); each file replaces an earlier one in one step.

    The configuration is written in full, so that later defaults do not change the checkpoint, with the hash of the weights. `half` stores
    floating-point weights as float16, half the size; `load_checkpoint` turns them back to float32.
    """
    folder = Path(folder)
    weights = {name: _stored(name, tensor, half=half) for name, tensor in model.state_dict().items()}
    try:
        with replacing(folder / WEIGHTS_FILE) as temporary:
            save_file(weights, temporary, metadata={"format": "pt"})
        with replacing(folder / CONFIG_FILE) as temporary:
            save_config(replace(config, weights_sha256=hash_file(folder / WEIGHTS_FILE)), temporary)
        if card_text:
            write_whole(folder / CARD_FILE, card_text)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"Cannot write checkpoint {folder} ({error})", "choose another folder") from error


def _stored(name: str, tensor: Tensor, *, half: bool) -> Tensor:
    tensor = tensor.detach().cpu().contiguous()
    if not half or not tensor.is_floating_point():
        return tensor
    stored = tensor.half()
    if not torch.isfinite(stored).all():
        raise CheckpointError(f"{name} does not fit float16 (largest value {tensor.abs().max():.3g}, limit 65504); save with half=False.")
    return stored


def hash_file(path: Path) -> str:
    """SHA-256 of a file, in hex digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def find_checkpoint(name_or_dir: str | Path) -> Path:
    """Return the folder of a checkpoint, where that is whole: a path that exists wins over a name.

    Behind a colon may stand the encoder in whose joint space an open one hears, as in `qam-detr-open:laion_clap`.
    """
    name = _split(name_or_dir)[0]
    folder = next((path for path in (Path(name), qamdetr.config.CHECKPOINT_DIR / name) if path.is_dir()), None)
    if folder is None or not str(name_or_dir):
        known = ", ".join(available_checkpoints()) or f"none in {qamdetr.config.CHECKPOINT_DIR}"
        raise CheckpointError(f"No checkpoint {str(name_or_dir)!r}; give a checkpoint folder or one of the names here: {known}.")
    missing = [name for name in (WEIGHTS_FILE, CONFIG_FILE) if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(f"{folder} is not a QAM-DETR checkpoint: {' and '.join(missing)} missing; copy the whole folder.")
    return folder


def read_checkpoint_config(name_or_dir: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read the configuration of a checkpoint, hearing with the encoder that its name says; raises as `load_checkpoint`."""
    folder = find_checkpoint(name_or_dir)
    try:
        return load_config(folder / CONFIG_FILE, [*_split(name_or_dir)[1], *overrides])
    except ConfigError as error:
        raise CheckpointError(error.what, error.remedy, folder.name) from error


def _split(name_or_dir: str | Path) -> tuple[str, list[str]]:
    """Split off the encoder behind a colon, as an override; see `find_checkpoint`."""
    name, colon, joint = str(name_or_dir).rpartition(":")
    return (name, [f"data.combo=open:{joint}"]) if colon and not Path(name_or_dir).exists() else (str(name_or_dir), [])


def available_checkpoints() -> list[str]:
    """Names of the QAM-DETR checkpoints in `CHECKPOINT_DIR`, sorted."""
    folders = (path.parent for path in qamdetr.config.CHECKPOINT_DIR.glob(f"*/{CONFIG_FILE}"))
    return sorted(folder.name for folder in folders if (folder / WEIGHTS_FILE).is_file())


def store_in_checkpoint(folder: Path, change: Callable[[InferenceConfig], InferenceConfig]) -> Path:
    """Change the section `inference` of a checkpoint's configuration, whose path is returned; the rest stays."""
    path = folder / CONFIG_FILE
    config = load_config(path)
    try:
        with replacing(path) as temporary:
            save_config(replace(config, inference=change(config.inference)), temporary)
    except OSError as error:
        what = f"{path} cannot be written ({error.strerror or error})"
        raise CheckpointError(what, "calibrate a copy of the checkpoint, or give --dry-run") from error
    return path


def store_in_system(path: Path, beta: float) -> None:
    """Write `beta` into a system's YAML file, whole or not at all; every other character stays, comments too."""
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
