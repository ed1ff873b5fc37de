"""Endless training mixtures for the pocket audio encoder, made on mel power: add, filter, smear, shift, mask.

Adding mel powers is what mixing waveforms does on average, and costs a hundredth of it.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.signal import lfilter
from torch import Tensor

from qamdetr.audio import Sound, resample
from qamdetr.features.pocket import FRAMES_PER_CLIP, LOG_FLOOR, NUM_MELS, SAMPLE_RATE_HZ, log_mel, mel_power

Power = NDArray[np.float32]

SPEEDS = (1.0, 0.84, 1.19)
"""Each source is kept at these playing speeds: pitch and length change together."""

ACTIVE_DB = -30.0
"""Frames this far under a source's loud frames do not count as sounding."""

AUDIBLE_DB, MASKED_DB = -10.0, -22.0
"""An event in a clip is a positive above the first level against the rest of the mixture, a negative below the second, else left out."""


@dataclass(frozen=True)
class Source:
    """One clip of the bank as mel power `(mels, frames)`, one array per speed, with its sounding frames."""

    group: str
    loops: bool
    powers: tuple[Power, ...]
    active: tuple[NDArray[np.bool_], ...]


def load_sources(folders: Sequence[Path], speeds: Sequence[float] = SPEEDS) -> list[Source]:
    """Read the clips of sound-bank folders."""
    sources = []
    for folder in folders:
        with (folder / "clips.csv").open(encoding="utf-8") as file:
            for row in csv.DictReader(file):
                sound = Sound(folder / row["file_name"])
                powers = tuple(played_at(sound.samples(), sound.rate_hz, speed) for speed in speeds)
                sources.append(Source(row["group"], row["extend"] == "loop", powers, tuple(active_frames(power) for power in powers)))
    return sources


def load_backgrounds(folder: Path) -> list[Power]:
    """Read background recordings as mel power."""
    sounds = map(Sound, sorted(folder.glob("*.flac")))
    return [played_at(sound.samples(), sound.rate_hz, 1.0) for sound in sounds]


