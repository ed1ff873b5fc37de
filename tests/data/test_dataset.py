"""Items and batches: stretches keep a moment in sight, choices follow from seeds, targets decode to their windows, negatives are ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from qamdetr.data.dataset import (
    MAX_DISAGREEMENT_SECONDS,
    Collator,
    LengthBucketSampler,
    MomentDataset,
    MomentItem,
    cut_windows,
    place_stretch,
)
from qamdetr.data.manifest import QueryEntry
from qamdetr.errors import DataError
from qamdetr.spans import spans_cxw_to_windows
from qamdetr.types import TextFeatures, Window

LENGTHS = np.random.default_rng(0).integers(60, 301, size=1000).tolist()


class NumberedClips:
    """Features whose value is the clip's number, so that a test sees which clips an item holds."""

    def __init__(self, num_clips: int) -> None:
        self.length, self.clip_seconds, self.bank = num_clips, 1.0, None

    def num_clips(self, vid: str) -> int:
        return self.length

    def audio(self, vid: str) -> Mapping[str, Tensor]:
        return {"number": torch.arange(self.length, dtype=torch.float32)[:, None], "other": torch.zeros(self.length, 2)}

    def text(self, query: str, qid: str) -> Mapping[str, TextFeatures]:
        return {"number": TextFeatures(torch.ones(2, 8), ((0, 1), (1, 2)), normalize(torch.arange(1.0, 9.0), dim=0))}


def entry(number: int, windows: tuple[Window, ...], duration_seconds: float = 100.0) -> QueryEntry:
    return QueryEntry(f"q{number}", f"sound {number}", f"v{number}", duration_seconds, windows)


ENTRIES = [entry(0, ((10.0, 14.0), (80.0, 82.5))), entry(1, ()), entry(2, ((0.0, 100.0),)), entry(3, ((99.0, 100.0),))]


def test_without_augmentation_an_item_is_the_whole_recording() -> None:
    item = MomentDataset([entry(0, ((10.0, 14.0),), 99.5)], NumberedClips(100))[0]
    assert (item.num_clips, item.duration_seconds, item.windows) == (100, 99.5, ((10.0, 14.0),))
    with pytest.raises(DataError, match="'v0' lasts 60 s in the manifest, its features 100 s"):
        MomentDataset([entry(0, (), 60.0)], NumberedClips(100))


def test_a_stretch_shifts_windows_with_the_clips_and_keeps_a_present_query_present() -> None:
    dataset = MomentDataset(ENTRIES, NumberedClips(100), crop_probability=1.0)
    lengths = set()
    for epoch in range(20):
        dataset.set_epoch(epoch)
        assert [bool(dataset[index].windows) for index in range(4)] == [True, False, True, True]
        item = dataset[0]
        first = item.audio["number"][0, 0].item()
        assert {start + first for start, _ in item.windows} & {10.0, 80.0}
        assert all(0 <= start < end <= item.duration_seconds for start, end in item.windows)
        assert item.audio["other"].shape[0] == item.num_clips
        lengths.add(item.num_clips)
    assert len(lengths) > 5
    assert min(lengths) >= 30


def test_lengths_are_known_without_reading_features_and_long_recordings_are_cut() -> None:
    dataset = MomentDataset(ENTRIES, NumberedClips(100), crop_probability=0.5, max_clips=60)
    for epoch in range(5):
        dataset.set_epoch(epoch)
        assert dataset.lengths_clips() == [dataset[index].num_clips for index in range(4)]
    assert MomentDataset(ENTRIES, NumberedClips(100), max_clips=40).lengths_clips() == [40] * 4


def test_choices_follow_from_seed_epoch_and_index_alone() -> None:
    def read(seed: int, epoch: int, order: list[int]) -> dict[int, tuple]:
        dataset = MomentDataset(ENTRIES, NumberedClips(100), seed=seed, crop_probability=1.0, text_noise=0.3)
        dataset.set_epoch(epoch)
        items = {index: dataset[index] for index in order}
        return {i: (item.num_clips, item.draw, item.text["number"].tokens.sum().item()) for i, item in items.items()}

    assert read(1, 2, [0, 1, 2, 3]) == read(1, 2, [3, 1, 0, 2])
    assert read(1, 2, [0, 1]) != read(1, 3, [0, 1])
    assert read(1, 2, [0, 1]) != read(2, 2, [0, 1])


def test_noise_has_the_size_asked_for_and_pooled_stays_a_unit_vector() -> None:
    dataset = MomentDataset([entry(i, ()) for i in range(200)], NumberedClips(100), text_noise=0.2)
    noise = torch.cat([dataset[index].text["number"].tokens - 1 for index in range(200)])
    assert noise.std().item() == pytest.approx(0.2, rel=0.1)
    pooled = dataset[0].text["number"].pooled
    assert pooled.norm().item() == pytest.approx(1.0, abs=1e-6)
    assert not torch.equal(pooled, NumberedClips(1).text("", "")["number"].pooled)


