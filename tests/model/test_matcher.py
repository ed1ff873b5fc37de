"""Hungarian matching: the least cost, odd numbers of spans, broken input, and the official code's assignment."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from qamdetr.config import LossConfig
from qamdetr.errors import QamDetrError
from qamdetr.model.matcher import match, match_layers
from qamdetr.spans import pairwise_giou, span_cxw_to_xx
from qamdetr.types import DecoderOutput, Targets

CONFIG = LossConfig()


def random_layer(batch: int, moment_queries: int, seed: int) -> DecoderOutput:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, moment_queries, 2, generator=generator)
    return DecoderOutput(logits, torch.rand(batch, moment_queries, 2, generator=generator), None)


def random_targets(num_spans: tuple[int, ...], seed: int) -> Targets:
    generator = torch.Generator().manual_seed(seed)
    spans_cxw = torch.rand(sum(num_spans), 2, generator=generator)
    return Targets(spans_cxw, num_spans, torch.zeros(len(num_spans), 1), torch.full((len(num_spans),), -1))


def pair_cost(layer: DecoderOutput, item: int, spans_cxw: torch.Tensor) -> np.ndarray:
    """The cost as the design words it, for one item: `(moment_queries, spans)`."""
    l1 = torch.cdist(layer.spans_cxw[item], spans_cxw, p=1)
    overlap = pairwise_giou(span_cxw_to_xx(layer.spans_cxw[item]), span_cxw_to_xx(spans_cxw))
    foreground = layer.logits[item].softmax(-1)[:, :1]
    return (10 * l1 - overlap - 4 * foreground).numpy()


@pytest.mark.parametrize("seed", range(5))
def test_matching_is_the_cheapest_of_all(seed):
    layer, targets = random_layer(2, 5, seed), random_targets((3, 2), seed + 100)
    for item, (queries, spans) in enumerate(match(layer, targets, CONFIG)):
        own = targets.spans_cxw.split(targets.num_spans)[item]
        cost = pair_cost(layer, item, own)
        cheapest = min(sum(cost[q, s] for s, q in enumerate(chosen)) for chosen in itertools.permutations(range(5), len(own)))
        assert cost[queries.numpy(), spans.numpy()].sum() == pytest.approx(cheapest, abs=1e-5)
        assert sorted(spans.tolist()) == list(range(len(own)))


def test_items_without_spans_get_empty_indices():
    pairs = match(random_layer(3, 4, 0), random_targets((0, 2, 0), 1), CONFIG)
    assert [len(queries) for queries, _ in pairs] == [0, 2, 0]
    assert all(queries.dtype == torch.int64 and spans.dtype == torch.int64 for queries, spans in pairs)
    nothing = match(random_layer(2, 4, 0), random_targets((0, 0), 1), CONFIG)
    assert [len(spans) for _, spans in nothing] == [0, 0]


def test_more_spans_than_moment_queries_uses_each_query_once():
    ((queries, spans),) = match(random_layer(1, 3, 0), random_targets((7,), 1), CONFIG)
    assert sorted(queries.tolist()) == [0, 1, 2]
    assert len(set(spans.tolist())) == 3


def test_layers_are_matched_as_if_alone():
    layers, targets = [random_layer(3, 6, seed) for seed in (1, 2, 3)], random_targets((2, 0, 4), 9)
    for layer, assignment in zip(layers, match_layers(layers, targets, CONFIG), strict=True):
        for (queries, spans), (alone_queries, alone_spans) in zip(assignment, match(layer, targets, CONFIG), strict=True):
            assert torch.equal(queries, alone_queries)
            assert torch.equal(spans, alone_spans)


def test_weights_decide():
    layer = DecoderOutput(torch.tensor([[[0.0, 0.0], [5.0, -5.0]]]), torch.tensor([[[0.5, 0.2], [0.9, 0.1]]]), None)
    targets = Targets(torch.tensor([[0.5, 0.2]]), (1,), torch.zeros(1, 1), torch.tensor([-1]))
    assert match(layer, targets, CONFIG)[0][0].tolist() == [0]
    by_label = LossConfig(match_span=0.0, match_giou=0.0)
    assert match(layer, targets, by_label)[0][0].tolist() == [1]


@pytest.mark.parametrize("field", ["logits", "spans_cxw"])
def test_nan_is_named_with_its_remedy(field):
    layer = random_layer(2, 4, 0)
    getattr(layer, field)[1, 2] = float("nan")
    with pytest.raises(QamDetrError, match=r"diverged.*train\.learning_rate"):
        match(layer, random_targets((1, 1), 1), CONFIG)


def test_assignment_agrees_with_the_official_code(shared_dir):
    golden = {
        key: torch.from_numpy(value) for key, value in np.load(shared_dir / "golden" / "official_reference.npz").items() if value.ndim
    }
    layer = DecoderOutput(golden["detr/pred_logits"], golden["detr/pred_spans_cxw"], None)
    num_spans = tuple(golden["detr/num_targets"].tolist())
    targets = Targets(golden["detr/target_spans_cxw"], num_spans, torch.zeros(6, 1), torch.full((6,), -1))
    pairs = match(layer, targets, CONFIG)
    assert torch.cat([queries for queries, _ in pairs]).tolist() == golden["detr/match_pred"].tolist()
    assert torch.cat([spans for _, spans in pairs]).tolist() == golden["detr/match_target"].tolist()
