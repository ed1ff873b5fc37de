"""The `qwen2.5-omni` verifier: the Thinker of Qwen2.5-Omni through Transformers, asked for the logits of "Yes" and "No"."""

from __future__ import annotations

import functools
import json
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qamdetr.config import VerifierConfig
from qamdetr.errors import CheckpointError, QamDetrError
from qamdetr.types import Candidate, Recording, TextFeatures
from qamdetr.verifiers import prompt
from qamdetr.verifiers.base import PartialAnswersError
from qamdetr.verifiers.crops import SAMPLE_RATE_HZ, Crop, read_crops
from qamdetr.verifiers.qwen_files import files_fingerprint, locate_model

_AUDIO_TOKEN = "<|AUDIO|>"
_CHAT = (
    "<|im_start|>system\n{system}<|im_end|>\n"
    "<|im_start|>user\n<|audio_bos|>{audio}<|audio_eos|>{question}<|im_end|>\n"
    "<|im_start|>assistant\n"
)
_MODEL_TYPES = ("qwen2_5_omni", "qwen2_5_omni_thinker")

_opening = threading.Lock()


@dataclass(frozen=True)
class QwenOmniVerifier:
    """Asks Qwen2.5-Omni whether each candidate covers the moment of the query. The model is loaded when it is first asked.

    Source: report section 2.3 (frozen, Yes/No logits). Here: the prompt's words, and the size of the model, on which it is silent.
    """

    settings: VerifierConfig
    name: str = "qwen2.5-omni"
    needs_audio: bool = True

    @property
    def identity(self) -> str:
        """Name, files of the model, arithmetic and prompt.

        Raises:
            CheckpointError: The model is not here.
        """
        folder = locate_model(self.settings.model)
        arithmetic = "4-bit" if self.settings.four_bit else str(self._dtype()).removeprefix("torch.")
        return f"{self.name} {_fingerprint(folder)} {arithmetic} prompt-{prompt.fingerprint(_CHAT)}"

    def check(self) -> None:
        """Find the model's files, or fetch them, without loading them; see `Verifier`.

        Raises:
            QamDetrError: They are not here, or 4-bit weights cannot run.
        """
        if self.settings.four_bit:
            _check_four_bit()
        _fingerprint(locate_model(self.settings.model))

    def verify(self, recording: Recording, query: str, text: Mapping[str, TextFeatures], candidates: Sequence[Candidate]) -> list[float]:
        """Score candidates; see `Verifier`.

        Raises:
            QamDetrError: The model, or the recording's file, is not here or cannot be used, or the crops do not fit in memory.
        """
        thinker = self._thinker()
        crops = read_crops(recording, candidates, thinker.max_seconds)
        # Crops of like length go together, so that little is padded.
        order = sorted(range(len(crops)), key=lambda index: len(crops[index].samples))
        scores: dict[int, float] = {}
        for begin in range(0, len(order), self.settings.batch_size):
            chunk = order[begin : begin + self.settings.batch_size]
            try:
                scores |= zip(chunk, self._scores(thinker, [crops[index] for index in chunk], query), strict=True)
            except QamDetrError as error:
                if scores:
                    raise PartialAnswersError(str(error), scores) from error
                raise
        return [scores[index] for index in range(len(crops))]

    def _scores(self, thinker: Thinker, crops: Sequence[Crop], query: str) -> list[float]:
        try:
            return thinker.yes_probabilities(crops, query)
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise QamDetrError(
                f"{len(crops)} crops of up to {max(crop.duration_seconds for crop in crops):.0f} s do not fit in memory; "
                f"lower verifier.batch_size ({self.settings.batch_size}), set verifier.four_bit, or take a smaller verifier.model."
            ) from error

    def _thinker(self) -> Thinker:
        if self.settings.four_bit:
            _check_four_bit()
        with _opening:  # two threads must not load it twice
            return open_thinker(locate_model(self.settings.model), self._dtype(), four_bit=self.settings.four_bit)

    def _dtype(self) -> torch.dtype:
        if self.settings.dtype != "auto":
            dtype: torch.dtype = getattr(torch, self.settings.dtype)
            return dtype
        return torch.bfloat16 if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else torch.float32