@given(
    duration=st.integers(3, 300),
    surplus=st.integers(-int(MAX_DISAGREEMENT_SECONDS), int(MAX_DISAGREEMENT_SECONDS)),
    edges=st.tuples(st.floats(0, 1), st.floats(0, 1)).filter(lambda pair: abs(pair[0] - pair[1]) > 0.05),
)
def test_targets_decode_to_the_windows_they_came_from_however_the_features_end(duration: int, surplus: int, edges: tuple) -> None:
    """Spans are shares of the clips in training and in serving; the manifest's duration only says where the recording ends."""
    start, end = sorted(duration * edge for edge in edges)
    line = entry(0, ((start, end),), float(duration))
    item = MomentDataset([line], NumberedClips(duration + surplus))[0]
    batch = Collator([line])([item])
    decoded = spans_cxw_to_windows(batch.targets.spans_cxw, batch.num_clips[0], batch.durations_seconds[0])
    covered = min(duration, duration + surplus)
    assert item.windows == ((start, end),) or end > covered
    assert all(stop <= covered for _, stop in item.windows)
    assert decoded.numpy() == pytest.approx(np.array(item.windows).reshape(-1, 2), abs=1e-3)


def test_cut_windows_keep_what_can_be_heard() -> None:
    windows = ((0.0, 11.0), (0.0, 10.4), (9.0, 10.6), (12.0, 13.0), (19.4, 30.0), (25.0, 26.0), (19.7, 20.2))
    kept = cut_windows(windows, 10.0, 20.0)
    # Kept: 1 s of 11; dropped: 0.4 s of 10.4; dropped: 0.6 of 1.6 s; whole; dropped: 0.6 of 10.6 s; outside; 0.3 of 0.5 s.
    assert np.array(kept) == pytest.approx(np.array([(0.0, 1.0), (2.0, 3.0), (9.7, 10.0)]))


@given(
    start=st.floats(0, 290), width=st.floats(0.1, 300), num_clips=st.integers(1, 300), share=st.floats(0.01, 1), seed=st.integers(0, 2**31)
)
def test_a_stretch_holds_its_window_whole_where_it_fits(start: float, width: float, num_clips: int, share: float, seed: int) -> None:
    start = min(start, num_clips - 0.1)
    end, length = min(start + width, num_clips), max(1, round(share * num_clips))
    begin, stop = place_stretch([(start, end)], num_clips, length, np.random.default_rng(seed))
    assert 0 <= begin < stop == begin + length <= num_clips
    if np.ceil(end) - np.floor(start) <= length:
        assert begin <= start
        assert end <= stop
    else:
        assert max(begin, start) < min(stop, end)


def make_item(vid: str, query: str, windows: tuple[Window, ...] = ((1.0, 3.0),), num_clips: int = 8, draw: int = 0) -> MomentItem:
    text = {"number": TextFeatures(torch.ones(1, 4), ((0, 1),), None)}
    line = QueryEntry(f"{vid}-{query}", query, vid, float(num_clips), windows)
    return MomentItem(line, {"number": torch.ones(num_clips, 4)}, text, windows, float(num_clips), draw)


def test_targets_hold_every_window_and_saliency_of_the_first_alone_is_a_choice() -> None:
    items = [
        make_item("a", "dog", ((0.0, 2.0), (5.5, 8.0), (6.0, 7.0))),
        make_item("b", "cat", (), 4),
        make_item("c", "cow", ((1.0, 2.0),), 10),
    ]
    batch = Collator([])(items)
    targets = batch.targets
    assert (targets.num_spans, batch.num_clips, batch.batch.audio_mask.sum(dim=1).tolist()) == ((3, 0, 1), (8, 4, 10), [8, 4, 10])
    torch.testing.assert_close(targets.spans_cxw, torch.tensor([[0.125, 0.25], [0.84375, 0.3125], [0.8125, 0.125], [0.15, 0.1]]))
    torch.testing.assert_close(targets.saliency[0], torch.tensor([1.0, 1, 0, 0, 0, 0.5, 1, 1, 0, 0]))
    assert targets.saliency[1].sum() == 0
    first = Collator([], saliency_windows="first")(items).targets
    torch.testing.assert_close(first.saliency[0], torch.tensor([1.0, 1, 0, 0, 0, 0, 0, 0, 0, 0]))
    assert (first.num_spans, first.saliency[1].sum()) == ((3, 0, 1), 0)


