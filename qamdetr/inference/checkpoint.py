"""Checkpoint folders: `model.safetensors` + `config.yaml` + `README.md` (the card); found by name or by path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

import qamdetr.config
from qamdetr.config import Config, load_config, save_config
from qamdetr.errors import CheckpointError, ConfigError
from qamdetr.files import replacing
from qamdetr.kernels import speed_up
from qamdetr.model.qam_detr import QamDetr

DEFAULT_CHECKPOINT = "qam-detr-pocket"
WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.yaml"


def load_pretrained(name_or_dir: str | Path = DEFAULT_CHECKPOINT) -> tuple[QamDetr, Config]:
    """Load a checkpoint for inference, on the CPU, in float32 and `eval()`.

    Args:
        name_or_dir: A checkpoint folder, or the name of one in `qamdetr.config.CHECKPOINT_DIR`.

    Raises:
        CheckpointError: Nothing there, a file missing or damaged, or weights that do not fit the configuration.
    """
    folder = find_checkpoint(name_or_dir)
    try:
        config = load_config(folder / CONFIG_FILE)
        model = speed_up(QamDetr(config.model))
    except ConfigError as error:
        raise CheckpointError(f"Checkpoint {folder}: {error}") from error
    try:
        weights = load_file(folder / WEIGHTS_FILE)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"Checkpoint {folder}: {WEIGHTS_FILE} is damaged ({error}); copy it again.") from error
    _check_weights(folder, weights, model.state_dict())
    model.load_state_dict({name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in weights.items()})
    return model.eval(), config


def load_changed(name_or_dir: str | Path, overrides: Sequence[str] = ()) -> tuple[QamDetr, Config]:
    """Load a checkpoint as `load_pretrained`, with other settings than it was saved with.

    Args:
        name_or_dir: See `load_pretrained`.
        overrides: `section.key=value` changes; the network stays as it is.

    Raises:
        CheckpointError: See `load_pretrained`.
        ConfigError: A malformed override, or one that changes the network.
    """
    model, trained = load_pretrained(name_or_dir)
    config = load_config(find_checkpoint(name_or_dir) / CONFIG_FILE, overrides)
    if config.model != trained.model:
        raise ConfigError("--set changes the model section; the weights fit the network that they were trained in: leave it out.")
    return model, config


def save_pretrained(directory: str | Path, model: QamDetr, config: Config, *, half: bool) -> None:
    """Write weights and configuration; the card (`README.md`) is left to whoever knows what the model was trained on.

    Args:
        directory: Made if it is not there; the weights replace earlier ones in one step.
        model: Its `state_dict` is written.
        config: Written in full, so that later defaults do not change the checkpoint.
        half: Store floating-point weights as float16: half the size. `load_pretrained` turns them back to float32.

    Raises:
        CheckpointError: The folder cannot be written, or a weight is too large for float16.
    """
    folder = Path(directory)
    weights = {name: _stored(name, tensor, half=half) for name, tensor in model.state_dict().items()}
    try:
        with replacing(folder / WEIGHTS_FILE) as temporary:
            save_file(weights, temporary, metadata={"format": "pt"})
        save_config(config, folder / CONFIG_FILE)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"Cannot write checkpoint {folder} ({error}); choose another folder.") from error


def find_checkpoint(name_or_dir: str | Path) -> Path:
    """Return the folder of a checkpoint: a path that exists wins over a name.

    Raises:
        CheckpointError: No such folder, or it lacks a file; lists the names that exist.
    """
    named = qamdetr.config.CHECKPOINT_DIR / name_or_dir
    folder = next((path for path in (Path(name_or_dir), named) if path.is_dir()), None)
    if folder is None or not str(name_or_dir):
        known = ", ".join(available_checkpoints()) or f"none in {qamdetr.config.CHECKPOINT_DIR}"
        raise CheckpointError(f"No checkpoint {str(name_or_dir)!r}; give a checkpoint folder or one of the names here: {known}.")
    missing = [name for name in (WEIGHTS_FILE, CONFIG_FILE) if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(f"{folder} is not a QAM-DETR checkpoint: {' and '.join(missing)} missing; copy the whole folder.")
    return folder


def available_checkpoints() -> list[str]:
    """Names of the QAM-DETR checkpoints in `CHECKPOINT_DIR`, sorted."""
    folders = (path.parent for path in qamdetr.config.CHECKPOINT_DIR.glob(f"*/{CONFIG_FILE}"))
    return sorted(folder.name for folder in folders if (folder / WEIGHTS_FILE).is_file())


def _check_weights(folder: Path, weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    remedy = f"{WEIGHTS_FILE} and {CONFIG_FILE} must come from the same training run."
    for problem, names in (("lacks", expected.keys() - weights.keys()), ("has unknown", weights.keys() - expected.keys())):
        if names:
            raise CheckpointError(f"Checkpoint {folder} {problem} weights for {len(names)} parameters, such as {min(names)}; {remedy}")
    for name, tensor in expected.items():
        if weights[name].shape != tensor.shape:
            found, wanted = tuple(weights[name].shape), tuple(tensor.shape)
            raise CheckpointError(f"Checkpoint {folder}: {name} has shape {found}, the configuration makes {wanted}; {remedy}")


def _stored(name: str, tensor: Tensor, *, half: bool) -> Tensor:
    tensor = tensor.detach().cpu().contiguous()
    if not half or not tensor.is_floating_point():
        return tensor
    stored = tensor.half()
    if not torch.isfinite(stored).all():
        raise CheckpointError(f"{name} does not fit float16 (largest value {tensor.abs().max():.3g}, limit 65504); save with half=False.")
    return stored
