"""Items for training and validation (one query on one recording, or a random stretch of it), their order, and batches of them."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.data import Dataset, Sampler

from qamdetr.data.manifest import QueryEntry, are_related, is_within
from qamdetr.data.spaces import bend
from qamdetr.errors import DataError
from qamdetr.features.pipeline import prepare
from qamdetr.features.store import FeatureStore
from qamdetr.spans import windows_to_spans_cxw
from qamdetr.types import Batch, Targets, TextFeatures, Window

MIN_STRETCH_SECONDS = 30  # shortest random stretch of a recording: half of the shortest one that the field's data hold
MIN_VISIBLE_SECONDS = 1.0  # a window that a crop cuts stays when this much of it, or half of it, is still inside
MAX_DISAGREEMENT_SECONDS = 2.0  # manifests round durations and encoders round up; a larger difference means the wrong file


@dataclass(frozen=True)
class MomentItem:
    """One query on one recording, or on a stretch of it."""

    entry: QueryEntry  # the manifest's line, untouched
    audio: Mapping[str, Tensor]  # stream -> `(clips, dim_s)` of the stretch, as encoded
    text: Mapping[str, TextFeatures]
    windows: tuple[Window, ...]  # ground truth in seconds from the start of the stretch; empty when the query's sound is absent
    duration_seconds: float  # of the stretch
    draw: int  # a random number for whoever makes a batch of this item; fixed by seed, epoch and index
    clip_seconds: float = 1.0
    bank: Tensor | None = None  # of the joint space that `audio` and `text` lie in, where the network reads one

    @property
    def num_clips(self) -> int:
        """Clips of the stretch."""
        return int(next(iter(self.audio.values())).shape[0])

    @property
    def length_seconds(self) -> float:
        """Length of all clips, to which spans are relative."""
        return self.num_clips * self.clip_seconds


class MomentDataset(Dataset[MomentItem]):
    """Items of a manifest. Every random choice is a function of `(seed, epoch, index)`, so any order and any process gives the same."""

    def __init__(
        self,
        entries: Sequence[QueryEntry],
        features: FeatureStore,
        *more_spaces: FeatureStore,
        seed: int = 0,
        max_clips: int | None = None,
        crop_probability: float = 0.0,
        text_noise: float = 0.0,
    ) -> None:
        """Bind entries to their features, which must be there, of the length that the manifest says (else `DataError`).

        Recordings over `max_clips` always give a random stretch of at most this length, others with `crop_probability`. `text_noise` is
        the standard deviation of noise on text features, relative to the root mean square of each vector. Of `more_spaces`, which hold
        the same in other joint spaces, item `i` of the first lies at `len(self) + i`, and so on.
        """
        self.entries, self.features, self._spaces = tuple(entries), features, (features, *more_spaces)
        self.seed, self.epoch = seed, 0
        self.crop_probability, self.text_noise = crop_probability, text_noise
        clips = {vid: features.num_clips(vid) for vid in {entry.vid for entry in self.entries}}
        self._num_clips, self._hop = [clips[entry.vid] for entry in self.entries], features.clip_seconds
        lengths_seconds = [length * self._hop for length in self._num_clips]
        for entry, length in zip(self.entries, lengths_seconds, strict=True):
            if abs(length - entry.duration_seconds) > MAX_DISAGREEMENT_SECONDS:
                what = f"Recording {entry.vid!r} lasts {entry.duration_seconds:g} s in the manifest, its features {length:g} s"
                raise DataError(what, "one of them belongs to another file: correct the manifest or extract again")
        self._max_clips = max_clips or max(self._num_clips, default=1)
        self._windows = [covered_windows(entry, length) for entry, length in zip(self.entries, lengths_seconds, strict=True)]

    def __len__(self) -> int:
        return len(self.entries)

    def set_epoch(self, epoch: int) -> None:
        """Choose the random stretches and noise of this epoch."""
        self.epoch = epoch

    def pooled(self, entry: QueryEntry) -> Tensor | None:
        """Return the vector of a whole query in the main text stream's joint space, None where it has none."""
        return next(iter(self.features.text(entry.query, entry.qid).values())).pooled

    def lengths_clips(self) -> list[int]:
        """Clips of every item in this epoch, without reading features."""
        return [end - begin for begin, end in (self._stretch(index, self._rng(index)) for index in range(len(self)))]

    def __getitem__(self, index: int) -> MomentItem:
        space, index = divmod(index, len(self))
        features, rng = self._spaces[space], self._rng(index)
        begin, end = self._stretch(index, rng)
        entry = self.entries[index]
        whole = end - begin == self._num_clips[index]
        start_seconds = begin * self._hop
        duration_seconds = entry.duration_seconds if whole else min(end * self._hop, entry.duration_seconds) - start_seconds
        text = features.text(entry.query, entry.qid)
        return MomentItem(
            entry=entry,
            audio={name: value[begin:end] for name, value in features.audio(entry.vid).items()},
            text={name: add_noise(value, self.text_noise, rng) for name, value in text.items()} if self.text_noise else text,
            windows=cut_windows(self._windows[index], start_seconds, start_seconds + duration_seconds),
            duration_seconds=duration_seconds,
            draw=int(rng.integers(2**31)),
            clip_seconds=self._hop,
            bank=features.bank,
        )

    def _rng(self, index: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, self.epoch, index))

    def _stretch(self, index: int, rng: np.random.Generator) -> tuple[int, int]:
        num_clips = self._num_clips[index]
        longest = min(num_clips, self._max_clips)
        cropped = rng.random() < self.crop_probability
        if not cropped and longest == num_clips:
            return 0, num_clips
        length = int(rng.integers(min(round(MIN_STRETCH_SECONDS / self._hop), longest), longest + 1)) if cropped else longest
        return place_stretch(windows_in_clips(self._windows[index], self._hop), num_clips, length, rng)


