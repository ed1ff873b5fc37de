"""LAION-CLAP: clip vectors and query vectors in one joint space, and the states of the query's tokens.

Also what it shares with MS-CLAP: the log-mel front end, the audio network HTSAT, and the reading of the packages' own checkpoints.
"""

from __future__ import annotations

import functools
import math
import re
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize, pad

from qamdetr.errors import CheckpointError
from qamdetr.features.base import AudioStream, EncoderOptions, TextStream, stream, weights_fingerprint
from qamdetr.features.hub import TOKENIZER, WEIGHTS, Hub, HubTokenizer, load_network, locate, network_settings, reading
from qamdetr.types import TextFeatures

SAMPLE_RATE_HZ = 48_000
PADDED_SAMPLES = 10 * SAMPLE_RATE_HZ
HOP_SAMPLES = 480

POWER_FLOOR = 1e-10  # smallest mel power, -100 dB, of both packages and Transformers
HEAD_DIM = 64  # width of an attention head in every RoBERTa and GPT-2; weights do not show it

State = dict[str, Tensor]

_SETTINGS = ("preprocessor_config.json", "processor_config.json")
_HUB = Hub(
    "laion/clap-htsat-unfused",
    "8fa0f1c6d0433df6e97c127f64b2a1d6c0dcda8a",
    618,
    ("config.json", "preprocessor_config.json", "tokenizer.json", "pytorch_model.bin"),
    (("config.json",), _SETTINGS, TOKENIZER, WEIGHTS),
)
ROBERTA_TOKENIZER = Hub(
    "FacebookAI/roberta-base",
    "e2da8e2f811d1448a5b465c236feacd80ffbac7b",
    1,
    ("tokenizer.json",),
    (TOKENIZER,),
    called="the tokeniser of laion_clap",
    otherwise="put a tokenizer.json of RoBERTa beside the checkpoint of laion_clap",
)


