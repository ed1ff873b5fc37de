"""Configuration: frozen dataclasses are the only defaults; YAML files and `--set a.b=c` are strict diffs on them."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from qamdetr import strict_yaml
from qamdetr.errors import ConfigError
from qamdetr.strict_yaml import check_ranges

CONFIG_DIR = Path(__file__).parent / "configs"
SYSTEM_DIR = CONFIG_DIR / "systems"
"""Recipes of several checkpoints (`inference.system`); no experiments, so `load_config` refuses them."""

CHECKPOINT_DIR = Path(os.environ.get("QAMDETR_CHECKPOINTS") or Path(__file__).resolve().parents[1] / "checkpoints")
"""Where named checkpoints lie: the repository's own folder unless the environment names another."""


@dataclass(frozen=True)
class ModelConfig:
    """The network (report section 2). Every component is a switch; the first stream of each modality is the main one."""

    audio_streams: Mapping[str, int] = field(default_factory=lambda: {"pocket": 256, "mel_stats": 24})
    text_streams: Mapping[str, int] = field(default_factory=lambda: {"pocket": 256})
    dim: int = 256
    num_heads: int = 8
    ffn_dim: int = 1024
    dropout: float = 0.1
    input_dropout: float = 0.5
    similarity: bool = False  # cosine of each clip with the pooled query as one more main audio column (needs a joint space)
    fusion: Literal["three_way", "text_to_audio"] = "three_way"
    fusion_layers: int = 2  # of text_to_audio; three_way is one pass of three blocks
    fusion_norm: Literal["post", "pre"] = "post"
    encoder: Literal["bimamba", "transformer"] = "bimamba"
    encoder_layers: int = 2
    mamba_state: int = 16
    mamba_conv: int = 4
    mamba_expand: int = 2
    global_token: bool = False  # the baseline's learned token as query representation; otherwise the pooled refined text
    multiscale: bool = True
    multiscale_strides: tuple[int, ...] = (2, 4)
    decoder_layers: int = 2
    num_moment_queries: int = 10
    quality: bool = True

    def __post_init__(self) -> None:
        """Check ranges; what hangs together is checked by the model (`models.qam_detr.check_config`)."""
        for key in ("audio_streams", "text_streams"):
            streams = getattr(self, key)
            if not streams or min(streams.values()) < 1:
                raise ConfigError(
                    f"model.{key} is {dict(streams)}; it must name at least one stream with its width, such as {{pocket: 256}}."
                )
        counts = ("dim", "num_heads", "ffn_dim", "fusion_layers", "encoder_layers", "mamba_state", "mamba_conv", "mamba_expand")
        check_ranges(self, "model", **dict.fromkeys((*counts, "decoder_layers", "num_moment_queries"), (1, math.inf)))
        check_ranges(self, "model", dropout=(0, 0.999), input_dropout=(0, 0.999))


@dataclass(frozen=True)
class LossConfig:
    """Weights of the training objective and of the Hungarian matching (DESIGN section 4)."""

    span: float = 10.0
    giou: float = 1.0
    label: float = 4.0
    label_loss: Literal["cross_entropy", "varifocal"] = "cross_entropy"  # varifocal: foreground learns the IoU, hard slots count more
    saliency: float = 1.0
    quality: float = 1.0
    background_weight: float = 0.1
    saliency_margin: float = 0.2
    saliency_temperature: float = 0.5
    saliency_contrast: float = 1 / 12  # of the rank-contrastive part: the official loop averages 12 label levels, 0/1 labels fill one
    saliency_negative: Literal["sum", "mean"] = "sum"  # over the clips of a recording in which the query is absent
    saliency_clip: float = 0.0  # of a cross-entropy per clip, which makes sigmoid(saliency) a posterior; 0 = off, as the official loss
    quality_targets: Literal["matched", "all"] = "matched"  # all: every moment query learns its best IoU (0 where there is no span)
    auxiliary: bool = True
    match_span: float = 10.0
    match_giou: float = 1.0
    match_label: float = 4.0

    def __post_init__(self) -> None:
        """Check ranges; NaN is in none of them."""
        numbers = [item.name for item in dataclasses.fields(self) if isinstance(getattr(self, item.name), float)]
        check_ranges(self, "loss", **dict.fromkeys(numbers, (0.0, 1e6)))
        check_ranges(self, "loss", saliency_temperature=(1e-6, 1e6))


@dataclass(frozen=True)
class DataConfig:
    """Where training data lies and how it is read. Folders are made by `python -m qamdetr synthesize` or hold the field's JSONL."""

    train_manifest: str = ""
    val_manifest: str = ""
    audio_dir: str = ""
    val_audio_dir: str = ""
    feature_dir: str = "build/features"
    combo: str = "pocket"
    audio_features: Mapping[str, str] = field(default_factory=dict)  # stream -> folder of public {vid}.npz; others come from the cache
    text_features: Mapping[str, str] = field(default_factory=dict)  # stream -> folder of public qid{qid}.npz
    saliency_windows: Literal["all", "first"] = "all"  # first: as the official loop, other true windows count as negatives
    encoder: str = ""  # version of the combo's encoders that a checkpoint was trained on; written when it is saved
    encoder_models: Mapping[str, str] = field(default_factory=dict)  # stream -> hub id or folder in the place of the stream's default
    encoder_dtype: Literal["float32", "bfloat16"] = "float32"  # of the big encoders' weights; the pocket encoders stay float32
    max_clips: int = 300
    crop_probability: float = 0.0  # chance of training on a random stretch of a recording, a new one each epoch
    text_noise: float = 0.0  # standard deviation of noise on text features, relative to their size
    num_workers: int = 0

    def __post_init__(self) -> None:
        """Check ranges."""
        check_ranges(self, "data", max_clips=(1, math.inf), crop_probability=(0, 1), text_noise=(0, 100), num_workers=(0, 1024))


