"""Teaches the pocket audio encoder's network layer by layer: each is fitted to what the teacher's layer gives, by least squares.

Every layer learns apart from the others, on what the teacher's layer before it gives; minutes do what training the whole network from its
end did not do in hours (decision 0016). What a layer gives is cut to 0 ... 6, so that where the teacher gives 0 (or 6) anything below
(above) is right.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad, unfold

from qamdetr.features.pocket import CutConvolution, PocketAudioModel
from recipes.pocket.teacher import Teacher

STEPS = 80
ROWS = 30_000  # places of maps that a layer is fitted on; a tenth where each channel has but nine weights
RIDGE = 1e-5
TOP = 6.0


@torch.no_grad()
def teach_layers(model: PocketAudioModel, teacher: Teacher, seen: Tensor, say: Callable[[str], None]) -> None:
    """Fit all layers on patches `(patches, 96, 64)`; says what share of the variance of each layer is missed."""
    answers: list[list[NDArray[np.int8]]] = [teacher.layers(patch) for patch in seen.numpy()]
    inputs = seen.unsqueeze(1)
    for index, layer in enumerate(model.layers.children()):
        wanted = teacher.dequantised(index, np.stack([each[index] for each in answers]))
        missed = fit(layer, inputs, wanted)  # type: ignore[arg-type]
        say(f"layer {index + 1}/{len(model.layers)}: {missed:.5f} of the variance missed")
        inputs = wanted


def fit(layer: CutConvolution, inputs: Tensor, wanted: Tensor) -> float:
    """Fit one layer to give `wanted` `(batch, channels, time, mels)` for `inputs`; returns the share of variance that it misses.

    The error is convex in the weights. Each step solves the least squares in which answers that are right by being cut have no error, with
    Nesterov's momentum.
    """
    x, y = _rows(layer, inputs, wanted)
    gram = x.mT @ x
    factor = torch.linalg.cholesky(gram + RIDGE * x.shape[1] * torch.eye(gram.shape[-1]))
    weights = ahead = torch.zeros(len(x), x.shape[2], y.shape[2])
    pace = 1.0
    for _ in range(STEPS):
        error = y - x @ ahead
        error.masked_fill_(((y <= 0) & (error > 0)) | ((y >= 0.995 * TOP) & (error < 0)), 0)
        better = ahead + torch.cholesky_solve(x.mT @ error, factor)
        next_pace = (1 + (1 + 4 * pace**2) ** 0.5) / 2
        ahead, weights, pace = better + (pace - 1) / next_pace * (better - weights), better, next_pace
    layer.weight.copy_(weights[:, :-1].mT.reshape(layer.weight.shape))
    layer.bias.copy_(weights[:, -1].flatten())  # type: ignore[union-attr]
    return float(((x @ weights).clamp(0, TOP) - y).square().mean() / y.var())


def _rows(layer: CutConvolution, inputs: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Return `(groups, places, weights + 1)` and `(groups, places, channels of a group)`, of random places."""
    size, groups = layer.kernel_size[0], layer.groups
    places = wanted[0, 0].numel()
    drawn = torch.randperm(len(inputs))[: ROWS * 4 // places]
    x, y = inputs[drawn], wanted[drawn]
    if size > 1:
        x = unfold(pad(x, layer.margins), size, stride=layer.stride).reshape(len(x), inputs.shape[1], size**2, -1)
        x = x.permute(1, 0, 3, 2) if groups > 1 else x.flatten(1, 2).mT.unsqueeze(0)
    else:
        x = x.flatten(2).mT.unsqueeze(0)
    x, y = x.flatten(1, 2), y.reshape(len(y), groups, -1, places).permute(1, 0, 3, 2).flatten(1, 2)
    drawn = torch.randperm(x.shape[1])[: ROWS if groups == 1 else ROWS // 10]
    x, y = x[:, drawn], y[:, drawn]
    return torch.cat([x, torch.ones(*x.shape[:2], 1)], dim=2), y
