"""What moves the weights: the optimiser, its schedule, the averaged weights, and the weights that a run begins with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields

import torch
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from qamdetr.config import ModelConfig, TrainConfig
from qamdetr.errors import CheckpointError
from qamdetr.inference.checkpoint import load_pretrained
from qamdetr.model.qam_detr import QamDetr


def make_optimizer(model: nn.Module, config: TrainConfig) -> AdamW:
    """AdamW; biases, norms, gates and the scan's own `A_log` and `D` are not decayed.

    Source: mamba-ssm spares `A_log` and `D`, because decay would change how long the state remembers; the baseline decays everything.
    """
    spared = {name for name, p in model.named_parameters() if p.ndim < 2 or name.rsplit(".", 1)[-1] in ("A_log", "D")}
    groups = [
        {"params": [p for name, p in model.named_parameters() if name not in spared], "weight_decay": config.weight_decay},
        {"params": [p for name, p in model.named_parameters() if name in spared], "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=config.learning_rate)


def make_schedule(optimizer: AdamW, config: TrainConfig, total_steps: int) -> LambdaLR:
    """Linear warm-up over `warmup_fraction` of all steps, then constant, or half a cosine down to zero."""
    warmup_steps = max(1, round(config.warmup_fraction * total_steps))

    def factor(step: int) -> float:
        warm = min(1.0, (step + 1) / warmup_steps)
        if config.schedule == "constant" or step < warmup_steps:
            return warm
        return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, total_steps - warmup_steps)))

    return LambdaLR(optimizer, factor)


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Move the averaged weights towards the model's by `1 - decay`; faster in the first steps, so that the start is soon forgotten."""
    decay = min(decay, (1 + step) / (10 + step))
    for kept, new in zip(average.parameters(), model.parameters(), strict=True):
        kept.lerp_(new, 1 - decay)
    for kept_buffer, new_buffer in zip(average.buffers(), model.buffers(), strict=True):
        kept_buffer.copy_(new_buffer)


def initialise(model: QamDetr, name_or_dir: str) -> None:
    """Take the weights of another checkpoint (pretrain, then fine-tune).

    Raises:
        CheckpointError: It does not exist or was made for another model; names the streams or settings that differ.
    """
    source, _ = load_pretrained(name_or_dir)
    try:
        model.load_state_dict(source.state_dict())
    except RuntimeError as error:
        differences = _differences(source.config, model.config) or " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"train.init_from={name_or_dir} was made for another model: {differences}; give both the same model section."
        ) from error


def _differences(source: ModelConfig, wanted: ModelConfig) -> str:
    """Name what differs between two networks: streams first, because with them nothing else can fit."""
    streams = [
        f"its {kind} streams are {_streams(getattr(source, key))}, here they are {_streams(getattr(wanted, key))}"
        for kind, key in (("audio", "audio_streams"), ("text", "text_streams"))
        if dict(getattr(source, key)) != dict(getattr(wanted, key))
    ]
    others = [
        f"model.{item.name} is {getattr(source, item.name)} there, {getattr(wanted, item.name)} here"
        for item in fields(ModelConfig)
        if not item.name.endswith("_streams") and getattr(source, item.name) != getattr(wanted, item.name)
    ]
    return "; ".join(streams or others)


def _streams(widths: Mapping[str, int]) -> str:
    return " + ".join(f"{name} ({width} wide)" for name, width in widths.items())
