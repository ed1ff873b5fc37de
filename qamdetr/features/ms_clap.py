"""MS-CLAP 2023 as the field's public feature files have it: HTSAT clip vectors before projection, GPT-2 token states."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, normalize

from qamdetr.features import clap
from qamdetr.features.base import AudioStream, EncoderOptions, TextStream, stream, weights_fingerprint
from qamdetr.features.hub import TOKENIZER, Hub, HubTokenizer, network_settings, reading
from qamdetr.types import TextFeatures

WEIGHTS_FILE = "CLAP_weights_2023.pth"
SAMPLE_RATE_HZ = 44_100
HOP_SAMPLES = 320
MAX_TOKENS = 77
QUERY_END = " <|endoftext|>"
PADDING = "!"  # what the package pads with; as a special token it is cut off by itself wherever a query has it

GPT2_TOKENIZER = Hub(
    "openai-community/gpt2",
    "607a30d783dfa663caf39e06633721c8d4cfcd7e",
    1,
    ("tokenizer.json",),
    (TOKENIZER,),
    called="the tokeniser of ms_clap",
    otherwise="put a tokenizer.json of GPT-2 beside the weights of ms_clap",
)
_HUB = Hub("microsoft/msclap", "c47d441165daa21986ead0850660917636a81775", 690, (WEIGHTS_FILE,), beside=GPT2_TOKENIZER)


@stream("ms_clap", dim=768, rate_hz=SAMPLE_RATE_HZ, hub=_HUB, label="MS-CLAP")
class MsClap(AudioStream, TextStream):
    """MS-CLAP 2023: `(clips, 768)` outputs of HTSAT before the projection; `(tokens, 768)` GPT-2 states, the end token's included.

    Opens the published `CLAP_weights_2023.pth`, or the folder that holds it.

    Source: `msclap` 1.3.4, and how the public files were made (https://github.com/line/lighthouse,
    `feature_extractor/audio_encoders/clap_a.py` and `text_encoders/clap_t.py`): one-second windows that are not repeated to the network's
    seven seconds, the output before projection, the token states of GPT-2. Deliberate differences: a last second that is not full is kept,
    filled with its own repetition as the package fills short audio (the public files drop it); queries are not padded to 77 tokens,
    which changes nothing, as GPT-2 looks back only.
    """

    def __init__(self, folder: Path, options: EncoderOptions) -> None:
        super().__init__(folder, options)
        path = folder if folder.suffix in {".pt", ".pth"} else folder / WEIGHTS_FILE
        with reading(self.name, path):
            from transformers import ClapAudioModel, GPT2Model

            state = clap.read_checkpoint(path, "model")
            htsat = clap.part(state, "audio_encoder.base.htsat.")
            audio: Any = ClapAudioModel(clap.htsat_config(htsat))
            clap.fill(audio.audio_encoder, clap.convert_htsat(htsat))
            config, weights = convert_gpt2(clap.part(state, "caption_encoder.base."))
            text: Any = GPT2Model(config)
            clap.fill(text, weights)
            stored = htsat.get("logmel_extractor.melW")
            # The network's settings override the package's rate, so that "50 Hz" lies at 69 Hz, and so on.
            filters = clap.mel_filters(32_000) if stored is None else stored.float()
        folder, words = clap.tokenizer_beside(path, self.name, GPT2_TOKENIZER), text.config.vocab_size
        self._tokenizer = HubTokenizer(folder, self.name, max_tokens=MAX_TOKENS, suffix=QUERY_END, apart=(PADDING,), vocab_size=words)
        weights = {f"{side}.{name}": value for side, net in (("audio", audio), ("text", text)) for name, value in net.state_dict().items()}
        weights["filters"] = filters
        settings = (network_settings(audio.config), network_settings(text.config))
        self.fingerprint = weights_fingerprint("ms_clap-1", weights, str(options.dtype), HOP_SAMPLES, self._tokenizer.probe, *settings)
        self._filters = filters.to(options.device)
        self.htsat = clap.Htsat(audio, options)
        self._text = text.to(options.device, options.dtype).eval()
        self.dim = self.htsat.dim

    def encode_windows(self, windows: Tensor) -> Tensor:
        """Encode `(batch, n <= 44100)` to `(batch, 768)`."""
        vectors: Tensor = self.htsat(self.log_mels(windows))
        return vectors

    def log_mels(self, windows: Tensor) -> Tensor:
        """Return `(batch, 138, 64)` dB of `windows` `(batch, n <= 44100)`, repeated to a whole second."""
        whole = windows.repeat(1, -(-SAMPLE_RATE_HZ // windows.shape[1]))[:, :SAMPLE_RATE_HZ]
        return clap.mel_db(whole, self._filters, HOP_SAMPLES)

    @torch.inference_mode()
    def encode_text(self, query: str) -> TextFeatures:
        """Encode one query of at most 77 tokens; see `TextStream`. Nothing is pooled."""
        return self._tokenizer.states(self._text, query)[0]


@stream("ms_clap_joint", dim=1024, text_dim=768, rate_hz=SAMPLE_RATE_HZ, hub=_HUB, label="MS-CLAP, joint")
class MsClapJoint(MsClap):
    """MS-CLAP 2023 after its projections: `(clips, 1024)`, and queries with a pooled vector, in one space; the rest as in `MsClap`.

    Source: `msclap` 1.3.4, `models.clap.Projection`: a linear map, and what a second one makes of it behind a GELU, under a LayerNorm.
    The sentence is the state of its end token.
    """

    is_joint = True

    def __init__(self, folder: Path, options: EncoderOptions) -> None:
        super().__init__(folder, options)
        path = folder if folder.suffix in {".pt", ".pth"} else folder / WEIGHTS_FILE
        with reading(self.name, path):
            state = clap.read_checkpoint(path, "model")
            parts = {side: clap.part(state, f"{side}_encoder.projection.") for side in ("audio", "caption")}
            self._projections = {side: Projection(part).to(options.device, options.dtype).eval() for side, part in parts.items()}
        weights = {f"{side}.{name}": value for side, part in parts.items() for name, value in part.items()}
        self.fingerprint = weights_fingerprint("ms_clap_joint-1", weights, self.fingerprint)
        self.dim = self._projections["audio"].linear2.out_features

    def encode_windows(self, windows: Tensor) -> Tensor:
        """Encode `(batch, n <= 44100)` to `(batch, 1024)`."""
        vectors: Tensor = self._projections["audio"](super().encode_windows(windows))
        return vectors

    @torch.inference_mode()
    def encode_text(self, query: str) -> TextFeatures:
        """Encode one query of at most 77 tokens; see `TextStream`."""
        features, output = self._tokenizer.states(self._text, query)
        joint = self._projections["caption"](output.last_hidden_state[0, -1])
        return replace(features, pooled=normalize(joint.float(), dim=-1).cpu().clone())


class Projection(nn.Module):
    """A vector of one side to the joint space; its sizes are those of its weights."""

    def __init__(self, state: clap.State) -> None:
        super().__init__()
        joint, source = state["linear1.weight"].shape
        self.linear1, self.linear2 = nn.Linear(source, joint, bias=False), nn.Linear(joint, joint, bias=False)
        self.layer_norm = nn.LayerNorm(joint)
        self.load_state_dict({name: value.float() for name, value in state.items()})

    def forward(self, vectors: Tensor) -> Tensor:
        """Map `(…, source)` to `(…, joint)`."""
        straight = self.linear1(vectors)
        mapped: Tensor = self.layer_norm(straight + self.linear2(gelu(straight)))
        return mapped


def convert_gpt2(state: clap.State) -> tuple[Any, clap.State]:
    """Tell `GPT2Config` and the weights of `GPT2Model`, whose names need no change."""
    from transformers import GPT2Config

    layers = [int(match[1]) for name in state if (match := re.match(r"h\.(\d+)\.ln_1\.weight", name))]
    words, width = state["wte.weight"].shape
    # Nothing is generated, and small vocabularies do not have GPT-2's numbers.
    others: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "use_cache": False}
    positions, depth, heads = len(state["wpe.weight"]), 1 + max(layers), width // clap.HEAD_DIM
    config = GPT2Config(vocab_size=words, n_positions=positions, n_embd=width, n_layer=depth, n_head=heads, **others)
    return config, {name: value for name, value in state.items() if not re.search(r"\.attn\.(bias|masked_bias)$", name)}