def place_stretch(windows: Sequence[Window], num_clips: int, length_clips: int, rng: np.random.Generator) -> tuple[int, int]:
    """Choose `[begin, end)` of `length_clips` around one of the `windows`, taken at random, whole where it fits; all in clips.

    So a crop never turns a query that has windows into a query of an absent sound.
    """
    bounds = [0, num_clips - length_clips]
    if windows:
        start, end = windows[int(rng.integers(len(windows)))]
        # A window longer than the stretch turns the two round: any place inside it will do.
        bounds = sorted(min(max(begin, 0), bounds[1]) for begin in (math.ceil(end) - length_clips, math.floor(start)))
    begin = int(rng.integers(bounds[0], bounds[1] + 1))
    return begin, begin + length_clips


def covered_windows(entry: QueryEntry, length_seconds: float) -> tuple[Window, ...]:
    """Cut the windows of `entry` to what its features cover; one that loses all must not be trained on: its sound would count as absent."""
    return cut_windows(entry.relevant_windows or (), 0.0, min(entry.duration_seconds, length_seconds))


def cut_windows(windows: Sequence[Window], begin_seconds: float, end_seconds: float) -> tuple[Window, ...]:
    """Cut windows to a stretch and count their seconds from its start; what is left of one is dropped if too short to be recognised."""
    kept: list[Window] = []
    for start, end in windows:
        first, last = max(start, begin_seconds), min(end, end_seconds)
        if last > first and last - first >= min(MIN_VISIBLE_SECONDS, 0.5 * (end - start)):
            kept.append((first - begin_seconds, last - begin_seconds))
    return tuple(kept)


def add_noise(features: TextFeatures, amount: float, rng: np.random.Generator) -> TextFeatures:
    """Add normal noise of `amount` times the root mean square of each vector; the pooled vector stays a unit vector."""

    def noisy(vectors: Tensor) -> Tensor:
        size = vectors.square().mean(dim=-1, keepdim=True).sqrt()
        noise = torch.from_numpy(rng.standard_normal(tuple(vectors.shape), dtype=np.float32))
        return vectors + amount * size * noise

    pooled = None if features.pooled is None else normalize(noisy(features.pooled), dim=-1)
    return replace(features, tokens=noisy(features.tokens), pooled=pooled)


