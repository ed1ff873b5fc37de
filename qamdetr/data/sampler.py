"""Batches of items of similar length, so that little time goes into padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

_CHUNK_BATCHES = 16


class LengthBucketSampler(Sampler[list[int]]):
    """Shuffles all items, sorts by length inside chunks of 16 batches, cuts batches and shuffles those.

    The order is a function of `(seed, epoch)`: every process and every resumed run draws the same.
    """

    drop_last = False

    def __init__(self, lengths_clips: Callable[[], Sequence[int]], batch_size: int, *, seed: int = 0, shuffle: bool = True) -> None:
        """Make a sampler.

        Args:
            lengths_clips: Gives the clips of every item in the present epoch.
            batch_size: Items per batch; the last batch may be smaller.
            seed: Seed of the order.
            shuffle: False (validation): sort all items by length instead.
        """
        self.batch_size = batch_size
        self.epoch = 0
        self._lengths_clips = lengths_clips
        self._num_items = len(lengths_clips())
        self._seed = seed
        self._shuffle = shuffle

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of this epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return (self._num_items + self.batch_size - 1) // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        lengths = np.asarray(self._lengths_clips())
        if not self._shuffle:
            yield from self._cut(np.argsort(lengths, kind="stable"))
            return
        rng = np.random.default_rng((self._seed, self.epoch))
        order = rng.permutation(self._num_items)
        chunk_items = _CHUNK_BATCHES * self.batch_size
        chunks = [order[begin : begin + chunk_items] for begin in range(0, len(order), chunk_items)]
        batches = [batch for chunk in chunks for batch in self._cut(chunk[np.argsort(lengths[chunk], kind="stable")])]
        for position in rng.permutation(len(batches)):
            yield batches[position]

    def _cut(self, order: np.ndarray) -> list[list[int]]:
        return [order[begin : begin + self.batch_size].tolist() for begin in range(0, len(order), self.batch_size)]
