"""Joint spaces bent at random in training, so that a network that sees inner products alone meets a new space in every batch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from qamdetr.types import TEF_DIM, Batch

MIN_DIM, MAX_DIM = 48, 256  # to which a space is projected
STEEPEST = 1.0  # power by which its spectrum falls
MOST_NOISE, MOST_COMMON, MOST_GAP = 1.0, 1.0, 1.0  # lengths beside unit vectors: of noise per clip, of what all clips share, and all texts


def bend(batch: Batch, amount: float, rng: np.random.Generator) -> Batch:
    """Bend the joint space of a batch: its main audio stream, its pooled queries and its bank alike.

    They are projected to fewer dimensions with a spectrum that falls; clips get noise, each its own, and a direction that all share;
    texts a direction of theirs, and a little noise. How much of each is drawn, up to `amount` (0 to 1) of the most.

    Source: DESIGN 4b; `../shared/reference/science.md`, section 5.
    """
    main = next(iter(batch.audio))
    rows, tef = torch.split(batch.audio[main], [batch.audio[main].shape[-1] - TEF_DIM, TEF_DIM], dim=-1)
    pooled, bank = batch.text_pooled, batch.bank
    assert pooled is not None
    source, target = rows.shape[-1], int(rng.integers(MIN_DIM, MAX_DIM + 1))
    steep, noise, common, gap = (float(most * amount * rng.random()) for most in (STEEPEST, MOST_NOISE, MOST_COMMON, MOST_GAP))

    def drawn(*shape: int) -> Tensor:
        return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))

    spectrum = torch.arange(1, target + 1, dtype=torch.float32) ** -steep
    projection = drawn(source, target) * spectrum

    def moved(vectors: Tensor, shared: Tensor, noise: float) -> Tensor:
        projected = normalize(vectors @ projection, dim=-1)
        sounding = vectors.any(dim=-1, keepdim=True)  # a silent clip stays silent
        return normalize(projected + shared + noise * drawn(*projected.shape) / target**0.5, dim=-1) * sounding

    of_clips, of_texts = common * normalize(drawn(target) * spectrum, dim=-1), gap * normalize(drawn(target) * spectrum, dim=-1)
    bent = torch.cat([moved(rows, of_clips, noise), tef], dim=-1)
    texts = (moved(pooled, of_texts, 0.3 * noise), None if bank is None else moved(bank, of_texts, 0.3 * noise))
    return replace(batch, audio={**batch.audio, main: bent}, text_pooled=texts[0], bank=texts[1])
