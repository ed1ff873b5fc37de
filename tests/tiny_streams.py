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


class TinyStream(AudioStream, TextStream):
    """A vector per clip, drawn from its loudness, and per word, from its letters; counts its runs; only `joint` has pooled vectors."""

    def __init__(self, name: str, runs: Counter[str]) -> None:
        super().__init__(Path(), EncoderOptions())
        self.name, self.fingerprint, self.rate_hz, self._runs = name, f"{name}-1", RATES_HZ.get(name, 0), runs

    def listener(self) -> FeatureListener:
        self._runs[self.name] += 1
        return super().listener()

    def encode_windows(self, windows: torch.Tensor) -> torch.Tensor:
        loudness = windows.square().sum(dim=1, keepdim=True) / self.rate_hz
        return torch.sin(loudness * torch.arange(1, DIM + 1) * 30 + len(self.name))

    def encode_text(self, query: str) -> TextFeatures:
        words = query.split()
        tokens = torch.stack([torch.sin(torch.arange(1, DIM + 1) * float(sum(map(ord, word + self.name)))) for word in words])
        pooled = torch.nn.functional.normalize(tokens.mean(dim=0), dim=0) if self.name == "joint" else None
        return TextFeatures(tokens, tuple((i, i + 1) for i in range(len(words))), pooled)


def tiny_combos() -> tuple[dict[str, Streams], Counter[str]]:
    """The combos, which share the encoders of their common streams, and how often each audio stream has run."""
    runs: Counter[str] = Counter()
    streams = {name: TinyStream(name, runs) for name in (*RATES_HZ, "words")}
    named = {combo: [{name: streams[name] for name in names} for names in sides] for combo, sides in STREAMS.items()}
    return {combo: Streams(combo, *sides) for combo, sides in named.items()}, runs


def save_member(folder: Path, combo: str, seed: int = 0, **data: object) -> Path:
    """Save a random checkpoint on a combo."""
    audio_streams, text_streams = STREAMS[combo]
    config = tiny_config(nms_iou=1.0)
    streams = {"audio_streams": dict.fromkeys(audio_streams, DIM), "text_streams": dict.fromkeys(text_streams, DIM)}
    config = replace(config, model=replace(config.model, **streams), data=replace(config.data, combo=combo, **data))
    torch.manual_seed(seed)
    save_checkpoint(folder, QamDetr(config.model), config)
    return folder
