"""WavLM as an audio encoder: one mean of hidden states per second."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad

from qamdetr.features.base import AudioStream, EncoderOptions, stream, weights_fingerprint
from qamdetr.features.hub import WEIGHTS, Hub, load_network, network_settings, reading

SAMPLE_RATE_HZ = 16_000

# What the first hidden state sees; shorter ends are filled with silence up to here, and no further: the base models normalise over time.
_MIN_SAMPLES = 400
_VARIANCE_FLOOR = 1e-7  # of the stock feature extractor

_SETTINGS = ("config.json", "preprocessor_config.json")
_NEEDED = (*((name,) for name in _SETTINGS), WEIGHTS)


class Wavlm(AudioStream):
    """The audio streams `wavlm_base`, `wavlm_base_plus` and `wavlm_large`.

    Source: Transformers' `WavLMModel` and `Wav2Vec2FeatureExtractor` (https://huggingface.co/docs/transformers/model_doc/wavlm); the mean
    of the last hidden states over each second is the report's.
    """

    def __init__(self, folder: Path, options: EncoderOptions) -> None:
        super().__init__(folder, options)
        from transformers import Wav2Vec2FeatureExtractor, WavLMModel

        with reading(self.name, folder):
            settings = Wav2Vec2FeatureExtractor.from_pretrained(folder, local_files_only=True)
        self._do_normalize = settings.do_normalize
        model = load_network(self.name, WavLMModel, folder, unused=("masked_spec_embed",))
        state = {key: value for key, value in model.state_dict().items() if key != "masked_spec_embed"}
        self.fingerprint = weights_fingerprint("wavlm-1", state, settings.do_normalize, str(options.dtype), network_settings(model.config))
        self.model = model.to(options.device, options.dtype)
        self.dim = int(model.config.hidden_size)

    def encode_windows(self, windows: Tensor) -> Tensor:
        """Encode windows of equal length `(batch, n)` to `(batch, dim)`; large models want each at mean 0 and variance 1 first."""
        if self._do_normalize:
            variance, mean = torch.var_mean(windows, dim=1, correction=0, keepdim=True)
            windows = (windows - mean) / torch.sqrt(variance + _VARIANCE_FLOOR)
        windows = pad(windows, (0, max(_MIN_SAMPLES - windows.shape[1], 0)))
        states: Tensor = self.model(windows.to(self.options.dtype)).last_hidden_state
        return states.float().mean(dim=1)


for _name, _label, _dim, _revision, _megabytes in (
    ("wavlm_base", "WavLM base", 768, "efa81aae7ff777e464159e0f877d54eac5b84f81", 378),
    ("wavlm_base_plus", "WavLM base+", 768, "4c66d4806a428f2e922ccfa1a962776e232d487b", 378),
    ("wavlm_large", "WavLM large", 1024, "c1423ed94bb01d80a3f5ce5bc39f6026a0f4828c", 1262),
):
    _hub = Hub(f"microsoft/{_name.replace('_', '-')}", _revision, _megabytes, (*_SETTINGS, "pytorch_model.bin"), _NEEDED)
    stream(_name, dim=_dim, rate_hz=SAMPLE_RATE_HZ, hub=_hub, label=_label)(type(_name, (Wavlm,), {}))
