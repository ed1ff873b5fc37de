"""Reads the checkpoints of the packages `laion-clap` and `msclap` and gives their weights the names Transformers' models have.

The packages themselves are not needed: sizes are told from the weights' shapes, and names are translated by rule.

Source: names of `laion_clap.clap_module` 1.1.7 and `msclap.models` 1.3.4 on one side, `transformers.models.clap` and `gpt2` on the other.
"""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qamdetr.errors import CheckpointError

State = dict[str, Tensor]

_HEAD_DIM = 64
"""Width of an attention head in every RoBERTa and GPT-2; weights do not show it."""

_NOT_USED = re.compile(
    r"(spectrogram_extractor|logmel_extractor|spec_augmenter|tscam_conv|head|fusion_model|mel_conv2d)\.|"
    r"patch_embed\.(fusion_model|mel_conv2d)\.|.*\.(attn_mask|relative_position_index)$"
)
"""Weights without a part in a clip's features: front end, classifier, constants, and the fusion of recordings over ten seconds."""

_CONSTANTS = re.compile(r".*(position_ids|token_type_ids|relative_position_index|num_batches_tracked)$|logit_scale_[at]$")
"""Buffers that models compute themselves, and numbers that no feature passes through."""

_HTSAT_NAMES = (
    ("bn0.", "batch_norm."),
    (".norm1.", ".layernorm_before."),
    (".norm2.", ".layernorm_after."),
    (".attn.proj.", ".attention.output.dense."),
    (".attn.", ".attention.self."),
    (".mlp.fc1.", ".intermediate.dense."),
    (".mlp.fc2.", ".output.dense."),
)


