"""Matching and objective: the official code's numbers, each term by hand, and the cases without spans, windows or negatives."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from qamdetr.config import LossConfig
from qamdetr.errors import QamDetrError
from qamdetr.model import losses
from qamdetr.model.matcher import match_layers
from qamdetr.spans import giou, iou, span_cxw_to_xx
from qamdetr.types import Batch, DecoderOutput, ModelOutput, Targets

CONFIG = LossConfig()
CLIPS = 12


def make_case(
    num_spans: tuple[int, ...] = (2, 0, 1), *, negatives: bool = True, layers: int = 2, seed: int = 0
) -> tuple[ModelOutput, Batch, Targets, torch.Tensor]:
    """A random output (leaves that require gradients come last), its batch and targets; item lengths 12, 11, 10, ..."""
    torch.manual_seed(seed)
    size = len(num_spans)
    mask = torch.arange(CLIPS)[None, :] < (CLIPS - torch.arange(size))[:, None]
    raw = torch.randn(layers, size, 4, 5, requires_grad=True)
    saliency = torch.randn(2, size, CLIPS, requires_grad=True)
    decoded = [DecoderOutput(part[..., :2], part[..., 2:4].sigmoid(), part[..., 4]) for part in raw]
    lowest = torch.finfo(torch.float32).min
    negative_index = torch.arange(size).roll(1) if negatives else torch.full((size,), -1)
    output = ModelOutput(
        decoder=decoded[-1],
        auxiliary=tuple(decoded[:-1]),
        saliency=saliency[0].masked_fill(~mask, lowest),
        negative_saliency=saliency[1].masked_fill(~mask, lowest) if negatives else None,
        negative_mask=mask if negatives else None,
    )
    labels = torch.zeros(size, CLIPS)
    for item, count in enumerate(num_spans):
        labels[item, 1 : 1 + 2 * count] = 1.0
    targets = Targets(0.2 + 0.3 * torch.rand(sum(num_spans), 2), num_spans, labels, negative_index)
    return output, Batch({}, mask, {}, mask), targets, raw


@pytest.fixture
def golden(shared_dir):
    with np.load(shared_dir / "golden" / "official_reference.npz") as file:
        return {key.removeprefix("detr/"): torch.from_numpy(file[key]) for key in file if key.startswith("detr/")}


def golden_case(golden: dict[str, torch.Tensor]) -> tuple[ModelOutput, Batch, Targets]:
    mask = golden["audio_mask"].bool()
    layer = DecoderOutput(golden["pred_logits"], golden["pred_spans_cxw"], None)
    output = ModelOutput(layer, (), golden["saliency_scores"], golden["saliency_scores_neg"], mask)
    targets = Targets(
        golden["target_spans_cxw"], tuple(golden["num_targets"].tolist()), golden["saliency_labels"], torch.arange(6).roll(-1)
    )
    return output, Batch({}, mask, {}, mask), targets


def sampled_hinge(scores, golden):
    """The official code's hinge, over pairs that it samples; ours is over all of them."""
    high, low = (scores.gather(1, golden[f"saliency_{kind}_index"]) for kind in ("pos", "neg"))
    return 2 * (CONFIG.saliency_margin + low - high).clamp(min=0).mean()


def test_losses_agree_with_the_official_code(golden, monkeypatch):
    output, batch, targets = golden_case(golden)
    parts = losses.compute_losses(output, batch, targets, CONFIG)
    for ours, official in {"span": "loss_span", "giou": "loss_giou", "label": "loss_label", "class_error": "class_error"}.items():
        assert parts[ours].item() == pytest.approx(golden[official].item(), abs=1e-4)
    (((queries, spans), *others),) = match_layers([output.decoder], targets, CONFIG)
    assert torch.cat([queries, *(each for each, _ in others)]).tolist() == golden["match_pred"].tolist()
    assert torch.cat([spans, *(each for _, each in others)]).tolist() == golden["match_target"].tolist()
    monkeypatch.setattr(losses, "saliency_hinge", lambda scores, *_: sampled_hinge(scores, golden))
    saliency = losses.saliency_loss(output, batch.audio_mask, targets, CONFIG)
    assert saliency.item() == pytest.approx(golden["loss_saliency"].item(), abs=1e-4)


def test_total_is_the_weighted_sum_of_the_named_parts():
    output, batch, targets, _ = make_case()
    config = LossConfig(span=3, giou=5, label=7, saliency=11, quality=13)
    parts = losses.compute_losses(output, batch, targets, config)
    weights = {"label": 7, "span": 3, "giou": 5, "quality": 13, "saliency": 11, "label_aux0": 7, "span_aux0": 3, "giou_aux0": 5}
    assert set(parts) == {*weights, "total", "class_error"}
    expected = sum(weight * parts[name].item() for name, weight in weights.items())
    assert parts["total"].item() == pytest.approx(expected, rel=1e-5)
    without = losses.compute_losses(output, batch, targets, replace(config, auxiliary=False))
    assert not any("aux" in name for name in without)


