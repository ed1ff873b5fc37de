"""LAION-CLAP, and what it shares with MS-CLAP: the log-mel front end, the audio network HTSAT, the reading of the packages' checkpoints."""

from __future__ import annotations

import functools
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, pad

from qamdetr.errors import CheckpointError
from qamdetr.features.base import AudioStream, EncoderOptions, TextStream, stream, weights_fingerprint
from qamdetr.features.hub import TOKENIZER, WEIGHTS, Hub, HubTokenizer, load_network, locate, network_settings, reading
from qamdetr.types import TextFeatures

SAMPLE_RATE_HZ = 48_000
PADDED_SAMPLES = 10 * SAMPLE_RATE_HZ
HOP_SAMPLES = 480

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


def mel_db(samples: Tensor, filters: Tensor, hop_samples: int) -> Tensor:
    """Return `(batch, n // hop + 1, mels)` dB of `samples` `(batch, n)` in float32, `n > fft / 2`, `filters` `(fft / 2 + 1, mels)`.

    The window is Hann (periodic), frames are centred, edges are reflected; the smallest power is -100 dB.
    Source: `torchlibrosa.stft` (both packages' front end) and Transformers' `ClapFeatureExtractor`, which runs on the CPU alone.
    """
    fft_samples = 2 * (len(filters) - 1)
    window = torch.hann_window(fft_samples, device=samples.device)
    spectrum = torch.stft(samples, fft_samples, hop_samples, window=window, pad_mode="reflect", return_complex=True)
    power = spectrum.real.square() + spectrum.imag.square()
    return 10.0 * torch.log10((power.transpose(1, 2) @ filters).clamp(min=1e-10))


def mel_filters(sample_rate_hz: int, *, htk: bool = False) -> Tensor:
    """Return `(513, 64)` filters from 50 Hz to 14 kHz: Slaney's of unit area (`torchlibrosa`), or HTK's of unit height (`torchaudio`)."""
    import librosa

    options: dict[str, Any] = {"htk": htk, "norm": None if htk else "slaney"}
    return torch.from_numpy(librosa.filters.mel(sr=sample_rate_hz, n_fft=1024, n_mels=64, fmin=50, fmax=14_000, **options)).T.float()


class Htsat(nn.Module):
    """HTSAT, the audio network of both CLAPs: Transformers' `ClapAudioModel` on log-mels.

    Batch norm and stretch run in float32 whatever the options say: dB values are too coarse in `bfloat16`.
    """

    def __init__(self, model: Any, options: EncoderOptions) -> None:  # noqa: ANN401 - Transformers has no types
        super().__init__()
        self.model = model.to(options.device, options.dtype).eval()
        model.audio_encoder.batch_norm.float()
        model.audio_encoder.patch_embed.register_forward_pre_hook(lambda _, inputs: (inputs[0].to(options.dtype), *inputs[1:]))
        self.dim = int(model.audio_encoder.num_features)

    def forward(self, log_mels: Tensor) -> Tensor:
        """Encode `(batch, frames, mels)` dB to `(batch, dim)`, the mean over the last stage's patches, in the options' type."""
        # A clip is never longer than the network's ten seconds, so that a fused checkpoint takes the path of the whole spectrogram alone.
        is_longer = torch.zeros(len(log_mels), 1, dtype=torch.bool, device=log_mels.device)
        pooled: Tensor = self.model(input_features=log_mels.unsqueeze(1), is_longer=is_longer).pooler_output
        return pooled


