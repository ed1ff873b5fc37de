"""Items: random stretches keep a moment in sight, choices follow from the seed, noise keeps unit vectors."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qamdetr.data.dataset import MAX_DISAGREEMENT_SECONDS, Collator, MomentDataset, covered_windows, cut_windows, place_stretch
from qamdetr.data.manifest import QueryEntry, read_manifest
from qamdetr.errors import DataError
from qamdetr.spans import spans_cxw_to_windows
from qamdetr.types import TextFeatures, Window


class NumberedClips:
    """Features whose value is the clip's number, so that a test sees which clips an item holds."""

    def __init__(self, num_clips: int) -> None:
        self.length = num_clips

    def num_clips(self, vid: str) -> int:
        return self.length

    def audio(self, vid: str) -> Mapping[str, Tensor]:
        return {"number": torch.arange(self.length, dtype=torch.float32)[:, None], "other": torch.zeros(self.length, 2)}

    def text(self, query: str, qid: str) -> Mapping[str, TextFeatures]:
        unit = torch.nn.functional.normalize(torch.arange(1.0, 9.0), dim=0)
        return {"number": TextFeatures(torch.ones(2, 8), ((0, 1), (1, 2)), unit)}


def entry(number: int, windows: tuple[tuple[float, float], ...], duration_seconds: float = 100.0) -> QueryEntry:
    return QueryEntry(f"q{number}", f"sound {number}", f"v{number}", duration_seconds, windows)


ENTRIES = [entry(0, ((10.0, 14.0), (80.0, 82.5))), entry(1, ()), entry(2, ((0.0, 100.0),)), entry(3, ((99.0, 100.0),))]


def test_without_augmentation_an_item_is_the_whole_recording() -> None:
    item = MomentDataset([entry(0, ((10.0, 14.0),), 99.5)], NumberedClips(100))[0]
    assert item.num_clips == 100
    assert item.duration_seconds == 99.5
    assert item.windows == ((10.0, 14.0),)


def test_a_stretch_shifts_windows_with_the_clips() -> None:
    dataset = MomentDataset(ENTRIES, NumberedClips(100), crop_probability=1.0)
    seen_lengths = set()
    for epoch in range(20):
        dataset.set_epoch(epoch)
        item = dataset[0]
        first = item.audio["number"][0, 0].item()
        true_starts = {start + first for start, _ in item.windows}
        assert true_starts & {10.0, 80.0}
        assert all(0 <= start < end <= item.duration_seconds for start, end in item.windows)
        assert item.audio["other"].shape[0] == item.num_clips
        seen_lengths.add(item.num_clips)
    assert len(seen_lengths) > 5
    assert min(seen_lengths) >= 30


@pytest.mark.parametrize("index", range(4))
def test_a_stretch_never_turns_a_present_query_into_an_absent_one(index: int) -> None:
    dataset = MomentDataset(ENTRIES, NumberedClips(100), crop_probability=1.0)
    for epoch in range(30):
        dataset.set_epoch(epoch)
        assert bool(dataset[index].windows) == bool(ENTRIES[index].relevant_windows)


def test_lengths_are_known_without_reading_features() -> None:
    dataset = MomentDataset(ENTRIES, NumberedClips(100), crop_probability=0.5, max_clips=60)
    for epoch in range(5):
        dataset.set_epoch(epoch)
        assert dataset.lengths_clips() == [dataset[index].num_clips for index in range(4)]


def test_long_recordings_give_stretches_of_the_greatest_length() -> None:
    dataset = MomentDataset(ENTRIES, NumberedClips(100), max_clips=40)
    assert dataset.lengths_clips() == [40] * 4


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


def test_features_of_another_length_than_the_manifest_says_are_refused() -> None:
    with pytest.raises(DataError, match="'v0' lasts 60 s in the manifest, its features 100 s"):
        MomentDataset([entry(0, (), 60.0)], NumberedClips(100))


