"""Stand-ins: a retriever without a model (real audio, made-up answers), sounds as somebody might have them, runs without training."""

from __future__ import annotations

import json
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import soundfile
import torch

from qamdetr.audio import Sound
from qamdetr.config import Config, ModelConfig, TrainConfig, save_config
from qamdetr.features.base import LISTEN, Step, finish
from qamdetr.inference.rerank import mark_likely, rerank
from qamdetr.types import Candidate, Recording, Result
from qamdetr.ui.train import jobs

CANDIDATES = ((0.10, 2.5, 0.82, 0.10), (0.45, 1.2, 0.64, 0.95), (0.70, 4.0, 0.21, 0.40), (0.90, 0.7, 0.08, 0.05))
"""Start as a share of the recording, seconds, decoder's and verifier's score."""


class FakeRetriever:
    """Counts what it is asked for; a query with "nothing" in it is not found, one with "explode" fails as only a bug can."""

    def __init__(self, fingerprint="fake"):
        self.config = replace(Config(), inference=replace(Config().inference, found_threshold=0.1))
        self.encoder = SimpleNamespace(joint=None, fingerprint=fingerprint)
        self.encoded: list[str] = []
        self.queries: list[str] = []
        self.bypassed: list[tuple[str, ...]] = []

    def encode(self, source):
        return finish(self.encoding(source))

    def encoding(self, source, **choice):
        sound = Sound(source, **choice)
        self.encoded.append(sound.name)
        for share in sound.reading(peak_columns=2000):
            yield Step(LISTEN, share)
        streams = {"pocket": torch.zeros(int(np.ceil(sound.duration_seconds)), 4)}
        return Recording(sound.name, sound.path, sound.duration_seconds, streams, sound.peaks)

    def retrieve_many(self, recording, queries, *, top_k=10, verifier="none", beta=None, bypass=()):
        self.bypassed.append(tuple(bypass))
        return [self._answer(recording, query, top_k, verifier, 0.35 if beta is None else beta, bypass) for query in queries]

    def _answer(self, recording, query, top_k, verifier, beta, bypass):
        if "explode" in query:
            raise RuntimeError("a fault of the program")
        self.queries.append(query)
        found, duration, candidates = "nothing" not in query, recording.duration_seconds, []
        for index, (share, seconds, full_score, _) in enumerate(CANDIDATES):
            score, quality = full_score * (0.5 if bypass else 1.0), 0.9 - 0.1 * index
            start = share * duration
            candidates.append(Candidate(start, min(start + seconds, duration), score / quality, quality, score))
        ranked = rerank(candidates, None if verifier == "none" else [row[-1] for row in CANDIDATES], beta)
        moments = mark_likely(ranked, found=found, threshold=self.config.inference.found_threshold)[:top_k]
        weight = 0.0 if verifier == "none" else beta
        saliency = (0.5,) * recording.num_clips
        return Result(recording.path, duration, query, found, "pocket", verifier, weight, moments, saliency, recording.notes)


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
    at = np.arange(24_000) / 16_000
    for name, pitch_hz in sounds.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(per_sound):
            tone = 0.5 * np.hanning(at.size) * np.sin(2 * np.pi * pitch_hz * (1 + 0.02 * number) * at)
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
        (folder / "best").mkdir()
        for name in ("model.safetensors", "config.yaml", "run.json"):
            (folder / "best" / name).write_text("{}")
    return folder


def python(code: str, **more) -> jobs.Step:
    """A step of a job that runs some code."""
    return jobs.Step("running", (sys.executable, "-c", code), **more)


SLEEPER = python("import time; print('asleep', flush=True); time.sleep(60)")


def until(known: jobs.Jobs, name: str, state: str = "running", said: str = "", seconds: float = 20.0) -> jobs.Job:
    """Wait until a job is in a state and its log holds what is to be said; gives the job."""
    end = time.monotonic() + seconds
    while (job := known.read(known.folder / name)).state != state or said not in "\n".join(job.log_tail()):
        assert time.monotonic() < end, f"{name} is {job.state} ({job.reason}), not {state}: {job.log_tail()}"
        time.sleep(0.05)
    return job


def end_all(known: jobs.Jobs) -> None:
    """Stop what still runs."""
    if (running := known.running()) is not None:
        known.stop(running.name)
        until(known, running.name, "stopped")
