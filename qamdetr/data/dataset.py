"""Items for training and validation: one query on one recording, with features, windows and, in training, a random stretch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.data import Dataset

from qamdetr.data.manifest import QueryEntry
from qamdetr.errors import DataError
from qamdetr.features.store import FeatureStore
from qamdetr.types import TextFeatures, Window

MIN_STRETCH_CLIPS = 30
"""Shortest random stretch of a recording: half of the shortest recording that the field's data hold."""

MIN_VISIBLE_SECONDS = 1.0
"""A window that a crop cuts stays when this much of it, or half of it, is still inside."""


MAX_DISAGREEMENT_SECONDS = 2.0
"""Manifests round durations and encoders round up; a larger difference means the wrong file."""


@dataclass(frozen=True)
class MomentItem:
    """One query on one recording, or on a stretch of it.

    Attributes:
        entry: The manifest's line, untouched.
        audio: Stream -> `(clips, dim_s)` of the stretch, as encoded.
        text: Stream -> features of the query.
        windows: Ground truth in seconds from the start of the stretch; empty when the query's sound is absent.
        duration_seconds: Length of the stretch.
        draw: A random number for whoever makes a batch of this item; fixed by seed, epoch and index.
    """

    entry: QueryEntry
    audio: Mapping[str, Tensor]
    text: Mapping[str, TextFeatures]
    windows: tuple[Window, ...]
    duration_seconds: float
    draw: int

    @property
    def num_clips(self) -> int:
        """Clips of the stretch."""
        return int(next(iter(self.audio.values())).shape[0])


class MomentDataset(Dataset[MomentItem]):
    """Items of a manifest. Every random choice is a function of `(seed, epoch, index)`, so any order and any process gives the same."""

    def __init__(
        self,
        entries: Sequence[QueryEntry],
        features: FeatureStore,
        *,
        seed: int = 0,
        max_clips: int | None = None,
        crop_probability: float = 0.0,
        text_noise: float = 0.0,
    ) -> None:
        """Bind entries to features.

        Raises:
            DataError: Features are missing, or of another length than the manifest says.

        Args:
            entries: Lines of a manifest.
            features: Holds every recording and query of `entries`.
            seed: Seed of all random choices.
            max_clips: Longer recordings always give a random stretch of at most this length; None = whole recordings.
            crop_probability: Chance of a random stretch for the others.
            text_noise: Standard deviation of noise on text features, relative to the root mean square of each vector.
        """
        self.entries = tuple(entries)
        self.features = features
        self.seed = seed
        self.crop_probability = crop_probability
        self.text_noise = text_noise
        self.epoch = 0
        clips = {vid: features.num_clips(vid) for vid in {entry.vid for entry in self.entries}}
        self._num_clips = [clips[entry.vid] for entry in self.entries]
        for entry, length in zip(self.entries, self._num_clips, strict=True):
            if abs(length - entry.duration_seconds) > MAX_DISAGREEMENT_SECONDS:
                raise DataError(
                    f"Recording {entry.vid!r} lasts {entry.duration_seconds:g} s in the manifest, its features {length} s; "
                    "one of them belongs to another file: correct the manifest or extract again."
                )
        self._max_clips = max_clips or max(self._num_clips, default=1)
        self._windows = [covered_windows(entry, length) for entry, length in zip(self.entries, self._num_clips, strict=True)]

    def __len__(self) -> int:
        return len(self.entries)

    def set_epoch(self, epoch: int) -> None:
        """Choose the random stretches and noise of this epoch."""
        self.epoch = epoch

    def lengths_clips(self) -> list[int]:
        """Clips of every item in this epoch, without reading features."""
        stretches = (self._stretch(index, self._rng(index)) for index in range(len(self)))
        return [end - begin for begin, end in stretches]

    def __getitem__(self, index: int) -> MomentItem:
        rng = self._rng(index)
        begin, end = self._stretch(index, rng)
        entry = self.entries[index]
        whole = end - begin == self._num_clips[index]
        duration_seconds = entry.duration_seconds if whole else min(float(end), entry.duration_seconds) - begin
        text = self.features.text(entry.query, entry.qid)
        return MomentItem(
            entry=entry,
            audio={name: value[begin:end] for name, value in self.features.audio(entry.vid).items()},
            text={name: add_noise(value, self.text_noise, rng) for name, value in text.items()} if self.text_noise else text,
            windows=cut_windows(self._windows[index], float(begin), begin + duration_seconds),
            duration_seconds=duration_seconds,
            draw=int(rng.integers(2**31)),
        )

    def _rng(self, index: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, self.epoch, index))

    def _stretch(self, index: int, rng: np.random.Generator) -> tuple[int, int]:
        num_clips = self._num_clips[index]
        cropped = rng.random() < self.crop_probability
        if not cropped and num_clips <= self._max_clips:
            return 0, num_clips
        longest = min(num_clips, self._max_clips)
        length = int(rng.integers(min(MIN_STRETCH_CLIPS, longest), longest + 1)) if cropped else longest
        return place_stretch(self._windows[index], num_clips, length, rng)


