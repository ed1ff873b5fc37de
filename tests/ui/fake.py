"""A retriever without a model: real audio decoding and peaks, made-up answers that depend on query and bypass alone."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile
import torch

from qamdetr.config import Config
from qamdetr.errors import AudioError, ConfigError
from qamdetr.progress import tell
from qamdetr.types import Moment, Recording, Result

DECODER_SCORES = (0.82, 0.64, 0.21, 0.08)
VERIFIER_SCORES = (0.10, 0.95, 0.40, 0.05)
STARTS_SHARES = (0.10, 0.45, 0.70, 0.90)
LENGTHS_SECONDS = (2.5, 1.2, 4.0, 0.7)


@dataclass(frozen=True)
class FakeEncoder:
    """Two streams by name, and a version."""

    fingerprint: str = "fake"
    audio: dict[str, object] = field(default_factory=lambda: {"pocket": None, "mel_stats": None})


class FakeRetriever:
    """Counts what it is asked for; a query with "nothing" in it is not found, one with "explode" fails as only a bug can."""

    def __init__(self, fingerprint="fake"):
        self.config = Config()
        self.encoder = FakeEncoder(fingerprint)
        self.encoded: list[str] = []
        self.queries: list[str] = []
        self.bypassed: list[tuple[str, ...]] = []

    def encode(self, path, on_stage=None):
        try:
            samples, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise AudioError(f"{path} is not audio that can be read; use WAV, FLAC, OGG or MP3.") from error
        self.encoded.append(Path(path).name)
        mono = samples.mean(axis=1)
        duration = len(mono) / rate_hz
        for stream in self.encoder.audio:
            if on_stage is not None:
                on_stage(stream, duration)
        starts = np.linspace(0, len(mono), 2000, endpoint=False).astype(int)
        peaks = np.stack([np.minimum.reduceat(mono, starts), np.maximum.reduceat(mono, starts)])
        return Recording(Path(path).name, str(path), duration, {"pocket": torch.zeros(int(np.ceil(duration)), 4)}, peaks)

    def retrieve_many(self, recording, queries, *, top_k=10, verifier="none", beta=None, bypass=()):
        if verifier not in {"none", "pocket"}:
            raise ConfigError(f"Unknown verifier {verifier!r}; choose none or pocket.")
        self.bypassed.append(tuple(bypass))
        return [self._answer(recording, query, top_k, verifier, 0.35 if beta is None else beta, bypass) for query in queries]

    def _answer(self, recording, query, top_k, verifier, beta, bypass):
        if "explode" in query:
            raise RuntimeError("a fault of the program")
        self.queries.append(query)
        moments = []
        for index, full_score in enumerate(DECODER_SCORES[:top_k]):
            decoder_score = full_score * (0.5 if bypass else 1.0)
            start = STARTS_SHARES[index] * recording.duration_seconds
            end = min(start + LENGTHS_SECONDS[index], recording.duration_seconds)
            checked = VERIFIER_SCORES[index] if verifier != "none" else None
            score = decoder_score if checked is None else (1 - beta) * decoder_score + beta * checked
            quality = 0.9 - 0.1 * index
            moments.append(Moment(start, end, decoder_score / quality, quality, decoder_score, checked, score))
        moments.sort(key=lambda moment: -moment.score)
        seconds = np.arange(recording.num_clips) + 0.5
        bumps = [np.exp(-(((seconds - m.start_seconds) / 3) ** 2)) * m.decoder_score for m in moments]
        return Result(
            audio=recording.path,
            duration_seconds=recording.duration_seconds,
            query=query,
            found="nothing" not in query,
            encoder="pocket",
            verifier=verifier,
            beta=beta,
            moments=tuple(moments),
            saliency=tuple(float(v) for v in np.max(bumps, axis=0)),
        )


class HeldRetriever(FakeRetriever):
    """Reads files called "long…" and answers queries with "slow" in them until it is let go."""

    def __init__(self):
        super().__init__()
        self.let_go = threading.Event()
        self.begun = threading.Semaphore(0)
        self.ended = threading.Semaphore(0)

    def encode(self, path, on_stage=None):
        if Path(path).name.startswith("long"):
            self.begun.release()
            try:
                while not self.let_go.wait(0.02):
                    tell(0.5)
            finally:
                self.ended.release()
        return super().encode(path, on_stage)

    def retrieve_many(self, recording, queries, **options):
        if "slow" in queries[0]:
            self.begun.release()
            assert self.let_go.wait(60)
        return super().retrieve_many(recording, queries, **options)
