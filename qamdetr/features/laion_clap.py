"""LAION-CLAP: clip vectors and query vectors in one joint space, and the states of the query's tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from qamdetr.errors import CheckpointError
from qamdetr.features.base import EncoderOptions, OpenedStream, weights_fingerprint
from qamdetr.features.clips import encode_clips
from qamdetr.features.htsat import Htsat
from qamdetr.features.hub import load_network, locate, network_settings, reading
from qamdetr.features.hub_text import HubTokenizer
from qamdetr.features.mel import LogMel, htk_filters, slaney_filters
from qamdetr.features.package_weights import convert_laion_clap, fill, is_fused, part, read_checkpoint
from qamdetr.sample_stream import SampleStream
from qamdetr.types import TextFeatures

NAME = "laion_clap"
SAMPLE_RATE_HZ = 48_000
PADDED_SAMPLES = 10 * SAMPLE_RATE_HZ
HOP_SAMPLES = 480
_CODE = "laion_clap-1"

_CONSTANTS = ("text_model.embeddings.position_ids", "text_model.embeddings.token_type_ids")
_FILES = (("config.json",), ("preprocessor_config.json", "processor_config.json"), ("tokenizer.json", "vocab.json"))


class LaionClapAudioEncoder:
    """The audio stream `laion_clap`: `(clips, 512)` vectors in the joint space, not yet of unit length."""

    name = NAME
    sample_rate_hz = SAMPLE_RATE_HZ

    def __init__(self, htsat: Htsat, projection: Any, front_end: LogMel, options: EncoderOptions) -> None:  # noqa: ANN401
        self.front_end = front_end
        self._htsat = htsat
        self._projection = projection.to(options.device, options.dtype).eval()
        self._options = options
        self.dim = int(projection.linear2.out_features)

    def encode_audio(self, samples: np.ndarray | SampleStream) -> Tensor:
        """Encode mono samples at 48 kHz; `(ceil(n / 48000), 512)`."""
        return encode_clips(samples, SAMPLE_RATE_HZ, self.dim, self._options, self._encode)

    def log_mels(self, windows: Tensor) -> Tensor:
        """Return `(batch, 1001, 64)` dB of `windows` `(batch, n <= 48000)`, filled to ten seconds as LAION-CLAP fills short audio.

        That is "repeatpad": as many whole repetitions as fit, then silence.
        """
        repeats, rest = divmod(PADDED_SAMPLES, windows.shape[1])
        if rest:
            return self.front_end(pad(windows.repeat(1, repeats), (0, rest)))
        return self.front_end.repeated(windows, repeats)

    def _encode(self, windows: Tensor) -> Tensor:
        joint: Tensor = self._projection(self._htsat(self.log_mels(windows)))
        return joint


class LaionClapTextEncoder:
    """The text stream `laion_clap`: `(tokens, 768)` RoBERTa states, and the unit vector of the query in the joint space."""

    name = NAME

    def __init__(self, model: Any, projection: Any, tokenizer: HubTokenizer, options: EncoderOptions) -> None:  # noqa: ANN401
        self._model = model.to(options.device, options.dtype).eval()
        self._projection = projection.to(options.device, options.dtype).eval()
        self._tokenizer = tokenizer
        self._device = options.device
        self.dim = int(model.config.hidden_size)

    @torch.inference_mode()
    def encode_text(self, query: str) -> TextFeatures:
        """Encode one query.

        Raises:
            QamDetrError: The query is longer than the encoder can read; nothing is cut silently.
        """
        numbers, offsets = self._tokenizer.encode(query)
        ids = torch.tensor([numbers], device=self._device)
        output = self._model(input_ids=ids, attention_mask=torch.ones_like(ids))
        pooled = normalize(self._projection(output.pooler_output)[0].float(), dim=-1)
        return TextFeatures(tokens=output.last_hidden_state[0].float().cpu().clone(), offsets=offsets, pooled=pooled.cpu().clone())


def open_laion_clap(source: Path, options: EncoderOptions) -> OpenedStream:
    """Open LAION-CLAP.

    Args:
        source: A folder with a `ClapModel` in the hub's layout, such as `laion/clap-htsat-unfused`; or a `.pt` checkpoint of the package
            `laion-clap`, whose tokeniser (`tokenizer.json`) lies beside it or else is RoBERTa's from the hub.
        options: Device, type and batch size.

    Raises:
        CheckpointError: Files missing, damaged, or of another model.

    Source: Transformers' `ClapModel` and `ClapFeatureExtractor`; `laion_clap.hook.CLAP_Module`. Deliberate differences: a `.pt` is read
    without the package; samples are not rounded to 16 bits first (the package does so, Transformers does not), so that quiet sounds of
    24-bit recordings stay what they are; a fused checkpoint is never told that a clip is longer than ten seconds, whereas Transformers'
    processor picks one of each batch at random to call so; vectors are not scaled to unit length here, the feature pipeline does it.
    """
    if source.suffix in {".pt", ".pth"}:
        model, filters, hop_samples = _read_package_checkpoint(source)
        tokenizer_folder = source.parent if (source.parent / "tokenizer.json").is_file() else locate("roberta_tokenizer")
    else:
        model, filters, hop_samples = _read_folder(source)
        tokenizer_folder = source
    text_config = model.config.text_config
    # Positions count from behind the padding's, as in every RoBERTa.
    max_tokens = text_config.max_position_embeddings - text_config.pad_token_id - 1
    tokenizer = HubTokenizer(tokenizer_folder, stream=NAME, max_tokens=max_tokens, vocab_size=text_config.vocab_size)
    weights = {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
    settings = (network_settings(model.config.audio_config), network_settings(text_config))
    fingerprint = weights_fingerprint(_CODE, {**weights, "filters": filters}, str(options.dtype), hop_samples, tokenizer.probe, *settings)
    front_end = LogMel(filters, hop_samples=hop_samples, device=options.device)
    return OpenedStream(
        LaionClapAudioEncoder(Htsat(model.audio_model, options), model.audio_projection, front_end, options),
        LaionClapTextEncoder(model.text_model, model.text_projection, tokenizer, options),
        fingerprint,
    )


def _read_folder(folder: Path) -> tuple[Any, Tensor, int]:
    """Return the model in float32, its mel filters and its hop."""
    lacking = [names[0] for names in _FILES if not any((folder / name).is_file() for name in names)]
    if lacking:
        raise CheckpointError(f"The encoder {NAME} in {folder} lacks {', '.join(lacking)}; download the whole model again.")
    from transformers import ClapFeatureExtractor, ClapModel

    with reading(NAME, folder):
        settings = ClapFeatureExtractor.from_pretrained(folder, local_files_only=True)
    model = load_network(NAME, ClapModel, folder, unused=_CONSTANTS)
    if (settings.sampling_rate, settings.nb_max_samples, settings.padding) != (SAMPLE_RATE_HZ, PADDED_SAMPLES, "repeatpad"):
        raise CheckpointError(
            f"The encoder {NAME} in {folder} is made for audio at {settings.sampling_rate} Hz, {settings.max_length_s} s, filled by "
            f"{settings.padding!r}; only {SAMPLE_RATE_HZ} Hz, 10 s and 'repeatpad' are supported. Choose another checkpoint."
        )
    filters = settings.mel_filters if settings.truncation == "fusion" else settings.mel_filters_slaney
    return model, torch.from_numpy(filters).float(), settings.hop_length


def _read_package_checkpoint(path: Path) -> tuple[Any, Tensor, int]:
    """Return the model in float32, its mel filters and its hop."""
    if not path.is_file():
        raise CheckpointError(f"The encoder {NAME} has no file {path}; correct the path.")
    with reading(NAME, path):
        from transformers import ClapModel

        state = read_checkpoint(path, "state_dict")
        config, converted = convert_laion_clap(state)
        model = ClapModel(config)
        fill(model, converted)
    audio = part(state, "audio_branch.")
    shape: dict[str, Any] = {
        "sample_rate_hz": SAMPLE_RATE_HZ,
        "fft_samples": 1024,
        "mels": len(audio["bn0.weight"]),
        "min_hz": 50,
        "max_hz": 14_000,
    }
    if is_fused(audio):
        return model, htk_filters(**shape), HOP_SAMPLES
    stored = audio.get("logmel_extractor.melW")
    return model, slaney_filters(**shape) if stored is None else stored.float(), HOP_SAMPLES
