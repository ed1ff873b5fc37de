"""Protocols of the encoders, the streams they give, and the combos that systems are built of (report, Table 2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from qamdetr.errors import ConfigError
from qamdetr.sample_stream import Listener, SampleStream
from qamdetr.types import TextFeatures

OnStage = Callable[[str, float], None]
"""Told, while a recording is encoded, which stream comes next, and how many seconds the recording lasts."""


class AudioEncoder(Protocol):
    """Turns samples into one vector per clip."""

    name: str
    dim: int
    sample_rate_hz: int

    def encode_audio(self, samples: np.ndarray | SampleStream) -> Tensor:
        """Encode mono float32 `samples` `(n,)` at `sample_rate_hz` to `(ceil(n / sample_rate_hz), dim)` float32."""
        ...


class FrontEnd(Listener, Protocol):
    """Keeps what some encoders need of a recording, which is much less than its samples."""

    def finish(self) -> Tensor:
        """Return what was kept, when all samples are in."""
        ...


@runtime_checkable
class FrontEndEncoder(Protocol):
    """An audio encoder that needs no samples: its front end listens while the file is read. Encoders of one front end share its output."""

    open_front_end: Callable[[], FrontEnd]

    def encode_front_end(self, kept: Tensor) -> Tensor:
        """Encode what the front end kept; the same as `AudioEncoder.encode_audio` on the samples."""
        ...


class TextEncoder(Protocol):
    """Turns a query into one vector per token."""

    name: str
    dim: int

    def encode_text(self, query: str) -> TextFeatures:
        """Encode one query; never truncates silently."""
        ...


@dataclass(frozen=True)
class EncoderOptions:
    """How a big encoder runs; the pocket encoders take no options."""

    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    batch_clips: int = 16
    """Clips that run through the network at once; bounds memory for long recordings."""


class OpenedStream(NamedTuple):
    """The encoders of one stream, either of which may be missing, and the version of their weights and code."""

    audio: AudioEncoder | None
    text: TextEncoder | None
    fingerprint: str


def weights_fingerprint(code: str, state: Mapping[str, Tensor], *settings: object) -> str:
    """Return 16 hex digits that change with the weights of an encoder, the code that uses them, or its settings.

    Hashes names, shapes, 16 values spread over each tensor and the sum of the bit patterns of all its values, so that the same weights
    give the same digits whatever file they came from, on whatever device, and a changed value shows wherever it is.

    Args:
        code: Name and version of the code, such as `wavlm-1`; raise the number when features change.
        state: The weights, before they are cast to another type.
        settings: Whatever else decides the features, such as sample rate and type.
    """
    digest = blake2b(repr((code, *settings)).encode(), digest_size=8)
    for name in sorted(state):
        tensor = state[name].detach()
        flat = tensor.reshape(-1).float()
        spread = flat[torch.linspace(0, max(len(flat) - 1, 0), min(16, len(flat)), dtype=torch.float64).long().to(flat.device)]
        # Whole numbers add up to the same in any order, hence on any number of threads.
        total = int(flat.view(torch.int32).sum(dtype=torch.int64))
        digest.update(f"{name} {tuple(tensor.shape)} {total}".encode() + spread.cpu().numpy().tobytes())
    return digest.hexdigest()


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
    "laion_clap": Combo(("laion_clap",), ("laion_clap",)),
    "ms_clap": Combo(("ms_clap",), ("ms_clap",)),
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