def place_stretch(windows: Sequence[Window], num_clips: int, length_clips: int, rng: np.random.Generator) -> tuple[int, int]:
    """Choose `[begin, end)` in clips, of `length_clips`, around one window taken at random.

    A query that has windows keeps one in sight (whole where it fits), so that a crop never turns it into a query of an absent sound.
    """
    last_begin = num_clips - length_clips
    low, high = 0, last_begin
    if windows:
        start, end = windows[int(rng.integers(len(windows)))]
        # A window longer than the stretch turns the two bounds round: any place inside it will do.
        low, high = sorted((math.ceil(end) - length_clips, math.floor(start)))
        low, high = min(max(low, 0), last_begin), min(max(high, 0), last_begin)
    begin = int(rng.integers(low, high + 1))
    return begin, begin + length_clips


def covered_windows(entry: QueryEntry, num_clips: int) -> tuple[Window, ...]:
    """Cut the windows of `entry` to what `num_clips` clips of features cover.

    Features may end up to `MAX_DISAGREEMENT_SECONDS` before the recording, and with them a window at its very end. An entry that
    loses all its windows so must not be trained on: its sound would count as absent.
    """
    return cut_windows(entry.relevant_windows or (), 0.0, min(entry.duration_seconds, float(num_clips)))


def cut_windows(windows: Sequence[Window], begin_seconds: float, end_seconds: float) -> tuple[Window, ...]:
    """Cut windows to a stretch and count their seconds from its start.

    What is heard is what is asked for: a window cut by the stretch stays, as the part inside, when at least one second or half of
    it is inside. Smaller rests, too short to be recognised, are dropped. A window that lies wholly inside always stays.
    """
    kept: list[Window] = []
    for start, end in windows:
        inside_start, inside_end = max(start, begin_seconds), min(end, end_seconds)
        inside = inside_end - inside_start
        if inside > 0 and inside >= min(MIN_VISIBLE_SECONDS, 0.5 * (end - start)):
            kept.append((inside_start - begin_seconds, inside_end - begin_seconds))
    return tuple(kept)


def add_noise(features: TextFeatures, amount: float, rng: np.random.Generator) -> TextFeatures:
    """Add normal noise of `amount` times the root mean square of each vector; the pooled vector stays a unit vector."""

    def noisy(vectors: Tensor) -> Tensor:
        size = vectors.square().mean(dim=-1, keepdim=True).sqrt()
        noise = torch.from_numpy(rng.standard_normal(tuple(vectors.shape), dtype=np.float32))
        return vectors + amount * size * noise

    pooled = None if features.pooled is None else normalize(noisy(features.pooled), dim=-1)
    return replace(features, tokens=noisy(features.tokens), pooled=pooled)
