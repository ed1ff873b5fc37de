"""The `qwen2.5-omni` verifier: the Thinker of Qwen2.5-Omni through Transformers, asked for the logits of "Yes" and "No"."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import math
import re
import shlex
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qamdetr.errors import CheckpointError, QamDetrError
from qamdetr.features.hub import REACH_SECONDS, one_line
from qamdetr.features.store import quick_key
from qamdetr.types import Candidate, Recording, TextFeatures
from qamdetr.verifiers import prompt
from qamdetr.verifiers.base import SAMPLE_RATE_HZ, Crop, PartialAnswersError, Verifier, read_crops, verifier

_log = logging.getLogger(__name__)

DEFAULT_MODEL = "Qwen/Qwen2.5-Omni-7B"
"""The report names no size; this is the larger of the two. Where it does not fit, `Qwen/Qwen2.5-Omni-3B` takes half the memory."""

DOWNLOAD_GIGABYTES: Mapping[str, int] = {DEFAULT_MODEL: 22, "Qwen/Qwen2.5-Omni-3B": 12}
"""Size of the published files in bfloat16; they hold the talker, too, which is not loaded."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_PATTERNS = ("*.json", "*.safetensors", "merges.txt")

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
        """Find the model's files, or fetch them, without loading them."""
        if self.settings.four_bit:
            _check_four_bit()
        _fingerprint(locate_model(self.settings.model))

    def verify(self, recording: Recording, query: str, text: Mapping[str, TextFeatures], candidates: Sequence[Candidate]) -> list[float]:
        """Score candidates, crops of like length together, so that little is padded."""
        thinker = self._thinker()
        crops = read_crops(recording, candidates, thinker.max_seconds)
        order = sorted(range(len(crops)), key=lambda index: len(crops[index].samples))
        scores: dict[int, float] = {}
        for begin in range(0, len(order), self.settings.batch_size):
            chunk = order[begin : begin + self.settings.batch_size]
            heard = [crops[index] for index in chunk]
            try:
                scores |= zip(chunk, thinker.yes_probabilities(heard, query), strict=True)
            except (torch.OutOfMemoryError, MemoryError) as error:
                raise PartialAnswersError(
                    f"{len(heard)} crops of up to {max(crop.duration_seconds for crop in heard):.0f} s do not fit in memory; "
                    f"lower verifier.batch_size ({self.settings.batch_size}), set verifier.four_bit, or take a smaller verifier.model.",
                    scores,
                ) from error
        return [scores[index] for index in range(len(crops))]

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
    """A loaded model with what belongs to it."""

    model: Any  # `Qwen2_5OmniThinkerForConditionalGeneration`, which gives the logits of the last position only
    tokenizer: Any
    extractor: Any  # its `WhisperFeatureExtractor`
    yes_ids: tuple[int, ...]  # tokens that spell the word
    no_ids: tuple[int, ...]
    audio_token_id: int  # placeholder of one step of the audio encoder
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
    """Load the Thinker, and it alone, from a whole Qwen2.5-Omni or from a folder with the Thinker only. The last one stays loaded."""
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
        raise CheckpointError(f"The verifier's model in {folder} cannot be read ({one_line(error)}); download it again.") from error
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
    """Ids of those spellings that are one token; there must be one."""
    encoded = [tokenizer(spelling, add_special_tokens=False)["input_ids"] for spelling in spellings]
    found = tuple(dict.fromkeys(ids[0] for ids in encoded if len(ids) == 1 and ids[0] != tokenizer.unk_token_id))
    if not found:
        raise CheckpointError(f"The tokeniser has no token for {spellings[0]!r}; it is not that of Qwen2.5-Omni.")
    return found


def _check_four_bit() -> None:
    """Refuse 4-bit weights where they cannot run: without a GPU, or without bitsandbytes."""
    import importlib.util

    if not torch.cuda.is_available():
        raise QamDetrError("verifier.four_bit needs an NVIDIA GPU, and none is here; set it to false, or use verifier 'server'.")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise QamDetrError("verifier.four_bit needs the package bitsandbytes; run `pip install bitsandbytes`, or set it to false.")