@dataclass(frozen=True)
class TrainConfig:
    """The optimisation."""

    seed: int = 0
    epochs: int = 200
    batch_size: int = 32
    learning_rate: float = 1e-4
    weight_decay: float = 1e-4
    warmup_fraction: float = 0.05
    schedule: Literal["constant", "cosine"] = "constant"
    clip_norm: float = 0.1
    ema_decay: float = 0.0  # of the averaged weights that are validated and saved; 0 = off
    accumulate_batches: int = 1  # batches per optimiser step
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "auto"  # auto: bf16 on a GPU that has it, else float32
    save_every_steps: int = 0  # optimiser steps between saved states inside an epoch; 0 = at the end of each epoch only
    early_stop_epochs: int = 0  # stop when validation has not risen for so many epochs; 0 = never
    tracker: str = "tensorboard"  # any tracker that Accelerate knows; "" = none
    output_dir: str = "runs"
    init_from: str = ""

    def __post_init__(self) -> None:
        """Check ranges."""
        check_ranges(
            self, "train", seed=(0, 2**32 - 1), epochs=(1, math.inf), batch_size=(1, math.inf), learning_rate=(0, 1), weight_decay=(0, 1),
            warmup_fraction=(0, 1), clip_norm=(0, math.inf), ema_decay=(0, 1), accumulate_batches=(1, math.inf),
            save_every_steps=(0, math.inf), early_stop_epochs=(0, math.inf),
        )  # fmt: skip


@dataclass(frozen=True)
class InferenceConfig:
    """Ranking and answering."""

    beta: float = 0.35
    beta_by_verifier: Mapping[str, float] = field(default_factory=dict)  # verifier -> beta that `calibrate` chose; others take `beta`
    top_k: int = 10
    nms_iou: float = 0.7  # candidates that overlap a better one by more are dropped; 1.0 = keep all
    found_threshold: float = 0.0  # decoder score under which the answer is "not in this recording"; set by calibration
    segment_threshold: float = 0.0  # above 0, runs of clips whose saliency reaches it join the decoder's candidates
    segment_peak_share: float = 0.4  # that threshold is lowered to this share of the curve's maximum, for wordings the model is unsure of
    section_clips: int = 300  # longer recordings run in overlapping sections of this length
    section_overlap_clips: int = 60

    def __post_init__(self) -> None:
        """Check ranges."""
        shares = dict.fromkeys(("beta", "nms_iou", "found_threshold", "segment_threshold", "segment_peak_share"), (0.0, 1.0))
        for name, beta in self.beta_by_verifier.items():
            if not 0 <= beta <= 1:
                raise ConfigError(f"inference.beta_by_verifier.{name} is {beta}; it must be from 0.0 to 1.0.")
        check_ranges(self, "inference", top_k=(1, math.inf), section_clips=(1, math.inf), section_overlap_clips=(0, math.inf), **shares)


@dataclass(frozen=True)
class VerifierConfig:
    """How verifiers run (`inference.verifiers`). The key of a server comes from the environment alone, see there."""

    model: str = ""  # hub id or folder (qwen2.5-omni), or the server's name of its model; empty = the verifier's default
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"  # auto: bfloat16 on a GPU that has it, else float32
    four_bit: bool = False  # needs a GPU and the package bitsandbytes
    batch_size: int = 4  # crops at once (qwen2.5-omni), or requests at once (server)
    url: str = ""  # of an OpenAI-compatible server, such as http://localhost:8000/v1
    timeout_seconds: float = 60.0
    retries: int = 2
    cache_dir: str = ""  # of the answers; empty = the user's cache folder

    def __post_init__(self) -> None:
        """Check ranges."""
        check_ranges(self, "verifier", batch_size=(1, 1024), timeout_seconds=(0.01, 86400), retries=(0, 100))


@dataclass(frozen=True)
class Config:
    """One experiment."""

    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    verifier: VerifierConfig = field(default_factory=VerifierConfig)


def load_config(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file (or a name in `qamdetr/configs`), follow its `extends:`, apply `a.b=c` overrides.

    Raises:
        ConfigError: Unknown file, key or type, a circular `extends`, or a malformed override.
    """
    name = str(name_or_path)
    if not Path(name).is_file() and (SYSTEM_DIR / f"{name}.yaml").is_file():
        raise ConfigError(
            f"{name!r} is a system of several checkpoints, not an experiment; run it with `python -m qamdetr predict --system {name}`."
        )
    values = strict_yaml.read(name, CONFIG_DIR)
    strict_yaml.apply_overrides(values, overrides)
    return config_from_dict(values)


def config_from_dict(values: Mapping[str, Any]) -> Config:
    """Build a `Config` from nested mappings; unknown keys and wrong types are errors.

    Raises:
        ConfigError: See above.
    """
    return strict_yaml.build(Config, values)


def config_to_dict(config: Config) -> dict[str, Any]:
    """Undo `config_from_dict`: nested mappings of plain YAML types."""
    result: dict[str, Any] = strict_yaml.plain(config)
    return result


def save_config(config: Config, path: Path) -> None:
    """Write `config` as YAML, in full, so that a checkpoint does not depend on later defaults."""
    path.write_text(yaml.safe_dump(config_to_dict(config), sort_keys=False), encoding="utf-8")
