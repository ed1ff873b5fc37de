"""The dense decoder: its cells, their targets and losses, what becomes of them as candidates, and that it learns."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_system import JOINT_DIM, recording_of, tiny_config, tiny_model, tiny_retriever
from torch import nn

from qamdetr.config import InferenceConfig, LossConfig, ModelConfig, switches
from qamdetr.errors import ConfigError
from qamdetr.inference.candidates import MOST_SLOTS, answers
from qamdetr.inference.checkpoint import load_checkpoint, save_checkpoint
from qamdetr.inference.retriever import Member, MomentRetriever
from qamdetr.model.dense import DenseDecoder
from qamdetr.model.losses import compute_losses
from qamdetr.model.matcher import match_centres
from qamdetr.model.qam_detr import QamDetr
from qamdetr.spans import iou, pairwise_iou, span_cxw_to_xx, span_xx_to_cxw, windows_to_spans_cxw
from qamdetr.types import Batch, DecoderOutput, ModelOutput, Targets

DIM, STRIDES = 16, (1, 2, 4, 8)


def make_decoder(*, quality=True, dropout=0.0):
    torch.manual_seed(0)
    return DenseDecoder(DIM, STRIDES, dropout, quality=quality)


def prefix(lengths, clips=None):
    return torch.arange(clips or max(lengths)) < torch.tensor(lengths)[:, None]


def targets_of(windows, lengths):
    spans = torch.cat([windows_to_spans_cxw(own, length) for own, length in zip(windows, lengths, strict=True)])
    return Targets(spans, tuple(map(len, windows)), torch.zeros(0), torch.full((len(lengths),), -1))


def losses_of(layer, mask, targets, wrong=None, wrong_mask=None):
    """With `wrong`, also of what the decoder finds under wrong queries."""
    targets = replace(targets, saliency=torch.zeros(mask.shape))
    saliency = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    output = ModelOutput(layer, (), saliency, negative_mask=wrong_mask, negative_decoder=wrong)
    return compute_losses(output, Batch({}, mask, {}, mask), targets, LossConfig())


class Says(nn.Module):
    """A layer whose answer is known."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, _):
        return self.answer


def perfect(windows, length):
    """The candidates of a decoder whose layers say what the windows of one recording ask of them."""
    decoder, memory, mask = make_decoder(), torch.zeros(1, length, DIM), prefix([length])
    targets = targets_of([windows], [length])
    cells = decoder(memory, mask).cells
    ((slots, owners),) = match_centres(decoder(memory, mask), mask.sum(dim=1), targets)
    assert set(owners.tolist()) == set(range(len(windows)))
    middles, sizes = cells[slots].double().unbind(-1)
    starts, ends = torch.tensor(windows, dtype=torch.float64)[owners].unbind(-1)
    inside, distances = torch.full((1, len(cells), 1), -9.0), torch.ones(1, len(cells), 2, dtype=torch.float64)
    inside[0, slots] = 9.0
    shift, width = (starts + ends - 2 * middles) / sizes, ((ends - starts) / sizes).expm1().log()
    distances[0, slots] = 0.5 * torch.stack([width - shift, width + shift], dim=-1)
    decoder.inside, decoder.distances = Says(inside), Says(distances)
    layer = decoder(memory, mask)
    quality = pairwise_iou(span_cxw_to_xx(layer.spans_cxw[0]), span_cxw_to_xx(targets.spans_cxw)).amax(dim=1)
    layer = replace(layer, quality_logits=quality.logit(eps=1e-6)[None])
    return candidates_of(layer, [length])[0]


def candidates_of(layer, lengths, protocol="exact", **inference):
    output = ModelOutput(layer, (), torch.zeros(len(lengths), max(lengths)))
    found = answers(output, [float(length) for length in lengths], lengths, InferenceConfig(**inference), protocol=protocol)
    return [answer.candidates for answer in found]


@given(st.integers(1, 80), st.data())
@settings(max_examples=30)
def test_perfect_outputs_give_the_windows_back(length, data):
    edges = data.draw(st.lists(st.floats(0, length), min_size=2, max_size=8).map(sorted))
    windows = [(start, end) for start, end in zip(edges[::2], edges[1::2], strict=False) if end - start >= 1] or [(0.0, float(length))]
    found = perfect(windows, length)[: len(windows)]
    assert sorted(each.window for each in found) == [pytest.approx(window, abs=1e-3) for window in windows]