def read_checkpoint(path: Path, wrapper: str) -> State:
    """Read the weights of a `.pt` or `.pth` file, without running code that may hide in it.

    Args:
        path: The file.
        wrapper: Key under which the package keeps the weights, beside its optimiser and the like; files without it are taken whole.

    Raises:
        Exception: Whatever torch raises on a damaged file.
        CheckpointError: The file holds no weights.
    """
    # Training scripts left NumPy numbers (best scores) in these files, under the module names of NumPy 1 or 2.
    make_number: Any = np.float64(0).__reduce__()[0]
    harmless: list[Any] = [(make_number, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    harmless += [np.dtype, *{type(np.dtype(kind)) for kind in "fdilq?"}]
    with torch.serialization.safe_globals(harmless):
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    weights = content.get(wrapper, content) if isinstance(content, dict) else None
    if not isinstance(weights, Mapping) or not any(isinstance(value, Tensor) for value in weights.values()):
        raise CheckpointError(f"{path} holds no weights under {wrapper!r}; it is not a checkpoint of the package. Download it again.")
    return {str(name).removeprefix("module."): value for name, value in weights.items() if isinstance(value, Tensor)}


def part(state: Mapping[str, Tensor], prefix: str) -> State:
    """Return the weights whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def htsat_config(state: Mapping[str, Tensor], **others: Any) -> Any:  # noqa: ANN401 - Transformers has no types
    """Tell the `ClapAudioConfig` of an original HTSAT from its weights; 256 x 256 patches of stride 4, as both packages have it.

    Raises:
        CheckpointError: The weights are not an HTSAT's.
    """
    from transformers import ClapAudioConfig

    try:
        blocks = [re.match(r"layers\.(\d+)\.blocks\.(\d+)\.norm1\.weight", name) for name in state]
        places = [(int(match[1]), int(match[2])) for match in blocks if match]
        stages = 1 + max(stage for stage, _ in places)
        tables = [state[f"layers.{stage}.blocks.0.attn.relative_position_bias_table"] for stage in range(stages)]
        patches = state["patch_embed.proj.weight"]
        return ClapAudioConfig(
            num_mel_bins=len(state["bn0.weight"]),
            patch_size=patches.shape[-1],
            patch_embeds_hidden_size=patches.shape[0],
            depths=[1 + max(block for stage, block in places if stage == wanted) for wanted in range(stages)],
            num_attention_heads=[table.shape[1] for table in tables],
            window_size=(math.isqrt(tables[0].shape[0]) + 1) // 2,
            hidden_size=len(state["norm.weight"]),
            mlp_ratio=state["layers.0.blocks.0.mlp.fc1.weight"].shape[0] / patches.shape[0],
            **others,
        )
    except (KeyError, ValueError) as error:
        raise CheckpointError(
            f"The checkpoint has no HTSAT audio network ({error}); choose a checkpoint whose audio model is HTSAT."
        ) from error


def convert_htsat(state: Mapping[str, Tensor]) -> State:
    """Give the weights of an original HTSAT the names of Transformers' `ClapAudioEncoder`."""
    converted: State = {}
    for name, value in state.items():
        if _NOT_USED.match(name):
            continue
        renamed = name
        for old, new in _HTSAT_NAMES:
            renamed = renamed.replace(old, new)
        if ".qkv." in renamed:
            for key, third in zip(("query", "key", "value"), value.chunk(3), strict=True):
                converted[renamed.replace(".qkv.", f".{key}.")] = third
        else:
            converted[renamed] = value
    return converted


def is_fused(state: Mapping[str, Tensor]) -> bool:
    """Say whether an original HTSAT was trained with fusion, which goes with HTK filters."""
    return any(name.startswith(("patch_embed.mel_conv2d.", "patch_embed.fusion_model.")) for name in state)


def convert_laion_clap(state: Mapping[str, Tensor]) -> tuple[Any, State]:
    """Tell `ClapConfig` and the weights of `ClapModel` from a checkpoint of the package `laion-clap`.

    Raises:
        CheckpointError: Its audio network is not HTSAT or its text network not RoBERTa.
    """
    from transformers import ClapConfig, ClapTextConfig

    audio, text = part(state, "audio_branch."), part(state, "text_branch.")
    if "embeddings.word_embeddings.weight" not in text or "text_projection.0.weight" not in state:
        raise CheckpointError(
            "The checkpoint has no RoBERTa text network; choose one of the package's checkpoints with `tmodel='roberta'`."
        )
    words, hidden = text["embeddings.word_embeddings.weight"].shape
    joint = state["text_projection.2.weight"].shape[0]
    text_config = ClapTextConfig(
        vocab_size=words,
        hidden_size=hidden,
        num_hidden_layers=1 + max(int(match[1]) for name in text if (match := re.match(r"encoder\.layer\.(\d+)\.", name))),
        num_attention_heads=max(hidden // _HEAD_DIM, 1),
        intermediate_size=text["encoder.layer.0.intermediate.dense.weight"].shape[0],
        max_position_embeddings=text["embeddings.position_embeddings.weight"].shape[0],
        # RoBERTa's, which the package trains; the default of `ClapTextConfig` is another.
        layer_norm_eps=1e-5,
        projection_dim=joint,
    )
    config = ClapConfig(
        text_config=text_config.to_dict(), audio_config=htsat_config(audio, projection_dim=joint).to_dict(), projection_dim=joint
    )
    converted = {f"audio_model.audio_encoder.{name}": value for name, value in convert_htsat(audio).items()}
    converted |= {f"text_model.{name}": value for name, value in text.items() if not name.endswith(("position_ids", "token_type_ids"))}
    for modality in ("audio", "text"):
        for number, layer in ((0, "linear1"), (2, "linear2")):
            converted |= {
                f"{modality}_projection.{layer}.{name}": value for name, value in part(state, f"{modality}_projection.{number}.").items()
            }
    return config, converted


def convert_gpt2(state: Mapping[str, Tensor]) -> tuple[Any, State]:
    """Tell `GPT2Config` and the weights of `GPT2Model` from a GPT-2 whose names need no change, but whose mask buffers are dropped.

    Raises:
        CheckpointError: The weights are not a GPT-2's.
    """
    from transformers import GPT2Config

    layers = [int(match[1]) for name in state if (match := re.match(r"h\.(\d+)\.ln_1\.weight", name))]
    if not layers or "wte.weight" not in state or "wpe.weight" not in state:
        raise CheckpointError("The checkpoint has no GPT-2 text network; use CLAP_weights_2023.pth of microsoft/msclap.")
    words, width = state["wte.weight"].shape
    config = GPT2Config(
        vocab_size=words,
        n_positions=state["wpe.weight"].shape[0],
        n_embd=width,
        n_layer=1 + max(layers),
        n_head=max(width // _HEAD_DIM, 1),
        n_inner=state["h.0.mlp.c_fc.weight"].shape[1],
        # Nothing is generated, and small vocabularies do not have GPT-2's numbers.
        bos_token_id=None,
        eos_token_id=None,
    )
    return config, {name: value for name, value in state.items() if not re.search(r"\.attn\.(bias|masked_bias)$", name)}


def fill(model: Any, state: Mapping[str, Tensor]) -> None:  # noqa: ANN401
    """Load weights into a Transformers model; they must be complete, but for constants and the scale of similarities.

    Raises:
        CheckpointError: Names missing or left over.
        RuntimeError: Shapes that do not fit.
    """
    lacking, surplus = model.load_state_dict({name: _as_float32(value) for name, value in state.items()}, strict=False)
    lacking = [name for name in lacking if not _CONSTANTS.match(name)]
    if lacking or surplus:
        counts = f"{len(lacking)} weights missing, {len(surplus)} unknown, such as {[*lacking, *surplus][0]}"
        raise CheckpointError(
            f"The checkpoint does not fit its network ({counts}); it is another model's, or incomplete. Download it again."
        )


def _as_float32(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value