@dataclass(frozen=True)
class Thinker:
    """A loaded model with what belongs to it.

    Attributes:
        model: `Qwen2_5OmniThinkerForConditionalGeneration`, which gives the logits of the last position only.
        tokenizer: Its tokeniser.
        extractor: Its `WhisperFeatureExtractor`.
        yes_ids, no_ids: Tokens that spell the two words.
        audio_token_id: Placeholder of one step of the audio encoder.
    """

    model: Any
    tokenizer: Any
    extractor: Any
    yes_ids: tuple[int, ...]
    no_ids: tuple[int, ...]
    audio_token_id: int
    _running: threading.Lock = field(default_factory=threading.Lock)

    @property
    def max_seconds(self) -> float:
        """The longest crop that the model listens to."""
        return float(self.extractor.n_samples) / SAMPLE_RATE_HZ

    def yes_probabilities(self, crops: Sequence[Crop], query: str) -> list[float]:
        """One forward pass over a batch; one score in [0, 1] per crop, the same whatever else is in the batch."""
        inputs = self._inputs(crops, query)
        with self._running, torch.inference_mode():
            logits = self.model(**inputs, use_cache=False).logits[:, -1].float().cpu()
        return [prompt.yes_probability(row[list(self.yes_ids)].tolist(), row[list(self.no_ids)].tolist()) for row in logits]

    def _inputs(self, crops: Sequence[Crop], query: str) -> dict[str, Tensor]:
        mels = [self._mel(crop.samples) for crop in crops]
        chats = [self._chat_ids(crop, query, mel.shape[1]) for crop, mel in zip(crops, mels, strict=True)]
        frames, length = max(mel.shape[1] for mel in mels), max(map(len, chats))
        pad = self.tokenizer.pad_token_id or 0
        inputs = {
            # Padded on the left, so that the last position is the answer's in every row.
            "input_ids": torch.tensor([[pad] * (length - len(chat)) + chat for chat in chats]),
            "attention_mask": torch.tensor([[0] * (length - len(chat)) + [1] * len(chat) for chat in chats]),
            "input_features": torch.stack([torch.nn.functional.pad(mel, (0, frames - mel.shape[1])) for mel in mels]).to(self.model.dtype),
            "feature_attention_mask": torch.tensor([[1] * mel.shape[1] + [0] * (frames - mel.shape[1]) for mel in mels]),
        }
        return {name: value.to(self.model.device) for name, value in inputs.items()}

    def _mel(self, samples: np.ndarray) -> Tensor:
        """Log-mel features `(mels, frames)` of one crop, as Qwen's processor computes them before it pads.

        That pads every crop with silence to 300 s first; here only so far that the last frames see the same silence.
        """
        hop = self.extractor.hop_length
        frames = math.ceil(len(samples) / hop)
        padded = np.pad(samples, (0, frames * hop - len(samples) + self.extractor.n_fft))
        features = self.extractor(padded, sampling_rate=SAMPLE_RATE_HZ, padding=False, truncation=False, return_tensors="pt")
        mel: Tensor = features["input_features"][0, :, :frames]
        return mel

    def _chat_ids(self, crop: Crop, query: str, frames: int) -> list[int]:
        steps = audio_steps(frames)
        question = prompt.user_text(query, crop.window, crop.duration_seconds)
        chat = _CHAT.format(system=prompt.SYSTEM_TEXT, audio=_AUDIO_TOKEN * steps, question=question)
        ids: list[int] = self.tokenizer(chat, add_special_tokens=False)["input_ids"]
        return ids