@pytest.mark.parametrize("num_spans", [(2, 0, 1), (0, 0, 0), (9, 0, 0)])
@pytest.mark.parametrize("negatives", [True, False])
def test_every_case_gives_finite_losses_and_gradients(num_spans, negatives):
    output, batch, targets, raw = make_case(num_spans, negatives=negatives)
    parts = losses.compute_losses(output, batch, targets, replace(CONFIG, saliency_clip=1.0))
    parts["total"].backward()
    assert all(bool(torch.isfinite(part)) for part in parts.values())
    assert bool(torch.isfinite(raw.grad).all())
    assert sum(num_spans) or [parts[name].item() for name in ("span", "giou", "quality", "class_error")] == [0.0] * 4


def test_quality_learns_the_iou_and_never_moves_the_span():
    output, batch, targets, raw = make_case((1,), layers=1)
    parts = losses.compute_losses(output, batch, targets, CONFIG)
    parts["quality"].backward()
    assert raw.grad[..., 2:4].abs().sum() == 0
    matched = raw.grad[..., 4].nonzero()
    assert len(matched) == 1
    _, item, query = matched[0].tolist()
    overlap = iou(span_cxw_to_xx(output.decoder.spans_cxw[item, query]), span_cxw_to_xx(targets.spans_cxw[0]))
    assert raw.grad[0, item, query, 4].item() == pytest.approx(float(raw[0, item, query, 4].sigmoid() - overlap), abs=1e-5)