@given(st.integers(1, 80), st.data())
@settings(max_examples=30)
def test_a_window_shorter_than_a_clip_is_found_wherever_it_lies_in_it(length, data):
    width = data.draw(st.floats(0.1, 0.9))
    start = data.draw(st.floats(0, length - width))
    assert perfect([(start, start + width)], length)[0].window == pytest.approx((start, start + width), abs=1e-3)


@pytest.mark.parametrize(
    ("window", "length", "cells"),
    [
        ((20.4, 22.0), 60, [(20.5, 1), (21.5, 1), (22.5, 1)]),
        ((17.2, 23.1), 60, [(19.5, 1), (20.5, 1), (21.5, 1)]),
        ((17.0, 23.1), 60, [(19.0, 2), (21.0, 2), (23.0, 2)]),
        ((15.0, 26.0), 60, [(19.0, 2), (21.0, 2), (23.0, 2)]),
        ((15.0, 27.1), 60, [(18.0, 4), (22.0, 4), (26.0, 4)]),
        ((8.0, 32.1), 60, [(12.0, 8), (20.0, 8), (28.0, 8)]),
        ((0.0, 1.0), 1, [(0.5, 1)]),
        ((8.9, 9.0), 9, [(7.5, 1), (8.5, 1)]),  # clips after the recording's end do not count
    ],
)
def test_a_window_belongs_to_the_cells_near_its_centre_on_the_level_of_its_length(window, length, cells):
    layer = make_decoder()(torch.zeros(1, length + 5, DIM), prefix([length], length + 5))
    ((slots, spans),) = match_centres(layer, torch.tensor([length]), targets_of([[window]], [length]))
    assert [tuple(cell) for cell in layer.cells[slots].tolist()] == cells
    assert not spans.any()


def test_a_cell_near_several_windows_goes_to_the_nearest_and_no_window_goes_without():
    layer, lengths = make_decoder()(torch.zeros(2, 12, DIM), prefix([12, 12])), torch.tensor([12, 12])
    windows = [[(2.0, 3.0), (3.0, 4.4)], [(0.15, 0.25), (0.35, 0.45), (7.0, 9.0), (7.5, 8.5)]]
    apart, crowded = match_centres(layer, lengths, targets_of(windows, [12, 12]))
    assert (apart[0].tolist(), apart[1].tolist()) == ([1, 2, 3, 4], [0, 0, 1, 1])
    assert set(crowded[1].tolist()) == {0, 1, 2, 3}


def test_padding_changes_no_output_no_loss_and_no_candidate():
    decoder, lengths = make_decoder().eval(), [9, 24, 1, 17]
    mask = prefix(lengths, 30)
    memory = torch.randn(4, 30, DIM).requires_grad_()
    windows = [[(1.0, 3.0)], [(0.0, 20.0), (21.0, 23.5)], [(0.2, 0.9)], []]
    together = decoder(memory, mask)
    valid, found = together.valid(mask.sum(dim=1)), candidates_of(together, lengths)
    totals = []
    for item, length in enumerate(lengths):
        alone = decoder(memory[item : item + 1, :length], mask[item : item + 1, :length])
        for name in ("logits", "spans_cxw", "quality_logits"):
            torch.testing.assert_close(getattr(together, name)[item][valid[item]], getattr(alone, name)[0])
        (own,) = candidates_of(alone, [length])
        assert [each.window for each in found[item]] == [pytest.approx(each.window, abs=1e-4) for each in own]
        totals.append(losses_of(alone, mask[item : item + 1, :length], targets_of([windows[item]], [length]))["inside"])
        assert float(valid[item].sum()) == len(alone.cells)
    parts = losses_of(together, mask, targets_of(windows, lengths))
    parts["total"].backward()
    assert not memory.grad[~mask].any()
    counts = torch.tensor([max(len(slots), 1) for slots, _ in match_centres(together, mask.sum(dim=1), targets_of(windows, lengths))])
    expected = (torch.stack(totals) * counts).sum() / (counts.sum() - 1)  # the item without windows has no cell, and is divided by 1
    torch.testing.assert_close(parts["inside"], expected)


