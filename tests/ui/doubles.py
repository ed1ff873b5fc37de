"""Stand-ins: a retriever without a model (real audio, made-up answers), sounds as somebody might have them, runs without training."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import soundfile
import torch

from qamdetr.config import Config, ModelConfig, TrainConfig, save_config
from qamdetr.errors import AudioError, ConfigError
from qamdetr.features.base import LISTEN, Step, finish
from qamdetr.inference.rerank import mark_likely, rerank
from qamdetr.types import Candidate, Recording, Result

DECODER_SCORES = (0.82, 0.64, 0.21, 0.08)
VERIFIER_SCORES = (0.10, 0.95, 0.40, 0.05)
STARTS_SHARES = (0.10, 0.45, 0.70, 0.90)
LENGTHS_SECONDS = (2.5, 1.2, 4.0, 0.7)


class FakeRetriever:
    """Counts what it is asked for; a query with "nothing" in it is not found, one with "explode" fails as only a bug can."""

    def __init__(self, fingerprint="fake", found_threshold=0.1):
        self.config = replace(Config(), inference=replace(Config().inference, found_threshold=found_threshold))
        self.encoder = SimpleNamespace(fingerprint=fingerprint)
        self.encoded: list[str] = []
        self.queries: list[str] = []
        self.bypassed: list[tuple[str, ...]] = []

    def encode(self, source, **choice):
        return finish(self.encoding(source, **choice))

    def encoding(self, source, *, max_seconds=0.0):
        if isinstance(source, tuple):
            samples, rate_hz, name, path = source[0][:, None], source[1], "memory", ""
        else:
            name, path = Path(source).name, str(source)
            try:
                samples, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
            except soundfile.LibsndfileError as error:
                raise AudioError("is not audio that can be read", "use WAV, FLAC, OGG or MP3", path) from error
        self.encoded.append(name)
        for stream, share in ((LISTEN, 0.25), ("pocket", 0.75)):
            yield Step(stream, share)
        mono = samples.mean(axis=1)
        duration = len(mono) / rate_hz
        starts = np.linspace(0, len(mono), 2000, endpoint=False).astype(int)
        peaks = np.stack([np.minimum.reduceat(mono, starts), np.maximum.reduceat(mono, starts)])
        return Recording(name, path, duration, {"pocket": torch.zeros(int(np.ceil(duration)), 4)}, peaks)

    def retrieve_many(self, recording, queries, *, top_k=10, verifier="none", beta=None, bypass=()):
        if verifier not in {"none", "pocket"}:
            raise ConfigError(f"Unknown verifier {verifier!r}; choose none or pocket.")
        self.bypassed.append(tuple(bypass))
        return [self._answer(recording, query, top_k, verifier, 0.35 if beta is None else beta, bypass) for query in queries]

    def _answer(self, recording, query, top_k, verifier, beta, bypass):
        if "explode" in query:
            raise RuntimeError("a fault of the program")
        self.queries.append(query)
        found, verified = "nothing" not in query, verifier != "none"
        candidates = []
        for index, full_score in enumerate(DECODER_SCORES):
            score = full_score * (0.5 if bypass else 1.0)
            start = STARTS_SHARES[index] * recording.duration_seconds
            end = min(start + LENGTHS_SECONDS[index], recording.duration_seconds)
            quality = 0.9 - 0.1 * index
            candidates.append(Candidate(start, end, score / quality, quality, score))
        moments = mark_likely(
            rerank(candidates, VERIFIER_SCORES if verified else None, beta),
            found=found,
            threshold=self.config.inference.found_threshold,
        )[:top_k]
        saliency = (0.5,) * recording.num_clips
        weight = beta if verified else 0.0
        return Result(
            recording.path, recording.duration_seconds, query, found, "pocket", verifier, weight, moments, saliency, recording.notes
        )


class HeldRetriever(FakeRetriever):
    """Reads files called "long…" and answers queries with "slow" in them until it is let go."""

    def __init__(self):
        super().__init__()
        self.let_go = threading.Event()
        self.begun = threading.Semaphore(0)
        self.ended = threading.Semaphore(0)

    def encoding(self, source, **choice):
        if not isinstance(source, tuple) and Path(source).name.startswith("long"):
            self.begun.release()
            try:
                while not self.let_go.wait(0.02):
                    yield Step(LISTEN, 0.5)
            finally:
                self.ended.release()
        return (yield from super().encoding(source, **choice))

    def retrieve_many(self, recording, queries, **options):
        if "slow" in queries[0]:
            self.begun.release()
            assert self.let_go.wait(60)
        return super().retrieve_many(recording, queries, **options)


def write_noise(path, seconds, rate_hz=8000):
    samples = 0.1 * np.random.default_rng(0).standard_normal(round(seconds * rate_hz))
    soundfile.write(path, samples.astype(np.float32), rate_hz)
    return path


def make_clips(folder: Path, sounds: dict[str, float], per_sound: int = 5) -> Path:
    """Write `per_sound` clips of each sound (a name and its pitch in Hz) into a subfolder of its own."""
    time = np.arange(24_000) / 16_000
    for name, pitch_hz in sounds.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(per_sound):
            tone = 0.5 * np.hanning(time.size) * np.sin(2 * np.pi * pitch_hz * (1 + 0.02 * number) * time)
            soundfile.write(folder / name / f"{number}.wav", tone.astype(np.float32), 16_000)
    return folder


SMALL = ModelConfig(dim=32, num_heads=4, ffn_dim=64, encoder="transformer", encoder_layers=1)


def row(epoch: int, r1: float, loss: float = 5.0) -> dict:
    """One line of `metrics.jsonl`."""
    val = {"R1@0.5": r1 + 5, "R1@0.7": r1, "mAP": r1 / 2, "mAP@0.5": r1, "mAP@0.75": r1 / 3}
    return {"epoch": epoch, "step": 10 * epoch, "seconds": 2.0, "learning_rate": 1e-4, "loss": {"total": loss}, "val": val, "gates": {}}


def write_run(
    folder: Path, rows: list[dict], *, epochs: int = 3, seed: int = 0, finished: bool = False, checkpoint: bool = False, **model
) -> Path:
    """Write a run's `config.yaml`, `run.json`, `metrics.jsonl` and, where asked for, a `best` that looks like one."""
    folder.mkdir(parents=True)
    config = Config(model=replace(SMALL, **model), train=TrainConfig(epochs=epochs, seed=seed))
    save_config(config, folder / "config.yaml")
    facts = {"seed": seed, "val_manifest": "aaaa", **({"finished": {"epoch": len(rows)}} if finished else {})}
    (folder / "run.json").write_text(json.dumps(facts))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rows))
    if checkpoint:
        best = folder / "best"
        best.mkdir()
        for name in ("model.safetensors", "config.yaml", "run.json"):
            (best / name).write_text("{}")
    return folder