def test_quality_of_all_moment_queries_is_their_best_iou():
    spans_cxw = torch.tensor([[[0.5, 0.2], [0.5, 0.4], [0.1, 0.1]], [[0.5, 0.2], [0.2, 0.2], [0.3, 0.1]]])
    layer = DecoderOutput(torch.zeros(2, 3, 2), spans_cxw, torch.zeros(2, 3, requires_grad=True))
    targets = Targets(torch.tensor([[0.5, 0.2], [0.9, 0.1]]), (2, 0), torch.zeros(2, 4), torch.tensor([-1, -1]))
    output = ModelOutput(layer, (), torch.zeros(2, 4))
    mask = torch.ones(2, 4, dtype=torch.bool)
    parts = losses.compute_losses(output, Batch({}, mask, {}, mask), targets, replace(CONFIG, quality_targets="all"))
    parts["quality"].backward()
    wanted = torch.tensor([[1.0, 0.5, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(0.5 - 6 * layer.quality_logits.grad, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("labels", "positive"),
    [
        ([1.0, 1.0, 0.0, 0.0, 1.0, 0.0], [0, 1, 4]),  # all windows, not the first alone
        ([0.0, 0.3, 0.1, 0.0], [1]),  # a window shorter than a clip
    ],
)
def test_saliency_pulls_up_the_clips_of_all_windows(labels, positive):
    scores, mask = torch.zeros(1, len(labels), requires_grad=True), torch.ones(1, len(labels), dtype=torch.bool)
    targets = Targets(torch.rand(1, 2), (1,), torch.tensor([labels]), torch.tensor([-1]))
    layer = DecoderOutput(torch.zeros(1, 1, 2), torch.full((1, 1, 2), 0.5), None)
    losses.saliency_loss(ModelOutput(layer, (), scores), mask, targets, CONFIG).backward()
    assert (scores.grad[0] < 0).nonzero().squeeze(1).tolist() == positive


def test_the_hinge_is_the_mean_over_all_pairs():
    torch.manual_seed(1)
    scores = torch.randn(1, 6)
    positive = torch.tensor([[True, False, True, False, False, False]])
    negative = torch.tensor([[False, True, False, True, True, False]])
    pairs = [max(0.0, 0.2 + scores[0, low].item() - scores[0, high].item()) for high in (0, 2) for low in (1, 3, 4)]
    assert losses.saliency_hinge(scores, positive, negative, 0.2).item() == pytest.approx(2 * np.mean(pairs), rel=1e-5)


def test_clips_of_an_absent_query_are_pushed_down():
    output, batch, targets, _ = make_case((0, 0), negatives=False)
    scores = output.saliency.detach().requires_grad_()
    loss = losses.saliency_loss(replace(output, saliency=scores), batch.audio_mask, targets, CONFIG)
    expected = [-torch.log(1 - scores[item, : CLIPS - item].sigmoid()).sum().item() for item in range(2)]
    assert loss.item() == pytest.approx(np.mean(expected), rel=1e-4)
    loss.backward()
    assert bool((scores.grad[batch.audio_mask] > 0).all())
    assert bool((scores.grad[~batch.audio_mask] == 0).all())
    mean = losses.saliency_loss(output, batch.audio_mask, targets, replace(CONFIG, saliency_negative="mean"))
    assert mean.item() == pytest.approx(np.mean([expected[0] / CLIPS, expected[1] / (CLIPS - 1)]), rel=1e-4)


def test_negative_rows_belong_to_the_items_that_have_one():
    """Only items with an index >= 0 have a row; the loss must not shift rows to other items."""
    output, batch, targets, _ = make_case((1, 1, 1))
    keep = torch.tensor([0, 2])
    some = replace(output, negative_saliency=output.negative_saliency[keep], negative_mask=output.negative_mask[keep])
    index = replace(targets, negative_index=torch.tensor([2, -1, 1]))
    positive = batch.audio_mask & (targets.saliency > 0)
    contrast = losses.saliency_contrast(some, positive, batch.audio_mask, index, 0.5)
    rows = []
    for item in range(3):
        valid = batch.audio_mask[item]
        pool = [output.saliency[item][valid]] + ([output.negative_saliency[item][valid]] if item != 1 else [])
        share = torch.log_softmax(torch.cat(pool) / 0.5, dim=0)[: int(valid.sum())]
        rows.append(-share[positive[item][valid]].mean().item())
    assert contrast.item() == pytest.approx(np.mean(rows), rel=1e-4)


def test_padding_changes_no_loss():
    output, batch, targets, _ = make_case()
    lowest = torch.finfo(torch.float32).min

    def wider(part: object, **fill: float) -> dict[str, torch.Tensor]:
        return {name: F.pad(getattr(part, name), (0, 5), value=value) for name, value in fill.items()}

    padded = replace(output, **wider(output, saliency=lowest, negative_saliency=lowest, negative_mask=False))
    config = replace(CONFIG, saliency_clip=1.0, saliency_negative="mean")
    before = losses.compute_losses(output, batch, targets, config)
    wide_batch, wide_targets = replace(batch, **wider(batch, audio_mask=False)), replace(targets, **wider(targets, saliency=0.0))
    after = losses.compute_losses(padded, wide_batch, wide_targets, config)
    assert {name: part.item() for name, part in after.items()} == pytest.approx(
        {name: part.item() for name, part in before.items()}, rel=1e-5
    )


# Hungarian matching.


def random_layer(batch, moment_queries, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, moment_queries, 2, generator=generator)
    return DecoderOutput(logits, torch.rand(batch, moment_queries, 2, generator=generator), None)


def random_targets(num_spans, seed):
    spans_cxw = torch.rand(sum(num_spans), 2, generator=torch.Generator().manual_seed(seed))
    return Targets(spans_cxw, num_spans, torch.zeros(len(num_spans), 1), torch.full((len(num_spans),), -1))


@pytest.mark.parametrize("num_spans", [(3, 2), (0, 6), (0, 0)])
def test_each_layer_is_matched_in_the_cheapest_way_of_all(num_spans):
    targets = random_targets(num_spans, 9)
    layers = [random_layer(2, 5, seed) for seed in range(4)]
    for layer, assignment in zip(layers, match_layers(layers, targets, CONFIG), strict=True):
        for item, (queries, spans) in enumerate(assignment):
            own, predicted = targets.spans_cxw.split(num_spans)[item], layer.spans_cxw[item]
            overlap = giou(span_cxw_to_xx(predicted)[:, None], span_cxw_to_xx(own))
            cost = 10 * torch.cdist(predicted, own, p=1) - overlap - 4 * layer.logits[item].softmax(-1)[:, :1]
            rows, columns = sorted(cost.shape)
            tall = cost if len(own) == rows else cost.T
            cheapest = min(sum(tall[q, s] for s, q in enumerate(chosen)) for chosen in itertools.permutations(range(columns), rows))
            assert float(cost[queries, spans].sum()) == pytest.approx(float(cheapest), abs=1e-5)
            assert len(set(queries.tolist())) == len(set(spans.tolist())) == rows


@pytest.mark.parametrize("field", ["logits", "spans_cxw"])
def test_nan_is_named_with_its_remedy(field):
    layer = random_layer(2, 4, 0)
    getattr(layer, field)[1, 2] = float("nan")
    with pytest.raises(QamDetrError, match=r"diverged.*train\.learning_rate"):
        match_layers([layer], random_targets((1, 1), 1), CONFIG)