@stream("laion_clap", dim=512, text_dim=768, rate_hz=SAMPLE_RATE_HZ, hub=_HUB, label="LAION-CLAP")
class LaionClap(AudioStream, TextStream):
    """LAION-CLAP: `(clips, 512)` vectors in the joint space, not yet of unit length; `(tokens, 768)` RoBERTa states and the joint vector.

    Opens a folder with a `ClapModel` in the hub's layout, or a `.pt` checkpoint of the package `laion-clap`.

    Source: Transformers' `ClapModel` and `ClapFeatureExtractor`; `laion_clap.hook.CLAP_Module`. Deliberate differences: samples are not
    rounded to 16 bits first, as the package does, so that quiet sounds of 24-bit recordings stay what they are; a fused checkpoint is
    never told that a clip is longer than ten seconds, whereas Transformers' processor calls one of each batch so, at random.
    """

    is_joint = True

    def __init__(self, folder: Path, options: EncoderOptions) -> None:
        super().__init__(folder, options)
        is_package = folder.suffix in {".pt", ".pth"}
        model, filters = _read_package_checkpoint(folder) if is_package else _read_folder(folder)
        folder = tokenizer_beside(folder, self.name, ROBERTA_TOKENIZER) if is_package else folder
        config = model.config.text_config
        # Positions count from behind the padding's, as in every RoBERTa.
        max_tokens = config.max_position_embeddings - config.pad_token_id - 1
        self._tokenizer = HubTokenizer(folder, self.name, max_tokens=max_tokens, vocab_size=config.vocab_size)
        weights = {**model.state_dict(), "filters": filters}
        settings = network_settings(model.config.audio_config), network_settings(config)
        self.fingerprint = weights_fingerprint("laion_clap-1", weights, str(options.dtype), HOP_SAMPLES, self._tokenizer.probe, *settings)
        self._filters = filters.to(options.device)
        self.htsat = Htsat(model.audio_model, options)
        self._text, self._audio_projection, self._text_projection = (
            network.to(options.device, options.dtype).eval()
            for network in (model.text_model, model.audio_projection, model.text_projection)
        )
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
        return mel_db(pad(windows.repeat(1, repeats), (0, rest)), self._filters, HOP_SAMPLES)

    @torch.inference_mode()
    def encode_text(self, query: str) -> TextFeatures:
        """Encode one query; see `TextStream`."""
        features, output = self._tokenizer.states(self._text, query)
        return replace(features, pooled=normalize(self._text_projection(output.pooler_output)[0].float(), dim=-1).cpu().clone())


def _read_folder(folder: Path) -> tuple[Any, Tensor]:
    """Return the model in float32 and its mel filters."""
    from transformers import ClapFeatureExtractor, ClapModel

    with reading("laion_clap", folder):
        settings = ClapFeatureExtractor.from_pretrained(folder, local_files_only=True)
    constants = ("text_model.embeddings.position_ids", "text_model.embeddings.token_type_ids")
    model = load_network("laion_clap", ClapModel, folder, unused=constants)
    found = (settings.sampling_rate, settings.nb_max_samples, settings.hop_length, settings.padding)
    if found != (SAMPLE_RATE_HZ, PADDED_SAMPLES, HOP_SAMPLES, "repeatpad"):
        wanted = f"rate, samples, hop and padding must be {SAMPLE_RATE_HZ}, {PADDED_SAMPLES}, {HOP_SAMPLES} and 'repeatpad'"
        raise CheckpointError(f"The encoder laion_clap in {folder} is made for audio of other settings {found}; {wanted}", "choose another")
    filters = settings.mel_filters if settings.truncation == "fusion" else settings.mel_filters_slaney
    return model, torch.from_numpy(filters).float()


def _read_package_checkpoint(path: Path) -> tuple[Any, Tensor]:
    """Return the model in float32 and its mel filters."""
    with reading("laion_clap", path):
        from transformers import ClapModel

        state = read_checkpoint(path, "state_dict")
        config, converted = convert_laion_clap(state)
        model = ClapModel(config)
        fill(model, converted)
    # HTSATs that were trained with fusion have HTK filters.
    fused = any(name.startswith(("audio_branch.patch_embed.mel_conv2d.", "audio_branch.patch_embed.fusion_model.")) for name in state)
    stored = None if fused else state.get("audio_branch.logmel_extractor.melW")
    return model, mel_filters(SAMPLE_RATE_HZ, htk=fused) if stored is None else stored.float()


def tokenizer_beside(checkpoint: Path, stream: str, default: Hub) -> Path:
    """Folder of the tokeniser that goes with a package's checkpoint: beside it, or else the hub's."""
    return checkpoint.parent if (checkpoint.parent / "tokenizer.json").is_file() else locate(stream, default)


# The checkpoints of the packages, which themselves are not needed: sizes are told from the weights' shapes, names are translated by rule.
# Source: names of `laion_clap.clap_module` 1.1.7 and `msclap.models` 1.3.4 on one side, `transformers.models.clap` on the other.