def locate_model(model: str, *, download: bool = True) -> Path:
    """Return the folder of a model: a local one, or the hub's cache, into which it is downloaded where the hub can be reached.

    `HF_HOME`, `HF_HUB_CACHE`, `HF_ENDPOINT` and `HF_HUB_OFFLINE` mean what they mean everywhere.

    `model` is a folder, a hub id, or `id@revision`; empty = `DEFAULT_MODEL`.
    """
    from huggingface_hub import HfApi, constants, snapshot_download

    model = model or DEFAULT_MODEL
    folder = check_model(model)
    if folder is not None:
        return folder
    repo, _, version = model.partition("@")
    revision = version or None
    with contextlib.suppress(Exception):  # the hub's client has many errors for "not here"
        folder = Path(snapshot_download(repo, revision=revision, local_files_only=True))
        if not _missing_file(folder):
            return folder
    if constants.HF_HUB_OFFLINE or not download:
        raise CheckpointError(_how_to_get(repo, revision, "HF_HUB_OFFLINE is set" if download else "no download was asked for"))
    try:
        # Asked first because snapshot_download itself knows no limit of time.
        HfApi().model_info(repo, revision=revision, timeout=REACH_SECONDS)
        _log.warning("Downloading %s%s to %s; this happens once.", repo, _size(repo), constants.HF_HUB_CACHE)
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=list(_PATTERNS), etag_timeout=REACH_SECONDS))
    except Exception as error:  # the hub's client and the HTTP library beneath it raise classes of their own
        raise CheckpointError(_how_to_get(repo, revision, one_line(error))) from error
    if missing := _missing_file(folder):
        raise CheckpointError(f"{repo} has no {missing}; verifier 'qwen2.5-omni' needs a model such as {DEFAULT_MODEL}.")
    return folder


def check_model(model: str) -> Path | None:
    """Return the folder that `model` names, None for a hub id; refuse, without asking any network, what can be neither, or is not whole."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        if missing := _missing_file(folder):
            raise CheckpointError(f"{folder} has no {missing}; give a folder with the whole of Qwen2.5-Omni in the hub's layout.")
        return folder
    if not _HUB_ID.fullmatch(model):
        raise CheckpointError(
            f"verifier.model is {model!r}, which is no folder here; correct the path, or give a hub id such as {DEFAULT_MODEL}."
        )
    return None


def is_here(model: str) -> bool:
    """Whether `locate_model` would find a model without asking any network."""
    try:
        locate_model(model, download=False)
    except CheckpointError:
        return False
    return True


@functools.lru_cache(maxsize=8)
def _fingerprint(folder: Path) -> str:
    """Return 16 hex digits that change with the files that decide a model's answers, without reading gigabytes; see `quick_key`."""
    digest = blake2b(digest_size=8)
    try:
        for path in sorted(path for pattern in _PATTERNS for path in folder.glob(pattern)):
            digest.update(f"{path.name} {quick_key(path)}".encode())
    except OSError as error:
        raise CheckpointError(f"{error.filename} cannot be read ({error.strerror}); download the model again.") from error
    return digest.hexdigest()


def _missing_file(folder: Path) -> str:
    """Name of a file that a complete model has and this folder lacks; empty when it is complete."""
    try:
        index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))["weight_map"]
        weights = sorted(set(index.values()))
    except (OSError, ValueError, KeyError):
        weights = ["model.safetensors"]
    # Newer versions of Transformers save the extractor's settings under the second name.
    groups = [("config.json",), ("preprocessor_config.json", "processor_config.json"), *((name,) for name in weights)]
    if not (folder / "tokenizer.json").is_file():
        groups[2:2] = [("vocab.json",), ("merges.txt",)]
    return next((names[0] for names in groups if not any((folder / name).is_file() for name in names)), "")


def _size(repo: str) -> str:
    return f" (about {DOWNLOAD_GIGABYTES[repo]} GB)" if repo in DOWNLOAD_GIGABYTES else ""


def _how_to_get(repo: str, revision: str | None, reason: str) -> str:
    command = shlex.join(["hf", "download", repo, *(["--revision", revision] if revision else [])])
    return (
        f"The verifier needs {repo}{_size(repo)}, which is not on this machine and cannot be downloaded ({reason}): run `{command}` where "
        "there is a network, set verifier.model to a local folder, or use verifier 'pocket', which needs no download."
    )
