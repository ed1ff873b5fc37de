"""Matching of moment queries, by least cost (report, section 2.3; DETR), or of cells, by their place, with ground-truth spans."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from qamdetr.config import LossConfig
from qamdetr.errors import QamDetrError
from qamdetr.spans import giou, span_cxw_to_xx
from qamdetr.types import DecoderOutput, Targets

Assignment = list[tuple[Tensor, Tensor]]
"""Per item: matched slots and, in the same order, the item's own spans; both int64 on the CPU, of one length."""

REACH = 1.5
"""In lengths of a cell: how far from its middle the centre of a span may be that it finds, and the least half length of such a span."""


@torch.no_grad()
def match_layers(layers: Sequence[DecoderOutput], targets: Targets, config: LossConfig) -> list[Assignment]:
    """Assign to each ground-truth span its own moment query so that the summed cost is least, per layer and item.

    The cost is `match_span * L1 - match_giou * gIoU - match_label * p_fg`, on (centre, width). An item without spans gets empty
    indices; one with more spans than moment queries leaves its dearest spans unmatched.

    Source: the official baseline's matcher; here all layers and items cross to the host together, once.
    """
    spans_cxw = torch.stack([layer.spans_cxw for layer in layers]).float()
    foreground = torch.stack([layer.logits for layer in layers]).float().softmax(-1)[..., 0]
    predicted, truth = spans_cxw[..., None, :], targets.spans_cxw.float()
    cost = config.match_span * (predicted - truth).abs().sum(-1)
    cost = cost - config.match_giou * giou(span_cxw_to_xx(predicted), span_cxw_to_xx(truth))
    cost = cost - config.match_label * foreground[..., None]
    costs = cost.cpu()
    if not bool(torch.isfinite(costs).all()):
        raise QamDetrError(
            "The matching cost is not a number: the model has diverged or a feature holds NaN",
            "lower train.learning_rate or check the features",
        )
    by_item = torch.split(costs, list(targets.num_spans), dim=-1)
    return [[_assign(item[layer, index]) for index, item in enumerate(by_item)] for layer in range(len(layers))]


def _assign(cost: Tensor) -> tuple[Tensor, Tensor]:
    queries, spans = linear_sum_assignment(cost.numpy())
    return torch.as_tensor(queries, dtype=torch.int64), torch.as_tensor(spans, dtype=torch.int64)


@torch.no_grad()
def match_centres(layer: DecoderOutput, num_clips: Tensor, targets: Targets) -> Assignment:
    """Assign to each ground-truth span the cells of one level whose middles are near its centre; `num_clips` `(batch,)` are valid clips.

    Near is within `REACH` cells. The level is the coarsest of which half the span is `REACH` cells long, else the finest. A cell near
    several spans goes to the nearest; a span that is nearest to none then takes its nearest cell, so that all have one where there is room.
    """
    cells, valid, lengths = cast("Tensor", layer.cells).cpu(), layer.valid(num_clips).cpu(), num_clips.cpu()
    middles, sizes = cells.t().contiguous().unbind()  # each in one piece, as `searchsorted` wants it
    levels = torch.unique(sizes)
    level_of_cell = torch.searchsorted(levels, sizes)
    assignment: Assignment = []
    by_item = torch.split(targets.spans_cxw.float().cpu(), list(targets.num_spans))
    for spans_cxw, length, usable in zip(by_item, lengths, valid, strict=True):
        centres, widths = (spans_cxw * length).unbind(-1)
        level = (torch.searchsorted(REACH * levels, 0.5 * widths, right=True) - 1).clamp(min=0)
        far = (centres[:, None] - middles).abs()
        fits = usable & (level[:, None] == level_of_cell) & (far <= REACH * sizes)
        far = F.pad(far.masked_fill(~fits, torch.inf), (0, 0, 0, 1), value=torch.inf)  # one row more, of no span
        nearest, owner = far.min(dim=0)
        owner = owner.where(nearest.isfinite(), len(centres))
        for span in range(len(centres)):
            if not bool((owner == span).any()):
                owner[far[span].argmin()] = span
        (taken,) = (owner < len(centres)).nonzero(as_tuple=True)
        assignment.append((taken, owner[taken]))
    return assignment
