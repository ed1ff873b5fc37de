"""Hungarian matching of moment queries with ground-truth spans (report, section 2.3; DETR)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from qamdetr.config import LossConfig
from qamdetr.errors import QamDetrError
from qamdetr.spans import giou, span_cxw_to_xx
from qamdetr.types import DecoderOutput, Targets

Assignment = list[tuple[Tensor, Tensor]]
"""Per item: matched moment queries and, in the same order, the item's own spans; both `(min(moment_queries, spans),)` int64 on the CPU."""


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