def played_at(samples: NDArray[np.float32], rate_hz: int, speed: float) -> Power:
    """Return mel power of a sound played `speed` times as fast, without trailing padding."""
    samples = resample(samples, round(rate_hz * speed), SAMPLE_RATE_HZ)
    frames = max(len(samples) * FRAMES_PER_CLIP // SAMPLE_RATE_HZ, 1)
    power: Power = mel_power(samples)[:, :frames].numpy()
    return power


def active_frames(power: Power) -> NDArray[np.bool_]:
    """Return `(frames,)` True where a source sounds, relative to its loud frames."""
    level = power.mean(axis=0)
    loud = float(np.percentile(level, 95))
    active: NDArray[np.bool_] = level > max(loud * 10 ** (ACTIVE_DB / 10), 1e-9)
    return active


class MixtureMaker:
    """Draws mixtures of `num_clips` seconds with zero to three events, and says which groups sound in which clip."""

    def __init__(
        self,
        sources: Sequence[Source],
        backgrounds: Sequence[Power],
        groups: Sequence[str],
        weights: dict[str, float],
        num_clips: int,
        seed: int,
    ) -> None:
        self.rng = np.random.default_rng(seed)
        self.backgrounds = backgrounds
        self.num_clips = num_clips
        self.frames = num_clips * FRAMES_PER_CLIP
        self.difficulty = 1.0
        """0: one clear event at a time; 1: up to three, noisy, filtered. Networks that start with 1 hardly start at all."""
        self.by_group: dict[str, list[Source]] = {}
        for source in sources:
            self.by_group.setdefault(source.group, []).append(source)
        self.names = sorted(self.by_group)
        draw = np.array([weights.get(name, 1.0) * np.sqrt(min(len(self.by_group[name]), 30)) for name in self.names])
        self.draw = draw / draw.sum()
        # Row of a group marks itself and its ancestors: captions of `speech` describe `speech/man`.
        self.labels = {name: np.array([name == group or name.startswith(group + "/") for group in groups]) for name in self.names}

    def batch(self, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return log-mels `(size, mels, frames)`, labels `(size, clips, groups)` in {0, 1}, and which of these count (bool)."""
        items = [self._mixture() for _ in range(size)]
        power = torch.from_numpy(np.stack([item[0] for item in items]))
        return (
            log_mel(power),
            torch.from_numpy(np.stack([item[1] for item in items])),
            torch.from_numpy(np.stack([item[2] for item in items])),
        )

    def _mixture(self) -> tuple[Power, NDArray[np.float32], NDArray[np.bool_]]:
        rng = self.rng
        crowd = 0.45 * self.difficulty
        count = int(rng.choice(4, p=[0.06, 0.94 - crowd, 0.75 * crowd, 0.25 * crowd]))
        names = rng.choice(len(self.names), size=count, replace=False, p=self.draw)
        background = self._background()
        events = [self._event(self.names[index]) for index in names]
        total = background
        layers = []
        for power, active in events:
            snr_db = rng.uniform(15 - 17 * self.difficulty, 32)
            gain = 10 ** (snr_db / 10) * background.mean() / max(float(power[:, active].mean()) if active.any() else 1.0, 1e-12)
            layers.append((power * gain, active))
            total = total + layers[-1][0]
        labels, counted = self._labels(total, layers, names)
        return self._finish(total), labels, counted

    def _background(self) -> Power:
        rng = self.rng
        if rng.random() < 0.25:  # a quiet, clean recording: little more than a noise floor
            slope = np.linspace(0, rng.uniform(-2, 0.5), NUM_MELS)[:, None]
            noise = rng.gamma(4.0, 0.25, size=(NUM_MELS, self.frames))
            return (10 ** (slope + rng.uniform(-5, -2)) * noise).astype(np.float32)
        power = self.backgrounds[int(rng.integers(len(self.backgrounds)))]
        begin = int(rng.integers(0, power.shape[1] - self.frames))
        section = power[:, begin : begin + self.frames]
        return (self._coloured(section) / max(float(section.mean()), 1e-12) * 10 ** rng.uniform(-3.5, -1)).astype(np.float32)

    def _event(self, name: str) -> tuple[Power, NDArray[np.bool_]]:
        """Place one source of a group in an empty stretch."""
        rng = self.rng
        takes = self.by_group[name]
        source = takes[int(rng.integers(len(takes)))]
        variant = int(rng.integers(len(source.powers)))
        power, active = source.powers[variant], source.active[variant]
        if source.loops and power.shape[1] < 2 * self.frames:
            repeats = -(-2 * self.frames // power.shape[1])
            power, active = np.tile(power, (1, repeats)), np.tile(active, repeats)
        placed = np.zeros((NUM_MELS, self.frames), dtype=np.float32)
        sounding = np.zeros(self.frames, dtype=bool)
        length = power.shape[1]
        if length >= self.frames:
            begin = int(rng.integers(0, length - self.frames + 1))
            cut, at = slice(begin, begin + self.frames), 0
        else:
            at = int(rng.integers(-length // 3, self.frames - length // 3))
            cut = slice(max(-at, 0), min(length, self.frames - at))
            at = max(at, 0)
        size = cut.stop - cut.start
        placed[:, at : at + size] = power[:, cut]
        sounding[at : at + size] = active[cut]
        if source.loops and rng.random() < 0.5:  # textures begin and end somewhere, too
            edge = int(rng.integers(FRAMES_PER_CLIP // 2, self.frames - FRAMES_PER_CLIP // 2))
            silent = slice(0, edge) if rng.random() < 0.5 else slice(edge, None)
            placed[:, silent], sounding[silent] = 0.0, False
        return self._coloured(placed), sounding

    def _coloured(self, power: Power) -> Power:
        """Another microphone, room and pitch: smooth filter, band limits, reverberation tail, shift by a few mel bands."""
        rng = self.rng
        curve_db = np.interp(np.arange(NUM_MELS), np.linspace(0, NUM_MELS - 1, 6), rng.normal(0, 4, size=6))
        if rng.random() < 0.3:  # narrow-band recordings
            curve_db = curve_db - 60 * (np.arange(NUM_MELS) > rng.integers(36, NUM_MELS))
        if rng.random() < 0.2:
            curve_db = curve_db - 30 * (np.arange(NUM_MELS) < rng.integers(0, 12))
        result = power * (10 ** (curve_db / 10)).astype(np.float32)[:, None]
        if rng.random() < 0.35:
            decay = float(np.exp(-13.8 / (rng.uniform(0.15, 1.2) * FRAMES_PER_CLIP)))
            tail = lfilter([1 - decay], [1, -decay], result, axis=1)
            result = result + rng.uniform(0.1, 1.0) * tail
        shift = int(rng.integers(-2, 3))
        if shift:
            result = np.roll(result, shift, axis=0)
            result[: max(shift, 0)] = 0
            result[NUM_MELS + min(shift, 0) :] = 0
        return result.astype(np.float32)

    def _labels(
        self, total: Power, layers: list[tuple[Power, NDArray[np.bool_]]], names: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        width = len(next(iter(self.labels.values())))
        labels = np.zeros((self.num_clips, width), dtype=np.float32)
        counted = np.ones((self.num_clips, width), dtype=bool)
        for (power, active), index in zip(layers, names, strict=True):
            row = self.labels[self.names[index]]
            # A source counts where its loudest band stands out, as the ear hears a whistle in noise.
            bands = power.reshape(16, 4, self.num_clips, FRAMES_PER_CLIP).mean(axis=(1, 3))
            rest = (total - power).reshape(16, 4, self.num_clips, FRAMES_PER_CLIP).mean(axis=(1, 3)) + 1e-10
            level_db = 10 * np.log10((bands / rest).max(axis=0) + 1e-10)
            share = active.reshape(self.num_clips, FRAMES_PER_CLIP).mean(axis=1)
            heard = (level_db > AUDIBLE_DB) & (share > 0.25)
            unheard = (level_db < MASKED_DB) | (share < 0.04)
            labels[np.ix_(heard, row)] = 1.0
            counted[np.ix_(~heard & ~unheard, row)] = False
        counted |= labels > 0
        return labels, counted

    def _finish(self, power: Power) -> Power:
        rng = self.rng
        power = power * 10 ** rng.uniform(-2.5, 2.5)
        if rng.random() < 0.3 * self.difficulty:
            begin = int(rng.integers(NUM_MELS - 8))
            power[begin : begin + int(rng.integers(1, 9))] = np.exp(np.log(power + LOG_FLOOR).mean())
        return power.astype(np.float32)
