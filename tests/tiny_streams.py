"""Tiny combos that share streams, as combos A, B and C do, with checkpoints on them: what tests of ensembles and systems need."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch
from tiny_system import tiny_config

from qamdetr.features.base import AudioStream, EncoderOptions, FeatureListener, Streams, TextStream
from qamdetr.inference.checkpoint import save_checkpoint
from qamdetr.model.qam_detr import QamDetr
from qamdetr.types import TextFeatures

DIM = 6
STREAMS = {"X": (("joint", "loud"), ("joint",)), "Y": (("joint", "soft"), ("joint", "words")), "W": (("soft",), ("words",))}
"""Combo -> audio streams and text streams; the first of each is the main one. W has no joint space."""

RATES_HZ = {"joint": 8000, "loud": 8000, "soft": 4000}


class TinyAudioStream(AudioStream):
    """A vector per clip, drawn from its loudness; counts its runs."""

    dim = DIM

    def __init__(self, name: str, runs: Counter[str]) -> None:
        self.options = EncoderOptions()
        self.name, self.fingerprint, self.rate_hz = name, f"{name}-1", RATES_HZ[name]
        self._runs = runs

    def listener(self) -> FeatureListener:
        self._runs[self.name] += 1
        return super().listener()

    def encode_windows(self, windows: torch.Tensor) -> torch.Tensor:
        loudness = windows.square().sum(dim=1, keepdim=True) / self.rate_hz
        return torch.sin(loudness * torch.arange(1, DIM + 1) * 30 + len(self.name))


class TinyTextStream(TextStream):
    """A vector per word, drawn from its letters; only the joint stream has a pooled vector."""

    def __init__(self, name: str) -> None:
        self.name, self.fingerprint = name, f"{name}-1"

    def encode_text(self, query: str) -> TextFeatures:
        words = query.split()
        tokens = torch.stack([torch.sin(torch.arange(1, DIM + 1) * float(sum(map(ord, word + self.name)))) for word in words])
        pooled = torch.nn.functional.normalize(tokens.mean(dim=0), dim=0) if self.name == "joint" else None
        return TextFeatures(tokens, tuple((i, i + 1) for i in range(len(words))), pooled)


def tiny_combos() -> tuple[dict[str, Streams], Counter[str]]:
    """The combos, which share the encoders of their common streams, and how often each audio stream has run."""
    runs: Counter[str] = Counter()
    audio_streams = {name: TinyAudioStream(name, runs) for name in RATES_HZ}
    text_streams = {name: TinyTextStream(name) for name in ("joint", "words")}
    combos = {
        combo: Streams(combo, {s: audio_streams[s] for s in audio}, {s: text_streams[s] for s in text})
        for combo, (audio, text) in STREAMS.items()
    }
    return combos, runs


def save_member(folder: Path, combo: str, seed: int = 0, **data: object) -> Path:
    """Save a random checkpoint on a combo."""
    audio_streams, text_streams = STREAMS[combo]
    config = tiny_config(nms_iou=1.0)
    streams = {"audio_streams": dict.fromkeys(audio_streams, DIM), "text_streams": dict.fromkeys(text_streams, DIM)}
    config = replace(config, model=replace(config.model, **streams), data=replace(config.data, combo=combo, **data))
    torch.manual_seed(seed)
    save_checkpoint(folder, QamDetr(config.model), config)
    return folder