def test_without_windows_cells_learn_only_that_nothing_is_there():
    decoder = make_decoder()
    parts = losses_of(decoder(torch.randn(2, 9, DIM), prefix([9, 5])), prefix([9, 5]), targets_of([[], []], [9, 5]))
    assert [parts[name].item() for name in ("ends", "ends_giou", "quality", "class_error")] == [0.0] * 4
    parts["total"].backward()
    assert decoder.inside.bias.grad.item() > 0
    assert all(bool(torch.isfinite(parameter.grad).all()) for parameter in decoder.parameters())
    assert not decoder.distances.weight.grad.any()


def test_a_wrong_query_teaches_what_one_without_windows_does():
    decoder, lengths, windows = make_decoder(), [9, 5], [[(2.0, 4.0)], []]
    memory, mask = torch.randn(2, 9, DIM), prefix(lengths)
    together = losses_of(decoder(memory, mask), mask, targets_of(windows, lengths))
    first, second = ((memory[item : item + 1], mask[item : item + 1]) for item in (0, 1))
    apart = losses_of(decoder(*first), first[1], targets_of(windows[:1], lengths[:1]), decoder(*second), second[1])
    for name in ("inside", "ends", "ends_giou", "quality"):
        torch.testing.assert_close(apart[name], together[name])
    assert apart["inside"] > losses_of(decoder(*first), first[1], targets_of(windows[:1], lengths[:1]))["inside"]


def test_the_losses_are_their_formulas():
    score, quality = torch.tensor([2.0, -1.0, 0.5, 3.0]), torch.tensor([0.3, -0.2, 0.0, 0.0])
    spans_xx = torch.tensor([[0.1, 0.4], [0.2, 0.3], [0.0, 0.9], [0.7, 0.8]])
    cells = torch.tensor([[2.5, 1.0], [3.5, 1.0], [6.5, 1.0], [10.5, 1.0]])  # two near the window, one far away, one after the end
    layer = DecoderOutput(torch.stack([score, torch.zeros(4)], dim=-1)[None], span_xx_to_cxw(spans_xx)[None], quality[None], cells)
    parts = losses_of(layer, prefix([10]), targets_of([[(2.0, 4.0)]], [10]))
    p, overlap = score.sigmoid(), torch.tensor([2 / 3, 0.5])
    expected = {
        "inside": -(p[:2].log().sum() + p[2].square() * (1 - p[2]).log()) / 2,
        "ends": (0.1 / 0.2 + 0.1 / 0.2) / 2,
        "ends_giou": (1 - overlap).mean(),  # each hull is the union
        "quality": nn.functional.binary_cross_entropy_with_logits(quality[:2], overlap),
        "class_error": 50.0,
    }
    for name, value in expected.items():
        assert parts[name].item() == pytest.approx(float(value), rel=1e-4), name
    weighed = parts["inside"] + parts["ends"] + 2 * parts["ends_giou"] + parts["quality"] + parts["saliency"]
    torch.testing.assert_close(parts["total"], weighed)
    short = losses_of(layer, prefix([10]), targets_of([[(2.0, 2.1)]], [10]))  # its ends count as those of a window of one clip
    assert short["ends"].item() == pytest.approx(((0.1 + 0.19) + (0.0 + 0.09)) / 0.1 / 2, rel=1e-4)


