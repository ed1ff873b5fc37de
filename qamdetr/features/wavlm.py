"""WavLM as an audio encoder: one mean of hidden states per second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from qamdetr.features.base import EncoderOptions, OpenedStream, weights_fingerprint
from qamdetr.features.clips import encode_clips
from qamdetr.features.hub import load_network, network_settings, reading
from qamdetr.sample_stream import SampleStream

SAMPLE_RATE_HZ = 16_000
_CODE = "wavlm-1"

_MIN_SAMPLES = 400
"""What the first hidden state sees; shorter ends are filled with silence up to here."""

_VARIANCE_FLOOR = 1e-7
"""Of the stock feature extractor."""


class WavlmEncoder:
    """The audio streams `wavlm_base`, `wavlm_base_plus` and `wavlm_large`.

    Each second runs by itself, and so does the rest of a recording at its true length: the base models normalise over time, so that
    silence behind the rest would change what is heard in it.

    Source: Transformers' `WavLMModel` and `Wav2Vec2FeatureExtractor` (https://huggingface.co/docs/transformers/model_doc/wavlm); the mean
    of the last hidden states over each second is the report's.
    """

    sample_rate_hz = SAMPLE_RATE_HZ

    def __init__(self, name: str, model: Any, options: EncoderOptions, *, do_normalize: bool) -> None:  # noqa: ANN401 - no types there
        """Take over `model`, a `WavLMModel`; `do_normalize` brings each window to mean 0 and variance 1 first."""
        self.name = name
        self.dim = int(model.config.hidden_size)
        self.model = model.to(options.device, options.dtype).eval()
        self._options = options
        self._do_normalize = do_normalize

    def encode_audio(self, samples: np.ndarray | SampleStream) -> Tensor:
        """Encode mono samples at 16 kHz; `(ceil(n / 16000), dim)` float32 on the CPU."""
        return encode_clips(samples, SAMPLE_RATE_HZ, self.dim, self._options, self.encode_windows)

    def encode_windows(self, windows: Tensor) -> Tensor:
        """Encode windows of equal length `(batch, n)` on the encoder's device to `(batch, dim)`."""
        if self._do_normalize:
            variance, mean = torch.var_mean(windows, dim=1, correction=0, keepdim=True)
            windows = (windows - mean) / torch.sqrt(variance + _VARIANCE_FLOOR)
        windows = pad(windows, (0, max(_MIN_SAMPLES - windows.shape[1], 0)))
        states: Tensor = self.model(windows.to(self._options.dtype)).last_hidden_state
        return states.float().mean(dim=1)


def open_wavlm(source: Path, options: EncoderOptions, *, name: str) -> OpenedStream:
    """Open a WavLM.

    Args:
        source: Folder in the hub's layout.
        options: Device, type, batch.
        name: Stream, such as `wavlm_large`.

    Raises:
        CheckpointError: Files missing or damaged, or another kind of model.
    """
    from transformers import Wav2Vec2FeatureExtractor, WavLMModel

    with reading(name, source):
        settings = Wav2Vec2FeatureExtractor.from_pretrained(source, local_files_only=True)
    model = load_network(name, WavLMModel, source, unused=("masked_spec_embed",))
    state = {key: value for key, value in model.state_dict().items() if key != "masked_spec_embed"}
    fingerprint = weights_fingerprint(_CODE, state, settings.do_normalize, str(options.dtype), network_settings(model.config))
    return OpenedStream(WavlmEncoder(name, model, options, do_normalize=settings.do_normalize), None, fingerprint)
