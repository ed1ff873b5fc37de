"""Batches: targets from all windows, negative pairs that share neither recording nor query, one path with serving."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stored_features import OwnFeatures

from qamdetr.data.dataset import Collator, MomentItem, clip_coverage
from qamdetr.data.manifest import QueryEntry
from qamdetr.features.pipeline import prepare
from qamdetr.types import TextFeatures


def make_item(
    vid: str, query: str, windows: tuple[tuple[float, float], ...] = ((1.0, 3.0),), num_clips: int = 8, draw: int = 0
) -> MomentItem:
    generator = torch.Generator().manual_seed(len(vid + query))
    audio = {"main": torch.randn(num_clips, 4, generator=generator), "level": torch.randn(num_clips, 1, generator=generator)}
    tokens = torch.randn(len(query.split()), 4, generator=generator)
    text = {"main": TextFeatures(tokens, tuple((i, i + 1) for i in range(len(tokens))), tokens[0])}
    entry = QueryEntry(f"{vid}-{query}", query, vid, float(num_clips), windows)
    return MomentItem(entry, audio, text, windows, float(num_clips), draw)


def test_targets_hold_every_window() -> None:
    items = [
        make_item("a", "dog", ((0.0, 2.0), (5.5, 8.0))),
        make_item("b", "cat", (), num_clips=4),
        make_item("c", "cow", ((1.0, 2.0),), 10),
    ]
    batch = Collator([item.entry for item in items])(items)
    targets = batch.targets
    assert targets.num_spans == (2, 0, 1)
    torch.testing.assert_close(targets.spans_cxw, torch.tensor([[0.125, 0.25], [0.84375, 0.3125], [0.15, 0.1]]))
    torch.testing.assert_close(targets.saliency[0], torch.tensor([1.0, 1, 0, 0, 0, 0.5, 1, 1, 0, 0]))
    assert targets.saliency[1].sum() == 0
    assert batch.num_clips == (8, 4, 10)
    assert batch.batch.audio_mask.sum(dim=1).tolist() == [8, 4, 10]


def test_negatives_share_neither_recording_nor_query() -> None:
    items = [
        make_item("a", "A dog barks.", draw=0),
        make_item("a", "rain falls", draw=1),
        make_item("b", "a dog  barks", draw=2),
        make_item("c", "a cat", draw=3),
    ]
    # "a cat" is true of recording b too, though that query is not in this batch.
    elsewhere = QueryEntry("x", "a cat", "b", 8.0, ((1.0, 2.0),))
    collate = Collator([*(item.entry for item in items), elsewhere])
    index = collate(items).targets.negative_index.tolist()
    assert index[0] == 3  # not 1 (same recording), not 2 (same words)
    assert index[1] in (2, 3)
    assert index[2] == 1  # not 0 (same words), not 3 (true of b)
    assert index[3] in (0, 1, 2)


@settings(deadline=None)
@given(draws=st.lists(st.integers(0, 2**31 - 1), min_size=2, max_size=12), seed=st.integers(0, 1000))
def test_negatives_never_contradict_the_manifest(draws: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    vids, queries = rng.integers(0, 4, len(draws)), rng.integers(0, 4, len(draws))
    windows = [((0.0, 1.0),) if present else () for present in rng.integers(0, 2, len(draws))]
    items = [make_item(f"v{v}", f"query {q}", w, draw=d) for v, q, w, d in zip(vids, queries, windows, draws, strict=True)]
    true_pairs = {(item.entry.vid, item.entry.query) for item in items if item.windows}
    for item, other in zip(items, Collator([i.entry for i in items])(items).targets.negative_index.tolist(), strict=True):
        eligible = [
            o for o in items
            if o.entry.vid != item.entry.vid and o.entry.query != item.entry.query and (item.entry.vid, o.entry.query) not in true_pairs
        ]  # fmt: skip
        assert (other == -1) == (not eligible)
        if other >= 0:
            assert any(items[other] is o for o in eligible)


def test_negatives_vary_with_the_draw_and_only_with_it() -> None:
    def negatives(draw: int) -> int:
        items = [make_item("a", "dog", draw=draw), *(make_item(f"v{i}", f"sound {i}") for i in range(5))]
        return int(Collator([])(items).targets.negative_index[0])

    assert {negatives(draw) for draw in range(20)} == {1, 2, 3, 4, 5}
    assert negatives(7) == negatives(7)


def test_training_and_serving_tensors_are_equal(tmp_path) -> None:
    item = make_item("a", "a dog barks")
    cache = OwnFeatures(tmp_path)
    cache.write_audio("a", item.audio)
    cache.write_text("a dog barks", item.text)
    served = prepare([item.audio], [item.text])
    stored = {name: cache.audio("a")[name] for name in item.audio}
    trained_item = MomentItem(item.entry, stored, cache.text("a dog barks"), item.windows, item.duration_seconds, 0)
    trained = Collator([item.entry])([trained_item]).batch
    assert list(trained.audio) == list(served.audio)
    # The only difference is the cache's float16.
    for name in served.audio:
        torch.testing.assert_close(trained.audio[name], served.audio[name], rtol=2**-9, atol=2**-11)
    torch.testing.assert_close(trained.text["main"], served.text["main"], rtol=2**-9, atol=2**-11)
    torch.testing.assert_close(trained.text_pooled, served.text_pooled, rtol=2**-9, atol=2**-11)
    half = {name: value.half().float() for name, value in item.audio.items()}
    assert all(torch.equal(trained.audio[name], prepare([half], [item.text]).audio[name]) for name in half)


def test_coverage_counts_overlapping_windows_once() -> None:
    coverage = clip_coverage([(0.5, 2.25), (1.0, 1.5), (2.0, 2.5), (3.9, 9.0)], 5)
    torch.testing.assert_close(coverage, torch.tensor([0.5, 1.0, 0.5, 0.1, 1.0]))


@pytest.mark.parametrize("num_clips", [1, 5])
def test_coverage_of_no_windows_is_zero(num_clips: int) -> None:
    assert clip_coverage([], num_clips).tolist() == [0.0] * num_clips


def test_saliency_of_the_first_window_alone_is_a_choice() -> None:
    item = make_item("a", "dog", ((0.0, 2.0), (5.0, 8.0)))
    first = Collator([item.entry], saliency_windows="first")([item]).targets
    torch.testing.assert_close(first.saliency[0], torch.tensor([1.0, 1, 0, 0, 0, 0, 0, 0]))
    assert first.num_spans == (2,)
    absent = make_item("b", "cat", ())
    assert Collator([absent.entry], saliency_windows="first")([absent]).targets.saliency.sum() == 0
