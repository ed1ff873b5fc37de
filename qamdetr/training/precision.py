"""Mixed precision: what the device has, and the way back to float32 before anything is summed or compared."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from torch import Tensor

from qamdetr.config import TrainConfig
from qamdetr.errors import ConfigError

T = TypeVar("T")


def choose_precision(config: TrainConfig) -> str:
    """Return `no`, `bf16` or `fp16`: what the configuration names; `auto` is bf16 on a GPU that computes in it, else float32.

    Raises:
        ConfigError: fp16 on a CPU, where Accelerate would silently compute in float32; bf16 on a GPU without it.
    """
    # This may be the first to ask for the processes' state, which is made only once: it must hear of `accelerate launch --cpu`.
    device = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU")).device.type
    has_bf16 = device == "cpu" or (device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False))
    if config.mixed_precision == "auto":
        return "bf16" if has_bf16 and device == "cuda" else "no"
    if (config.mixed_precision == "fp16" and device == "cpu") or (config.mixed_precision == "bf16" and not has_bf16):
        raise ConfigError(f"train.mixed_precision is {config.mixed_precision!r}, which this {device} device lacks; choose auto or no.")
    return config.mixed_precision


def in_float32(value: T) -> T:
    """Return a dataclass, tuple or mapping with its floating-point tensors in float32; what is float32 already is not copied."""
    return _in_float32(value)  # type: ignore[no-any-return]


def _in_float32(value: Any) -> Any:  # noqa: ANN401 - walks over values of any type
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, tuple):
        return tuple(_in_float32(item) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{item.name: _in_float32(getattr(value, item.name)) for item in fields(value)})
    return value
