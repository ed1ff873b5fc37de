"""The training objective: label, span, gIoU, quality and saliency losses (report, section 2.3; DESIGN section 4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from torch import Tensor

from qamdetr.config import LossConfig
from qamdetr.model.matcher import Assignment, match_centres, match_layers
from qamdetr.spans import giou, iou, pairwise_iou, span_cxw_to_xx
from qamdetr.types import Batch, DecoderOutput, ModelOutput, Targets

FOREGROUND, BACKGROUND = 0, 1
"""Columns of `DecoderOutput.logits`."""

Normaliser = Callable[[int], "float | Tensor"]
"""Gives what a sum over `count` values of this process is divided by: the mean count of all processes.

Data-parallel training averages over the processes, so what comes out is the sum over all values divided by their number, as one process
with the whole batch would have it. Every process calls it equally often and in the same order, also where it holds no value.
"""


def own_count(count: int) -> float:
    """Divide by the count itself: one process holds all values (`Normaliser`)."""
    return float(max(count, 1))


@dataclass(frozen=True)
class Pairs:
    """Matched pairs of a batch: `(item[i], slot[i])` predicts row `span[i]` of `Targets.spans_cxw`; all `(pairs,)` int64."""

    item: Tensor
    slot: Tensor
    span: Tensor


def compute_losses(
    output: ModelOutput, batch: Batch, targets: Targets, config: LossConfig, normaliser: Normaliser = own_count
) -> dict[str, Tensor]:
    """Match, then compute every part.

    `output` is what the model returned for `batch`, with negatives where `targets.negative_index` names them; several processes that share
    a batch give a `normaliser` that joins their counts.

    Returns:
        Unweighted parts `label, span, giou, saliency`, `quality` with that head, and per earlier decoder layer `label_aux0, span_aux0,
        giou_aux0, ...` (class and span losses only, as in the baseline; the quality head learns from the last layer, which ranks), or
        `inside, ends, ends_giou, quality, saliency` of a dense decoder; their weighted sum `total`; and `class_error`, the percentage of
        matched slots taken for background, detached.
    """
    mask, auxiliary, dense = batch.audio_mask, output.auxiliary if config.auxiliary else (), output.decoder.cells is not None
    early: list[Assignment] = []
    if dense:
        pairs = _flatten(match_centres(output.decoder, mask.sum(dim=1), targets), targets)
        parts = _cell_parts(output, pairs, mask, targets, normaliser)
    else:
        *early, last = match_layers([*auxiliary, output.decoder], targets, config)
        pairs = _flatten(last, targets)
        parts = _layer_parts(output.decoder, pairs, targets, config, normaliser)
    if output.decoder.quality_logits is not None:
        to_all = config.quality_targets == "all" and not dense
        parts["quality"] = quality_loss(output.decoder, pairs, targets, normaliser, all_moment_queries=to_all)
    parts["saliency"] = saliency_loss(output, mask, targets, config, normaliser)
    for index, (layer, assignment) in enumerate(zip(auxiliary, early, strict=True)):
        of_layer = _layer_parts(layer, _flatten(assignment, targets), targets, config, normaliser)
        parts |= {f"{name}_aux{index}": part for name, part in of_layer.items()}
    total = torch.stack([getattr(config, name.split("_aux")[0]) * part for name, part in parts.items()]).sum()
    return {**parts, "total": total, "class_error": _class_error(output.decoder, pairs, normaliser)}


def label_loss(layer: DecoderOutput, pairs: Pairs, background_weight: float, normaliser: Normaliser = own_count) -> Tensor:
    """Cross-entropy of foreground (matched) against background (all other moment queries), background weighted down.

    Source: the baseline; the mean is over all moment queries, not over their weights.
    """
    labels = torch.full(layer.logits.shape[:2], BACKGROUND, device=layer.logits.device)
    labels[pairs.item, pairs.slot] = FOREGROUND
    weight = layer.logits.new_tensor([1.0, background_weight])
    loss = F.cross_entropy(layer.logits.flatten(0, 1), labels.flatten(), weight, reduction="none").mean()
    return loss * _share(labels.numel(), normaliser)


def inside_loss(output: ModelOutput, pairs: Pairs, mask: Tensor, normaliser: Normaliser = own_count) -> Tensor:
    """Cross-entropy of each valid cell, its foreground 1 where matched, else 0, also under a wrong query; sum over the number of matched.

    The empty ones are weighed by the square of their foreground, so that the many that are clearly so do not outweigh the few that are not.

    Source: the focal loss (Lin et al., ICCV 2017), on the empty cells alone.
    """
    score, empty = _score(output.decoder), output.decoder.valid(mask.sum(dim=1))
    empty[pairs.item, pairs.slot] = False
    rest = score[empty]
    if output.negative_decoder is not None and output.negative_mask is not None:
        valid = output.negative_decoder.valid(output.negative_mask.sum(dim=1))
        rest = torch.cat([rest, _score(output.negative_decoder)[valid]])
    loss = F.softplus(-score[pairs.item, pairs.slot]).sum() + (rest.sigmoid().square() * F.softplus(rest)).sum()
    return loss / normaliser(pairs.item.numel())


def span_losses(
    layer: DecoderOutput, pairs: Pairs, targets: Targets, normaliser: Normaliser = own_count, *, num_clips: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """L1 distance on (centre, width), and 1 - gIoU; both mean over the matched pairs, 0 where there are none.

    With `num_clips`, the valid clips of each item `(batch,)`, the distance is of both ends, as a share of the true width or of a clip, if
    that is longer: a short window's ends count as much as a long one's.
    """
    predicted, truth = _matched(layer, pairs, targets)
    share = _share(predicted.shape[0], normaliser)
    if predicted.shape[0] == 0:
        # Keeps the graph whole, so that data-parallel training finds a gradient for every parameter.
        nothing = layer.spans_cxw.sum() * 0.0
        return nothing, nothing
    predicted_xx, truth_xx = span_cxw_to_xx(predicted), span_cxw_to_xx(truth)
    if num_clips is None:
        distance = F.l1_loss(predicted, truth)
    else:
        width = truth[:, 1].maximum(1.0 / num_clips[pairs.item])
        distance = ((predicted_xx - truth_xx).abs().sum(dim=-1) / width).mean()
    return distance * share, (1.0 - giou(predicted_xx, truth_xx)).mean() * share


def quality_loss(
    layer: DecoderOutput, pairs: Pairs, targets: Targets, normaliser: Normaliser = own_count, *, all_moment_queries: bool = False
) -> Tensor:
    """Regression of the quality to the IoU of the predicted span, which is detached: quality never moves a span.

    Cross-entropy with the IoU as a soft target: it is least at the expected IoU, like a squared error, but its gradient does not
    vanish where the sigmoid saturates. Matched pairs learn the IoU with their own span (the report's), or, with `all_moment_queries`, every
    moment query learns its best IoU with any span of its item, 0 where the item has none.
    """
    logits = cast("Tensor", layer.quality_logits)
    if all_moment_queries:
        return F.binary_cross_entropy_with_logits(logits, _best_iou(layer, targets)) * _share(logits.numel(), normaliser)
    predicted, truth = _matched(layer, pairs, targets)
    share = _share(predicted.shape[0], normaliser)
    if predicted.shape[0] == 0:
        return logits.sum() * 0.0
    target = iou(span_cxw_to_xx(predicted.detach()), span_cxw_to_xx(truth))
    return F.binary_cross_entropy_with_logits(logits[pairs.item, pairs.slot], target) * share


def saliency_loss(output: ModelOutput, mask: Tensor, targets: Targets, config: LossConfig, normaliser: Normaliser = own_count) -> Tensor:
    """Sum of the saliency terms: hinge, rank-contrastive, and "the query is absent"; plus a cross-entropy per clip where switched on.

    A clip is positive when windows cover at least half as much of it as of the item's best-covered clip, so a window much shorter than
    a clip still has one. Items without any window have no pairs; all their clips count as clips without the query.
    """
    labels = targets.saliency
    positive = mask & (labels > 0) & (labels >= 0.5 * labels.amax(dim=1, keepdim=True))
    hinge = saliency_hinge(output.saliency, positive, mask & ~positive, config.saliency_margin, normaliser)
    contrast = saliency_contrast(output, positive, mask, targets, config.saliency_temperature, normaliser)
    loss = hinge + config.saliency_contrast * contrast + _absence(output, mask, targets, config, normaliser)
    if config.saliency_clip > 0:
        scores = output.saliency[mask]
        per_clip = F.binary_cross_entropy_with_logits(scores, labels[mask]) * _share(scores.numel(), normaliser)
        loss = loss + config.saliency_clip * per_clip
    return loss


def saliency_hinge(scores: Tensor, positive: Tensor, negative: Tensor, margin: float, normaliser: Normaliser = own_count) -> Tensor:
    """Positive clips should score `margin` above negative ones: twice the mean hinge over pairs (the baseline's scale).

    `scores`, `positive` and `negative` are `(batch, clips)`. The baseline samples pairs; here are all of them, whose mean that estimates.
    """
    has_pairs = positive.any(dim=1) & negative.any(dim=1)
    num_items = int(has_pairs.sum())
    share = _share(num_items, normaliser)
    if num_items == 0:
        return scores.new_zeros(())
    scores, positive, negative = scores[has_pairs], positive[has_pairs], negative[has_pairs]
    low = scores.masked_fill(~negative, 0.0)[:, None, :]
    high = scores.masked_fill(~positive, 0.0)[:, :, None]
    pairs = (positive[:, :, None] & negative[:, None, :]).to(scores.dtype)
    violation = (margin + low - high).clamp(min=0.0) * pairs
    return 2.0 * (violation.sum(dim=(1, 2)) / pairs.sum(dim=(1, 2))).mean() * share


def saliency_contrast(
    output: ModelOutput, positive: Tensor, mask: Tensor, targets: Targets, temperature: float, normaliser: Normaliser = own_count
) -> Tensor:
    """Rank-contrastive loss: positive clips against all clips of the item, and against the same clips under a wrong query.

    Per item `-mean over positive clips of log softmax(score / temperature)`; items without positive clips count as 0 in the mean.

    Source: QD-DETR. It loops over label levels 1..11 and divides by 12; with 0/1 labels only level 1 has positives, hence the
    default weight 1/12 (`LossConfig.saliency_contrast`).
    """
    lowest = torch.finfo(output.saliency.dtype).min
    logits = (output.saliency / temperature).masked_fill(~mask, lowest)
    everything = logits
    if output.negative_saliency is not None and output.negative_mask is not None:
        negative = (output.negative_saliency / temperature).masked_fill(~output.negative_mask, lowest)
        rows = targets.negative_index >= 0
        full = torch.full_like(logits, lowest).index_put((rows.nonzero().squeeze(1),), negative)
        everything = torch.cat([logits, full], dim=1)
    log_share = logits - everything.logsumexp(dim=1, keepdim=True)
    count = positive.sum(dim=1)
    per_item = -log_share.masked_fill(~positive, 0.0).sum(dim=1) / count.clamp(min=1)
    return per_item.mean() * _share(per_item.numel(), normaliser)


def _absence(output: ModelOutput, mask: Tensor, targets: Targets, config: LossConfig, normaliser: Normaliser) -> Tensor:
    """`-log(1 - sigmoid(score))` over all clips of recordings in which the query is absent: negative pairs, and items without windows.

    Source: QD-DETR, which sums over clips; `LossConfig.saliency_negative` can take the mean, so that long recordings count no more.
    """
    absent = torch.tensor([count == 0 for count in targets.num_spans], device=mask.device)
    scores, valid = output.saliency[absent], mask[absent]
    if output.negative_saliency is not None and output.negative_mask is not None:
        scores = torch.cat([scores, output.negative_saliency])
        valid = torch.cat([valid, output.negative_mask])
    share = _share(scores.shape[0], normaliser)
    if scores.shape[0] == 0:
        return output.saliency.new_zeros(())
    per_item = F.softplus(scores.masked_fill(~valid, 0.0)).masked_fill(~valid, 0.0).sum(dim=1)
    if config.saliency_negative == "mean":
        per_item = per_item / valid.sum(dim=1).clamp(min=1)
    return per_item.mean() * share


def _layer_parts(layer: DecoderOutput, pairs: Pairs, targets: Targets, config: LossConfig, normaliser: Normaliser) -> dict[str, Tensor]:
    span, overlap = span_losses(layer, pairs, targets, normaliser)
    return {"label": label_loss(layer, pairs, config.background_weight, normaliser), "span": span, "giou": overlap}


def _cell_parts(output: ModelOutput, pairs: Pairs, mask: Tensor, targets: Targets, normaliser: Normaliser) -> dict[str, Tensor]:
    ends, overlap = span_losses(output.decoder, pairs, targets, normaliser, num_clips=mask.sum(dim=1))
    return {"inside": inside_loss(output, pairs, mask, normaliser), "ends": ends, "ends_giou": overlap}


def _score(layer: DecoderOutput) -> Tensor:
    """Log-odds of the foreground, `(batch, slots)`."""
    return layer.logits[..., FOREGROUND] - layer.logits[..., BACKGROUND]


def _share(count: int, normaliser: Normaliser) -> float | Tensor:
    """Turn a mean over `count` values of this process into their sum over what `normaliser` gives; exactly 1 in a single process."""
    return count / normaliser(count)


def _flatten(assignment: Assignment, targets: Targets) -> Pairs:
    """Join the items' assignments, on the device of the targets."""
    items, queries, spans = [], [], []
    offset = 0
    for item, ((query, span), count) in enumerate(zip(assignment, targets.num_spans, strict=True)):
        items.append(torch.full_like(query, item))
        queries.append(query)
        spans.append(span + offset)
        offset += count
    device = targets.spans_cxw.device
    return Pairs(torch.cat(items).to(device), torch.cat(queries).to(device), torch.cat(spans).to(device))


def _matched(layer: DecoderOutput, pairs: Pairs, targets: Targets) -> tuple[Tensor, Tensor]:
    """Predicted and true spans of the matched pairs, both `(pairs, 2)` (centre, width)."""
    return layer.spans_cxw[pairs.item, pairs.slot], targets.spans_cxw[pairs.span]


def _best_iou(layer: DecoderOutput, targets: Targets) -> Tensor:
    """Best IoU of each moment query with a span of its own item: `(batch, moment_queries)`, detached."""
    batch, moment_queries = layer.logits.shape[:2]
    owner = torch.arange(batch).repeat_interleave(torch.tensor(targets.num_spans)).to(layer.logits.device)
    overlap = pairwise_iou(span_cxw_to_xx(layer.spans_cxw.detach()).flatten(0, 1), span_cxw_to_xx(targets.spans_cxw))
    own = owner[None, None, :] == torch.arange(batch, device=owner.device)[:, None, None]
    overlap = overlap.reshape(batch, moment_queries, -1) * own
    # A column of zeros stands for "no span at all".
    return F.pad(overlap, (0, 1)).amax(dim=-1)


def _class_error(layer: DecoderOutput, pairs: Pairs, normaliser: Normaliser) -> Tensor:
    matched = layer.logits.detach()[pairs.item, pairs.slot]
    share = _share(matched.shape[0], normaliser)
    if matched.shape[0] == 0:
        return layer.logits.new_zeros(())
    return 100.0 * (matched.argmax(dim=-1) != FOREGROUND).float().mean() * share