class LengthBucketSampler(Sampler[list[int]]):
    """Shuffles all items, sorts by length inside chunks of 16 batches, cuts batches and shuffles those, by `(seed, epoch)` alone."""

    drop_last = False

    def __init__(
        self, lengths_clips: Callable[[], Sequence[int]], batch_size: int, *, seed: int = 0, shuffle: bool = True, spaces: int = 1
    ) -> None:
        """Order items by what `lengths_clips` gives in the present epoch; without `shuffle` (validation) all are sorted by length.

        With several `spaces`, each batch is of one of them, drawn anew; see `MomentDataset`.
        """
        self.batch_size, self.epoch, self._num_spaces = batch_size, 0, spaces
        self._lengths_clips, self._num_items = lengths_clips, len(lengths_clips())
        self._seed, self._shuffle = seed, shuffle

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of this epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return (self._num_items + self.batch_size - 1) // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        lengths = np.asarray(self._lengths_clips())
        if not self._shuffle:
            return iter(self._cut(np.argsort(lengths, kind="stable")))
        rng = np.random.default_rng((self._seed, self.epoch))
        order = rng.permutation(self._num_items)
        chunks = (order[begin : begin + 16 * self.batch_size] for begin in range(0, len(order), 16 * self.batch_size))
        batches = [batch for chunk in chunks for batch in self._cut(chunk[np.argsort(lengths[chunk], kind="stable")])]
        shuffled = [batches[position] for position in rng.permutation(len(batches))]
        begins = self._num_items * rng.integers(self._num_spaces, size=len(shuffled))
        return iter([[int(begin) + index for index in batch] for begin, batch in zip(begins, shuffled, strict=True)])

    def _cut(self, order: np.ndarray) -> list[list[int]]:
        return [order[begin : begin + self.batch_size].tolist() for begin in range(0, len(order), self.batch_size)]


@dataclass(frozen=True)
class LabelledBatch:
    """Model input, ground truth, and what decoding and metrics need to know of each item: its line, and the length of its audio."""

    batch: Batch
    targets: Targets
    entries: tuple[QueryEntry, ...]
    durations_seconds: tuple[float, ...]
    num_clips: tuple[int, ...]
    clip_seconds: float = 1.0

    def to(self, device: torch.device | str) -> LabelledBatch:
        """Return a copy with all tensors on `device`."""
        return replace(self, batch=self.batch.to(device), targets=self.targets.to(device))


