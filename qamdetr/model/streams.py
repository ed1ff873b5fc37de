"""Stream projections and scalar gates: several feature streams become one sequence (report, section 2.1, Eq. 1)."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from qamdetr.errors import ConfigError


class StreamProjection(nn.Sequential):
    """Two blocks of LayerNorm-Dropout-Linear with ReLU after the first: `(..., dim_in)` -> `(..., dim)`.

    Source: the official baseline's input projection.
    """

    def __init__(self, dim_in: int, dim: int, dropout: float) -> None:
        super().__init__(
            nn.LayerNorm(dim_in),
            nn.Dropout(dropout),
            nn.Linear(dim_in, dim),
            nn.ReLU(),
            nn.LayerNorm(dim),
            nn.Dropout(dropout),
            nn.Linear(dim, dim),
        )


class GatedStreams(nn.Module):
    """Sum of one modality's projected streams: the main one whole, each auxiliary one times its own sigmoid gate.

    Source: report, Eq. 1. A gate is one number for all clips (or tokens), and starts half open (g = 0).
    """

    def __init__(self, modality: str, streams: Mapping[str, int], dim: int, dropout: float) -> None:
        """Build a projection per stream: `streams` are names -> widths, the main one first; `modality` is `audio` or `text`."""
        super().__init__()
        self.modality = modality
        self.widths = dict(streams)
        self.main, *self.auxiliary = streams
        self.projections = nn.ModuleDict({name: StreamProjection(width, dim, dropout) for name, width in streams.items()})
        self.gate_logits = nn.ParameterDict({name: nn.Parameter(torch.zeros(())) for name in self.auxiliary})

    def forward(self, streams: Mapping[str, Tensor], bypass: Collection[str] = ()) -> Tensor:
        """Project and sum: stream name -> `(batch, rows, dim_s)` becomes `(batch, rows, dim)`; unknown streams are ignored.

        `bypass` are names such as `audio/wavlm_base_plus` whose gate is taken as closed.

        Raises:
            ConfigError: A stream is missing or has another width than the model was built for.
        """
        self._check(streams)
        mixed: Tensor = self.projections[self.main](streams[self.main])
        for name in self.auxiliary:
            if f"{self.modality}/{name}" not in bypass:
                mixed = mixed + torch.sigmoid(self.gate_logits[name]) * self.projections[name](streams[name])
        return mixed

    def gates(self) -> dict[str, float]:
        """Return the gate of each auxiliary stream in [0, 1], as `<modality>/<stream>`."""
        return {f"{self.modality}/{name}": float(torch.sigmoid(self.gate_logits[name].detach())) for name in self.auxiliary}

    def _check(self, streams: Mapping[str, Tensor]) -> None:
        for name, width in self.widths.items():
            if name not in streams:
                given = ", ".join(streams) or "none"
                raise ConfigError(f"The model needs the {self.modality} stream {name!r} but got {given}", "use the combo it was trained on")
            if streams[name].shape[-1] != width:
                raise ConfigError(
                    f"{self.modality.capitalize()} stream {name!r} has {streams[name].shape[-1]} columns but the model takes {width} "
                    "(tef included)",
                    "use the combo it was trained on",
                )