def test_negatives_differ_by_more_than_spelling_and_vary_with_the_draw() -> None:
    def negative(*others: MomentItem, draw: int = 0) -> int:
        return int(Collator([])([make_item("a", "A dog barks.", draw=draw), *others]).targets.negative_index[0])

    assert negative(make_item("b", "a dog  barks"), make_item("c", "a cat")) == 2
    others = [make_item(f"v{i}", f"sound {i}") for i in range(5)]
    assert {negative(*others, draw=draw) for draw in range(20)} == {1, 2, 3, 4, 5}


DIRECTIONS = {"a dog barks": [1.0, 0.0], "a barking dog": [0.9, 0.4359], "a cat mews": [0.6, 0.8], "an animal": [0.0, 1.0]}
GROUPS = {"a dog barks": "animal/dog", "a barking dog": "animal/dog", "a cat mews": "animal/cat", "an animal": "animal"}


@pytest.mark.parametrize(
    ("similarity", "grouped", "also_true", "kept"),
    [
        (1.0, (), (), {"a barking dog", "a cat mews", "an animal"}),
        (0.7, (), (), {"a cat mews", "an animal"}),
        (0.5, (), (), {"an animal"}),
        (0.5, ("a dog barks",), (), {"an animal"}),  # groups count where both have them
        (0.5, ("a dog barks", "a cat mews"), (), {"a cat mews", "an animal"}),
        (1.0, tuple(GROUPS), (), {"a cat mews"}),  # a dog is an animal
        (1.0, tuple(GROUPS), ("an animal",), {"a cat mews"}),  # and the animal that is heard is the dog
    ],
)
def test_a_query_that_may_be_true_in_other_words_is_no_negative(similarity: float, grouped: tuple, also_true: tuple, kept: set) -> None:
    def item(number: int, query: str, draw: int) -> MomentItem:
        made = make_item(f"v{number}", query, draw=draw)
        return replace(made, entry=replace(made.entry, groups=(GROUPS[query],) if query in grouped else ()))

    def pooled(entry: QueryEntry) -> Tensor:
        return torch.tensor(DIRECTIONS[entry.query])

    chosen = set()
    for draw in range(6):
        items = [item(number, query, draw) for number, query in enumerate(DIRECTIONS)]
        true = [item(0, query, draw).entry for query in ("a dog barks", *also_true)]
        collate = Collator(true, negative_similarity=similarity, pooled=pooled)
        chosen.add(items[int(collate(items).targets.negative_index[0])].entry.query)
    assert chosen == kept


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (0.2, 2), (0.125, 1), (1.0, 8)])
def test_the_share_of_items_with_a_negative_is_kept_and_drawn(share: float, expected: int) -> None:
    def paired(shift: int) -> list[bool]:
        items = [make_item(f"v{i}", f"sound {i}", draw=(i + shift) % 8) for i in range(8)]
        return [index >= 0 for index in Collator([], negative_share=share)(items).targets.negative_index.tolist()]

    assert sum(paired(0)) == expected
    assert (paired(0) == paired(3)) == (expected in (0, 8))


@given(draws=st.lists(st.integers(0, 2**31 - 1), min_size=2, max_size=12), seed=st.integers(0, 1000))
def test_negatives_never_contradict_the_manifest(draws: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    vids, queries, present = (rng.integers(0, most, len(draws)) for most in (4, 4, 2))
    items = [make_item(f"v{v}", f"query {q}", ((0.0, 1.0),) * p, draw=d) for v, q, p, d in zip(vids, queries, present, draws, strict=True)]
    true_pairs = {(item.entry.vid, item.entry.query) for item in items if item.windows}
    for item, other in zip(items, Collator([i.entry for i in items])(items).targets.negative_index.tolist(), strict=True):
        eligible = [
            o for o in items
            if o.entry.vid != item.entry.vid and o.entry.query != item.entry.query and (item.entry.vid, o.entry.query) not in true_pairs
        ]  # fmt: skip
        assert (other == -1) == (not eligible)
        assert other < 0 or any(items[other] is o for o in eligible)


def batches(seed: int = 0, epoch: int = 0, *, shuffle: bool = True) -> list[list[int]]:
    sampler = LengthBucketSampler(lambda: LENGTHS, 32, seed=seed, shuffle=shuffle)
    sampler.set_epoch(epoch)
    assert len(sampler) == 32
    return list(sampler)


def test_every_item_comes_once_per_epoch_with_little_padding_in_an_order_of_seed_and_epoch() -> None:
    assert sorted(index for batch in batches() for index in batch) == list(range(1000))
    padded = sum(max(LENGTHS[index] for index in batch) * len(batch) for batch in batches())
    assert 1 - sum(LENGTHS) / padded < 0.05, "at random it is over 0.3"
    assert batches(3, 1) == batches(3, 1)
    assert len({str(batches(*each)) for each in ((3, 1), (3, 2), (4, 1))}) == 3
    order = [LENGTHS[index] for batch in batches(shuffle=False) for index in batch]
    assert order == sorted(LENGTHS)