class LogMel:
    """Turns samples into mel power in dB, always in float32; the window is Hann (periodic), frames are centred, edges are reflected.

    Source: `torchlibrosa.stft` (both packages' front end) and Transformers' `ClapFeatureExtractor`, which agree on all of it. Theirs work
    clip by clip or on every repetition; this one does not.
    """

    def __init__(self, filters: Tensor, *, hop_samples: int, device: str = "cpu") -> None:
        """Build the front end for `filters` `(fft_samples / 2 + 1, mels)`."""
        self.hop_samples = hop_samples
        self.fft_samples = 2 * (filters.shape[0] - 1)
        # Bins above the highest filter need no power.
        self._used_bins = int(filters.abs().sum(dim=1).nonzero().max()) + 1
        self._filters = filters[: self._used_bins].float().to(device)
        self._window = torch.hann_window(self.fft_samples, device=device)

    def __call__(self, samples: Tensor) -> Tensor:
        """Return `(batch, n // hop + 1, mels)` dB of `samples` `(batch, n)`, `n > fft / 2`."""
        spectrum = torch.stft(
            samples, self.fft_samples, self.hop_samples, window=self._window, center=True, pad_mode="reflect", return_complex=True
        )[:, : self._used_bins]
        power = spectrum.real.square() + spectrum.imag.square()
        return 10.0 * torch.log10((power.transpose(1, 2) @ self._filters).clamp(min=POWER_FLOOR))

    def repeated(self, samples: Tensor, repeats: int) -> Tensor:
        """Return the dB of `samples` `(batch, n)` played `repeats` times over, `(batch, repeats * n // hop + 1, mels)`.

        Where the hop divides `n`, frames repeat too, but for those that touch an edge: two repetitions hold every frame there is, and the
        rest is copied.
        """
        step, rest = divmod(samples.shape[1], self.hop_samples)
        edge = -(-self.fft_samples // 2 // self.hop_samples)
        if rest or step < 2 * edge or repeats < 3:
            return self(samples.repeat(1, repeats))
        frames = self(samples.repeat(1, 2))
        middle = torch.cat([frames[:, step : step + edge], frames[:, edge:step]], dim=1)
        return torch.cat([frames[:, :step], middle.repeat(1, repeats - 2, 1), frames[:, step:]], dim=1)


def mel_filters(*, sample_rate_hz: int, mels: int, htk: bool = False) -> Tensor:
    """Return `(513, mels)` filters from 50 Hz to 14 kHz: Slaney's of unit area (`torchlibrosa`), or HTK's of unit height (`torchaudio`)."""
    import librosa

    norm: Literal["slaney"] | None = None if htk else "slaney"
    filters = librosa.filters.mel(sr=sample_rate_hz, n_fft=1024, n_mels=mels, fmin=50, fmax=14_000, htk=htk, norm=norm)
    return torch.from_numpy(filters).T.float()


class Htsat(nn.Module):
    """HTSAT, the audio network of both CLAPs: Transformers' `ClapAudioModel` on log-mels.

    Batch norm and stretch run in float32 whatever the options say: dB values are too coarse in `bfloat16`.
    """

    def __init__(self, model: Any, options: EncoderOptions) -> None:  # noqa: ANN401 - Transformers has no types
        """Take over `model` (it is changed: its batch norm moves here)."""
        super().__init__()
        encoder = model.audio_encoder
        self.norm: nn.Module = encoder.batch_norm.float().to(options.device)
        encoder.batch_norm = nn.Identity()
        self.model = model.to(options.device, options.dtype)
        self._dtype = options.dtype
        self._frames = encoder.spec_size * encoder.freq_ratio
        self.dim = int(encoder.num_features)
        self.eval()

    def forward(self, log_mels: Tensor) -> Tensor:
        """Encode `(batch, frames, mels)` dB to `(batch, dim)`, the mean over the last stage's patches, in the options' type."""
        x = self.norm(log_mels.transpose(1, 2).unsqueeze(-1)).permute(0, 3, 2, 1)
        x = interpolate(x, (self._frames, x.shape[-1]), mode="bicubic", align_corners=True).to(self._dtype)
        # A clip is never longer than the network's ten seconds, so that a fused checkpoint takes the path of the whole spectrogram alone.
        is_longer = torch.zeros(len(x), 1, dtype=torch.bool, device=x.device)
        pooled: Tensor = self.model(input_features=x, is_longer=is_longer).pooler_output
        return pooled


@stream("laion_clap", dim=512, text_dim=768, rate_hz=SAMPLE_RATE_HZ, hub=_HUB, label="LAION-CLAP")
class LaionClap(AudioStream, TextStream):
    """LAION-CLAP: `(clips, 512)` vectors in the joint space, not yet of unit length; `(tokens, 768)` RoBERTa states and the joint vector.

    Opens a folder with a `ClapModel` in the hub's layout, such as `laion/clap-htsat-unfused`; or a `.pt` checkpoint of the package
    `laion-clap`, whose tokeniser (`tokenizer.json`) lies beside it or else is RoBERTa's from the hub.

    Source: Transformers' `ClapModel` and `ClapFeatureExtractor`; `laion_clap.hook.CLAP_Module`. Deliberate differences: a `.pt` is read
    without the package; samples are not rounded to 16 bits first (the package does so, Transformers does not), so that quiet sounds of
    24-bit recordings stay what they are; a fused checkpoint is never told that a clip is longer than ten seconds, whereas Transformers'
    processor picks one of each batch at random to call so; vectors are not scaled to unit length here, the feature pipeline does it.
    """

    def __init__(self, folder: Path, options: EncoderOptions) -> None:
        super().__init__(folder, options)
        is_package = folder.suffix in {".pt", ".pth"}
        model, filters, hop_samples = _read_package_checkpoint(folder) if is_package else _read_folder(folder)
        if is_package:
            folder = folder.parent if (folder.parent / "tokenizer.json").is_file() else locate(self.name, ROBERTA_TOKENIZER)
        config = model.config.text_config
        # Positions count from behind the padding's, as in every RoBERTa.
        max_tokens = config.max_position_embeddings - config.pad_token_id - 1
        self._tokenizer = HubTokenizer(folder, stream=self.name, max_tokens=max_tokens, vocab_size=config.vocab_size)
        weights, settings = (
            {**model.state_dict(), "filters": filters},
            (network_settings(model.config.audio_config), network_settings(config)),
        )
        self.fingerprint = weights_fingerprint("laion_clap-1", weights, str(options.dtype), hop_samples, self._tokenizer.probe, *settings)
        self.front_end = LogMel(filters, hop_samples=hop_samples, device=options.device)
        self.htsat = Htsat(model.audio_model, options)
        self._text = model.text_model.to(options.device, options.dtype).eval()
        self._audio_projection = model.audio_projection.to(options.device, options.dtype).eval()
        self._text_projection = model.text_projection.to(options.device, options.dtype).eval()
        self.dim = int(self._audio_projection.linear2.out_features)

    def encode_windows(self, windows: Tensor) -> Tensor:
        """Encode `(batch, n)` to `(batch, 512)`."""
        joint: Tensor = self._audio_projection(self.htsat(self.log_mels(windows)))
        return joint

    def log_mels(self, windows: Tensor) -> Tensor:
        """Return `(batch, 1001, 64)` dB of `windows` `(batch, n <= 48000)`, filled to ten seconds as LAION-CLAP fills short audio.

        That is "repeatpad": as many whole repetitions as fit, then silence.
        """
        repeats, rest = divmod(PADDED_SAMPLES, windows.shape[1])
        if rest:
            return self.front_end(pad(windows.repeat(1, repeats), (0, rest)))
        return self.front_end.repeated(windows, repeats)

    @torch.inference_mode()
    def encode_text(self, query: str) -> TextFeatures:
        """Encode one query; see `TextStream`."""
        features, output = self._tokenizer.states(self._text, query)
        return replace(features, pooled=normalize(self._text_projection(output.pooler_output)[0].float(), dim=-1).cpu().clone())


def _read_folder(folder: Path) -> tuple[Any, Tensor, int]:
    """Return the model in float32, its mel filters and its hop."""
    lacking = [names[0] for names in _HUB.groups[:-1] if not any((folder / name).is_file() for name in names)]
    if lacking:
        raise CheckpointError(f"The encoder laion_clap in {folder} lacks {', '.join(lacking)}; download the whole model again.")
    from transformers import ClapFeatureExtractor, ClapModel

    with reading("laion_clap", folder):
        settings = ClapFeatureExtractor.from_pretrained(folder, local_files_only=True)
    constants = ("text_model.embeddings.position_ids", "text_model.embeddings.token_type_ids")
    model = load_network("laion_clap", ClapModel, folder, unused=constants)
    if (settings.sampling_rate, settings.nb_max_samples, settings.padding) != (SAMPLE_RATE_HZ, PADDED_SAMPLES, "repeatpad"):
        raise CheckpointError(
            f"The encoder laion_clap in {folder} is made for audio at {settings.sampling_rate} Hz, {settings.max_length_s} s, filled by "
            f"{settings.padding!r}; only {SAMPLE_RATE_HZ} Hz, 10 s and 'repeatpad' are supported. Choose another checkpoint."
        )
    filters = settings.mel_filters if settings.truncation == "fusion" else settings.mel_filters_slaney
    return model, torch.from_numpy(filters).float(), settings.hop_length


def _read_package_checkpoint(path: Path) -> tuple[Any, Tensor, int]:
    """Return the model in float32, its mel filters and its hop."""
    if not path.is_file():
        raise CheckpointError(f"The encoder laion_clap has no file {path}; correct the path.")
    with reading("laion_clap", path):
        from transformers import ClapModel

        state = read_checkpoint(path, "state_dict")
        config, converted = convert_laion_clap(state)
        model = ClapModel(config)
        fill(model, converted)
    audio = part(state, "audio_branch.")
    if "logmel_extractor.melW" in audio and not is_fused(audio):
        return model, audio["logmel_extractor.melW"].float(), HOP_SAMPLES
    return model, mel_filters(sample_rate_hz=SAMPLE_RATE_HZ, mels=len(audio["bn0.weight"]), htk=is_fused(audio)), HOP_SAMPLES


# The checkpoints of the packages `laion-clap` and `msclap`, whose weights get the names that Transformers' models have. The packages
# themselves are not needed: sizes are told from the weights' shapes, and names are translated by rule.
# Source: names of `laion_clap.clap_module` 1.1.7 and `msclap.models` 1.3.4 on one side, `transformers.models.clap` on the other.

_NOT_USED = re.compile(
    r"(spectrogram_extractor|logmel_extractor|spec_augmenter|tscam_conv|head|fusion_model|mel_conv2d)\.|"
    r"patch_embed\.(fusion_model|mel_conv2d)\.|.*\.(attn_mask|relative_position_index)$"
)
"""Weights without a part in a clip's features: front end, classifier, constants, and the fusion of recordings over ten seconds."""

_CONSTANTS = re.compile(r".*(position_ids|token_type_ids|relative_position_index|num_batches_tracked)$|logit_scale_[at]$")
"""Buffers that models compute themselves, and numbers that no feature passes through."""

_HTSAT_NAMES = (
    ("bn0.", "batch_norm."),
    (".norm1.", ".layernorm_before."),
    (".norm2.", ".layernorm_after."),
    (".attn.proj.", ".attention.output.dense."),
    (".attn.", ".attention.self."),
    (".mlp.fc1.", ".intermediate.dense."),
    (".mlp.fc2.", ".output.dense."),
)


def read_checkpoint(path: Path, wrapper: str) -> State:
    """Read the weights of a `.pt` or `.pth` file, without running code that may hide in it; raises what torch does on a damaged one.

    `wrapper` is the key under which the package keeps the weights, beside its optimiser and the like; files without it are taken whole.
    """
    # Training scripts left NumPy numbers (best scores) in these files, under the module names of NumPy 1 or 2.
    make_number: Any = np.float64(0).__reduce__()[0]
    harmless: list[Any] = [(make_number, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    harmless += [np.dtype, *{type(np.dtype(kind)) for kind in "fdilq?"}]
    with torch.serialization.safe_globals(harmless):
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    weights = content.get(wrapper, content) if isinstance(content, dict) else None
    if not isinstance(weights, Mapping) or not any(isinstance(value, Tensor) for value in weights.values()):
        raise CheckpointError(f"{path} holds no weights under {wrapper!r}; it is not a checkpoint of the package. Download it again.")
    return {str(name).removeprefix("module."): value for name, value in weights.items() if isinstance(value, Tensor)}


def part(state: Mapping[str, Tensor], prefix: str) -> State:
    """Weights whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def htsat_config(state: Mapping[str, Tensor], **others: Any) -> Any:  # noqa: ANN401 - Transformers has no types
    """Tell the `ClapAudioConfig` of an original HTSAT from its weights; 256 x 256 patches of stride 4, as both packages have it."""
    from transformers import ClapAudioConfig

    try:
        blocks = [re.match(r"layers\.(\d+)\.blocks\.(\d+)\.norm1\.weight", name) for name in state]
        places = [(int(match[1]), int(match[2])) for match in blocks if match]
        stages = 1 + max(stage for stage, _ in places)
        tables = [state[f"layers.{stage}.blocks.0.attn.relative_position_bias_table"] for stage in range(stages)]
        patches = state["patch_embed.proj.weight"]
        return ClapAudioConfig(
            num_mel_bins=len(state["bn0.weight"]),
            patch_size=patches.shape[-1],
            patch_embeds_hidden_size=patches.shape[0],
            depths=[1 + max(block for stage, block in places if stage == wanted) for wanted in range(stages)],
            num_attention_heads=[table.shape[1] for table in tables],
            window_size=(math.isqrt(tables[0].shape[0]) + 1) // 2,
            hidden_size=len(state["norm.weight"]),
            mlp_ratio=state["layers.0.blocks.0.mlp.fc1.weight"].shape[0] / patches.shape[0],
            **others,
        )
    except (KeyError, ValueError) as error:
        what = f"The checkpoint has no HTSAT audio network ({error})"
        raise CheckpointError(what, "choose a checkpoint whose audio model is HTSAT") from error


def convert_htsat(state: Mapping[str, Tensor]) -> State:
    """Give the weights of an original HTSAT the names of Transformers' `ClapAudioEncoder`."""
    converted: State = {}
    for original, value in state.items():
        name = functools.reduce(lambda name, pair: name.replace(*pair), _HTSAT_NAMES, original)
        if _NOT_USED.match(original):
            continue
        if ".qkv." in name:
            thirds = zip(("query", "key", "value"), value.chunk(3), strict=True)
            converted |= {name.replace(".qkv.", f".{key}."): third for key, third in thirds}
        else:
            converted[name] = value
    return converted


def is_fused(state: Mapping[str, Tensor]) -> bool:
    """Say whether an original HTSAT was trained with fusion, which goes with HTK filters."""
    return any(name.startswith(("patch_embed.mel_conv2d.", "patch_embed.fusion_model.")) for name in state)


def convert_laion_clap(state: Mapping[str, Tensor]) -> tuple[Any, State]:
    """Tell `ClapConfig` and the weights of `ClapModel` from a checkpoint of the package `laion-clap`."""
    from transformers import ClapConfig, ClapTextConfig

    audio, text = part(state, "audio_branch."), part(state, "text_branch.")
    if "embeddings.word_embeddings.weight" not in text or "text_projection.0.weight" not in state:
        what = "The checkpoint has no RoBERTa text network"
        raise CheckpointError(what, "choose one of the package's checkpoints with `tmodel='roberta'`")
    words, hidden = text["embeddings.word_embeddings.weight"].shape
    joint = state["text_projection.2.weight"].shape[0]
    text_config = ClapTextConfig(
        vocab_size=words,
        hidden_size=hidden,
        num_hidden_layers=1 + max(int(match[1]) for name in text if (match := re.match(r"encoder\.layer\.(\d+)\.", name))),
        num_attention_heads=max(hidden // HEAD_DIM, 1),
        intermediate_size=text["encoder.layer.0.intermediate.dense.weight"].shape[0],
        max_position_embeddings=text["embeddings.position_embeddings.weight"].shape[0],
        # RoBERTa's, which the package trains; the default of `ClapTextConfig` is another.
        layer_norm_eps=1e-5,
        projection_dim=joint,
    )
    audio_config = htsat_config(audio, projection_dim=joint)
    config = ClapConfig(text_config=text_config.to_dict(), audio_config=audio_config.to_dict(), projection_dim=joint)
    converted = {f"audio_model.audio_encoder.{name}": value for name, value in convert_htsat(audio).items()}
    converted |= {f"text_model.{name}": value for name, value in text.items() if not name.endswith(("position_ids", "token_type_ids"))}
    for modality in ("audio", "text"):
        for number, layer in ((0, "linear1"), (2, "linear2")):
            projection = part(state, f"{modality}_projection.{number}.")
            converted |= {f"{modality}_projection.{layer}.{name}": value for name, value in projection.items()}
    return config, converted


def fill(model: Any, state: Mapping[str, Tensor]) -> None:  # noqa: ANN401
    """Load weights into a Transformers model, in float32; they must be complete, but for constants and the scale of similarities."""
    weights = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    lacking, surplus = model.load_state_dict(weights, strict=False)
    lacking = [name for name in lacking if not _CONSTANTS.match(name)]
    if lacking or surplus:
        counts = f"{len(lacking)} weights missing, {len(surplus)} unknown, such as {[*lacking, *surplus][0]}"
        what = f"The checkpoint does not fit its network ({counts})"
        raise CheckpointError(what, "it is another model's, or incomplete. Download it again")
