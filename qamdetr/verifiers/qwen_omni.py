"""The `qwen2.5-omni` verifier: the Thinker of Qwen2.5-Omni through Transformers, asked for the logits of "Yes" and "No"."""

from __future__ import annotations

import functools
import importlib.util
import json
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qamdetr.errors import CheckpointError, QamDetrError
from qamdetr.features.hub import Hub, locate, one_line
from qamdetr.features.store import quick_key
from qamdetr.types import Candidate, Recording, TextFeatures
from qamdetr.verifiers import prompt
from qamdetr.verifiers.base import SAMPLE_RATE_HZ, Crop, PartialAnswersError, Verifier, read_crops, verifier

DEFAULT_MODEL = "Qwen/Qwen2.5-Omni-7B"
"""The report names no size; this is the larger of the two. Where it does not fit, `Qwen/Qwen2.5-Omni-3B` takes half the memory."""

DOWNLOAD_GIGABYTES: Mapping[str, int] = {DEFAULT_MODEL: 22, "Qwen/Qwen2.5-Omni-3B": 12}
"""Size of the published files in bfloat16; they hold the talker, too, which is not loaded."""

_PATTERNS = ("*.json", "*.safetensors", "merges.txt")
_HUB = Hub(
    DEFAULT_MODEL,
    "main",
    1000 * DOWNLOAD_GIGABYTES[DEFAULT_MODEL],
    files=(),
    needed=(
        ("config.json",),
        ("preprocessor_config.json", "processor_config.json"),  # newer versions of Transformers save it under the second name
        ("tokenizer.json", "vocab.json"),
        ("model.safetensors.index.json", "model.safetensors"),
    ),
    patterns=_PATTERNS,
    called="the verifier's model",
    otherwise="set verifier.model to a local folder",
    instead="verifier 'pocket', which needs no download",
)

_AUDIO_TOKEN = "<|AUDIO|>"
_CHAT = (
    "<|im_start|>system\n{system}<|im_end|>\n"
    "<|im_start|>user\n<|audio_bos|>{audio}<|audio_eos|>{question}<|im_end|>\n"
    "<|im_start|>assistant\n"
)
_MODEL_TYPES = ("qwen2_5_omni", "qwen2_5_omni_thinker")

_opening = threading.Lock()


@verifier("qwen2.5-omni", label="Qwen2.5-Omni", hears=True)
class QwenOmniVerifier(Verifier):
    """Asks Qwen2.5-Omni whether each candidate covers the moment of the query. The model is loaded when it is first asked.

    Source: report section 2.3 (frozen, Yes/No logits). Here: the prompt's words, and the size of the model, on which it is silent.
    """

    @property
    def identity(self) -> str:
        """Name, files of the model, arithmetic and prompt."""
        folder = locate_model(self.settings.model)
        arithmetic = "4-bit" if self.settings.four_bit else str(self._dtype()).removeprefix("torch.")
        return f"{self.name} {_fingerprint(folder)} {arithmetic} prompt-{prompt.fingerprint(_CHAT)}"

    def check(self) -> None:
        """Find the model's files, or fetch them, without loading them; refuse 4-bit weights where they cannot run."""
        if self.settings.four_bit and not torch.cuda.is_available():
            raise QamDetrError("verifier.four_bit needs an NVIDIA GPU, and none is here; set it to false, or use verifier 'server'.")
        if self.settings.four_bit and importlib.util.find_spec("bitsandbytes") is None:
            raise QamDetrError("verifier.four_bit needs the package bitsandbytes; run `pip install bitsandbytes`, or set it to false.")
        locate_model(self.settings.model)

    def verify(self, recording: Recording, query: str, text: Mapping[str, TextFeatures], candidates: Sequence[Candidate]) -> list[float]:
        """Score candidates, crops of like length together, so that little is padded."""
        self.check()
        with _opening:  # two threads must not load it twice
            thinker = open_thinker(locate_model(self.settings.model), self._dtype(), four_bit=self.settings.four_bit)
        crops = read_crops(recording, candidates, thinker.extractor.n_samples / SAMPLE_RATE_HZ)
        order = sorted(range(len(crops)), key=lambda index: len(crops[index].samples))
        scores: dict[int, float] = {}
        for begin in range(0, len(order), self.settings.batch_size):
            chunk = order[begin : begin + self.settings.batch_size]
            heard = [crops[index] for index in chunk]
            try:
                scores |= zip(chunk, thinker.yes_probabilities(heard, query), strict=True)
            except (torch.OutOfMemoryError, MemoryError) as error:
                longest = max(crop.duration_seconds for crop in heard)
                remedy = f"lower verifier.batch_size ({self.settings.batch_size}), set verifier.four_bit, or take a smaller verifier.model"
                told = f"{len(heard)} crops of up to {longest:.0f} s do not fit in memory; {remedy}."
                raise PartialAnswersError(told, scores) from error
        return [scores[index] for index in range(len(crops))]

    def _dtype(self) -> torch.dtype:
        auto = "bfloat16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "float32"
        dtype: torch.dtype = getattr(torch, auto if self.settings.dtype == "auto" else self.settings.dtype)
        return dtype