# Weights without a part in a clip's features: front end, classifier, constants, and the fusion of recordings over ten seconds.
_NOT_USED = re.compile(
    r"(spectrogram_extractor|logmel_extractor|spec_augmenter|tscam_conv|head|fusion_model|mel_conv2d)\.|"
    r"patch_embed\.(fusion_model|mel_conv2d)\.|.*\.(attn_mask|relative_position_index)$"
)
# Buffers that models compute themselves, and numbers that no feature passes through.
_CONSTANTS = re.compile(r".*(position_ids|token_type_ids|relative_position_index|num_batches_tracked)$|logit_scale_[at]$")

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

    `wrapper` is the key under which the package keeps them, beside its optimiser and the like; files without it are taken whole.
    """
    # Training scripts left NumPy numbers (best scores) in these files, under the module names of NumPy 1 or 2.
    make_number: Any = np.float64(0).__reduce__()[0]
    harmless: list[Any] = [(make_number, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    harmless += [np.dtype, *{type(np.dtype(kind)) for kind in "fdilq?"}]
    with torch.serialization.safe_globals(harmless):
        content = torch.load(path, map_location="cpu", weights_only=True)
    return {str(name).removeprefix("module."): value for name, value in content.get(wrapper, content).items() if torch.is_tensor(value)}


def part(state: State, prefix: str) -> State:
    """Weights whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def htsat_config(state: State, **others: Any) -> Any:  # noqa: ANN401 - Transformers has no types
    """Tell the `ClapAudioConfig` of an original HTSAT from its weights; mels, patches and windows are those of both packages."""
    from transformers import ClapAudioConfig

    depths = Counter(match[1] for name in state if (match := re.match(r"layers\.(\d)\.blocks\.\d+\.norm1\.weight", name)))
    stages = sorted(depths)
    return ClapAudioConfig(
        patch_embeds_hidden_size=len(state["patch_embed.proj.weight"]),
        depths=[depths[stage] for stage in stages],
        num_attention_heads=[state[f"layers.{stage}.blocks.0.attn.relative_position_bias_table"].shape[1] for stage in stages],
        hidden_size=len(state["norm.weight"]),
        **others,
    )


def convert_htsat(state: State) -> State:
    """Give the weights of an original HTSAT the names of Transformers' `ClapAudioEncoder`."""
    converted: State = {}
    for original, value in state.items():
        name = functools.reduce(lambda name, pair: name.replace(*pair), _HTSAT_NAMES, original)
        if ".qkv." in name:
            thirds = zip(("query", "key", "value"), value.chunk(3), strict=True)
            converted |= {name.replace(".qkv.", f".{key}."): third for key, third in thirds}
        elif not _NOT_USED.match(original):
            converted[name] = value
    return converted


def convert_laion_clap(state: State) -> tuple[Any, State]:
    """Tell `ClapConfig` and the weights of `ClapModel` from a checkpoint of the package `laion-clap`."""
    from transformers import ClapConfig, ClapTextConfig

    audio, text = part(state, "audio_branch."), part(state, "text_branch.")
    words, hidden = text["embeddings.word_embeddings.weight"].shape
    joint = state["text_projection.2.weight"].shape[0]
    text_config = ClapTextConfig(
        vocab_size=words,
        hidden_size=hidden,
        num_hidden_layers=1 + max(int(match[1]) for name in text if (match := re.match(r"encoder\.layer\.(\d+)\.", name))),
        num_attention_heads=hidden // HEAD_DIM,
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
    for name, value in state.items():
        if match := re.match(r"((?:audio|text)_projection)\.([02])\.(.*)", name):
            converted[f"{match[1]}.linear{1 + int(match[2]) // 2}.{match[3]}"] = value
    return config, converted


def fill(model: Any, state: State) -> None:  # noqa: ANN401
    """Load weights into a Transformers model in float32; they must be complete, but for constants and the scale of similarities."""
    lacking, surplus = model.load_state_dict(state, strict=False)
    lacking = [name for name in lacking if not _CONSTANTS.match(name)]
    if lacking or surplus:
        counts = f"{len(lacking)} weights missing, {len(surplus)} unknown, such as {[*lacking, *surplus][0]}"
        raise CheckpointError(f"The checkpoint does not fit its network ({counts})", "download it again, or name another")
