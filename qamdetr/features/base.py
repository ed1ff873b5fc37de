"""Protocols of the encoders, the streams they give, and the combos that systems are built of (report, Table 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from qamdetr.errors import ConfigError
from qamdetr.types import TextFeatures


class AudioEncoder(Protocol):
    """Turns samples into one vector per clip."""

    name: str
    dim: int
    sample_rate_hz: int

    def encode_audio(self, samples: np.ndarray) -> Tensor:
        """Encode mono float32 `samples` `(n,)` at `sample_rate_hz` to `(ceil(n / sample_rate_hz), dim)` float32."""
        ...


class TextEncoder(Protocol):
    """Turns a query into one vector per token."""

    name: str
    dim: int

    def encode_text(self, query: str) -> TextFeatures:
        """Encode one query; never truncates silently."""
        ...


@dataclass(frozen=True)
class Combo:
    """A named set of streams; the first of each modality is the main one."""

    audio_streams: tuple[str, ...]
    text_streams: tuple[str, ...]


COMBOS: dict[str, Combo] = {
    "pocket": Combo(("pocket", "mel_stats"), ("pocket",)),
    "A": Combo(("laion_clap", "ms_clap", "wavlm_base_plus"), ("laion_clap", "ms_clap")),
    "B": Combo(("laion_clap", "ms_clap"), ("laion_clap", "ms_clap")),
    "C": Combo(("laion_clap", "wavlm_base", "wavlm_base_plus", "wavlm_large"), ("laion_clap", "roberta")),
}

RAW_SCALE_STREAMS = frozenset({"mel_stats"})
"""Streams whose size carries meaning (loudness); every other stream is L2-normalised per clip or token."""


def get_combo(name: str) -> Combo:
    """Look up a combo.

    Raises:
        ConfigError: Unknown name.
    """
    try:
        return COMBOS[name]
    except KeyError:
        raise ConfigError(f"Unknown combo {name!r}; choose one of {', '.join(COMBOS)}.") from None