class Collator:
    """Makes batches; knows which queries are true of which recording, to keep them out of negative pairs."""

    def __init__(
        self,
        entries: Iterable[QueryEntry],
        *,
        saliency_windows: Literal["all", "first"] = "all",
        negative_share: float = 1.0,
        negative_similarity: float = 1.0,
        pooled: Callable[[QueryEntry], Tensor | None] = lambda _: None,
        space_bend: float = 0.0,
    ) -> None:
        """Take note of every query that has windows in `entries`, the whole data set.

        `saliency_windows` make a clip salient; `first` is the official loop's reading, in which other true windows are negatives. The
        share `negative_share` of the items (rounded up, drawn anew each epoch) is paired with a query of another item, too: with none that
        may be true of its audio, in other words. That is so where a group of it and of a true query are related; where one of both has no
        groups, where the cosine of their vectors, which `pooled` gives, is above `negative_similarity`. With `space_bend` above 0, the
        joint space of each batch is bent by so much, anew each time; see `bend`.
        """
        self._space_bend = space_bend
        self._negative_share, self._negative_similarity, self._pooled = negative_share, negative_similarity, pooled
        self._most_windows = 1 if saliency_windows == "first" else None
        self._true: dict[str, dict[str, QueryEntry]] = defaultdict(dict)  # recording -> wording -> a query that is true of it
        for entry in entries:
            if entry.relevant_windows:
                self._true[entry.vid][_wording(entry.query)] = entry

    def __call__(self, items: Sequence[MomentItem]) -> LabelledBatch:
        """Prepare features, spans, saliency and negative pairs of `items`."""
        batch = prepare([item.audio for item in items], [item.text for item in items], items[0].bank)
        if self._space_bend:
            batch = bend(batch, self._space_bend, np.random.default_rng([item.draw for item in items]))
        longest = batch.audio_mask.shape[1]
        paired = sorted(item.draw for item in items)[: math.ceil(self._negative_share * len(items))]
        targets = Targets(
            spans_cxw=torch.cat([windows_to_spans_cxw(item.windows, item.length_seconds) for item in items]),
            num_spans=tuple(len(item.windows) for item in items),
            saliency=torch.stack(
                [clip_coverage(windows_in_clips(item.windows[: self._most_windows], item.clip_seconds), longest) for item in items]
            ),
            negative_index=torch.tensor([self._negative_of(item, items) if item.draw in paired else -1 for item in items]),
        )
        entries, seconds, clips = zip(*((item.entry, item.duration_seconds, item.num_clips) for item in items), strict=True)
        return LabelledBatch(batch, targets, entries, seconds, clips, items[0].clip_seconds)

    def _negative_of(self, item: MomentItem, items: Sequence[MomentItem]) -> int:
        """Pick an item of another recording, worded differently, whose query is not known to be true of this item's audio; or -1.

        Source: QD-DETR rolls the batch by one; that pairs queries with their own recording whenever two items share it.
        """
        own, true = item.entry, self._true.get(item.entry.vid, {})
        others = ((position, other.entry) for position, other in enumerate(items) if other.entry.vid != own.vid)
        worded = [(position, entry) for position, entry in others if _wording(entry.query) not in {_wording(own.query), *true}]
        heard = {group for entry in true.values() for group in entry.groups}
        # A true query about "an animal" is taken to mean the dog of another one: else no cat could be absent.
        heard = {group for group in heard if not any(is_within(other, group) for other in heard - {group})}
        eligible = [position for position, entry in worded if not self._may_be_true(entry, heard, true.values())]
        return eligible[item.draw % len(eligible)] if eligible else -1

    def _may_be_true(self, query: QueryEntry, heard: Iterable[str], true: Iterable[QueryEntry]) -> bool:
        """Tell whether a query may be about one of the groups `heard`, or about the sound of a `true` query of which no group is known."""
        if any(are_related(*pair) for pair in itertools.product(heard, query.groups)):
            return True
        unknown = [entry for entry in true if not (entry.groups and query.groups)]
        if not unknown or self._negative_similarity >= 1:
            return False
        # All have a vector or none has.
        vectors = [vector for vector in map(self._pooled, [query, *unknown]) if vector is not None]
        return bool(vectors) and bool((torch.stack(vectors[1:]) @ vectors[0] > self._negative_similarity).any())


def windows_in_clips(windows: Sequence[Window], clip_seconds: float) -> tuple[Window, ...]:
    """Count windows in clips, whole ones or not, in the place of seconds."""
    return tuple((start / clip_seconds, end / clip_seconds) for start, end in windows)


def clip_coverage(windows: Sequence[Window], num_clips: int) -> Tensor:
    """Return `(num_clips,)` share of each clip that lies in any window (in clips), in [0, 1]; all windows count, overlaps once."""
    coverage, clip_start, covered_until = torch.zeros(num_clips), torch.arange(num_clips, dtype=torch.float32), 0.0
    for start, end in sorted(windows):
        begin, covered_until = max(start, covered_until), max(end, covered_until)
        coverage += (torch.clamp(clip_start + 1, max=end) - torch.clamp(clip_start, min=begin)).clamp(min=0)
    return coverage.clamp(max=1)


def _wording(query: str) -> str:
    """Return the query without differences in case, spacing and closing full stop."""
    return " ".join(query.casefold().split()).rstrip(".")