def test_candidates_come_best_first_without_doubles_also_for_the_field():
    spans_xx = torch.tensor([[[0.10, 0.20], [0.11, 0.20], [0.5, 0.9], [0.3, 0.4]]])
    cells = torch.tensor([[1.5, 1.0], [2.5, 1.0], [6.5, 1.0], [10.0, 4.0]])
    logits = torch.tensor([[[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [9.0, 0.0]]])
    layer = DecoderOutput(logits, span_xx_to_cxw(spans_xx), torch.tensor([[0.0, 0.0, -1.0, 9.0]]), cells)
    for protocol, nms_iou in (("exact", 0.7), ("official", 0.7), ("official", 1.0)):
        (found,) = candidates_of(layer, [8], protocol, nms_iou=nms_iou)
        assert [each.window for each in found] == [pytest.approx(window, abs=1e-4) for window in ((0.88, 1.6), (4.0, 7.2))]
        assert [each.decoder_score for each in found] == sorted((each.foreground * each.quality for each in found), reverse=True)
    assert len(candidates_of(make_decoder()(torch.randn(1, 400, DIM), prefix([400])), [400])[0]) <= MOST_SLOTS


def test_a_decoder_learns_to_find_windows_between_the_clips_edges_and_nothing_under_a_wrong_query():
    torch.manual_seed(0)
    decoder, lengths = make_decoder(), [40] * 12
    windows = [[(4 + 1.3 * item, 4.6 + 2.8 * item)] for item in range(len(lengths))]  # the first is shorter than a clip
    clips = torch.arange(40)
    starts, ends = torch.tensor(windows)[:, 0, :].split(1, dim=1)
    covered = (torch.minimum(clips + 1, ends) - torch.maximum(clips, starts)).clamp(0, 1)
    memory, wrong = (covered[..., None] * torch.randn(DIM) + 0.2 * torch.randn(12, 40, DIM) for _ in range(2))
    mask, targets, optimizer = prefix(lengths), targets_of(windows, lengths), torch.optim.AdamW(decoder.parameters(), lr=5e-3)
    for _ in range(100):
        optimizer.zero_grad()
        losses_of(decoder(memory, mask), mask, targets, decoder(wrong, mask), mask)["total"].backward()
        optimizer.step()
    found, absent = (candidates_of(decoder(each, mask), lengths) for each in (memory, wrong))
    assert iou(torch.tensor([item[0].window for item in found]), torch.tensor(windows)[:, 0]).min() > 0.7
    assert min(item[0].decoder_score for item in found) > 0.4
    assert max(item[0].decoder_score for item in absent) < 0.1


# The whole system.


def dense_config(**changes):
    config = tiny_config()
    return replace(config, model=replace(config.model, decoder="dense", **changes))


def test_a_checkpoint_answers_as_the_network_did_and_a_bypass_takes_quality_out(tmp_path):
    config = dense_config()
    model = tiny_model(config)
    save_checkpoint(tmp_path, model, config)
    loaded, loaded_config = load_checkpoint(tmp_path)
    recording = recording_of(torch.randn(50, JOINT_DIM, generator=torch.Generator().manual_seed(0)), 49.4)
    before, after = (
        MomentRetriever([Member(part, settings)], tiny_retriever().encoder) for part, settings in ((model, config), (loaded, loaded_config))
    )
    result = after.retrieve(recording, "a dog", top_k=100)
    best = before.retrieve(recording, "a dog").moments[0]
    assert (*result.moments[0].window, result.moments[0].score) == pytest.approx((*best.window, best.score), abs=1e-4)
    assert len(result.moments) > 10
    assert all(0 <= moment.start_seconds < moment.end_seconds <= 49.4 for moment in result.moments)
    assert any(moment.quality < 1 for moment in result.moments)
    assert all(moment.quality == 1 for moment in after.retrieve(recording, "a dog", bypass=["quality"]).moments)
    one_clip = recording_of(torch.ones(1, JOINT_DIM), 0.4)
    assert all(moment.end_seconds <= 0.4 for moment in after.retrieve(one_clip, "a dog").moments)


def test_it_is_a_switch_and_strides_that_do_not_grow_are_refused():
    switch = switches()["dense"]
    assert (switch.is_on(dense_config().model), switch.is_on(ModelConfig()), switch.bypassable) == (True, False, False)
    for strides in ([], [2, 1], [1, 1]):
        with pytest.raises(ConfigError, match=r"model\.decoder_strides is \["):
            QamDetr(dense_config(decoder_strides=tuple(strides)).model)
    with torch.device("meta"):
        assert sum(p.numel() for p in DenseDecoder(128, STRIDES, 0.1, quality=True).parameters()) == pytest.approx(250_000, rel=0.02)