@dataclass(frozen=True)
class Thinker:
    """A loaded model with what belongs to it."""

    model: Any  # `Qwen2_5OmniThinkerForConditionalGeneration`, which gives the logits of the last position only
    tokenizer: Any
    extractor: Any  # its `WhisperFeatureExtractor`
    yes_ids: tuple[int, ...]  # tokens that spell the word
    no_ids: tuple[int, ...]
    _running: threading.Lock = field(default_factory=threading.Lock)

    def yes_probabilities(self, crops: Sequence[Crop], query: str) -> list[float]:
        """One forward pass over a batch; one score in [0, 1] per crop, the same whatever else is in the batch."""
        inputs = {name: value.to(self.model.device) for name, value in self.inputs(crops, query).items()}
        with self._running, torch.inference_mode():
            logits = self.model(**inputs, use_cache=False).logits[:, -1].float().cpu()
        return [prompt.yes_probability(row[list(self.yes_ids)].tolist(), row[list(self.no_ids)].tolist()) for row in logits]

    def inputs(self, crops: Sequence[Crop], query: str) -> dict[str, Tensor]:
        """Make of sounds and question what Qwen's processor makes of them.

        That pads every crop with silence to 300 s; this only so far beyond the longest that its last frames see the same silence.
        """
        frames = [math.ceil(len(crop.samples) / self.extractor.hop_length) for crop in crops]
        longest = max(frames)
        length = longest * self.extractor.hop_length + self.extractor.n_fft
        sounds = [np.pad(crop.samples, (0, length - len(crop.samples))) for crop in crops]
        heard = self.extractor(sounds, sampling_rate=SAMPLE_RATE_HZ, padding=False, truncation=False, return_tensors="pt")
        # Of its frames, the audio encoder makes steps of 40 ms by a convolution and a pooling, each of stride 2.
        steps = [((count - 1) // 2 + 1 - 2) // 2 + 1 for count in frames]
        questions = [prompt.user_text(query, crop.window, crop.duration_seconds) for crop in crops]
        chats = [
            _CHAT.format(system=prompt.SYSTEM_TEXT, audio=_AUDIO_TOKEN * count, question=question)
            for count, question in zip(steps, questions, strict=True)
        ]
        # Padded on the left, so that the last position is the answer's in every row.
        tokens = self.tokenizer(chats, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt")
        return {
            "input_ids": tokens["input_ids"],
            "attention_mask": tokens["attention_mask"],
            "input_features": heard["input_features"][..., :longest].to(self.model.dtype),
            "feature_attention_mask": (torch.arange(longest) < torch.tensor(frames)[:, None]).long(),
        }


@functools.lru_cache(maxsize=1)
def open_thinker(folder: Path, dtype: torch.dtype, *, four_bit: bool = False) -> Thinker:
    """Load the Thinker, and it alone, from a whole Qwen2.5-Omni or from a folder with the Thinker only. The last one stays loaded."""
    import transformers

    library: Any = transformers
    options: dict[str, Any] = {"device_map": {"": torch.cuda.current_device()}} if torch.cuda.is_available() else {}
    if four_bit:
        quantization = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
        options["quantization_config"] = library.BitsAndBytesConfig(**quantization)
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
        if kind not in _MODEL_TYPES:
            what = f"{folder} holds a model of type {kind!r}; verifier 'qwen2.5-omni' needs Qwen2.5-Omni"
            raise CheckpointError(what, "use verifier 'server' for others")
        model, info = library.Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(
            folder, dtype=dtype, local_files_only=True, output_loading_info=True, **options
        )
        tokenizer = library.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        extractor = library.WhisperFeatureExtractor.from_pretrained(folder, local_files_only=True)
    except CheckpointError:
        raise
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise QamDetrError(f"The model in {folder} does not fit in memory; take Qwen/Qwen2.5-Omni-3B, or set verifier.four_bit.") from error
    except Exception as error:  # torch, transformers, tokenizers and safetensors raise classes of their own
        raise CheckpointError(f"The verifier's model in {folder} cannot be read ({one_line(error)}); download it again.") from error
    if missing := sorted(info["missing_keys"]):
        raise CheckpointError(f"{folder} lacks {len(missing)} weights of the Thinker, such as {missing[0]}; download the model again.")
    # Logits of every position over a vocabulary of 150,000 would need gigabytes; the answer stands at the last one.
    model.lm_head.register_forward_pre_hook(lambda _, arguments: (arguments[0][:, -1:],))
    model.eval().requires_grad_(False)
    yes_ids, no_ids = (_single_tokens(tokenizer, spellings) for spellings in (prompt.YES_SPELLINGS, prompt.NO_SPELLINGS))
    return Thinker(model, tokenizer, extractor, yes_ids, no_ids)


def _single_tokens(tokenizer: Any, spellings: Sequence[str]) -> tuple[int, ...]:  # noqa: ANN401 - transformers has no types
    """Ids of those spellings that are one token; there must be one."""
    encoded = [tokenizer(spelling, add_special_tokens=False)["input_ids"] for spelling in spellings]
    found = tuple(dict.fromkeys(ids[0] for ids in encoded if len(ids) == 1 and ids[0] != tokenizer.unk_token_id))
    if not found:
        raise CheckpointError(f"The tokeniser has no token for {spellings[0]!r}; it is not that of Qwen2.5-Omni.")
    return found


def locate_model(model: str, *, download: bool = True) -> Path:
    """Return the folder of a model, as `features.hub.locate` does; `model` is a folder, a hub id, or `id@revision`, empty the default."""
    gigabytes = DOWNLOAD_GIGABYTES.get(model)
    wanted = replace(_HUB, repo=model, megabytes=1000 * gigabytes) if gigabytes else _HUB
    folder = locate("qwen2.5-omni", wanted, "" if gigabytes else model, download=download)
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} has no config.json; give a folder with the whole of Qwen2.5-Omni in the hub's layout.")
    return folder


@functools.lru_cache(maxsize=8)
def _fingerprint(folder: Path) -> str:
    """Return 16 hex digits that change with the files that decide a model's answers, without reading gigabytes; see `quick_key`."""
    digest = blake2b(digest_size=8)
    for path in sorted(path for pattern in _PATTERNS for path in folder.glob(pattern)):
        digest.update(f"{path.name} {quick_key(path)}".encode())
    return digest.hexdigest()