def there_and_back(entry: QueryEntry, num_clips: int) -> tuple[tuple[Window, ...], list[Window]]:
    """The windows of the whole item, and what decoding makes of its targets."""
    dataset = MomentDataset([entry], NumberedClips(num_clips))
    batch = Collator([entry])([dataset[0]])
    decoded = spans_cxw_to_windows(batch.targets.spans_cxw, batch.num_clips[0], batch.durations_seconds[0])
    return dataset[0].windows, [(start, end) for start, end in decoded.tolist()]


@settings(deadline=None)
@given(
    duration=st.integers(3, 300),
    surplus=st.integers(-int(MAX_DISAGREEMENT_SECONDS), int(MAX_DISAGREEMENT_SECONDS)),
    edges=st.tuples(st.floats(0, 1), st.floats(0, 1)).filter(lambda pair: abs(pair[0] - pair[1]) > 0.05),
)
def test_targets_decode_to_the_windows_they_came_from_however_the_features_end(
    duration: int, surplus: int, edges: tuple[float, float]
) -> None:
    """Spans are shares of the clips in training and in serving; the manifest's duration only says where the recording ends."""
    start, end = sorted(duration * edge for edge in edges)
    windows, decoded = there_and_back(entry(0, ((start, end),), float(duration)), duration + surplus)
    covered = min(duration, duration + surplus)
    if end <= covered:
        assert windows == ((start, end),)
    assert all(stop <= covered for _, stop in windows)
    assert np.array(decoded).reshape(-1, 2) == pytest.approx(np.array(windows).reshape(-1, 2), abs=1e-3)


@pytest.mark.parametrize("surplus", [-1, 0, 1])
def test_every_window_of_castella_becomes_a_target_and_back(shared_dir, surplus: int) -> None:
    for line in read_manifest(shared_dir / "data" / "castella" / "val.jsonl"):
        num_clips = int(line.duration_seconds) + surplus
        windows, decoded = there_and_back(line, num_clips)
        assert np.array(decoded).reshape(-1, 2) == pytest.approx(np.array(windows).reshape(-1, 2), abs=1e-3)
        assert windows == line.relevant_windows or any(end > num_clips for _, end in line.relevant_windows or ())


def test_windows_after_the_last_clip_are_not_targets() -> None:
    line = entry(0, ((50.0, 60.0), (99.0, 100.0)))
    assert covered_windows(line, 100) == line.relevant_windows
    assert covered_windows(line, 98) == ((50.0, 60.0),)
    dataset = MomentDataset([line], NumberedClips(98), crop_probability=1.0)
    for epoch in range(20):
        dataset.set_epoch(epoch)
        item = dataset[0]
        assert item.windows == ((50.0 - item.audio["number"][0, 0].item(), 60.0 - item.audio["number"][0, 0].item()),)


def test_cut_windows_keep_what_can_be_heard() -> None:
    windows = ((0.0, 11.0), (0.0, 10.4), (9.0, 10.6), (12.0, 13.0), (19.4, 30.0), (25.0, 26.0), (19.7, 20.2))
    kept = cut_windows(windows, 10.0, 20.0)
    # Kept: 1 s of 11; dropped: 0.4 s of 10.4; dropped: 0.6 of 1.6 s; whole; dropped: 0.6 of 10.6 s; outside; 0.3 of 0.5 s.
    assert np.array(kept) == pytest.approx(np.array([(0.0, 1.0), (2.0, 3.0), (9.7, 10.0)]))


@settings(deadline=None)
@given(
    start=st.floats(0, 290), width=st.floats(0.1, 300), num_clips=st.integers(1, 300), share=st.floats(0.01, 1), seed=st.integers(0, 2**31)
)
def test_a_stretch_holds_its_window_whole_where_it_fits(start: float, width: float, num_clips: int, share: float, seed: int) -> None:
    start = min(start, num_clips - 0.1)
    end = min(start + width, num_clips)
    length = max(1, round(share * num_clips))
    begin, stop = place_stretch([(start, end)], num_clips, length, np.random.default_rng(seed))
    assert begin >= 0
    assert stop <= num_clips
    assert stop - begin == length
    if np.ceil(end) - np.floor(start) <= length:
        assert begin <= start
        assert end <= stop
    else:
        assert max(begin, start) < min(stop, end)
