"""What a clip has to do with a query in a joint space, in numbers that mean the same in every space: inner products alone (DESIGN 4b)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

AFFINITIES = ("contrast", "bank_z", "bank_rank", "bank_share", "example", "whole", "before", "after", "before_two", "highest", "share")
"""Names of the columns of `affinities`, in order."""

MATCHING_Z = 1.5  # from which a clip counts as one that matches
_MOST = 8.0  # deviations, beyond which more says nothing
_SHARPNESS = 1.0  # of the weights by which matching clips make the example


@torch.no_grad()
def affinities(clips: Tensor, query: Tensor, bank: Tensor, mask: Tensor, *, steps_per_second: int = 1) -> Tensor:
    """Describe each clip of each pair by `(pairs, clips, 11)` numbers that no rotation or scale of the space changes.

    How many deviations its cosine with the query lies above the recording's median; above its cosines with a bank of other sentences; the
    share of the bank that it lies above; its part of the softmax over the bank, as log odds. The cosine with the example that the
    best-matching clips make together; with the mean of the recording; with the clips one second before and after, and two before. Of the
    recording: the highest of the first number, and the share of its clips above `MATCHING_Z`.

    Args:
        clips: `(pairs or 1, clips, dim)`; their length says nothing, and zero is a silent clip.
        query: `(pairs, dim)` in the same space.
        bank: `(sentences, dim)` likewise, of sentences that have nothing to do with the query.
        mask: `(pairs or 1, clips)`, True where a clip is valid.
        steps_per_second: Clips in a second.

    Source: ../shared/reference/science.md, section 5. A space of its own has a spread, a level and neighbours of its own, hence deviations,
    ranks and a temperature in the place of cosines.
    """
    clips, query, bank = (normalize(part, dim=-1) for part in (clips, query, bank))
    valid = mask.to(clips.dtype)
    clips = clips * valid[..., None]
    cosine = torch.einsum("btd,bd->bt", clips.expand(len(query), -1, -1), query)
    valid, mask = valid.expand_as(cosine), mask.expand_as(cosine)
    others = clips @ bank.T
    middle, spread = others.mean(dim=-1), others.std(dim=-1) + 1e-4
    above_bank = (cosine - middle) / spread
    rank = (others < cosine[..., None]).to(cosine.dtype).mean(dim=-1)
    temperature = _mean(spread.expand_as(cosine), valid)
    odds = cosine / temperature - torch.logsumexp(others / temperature[..., None], dim=-1) + math.log(len(bank))
    centre = cosine.masked_fill(~mask, torch.nan).nanmedian(dim=1, keepdim=True).values
    contrast = (cosine - centre) / (_mean((cosine - centre).square(), valid) + 1e-6).sqrt()
    weight = torch.softmax((_SHARPNESS * (contrast + above_bank)).masked_fill(~mask, -torch.inf), dim=1)
    example = normalize(torch.matmul(weight[:, None], clips), dim=-1)
    whole = normalize(clips.sum(dim=1, keepdim=True), dim=-1)
    neighbours = [(clips * _moved(clips, steps * steps_per_second)).sum(dim=-1) for steps in (1, -1, 2)]
    highest = contrast.masked_fill(~mask, -torch.inf).amax(dim=1, keepdim=True)
    share = _mean((contrast > MATCHING_Z).to(cosine.dtype), valid)
    columns = [contrast, above_bank, rank, odds, (clips * example).sum(dim=-1), (clips * whole).sum(dim=-1), *neighbours, highest, share]
    return torch.stack([column.expand_as(cosine) for column in columns], dim=-1).clamp(-_MOST, _MOST) * valid[..., None]


class AffinityProjection(nn.Sequential):
    """Affinities `(..., 11)` to `(..., dim)`; no LayerNorm, before which a clip that matches would look like one that does not."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__(nn.Dropout(dropout), nn.Linear(len(AFFINITIES), dim), nn.ReLU(), nn.Linear(dim, dim))


def _mean(values: Tensor, valid: Tensor) -> Tensor:
    """Mean over valid clips, `(pairs, 1)`."""
    return (values * valid).sum(dim=1, keepdim=True) / valid.sum(dim=1, keepdim=True).clamp(min=1)


def _moved(clips: Tensor, steps: int) -> Tensor:
    """Clips `steps` later, negative ones earlier; zero where there are none."""
    moved = torch.zeros_like(clips)
    if steps > 0:
        moved[:, steps:] = clips[:, :-steps]
    else:
        moved[:, :steps] = clips[:, -steps:]
    return moved
