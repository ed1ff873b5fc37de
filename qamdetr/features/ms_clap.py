"""MS-CLAP 2023 as the field's public feature files have it: HTSAT clip vectors before projection, GPT-2 token states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qamdetr.errors import CheckpointError
from qamdetr.features.base import EncoderOptions, OpenedStream, weights_fingerprint
from qamdetr.features.clips import encode_clips
from qamdetr.features.htsat import Htsat
from qamdetr.features.hub import locate, network_settings, reading
from qamdetr.features.hub_text import HubTokenizer
from qamdetr.features.mel import LogMel, slaney_filters
from qamdetr.features.package_weights import State, convert_gpt2, convert_htsat, fill, htsat_config, part, read_checkpoint
from qamdetr.sample_stream import SampleStream
from qamdetr.types import TextFeatures

NAME = "ms_clap"
WEIGHTS_FILE = "CLAP_weights_2023.pth"
SAMPLE_RATE_HZ = 44_100
FILTERS_RATE_HZ = 32_000
"""Rate that the filters believe in: the network's settings override the package's, so that "50 Hz" lies at 69 Hz, and so on."""

HOP_SAMPLES = 320
MAX_TOKENS = 77
QUERY_END = " <|endoftext|>"
PADDING = "!"
"""What the package pads with; as a special token it is cut off by itself wherever a query has it."""

_CODE = "ms_clap-1"


class MsClapAudioEncoder:
    """The audio stream `ms_clap`: `(clips, 768)` outputs of HTSAT before the projection to the joint space."""

    name = NAME
    sample_rate_hz = SAMPLE_RATE_HZ

    def __init__(self, htsat: Htsat, front_end: LogMel, options: EncoderOptions) -> None:
        self.front_end = front_end
        self._htsat = htsat
        self._options = options
        self.dim = htsat.dim

    def encode_audio(self, samples: np.ndarray | SampleStream) -> Tensor:
        """Encode mono samples at 44.1 kHz; `(ceil(n / 44100), 768)`."""
        return encode_clips(samples, SAMPLE_RATE_HZ, self.dim, self._options, self._encode)

    def _encode(self, windows: Tensor) -> Tensor:
        if windows.shape[1] < SAMPLE_RATE_HZ:
            windows = windows.repeat(1, -(-SAMPLE_RATE_HZ // windows.shape[1]))[:, :SAMPLE_RATE_HZ]
        return self._htsat(self.front_end(windows))


class MsClapTextEncoder:
    """The text stream `ms_clap`: `(tokens, 768)` GPT-2 states, the end token's included; nothing pooled."""

    name = NAME

    def __init__(self, model: Any, tokenizer: HubTokenizer, options: EncoderOptions) -> None:  # noqa: ANN401
        self._model = model.to(options.device, options.dtype).eval()
        self._tokenizer = tokenizer
        self._device = options.device
        self.dim = int(model.config.n_embd)

    @torch.inference_mode()
    def encode_text(self, query: str) -> TextFeatures:
        """Encode one query.

        Raises:
            QamDetrError: The query is longer than the 77 tokens the encoder reads; nothing is cut silently.
        """
        numbers, offsets = self._tokenizer.encode(query)
        ids = torch.tensor([numbers], device=self._device)
        states = self._model(input_ids=ids, use_cache=False).last_hidden_state
        return TextFeatures(tokens=states[0].float().cpu().clone(), offsets=offsets)


def open_ms_clap(source: Path, options: EncoderOptions) -> OpenedStream:
    """Open MS-CLAP 2023.

    Args:
        source: The published `CLAP_weights_2023.pth`, or the folder that holds it. The tokeniser (`tokenizer.json`) lies beside it or else
            is GPT-2's from the hub.
        options: Device, type and batch size.

    Raises:
        CheckpointError: Files missing, damaged, or of another model.

    Source: `msclap` 1.3.4, none of which is imported (it needs torchaudio and old versions of NumPy and Transformers), and how the public
    files were made (https://github.com/line/lighthouse, `feature_extractor/audio_encoders/clap_a.py` and `text_encoders/clap_t.py`):
    one-second windows that are not repeated to the network's seven seconds, the output before projection, the token states of GPT-2.
    Deliberate differences: a last second that is not full is kept, filled with its own repetition as the package fills short audio (the
    public files drop it); queries are not padded to 77 tokens, which changes nothing, as GPT-2 looks back only.
    """
    path = source if source.suffix in {".pt", ".pth"} else source / WEIGHTS_FILE
    if not path.is_file():
        raise CheckpointError(f"The encoder {NAME} has no file {path}; name that file or the folder that holds it.")
    with reading(NAME, path):
        state = read_checkpoint(path, "model")
        htsat = part(state, "audio_encoder.base.htsat.")
        audio, text = _build_audio(htsat), _build_text(part(state, "caption_encoder.base."))
        filters = _filters(htsat)
    tokenizer_folder = path.parent if (path.parent / "tokenizer.json").is_file() else locate("gpt2")
    tokenizer = HubTokenizer(
        tokenizer_folder,
        stream=NAME,
        max_tokens=MAX_TOKENS,
        suffix=QUERY_END,
        apart=(PADDING,),
        vocab_size=text.config.vocab_size,
    )
    weights = {f"{side}.{name}": value for side, model in (("audio", audio), ("text", text)) for name, value in model.state_dict().items()}
    weights = {name: value for name, value in weights.items() if value.is_floating_point()}
    settings = (network_settings(audio.config), network_settings(text.config))
    fingerprint = weights_fingerprint(_CODE, {**weights, "filters": filters}, str(options.dtype), HOP_SAMPLES, tokenizer.probe, *settings)
    front_end = LogMel(filters, hop_samples=HOP_SAMPLES, device=options.device)
    return OpenedStream(
        MsClapAudioEncoder(Htsat(audio, options), front_end, options), MsClapTextEncoder(text, tokenizer, options), fingerprint
    )


def _build_audio(htsat: State) -> Any:  # noqa: ANN401 - Transformers has no types
    from transformers import ClapAudioModel

    model = ClapAudioModel(htsat_config(htsat))
    fill(model.audio_encoder, convert_htsat(htsat))
    return model


def _build_text(gpt2: State) -> Any:  # noqa: ANN401 - Transformers has no types
    from transformers import GPT2Model

    config, weights = convert_gpt2(gpt2)
    model = GPT2Model(config)
    fill(model, weights)
    return model


def _filters(htsat: State) -> Tensor:
    stored = htsat.get("logmel_extractor.melW")
    if stored is not None:
        return stored.float()
    mels = len(htsat["bn0.weight"])
    return slaney_filters(sample_rate_hz=FILTERS_RATE_HZ, fft_samples=1024, mels=mels, min_hz=50, max_hz=14_000)