def audio_steps(frames: int) -> int:
    """Count the steps that the audio encoder makes of mel frames: a convolution and a pooling, each of stride 2 (40 ms a step)."""
    return ((frames - 1) // 2 + 1 - 2) // 2 + 1


@functools.lru_cache(maxsize=1)
def open_thinker(folder: Path, dtype: torch.dtype, *, four_bit: bool = False) -> Thinker:
    """Load the Thinker, and it alone, from a whole Qwen2.5-Omni or from a folder with the Thinker only. The last one stays loaded.

    Raises:
        CheckpointError: The files are no Qwen2.5-Omni, or are damaged.
    """
    from transformers import AutoTokenizer, WhisperFeatureExtractor

    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
        if kind not in _MODEL_TYPES:
            raise CheckpointError(
                f"{folder} holds a model of type {kind!r}; verifier 'qwen2.5-omni' needs Qwen2.5-Omni; use verifier 'server' for others."
            )
        model = _load_model(folder, dtype, four_bit)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        extractor = WhisperFeatureExtractor.from_pretrained(folder, local_files_only=True)
    except CheckpointError:
        raise
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise QamDetrError(f"The model in {folder} does not fit in memory; take Qwen/Qwen2.5-Omni-3B, or set verifier.four_bit.") from error
    except Exception as error:  # torch, transformers, tokenizers and safetensors raise classes of their own
        reason = (" ".join(str(error).split()) or type(error).__name__)[:200]
        raise CheckpointError(f"The verifier's model in {folder} cannot be read ({reason}); download it again.") from error
    audio_token_id = int(model.config.audio_token_index)
    if tokenizer.convert_tokens_to_ids(_AUDIO_TOKEN) != audio_token_id:
        raise CheckpointError(f"{folder}: the tokeniser's {_AUDIO_TOKEN} is not the model's audio token; download the model again.")
    yes_ids, no_ids = (_single_tokens(tokenizer, spellings) for spellings in (prompt.YES_SPELLINGS, prompt.NO_SPELLINGS))
    return Thinker(model, tokenizer, extractor, yes_ids, no_ids, audio_token_id)


def _load_model(folder: Path, dtype: torch.dtype, four_bit: bool) -> Any:  # noqa: ANN401 - transformers has no types
    import transformers

    library: Any = transformers
    options: dict[str, Any] = {"dtype": dtype}
    if torch.cuda.is_available():
        options["device_map"] = {"": torch.cuda.current_device()}
    if four_bit:
        options["quantization_config"] = library.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
    model, info = library.Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(
        folder, local_files_only=True, output_loading_info=True, **options
    )
    if missing := sorted(info["missing_keys"]):
        raise CheckpointError(f"{folder} lacks {len(missing)} weights of the Thinker, such as {missing[0]}; download the model again.")
    # Logits of every position over a vocabulary of 150,000 would need gigabytes; the answer stands at the last one.
    model.lm_head.register_forward_pre_hook(lambda _, arguments: (arguments[0][:, -1:],))
    return model.eval().requires_grad_(False)


def _single_tokens(tokenizer: Any, spellings: Sequence[str]) -> tuple[int, ...]:  # noqa: ANN401 - transformers has no types
    """Ids of those spellings that are one token.

    Raises:
        CheckpointError: None is.
    """
    encoded = [tokenizer(spelling, add_special_tokens=False)["input_ids"] for spelling in spellings]
    found = tuple(dict.fromkeys(ids[0] for ids in encoded if len(ids) == 1 and ids[0] != tokenizer.unk_token_id))
    if not found:
        raise CheckpointError(f"The tokeniser has no token for {spellings[0]!r}; it is not that of Qwen2.5-Omni.")
    return found


@functools.lru_cache(maxsize=8)
def _fingerprint(folder: Path) -> str:
    return files_fingerprint(folder)


def _check_four_bit() -> None:
    """Refuse 4-bit weights where they cannot run.

    Raises:
        QamDetrError: No GPU, or no bitsandbytes.
    """
    import importlib.util

    if not torch.cuda.is_available():
        raise QamDetrError("verifier.four_bit needs an NVIDIA GPU, and none is here; set it to false, or use verifier 'server'.")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise QamDetrError("verifier.four_bit needs the package bitsandbytes; run `pip install bitsandbytes`, or set it to false.")
