"""Makes a pool of mixtures for the pocket audio encoder: what the student hears, what the teacher hears in it, and which events sound when.

    python -m recipes.pocket.mixtures --bank build/sounds --teacher ../shared/teacher --output build/pool --mixtures 6000

Ten seconds each of up to four clips of the bank, each played faster or slower, filtered, in another room and at another level, over a
recorded background, noise, or next to nothing. The teacher listens to the mixture itself, so that its scores hold for what is heard.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.signal import fftconvolve, firwin2

from qamdetr.audio import Sound, resample
from qamdetr.features.pocket import HEARD_FRAMES, SAMPLE_RATE_HZ, mel_magnitudes, patches
from recipes.pocket.sound_bank.build import TRAIN_BANKS
from recipes.pocket.teacher import Teacher

Samples = NDArray[np.float32]

SECONDS = 10
CELL_SECONDS = 0.5  # the hop of the encoder
NUM_CELLS = int(SECONDS / CELL_SECONDS)
CELL_FRAMES = int(HEARD_FRAMES * CELL_SECONDS)
MAX_EVENTS = 4
SHARD_MIXTURES = 100

AUDIBLE_DB, MASKED_DB = -10.0, -22.0
"""An event in a cell is a positive above the first level against the rest of the mixture, a negative below the second, else left out."""

_SAMPLES = SECONDS * SAMPLE_RATE_HZ


@dataclass(frozen=True)
class Source:
    """One clip of the bank."""

    group: str
    samples: Samples
    real: bool


def load_sources(folders: Sequence[Path]) -> list[Source]:
    """Read the clips of sound-bank folders, without the silence around them."""
    sources = []
    for folder in folders:
        with (folder / "clips.csv").open(encoding="utf-8") as file:
            for row in csv.DictReader(file):
                samples = Sound(folder / row["file_name"]).samples()
                heard = np.flatnonzero(np.abs(samples) > 1e-4)
                if len(heard):
                    sources.append(Source(row["group"], samples[heard[0] : heard[-1] + 1], folder.name != "train"))
    return sources


def coloured(samples: Samples, rng: np.random.Generator, spread_db: float = 4.0) -> Samples:
    """Another microphone and room: a smooth filter, at times a narrow band or a tail of reverberation."""
    hz = np.array([0, 150, 400, 1000, 2500, 5000, SAMPLE_RATE_HZ / 2])
    gain = 10 ** (rng.normal(0, spread_db, len(hz)) / 20)
    if rng.random() < 0.12:
        gain[hz > rng.choice([3000, 4500])] = 1e-3
    if rng.random() < 0.1:
        gain[:2] *= 0.05
    result = fftconvolve(samples, firwin2(257, hz, gain, fs=SAMPLE_RATE_HZ).astype(np.float32), mode="same")
    if rng.random() < 0.25:
        length = int(rng.uniform(0.1, 0.8) * SAMPLE_RATE_HZ)
        echo = rng.standard_normal(length) * np.exp(-6.9 * np.arange(length) / length)
        wet = fftconvolve(result, (echo / np.sqrt(np.square(echo).sum())).astype(np.float32))
        result = np.pad(result, (0, length - 1)) + rng.uniform(0.1, 0.8) * wet
    return np.asarray(result, dtype=np.float32)


class MixtureMaker:
    """Draws mixtures; real kinds of sound more often than generated ones."""

    def __init__(self, sources: Sequence[Source], backgrounds: Sequence[Samples], seed: int, real_weight: float = 8.0) -> None:
        self.rng = np.random.default_rng(seed)
        self.sources, self.backgrounds = sources, backgrounds
        kinds: dict[tuple[bool, str], list[int]] = {}
        for index, source in enumerate(sources):
            kinds.setdefault((source.real, source.group), []).append(index)
        self._kinds = [kinds[key] for key in sorted(kinds)]
        draw = np.array([(real_weight if real else 1.0) * np.sqrt(min(len(kinds[real, group]), 30)) for real, group in sorted(kinds)])
        self._draw = draw / draw.sum()

    def mixture(self) -> tuple[Samples, list[tuple[int, Samples]]]:
        """Return `(samples,)` at 24 kHz, and the sources in it: index and their share of the samples."""
        rng = self.rng
        count = int(rng.choice(MAX_EVENTS + 1, p=[0.03, 0.32, 0.3, 0.2, 0.15]))
        total, events = self._background(), []
        for place in range(count):
            kind = self._kinds[rng.choice(len(self._kinds), p=self._draw)]
            index = kind[rng.integers(len(kind))]
            event = self._placed(self._varied(self.sources[index].samples), place, count)
            events.append((index, event))
            total = total + event
        gain = np.float32(10 ** rng.uniform(-2, -0.3) / max(float(np.abs(total).max()), 1e-6))
        return total * gain, [(index, event * gain) for index, event in events]

    def _background(self) -> Samples:
        """Of unit level where there is one."""
        rng, kind = self.rng, self.rng.random()
        if kind < 0.45:
            recording = self.backgrounds[int(rng.integers(len(self.backgrounds)))]
            begin = rng.integers(0, len(recording) - _SAMPLES)
            noise = coloured(recording[begin : begin + _SAMPLES], rng)[:_SAMPLES]
        elif kind < 0.6:
            white = rng.standard_normal(_SAMPLES).astype(np.float32)
            noise = coloured(np.cumsum(white) if rng.random() < 0.3 else white, rng, spread_db=6.0)[:_SAMPLES]
            noise = noise - noise.mean()
        else:
            return 1e-2 * rng.standard_normal(_SAMPLES).astype(np.float32)
        return noise / np.float32(np.sqrt(np.square(noise).mean()) + 1e-9)

    def _varied(self, samples: Samples) -> Samples:
        """At another speed, cut to a part where it is long, in another colour."""
        rng = self.rng
        if rng.random() < 0.7:
            samples = resample(samples, round(SAMPLE_RATE_HZ * np.exp(rng.uniform(-0.22, 0.22))), SAMPLE_RATE_HZ)
        if len(samples) > 7 * SAMPLE_RATE_HZ:
            length = int(rng.uniform(3, 7) * SAMPLE_RATE_HZ)
            begin = rng.integers(0, len(samples) - length)
            samples = samples[begin : begin + length].copy()
            fade = np.linspace(0, 1, SAMPLE_RATE_HZ // 10, dtype=np.float32)
            samples[: len(fade)] *= fade
            samples[-len(fade) :] *= fade[::-1]
        return coloured(samples, rng)

    def _placed(self, samples: Samples, place: int, count: int) -> Samples:
        """Put a source on the empty stretch, its loud parts -4 to 26 dB above a background of unit level; it may begin before."""
        rng, length = self.rng, len(samples)
        share = rng.uniform(-0.3, 1.0) if count == 1 else (place + rng.uniform(-0.5, 1.0)) / count
        at = int(np.clip(share * _SAMPLES, -length // 3, _SAMPLES - min(length // 3, _SAMPLES // 3)))
        part = samples[max(-at, 0) : _SAMPLES - at]
        levels = np.square(part[: len(part) // 480 * 480].reshape(-1, 480)).mean(axis=1)
        loud = np.sqrt(np.percentile(levels, 90)) if len(levels) else np.abs(part).max(initial=0)
        event = np.zeros(_SAMPLES, dtype=np.float32)
        event[max(at, 0) : max(at, 0) + len(part)] = part * (10 ** (rng.uniform(-4, 26) / 20) / (loud + 1e-9))
        return event


def describe(samples: Samples, events: Sequence[tuple[int, Samples]], teacher: Teacher) -> dict[str, NDArray[np.generic]]:
    """Return what is kept of a mixture: mel magnitudes, the teacher's outputs per cell, and each event's level and share per cell."""
    magnitudes = mel_magnitudes(samples)
    total = _bands(magnitudes.square())
    index = np.full(MAX_EVENTS, -1, dtype=np.int16)
    level_db, share = np.full((MAX_EVENTS, NUM_CELLS), -99, dtype=np.float16), np.zeros((MAX_EVENTS, NUM_CELLS), dtype=np.float16)
    for row, (source, event) in enumerate(events):
        power = mel_magnitudes(event).square()
        own = _bands(power)
        # A source counts where its loudest band stands out, as the ear hears a whistle in noise.
        index[row], level_db[row] = source, 10 * np.log10((own / (total - own).clip(1e-12)).max(axis=0) + 1e-10)
        frames = power.mean(dim=0).numpy()
        floor = 1e-3 * np.percentile(frames[frames > 0], 95) if frames.any() else 1.0
        share[row] = (frames > floor).reshape(NUM_CELLS, CELL_FRAMES).mean(axis=1)
    heard = [teacher(patch) for patch in patches(magnitudes[None])[0].numpy()]
    return {
        "magnitudes": magnitudes.half().numpy(),
        "logits": np.stack([cell.logits for cell in heard]),
        "embedding": np.stack([cell.embedding for cell in heard]),
        "source": index,
        "level_db": level_db,
        "share": share,
    }


def _bands(power: torch.Tensor) -> NDArray[np.float32]:
    """Return `(bands of four mels, cells)` of mel power."""
    bands: NDArray[np.float32] = power.reshape(-1, 4, NUM_CELLS, CELL_FRAMES).mean(dim=(1, 3)).numpy()
    return bands


def write_pool(maker: MixtureMaker, teacher: Teacher, output: Path, count: int) -> None:
    """Write `count` mixtures as shards of a hundred, and `sources.json`, the groups of the sources."""
    output.mkdir(parents=True, exist_ok=True)
    (output / "sources.json").write_text(json.dumps([source.group for source in maker.sources]), encoding="utf-8")
    for begin in range(0, count, SHARD_MIXTURES):
        rows = [describe(*maker.mixture(), teacher) for _ in range(min(SHARD_MIXTURES, count - begin))]
        shard = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
        np.savez(output / f"{begin // SHARD_MIXTURES:04d}.npz", **shard)  # type: ignore[arg-type]
        print(f"{time.strftime('%H:%M:%S')} {begin + len(rows)}/{count} mixtures", flush=True)  # noqa: T201 - progress


def main(argv: Sequence[str] | None = None) -> None:
    """Make a pool from the command line."""
    parser = argparse.ArgumentParser(description="Make a pool of taught mixtures.")
    parser.add_argument("--bank", type=Path, required=True, help="folder made by recipes.pocket.sound_bank.build")
    parser.add_argument("--teacher", type=Path, required=True, help="folder of yamnet_spectra_in.tflite")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--mixtures", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    sources = load_sources([arguments.bank / name for name in TRAIN_BANKS])
    backgrounds = [Sound(path).samples() for path in sorted((arguments.bank / "backgrounds-train").glob("*.flac"))]
    write_pool(MixtureMaker(sources, backgrounds, arguments.seed), Teacher(arguments.teacher), arguments.output, arguments.mixtures)


if __name__ == "__main__":
    main()
