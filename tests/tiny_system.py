"""A whole retrieval system small enough for tests: a random QAM-DETR and an encoder that looks at loudness alone."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile
import torch

from qamdetr.audio import Sound
from qamdetr.config import Config, DataConfig, InferenceConfig, ModelConfig, VerifierConfig
from qamdetr.errors import QamDetrError
from qamdetr.features.base import AudioStream, EncoderOptions, Step, Streams, TextStream
from qamdetr.inference.checkpoint import save_checkpoint
from qamdetr.inference.retriever import Member, MomentRetriever
from qamdetr.model.qam_detr import QamDetr
from qamdetr.types import Candidate, Recording, TextFeatures

JOINT_DIM = 8


def tiny_config(**inference) -> Config:
    model = ModelConfig(
        audio_streams={"pocket": JOINT_DIM, "mel_stats": 3},
        text_streams={"pocket": JOINT_DIM},
        dim=16,
        num_heads=2,
        ffn_dim=32,
        encoder="transformer",  # the scan would compile for seconds
        encoder_layers=1,
        num_moment_queries=5,
    )
    return Config(model=model, data=DataConfig(combo="tiny"), inference=InferenceConfig(**inference))


def tiny_model(config: Config) -> QamDetr:
    torch.manual_seed(0)
    return QamDetr(config.model).eval()


def save_tiny(folder: Path, **inference) -> Path:
    config = tiny_config(**inference)
    save_checkpoint(folder, tiny_model(config), config)
    return folder


def tiny_retriever(*, joint: bool = True, verifier: VerifierConfig | None = None, **inference) -> MomentRetriever:
    config = tiny_config(**inference)
    return MomentRetriever([Member(tiny_model(config), replace(config, verifier=verifier or config.verifier))], TinyEncoder(joint=joint))


def candidate(start: float, end: float, score: float = 0.5) -> Candidate:
    return Candidate(float(start), float(end), score, 1.0, score)


def recording_of(clips: torch.Tensor, duration_seconds: float | None = None) -> Recording:
    """A recording with the given `(clips, JOINT_DIM)` main stream."""
    stats = torch.linspace(-1, 1, 3 * len(clips)).reshape(-1, 3)
    streams = {"pocket": clips, "mel_stats": stats}
    return Recording("a.wav", "", float(len(clips)) if duration_seconds is None else duration_seconds, streams, np.zeros((2, 10)))


class _Tiny(AudioStream, TextStream):
    """Each clip's vector is drawn from its loudness, each query's from its letters."""

    name, dim, rate_hz = "pocket", JOINT_DIM, 8000
    fingerprint = "tiny-1"

    def __init__(self, *, joint: bool) -> None:
        self.options = EncoderOptions()
        self.joint = joint

    def encode_windows(self, windows: torch.Tensor) -> torch.Tensor:
        loudness = windows.square().sum(dim=1, keepdim=True) / self.rate_hz
        return torch.sin(loudness * torch.arange(1, JOINT_DIM + 1) * 40)

    def encode_text(self, query: str) -> TextFeatures:
        if len(query) > 200:
            raise QamDetrError(f"The query has {len(query)} letters; at most 200 can be read; shorten it.")
        words = query.split()
        rows = [torch.sin(torch.arange(JOINT_DIM) * float(sum(map(ord, word)))) for word in words]
        tokens = torch.stack(rows)
        pooled = torch.nn.functional.normalize(tokens.mean(dim=0), dim=0) if self.joint else None
        return TextFeatures(tokens, tuple((i, i + 1) for i in range(len(words))), pooled)


class _TinyStats(_Tiny):
    """A ramp over the clips."""

    name, dim = "mel_stats", 3

    def features(self, kept: torch.Tensor) -> Generator[Step, None, torch.Tensor]:
        yield Step(self.name, 0.0)
        return torch.linspace(-1, 1, 3 * len(kept)).reshape(-1, 3)


class TinyEncoder(Streams):
    """The encoders of combo `tiny`; remembers what it encoded."""

    def __init__(self, *, joint: bool = True) -> None:
        both = _Tiny(joint=joint)
        super().__init__("tiny", {"pocket": both, "mel_stats": _TinyStats(joint=joint)}, {"pocket": both})
        self.encoded: list[str] = []

    def encoding(self, sound: Sound, only: Sequence[str] = ()) -> Generator[Step, None, Recording]:
        recording = yield from super().encoding(sound, only)
        self.encoded.append(sound.path)
        return recording


def write_sound(path: Path, seconds: float, seed: int = 0) -> Path:
    """Noise whose level changes each second."""
    rng = np.random.default_rng(seed)
    level = np.repeat(rng.uniform(0.05, 0.9, int(seconds) + 1), 8000)[: round(seconds * 8000)]
    soundfile.write(path, level * rng.uniform(-1, 1, len(level)), 8000)
    return path
