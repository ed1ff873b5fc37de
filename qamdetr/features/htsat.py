"""HTSAT, the audio network of both CLAPs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from qamdetr.features.base import EncoderOptions


class Htsat:
    """Transformers' `ClapAudioModel` on log-mels.

    Batch norm and stretch run in float32 whatever the options say: dB values are too coarse in `bfloat16`.
    """

    def __init__(self, model: Any, options: EncoderOptions) -> None:  # noqa: ANN401 - Transformers has no types
        """Take over `model` (it is changed: its batch norm moves here)."""
        encoder = model.audio_encoder
        self._norm: nn.Module = encoder.batch_norm.float().to(options.device).eval()
        encoder.batch_norm = nn.Identity()
        self._model = model.to(options.device, options.dtype).eval()
        self._dtype = options.dtype
        self._frames = encoder.spec_size * encoder.freq_ratio
        self.dim = int(encoder.num_features)

    def __call__(self, log_mels: Tensor) -> Tensor:
        """Encode `(batch, frames, mels)` dB to `(batch, dim)`, the mean over the last stage's patches, in the options' type."""
        x = self._norm(log_mels.transpose(1, 2).unsqueeze(-1)).permute(0, 3, 2, 1)
        x = interpolate(x, (self._frames, x.shape[-1]), mode="bicubic", align_corners=True).to(self._dtype)
        # A clip is never longer than the network's ten seconds, so that a fused checkpoint takes the path of the whole spectrogram alone.
        is_longer = torch.zeros(len(x), 1, dtype=torch.bool, device=x.device)
        pooled: Tensor = self._model(input_features=x, is_longer=is_longer).pooler_output
        return pooled
