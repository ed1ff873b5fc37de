"""Bucketed batches: every item once, little padding, the same order for the same seed and epoch."""

from __future__ import annotations

import numpy as np

from qamdetr.data.dataset import LengthBucketSampler

LENGTHS = np.random.default_rng(0).integers(60, 301, size=1000).tolist()


def padding_share(batches: list[list[int]]) -> float:
    padded = sum(max(LENGTHS[i] for i in batch) * len(batch) for batch in batches)
    return 1 - sum(LENGTHS) / padded


def test_every_item_comes_once_per_epoch() -> None:
    sampler = LengthBucketSampler(lambda: LENGTHS, 32)
    batches = list(sampler)
    assert sorted(index for batch in batches for index in batch) == list(range(1000))
    assert len(batches) == len(sampler) == 32


def test_padding_is_small() -> None:
    plain = np.random.default_rng(1).permutation(1000)
    assert padding_share([plain[i : i + 32].tolist() for i in range(0, 1000, 32)]) > 0.3
    assert padding_share(list(LengthBucketSampler(lambda: LENGTHS, 32))) < 0.05


def test_order_follows_from_seed_and_epoch() -> None:
    def batches(seed: int, epoch: int) -> list[list[int]]:
        sampler = LengthBucketSampler(lambda: LENGTHS, 32, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert batches(3, 1) == batches(3, 1)
    assert batches(3, 1) != batches(3, 2)
    assert batches(3, 1) != batches(4, 1)


def test_without_shuffling_items_come_by_length() -> None:
    order = [index for batch in LengthBucketSampler(lambda: LENGTHS, 32, shuffle=False) for index in batch]
    assert [LENGTHS[index] for index in order] == sorted(LENGTHS)
