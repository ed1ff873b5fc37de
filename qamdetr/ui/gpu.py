"""Work that wants a GPU, where a machine lends one for seconds at a time (ZeroGPU of Hugging Face); anywhere else it simply runs.

What is lent: the large audio encoders, for as long as the recording is long, and the `qwen2.5-omni` verifier, for as many candidates as it
hears. Pocket encoders, the network, queries and ranking stay on the CPU, so a Space that serves pocket models spends nothing.
"""

from __future__ import annotations

import functools
import importlib
import math
import os
import pickle
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from qamdetr.audio import Sound, stated_seconds
from qamdetr.config import Config, VerifierConfig
from qamdetr.errors import QamDetrError
from qamdetr.features.base import OPEN, Step, Streams, get_combo, joint_of
from qamdetr.inference.checkpoint import CONFIG_FILE, find_checkpoint
from qamdetr.inference.retriever import MomentRetriever, Source, open_encoder
from qamdetr.types import Candidate, Recording, TextFeatures
from qamdetr.ui.settings import AppSettings
from qamdetr.verifiers import make_verifier
from qamdetr.verifiers.base import Verifier, WrappedVerifier

_Answer = TypeVar("_Answer")

ON_LOAN = os.environ.get("SPACES_ZERO_GPU", "").lower() in {"1", "t", "true"}
"""Whether this machine lends a GPU; read as the package `spaces` reads it."""

START_SECONDS = 10.0
"""Asked for with each loan: moving the weights to the GPU."""

SECONDS_PER_MINUTE = 1.0
"""Asked for per minute of a recording; all encoders of a combo together, decoding included."""

SECONDS_PER_CANDIDATE = 1.5
"""Asked for per candidate that `qwen2.5-omni` hears."""

MAX_SECONDS = 120
"""Longest loan that is asked for; what asks for more than a visitor's account may have is refused at once."""

_COMPRESSED_BYTES_PER_SECOND = 8000
"""Of sound whose header names no length: 64 kbit/s, on the low side, so that the time suffices."""


@dataclass(frozen=True)
class _Refusal:
    """A user's mistake on its way back: across processes `spaces` keeps no more of an error than the name of its class."""

    error: QamDetrError


def run_on_gpu(seconds: float, function: Callable[..., _Answer], *arguments: object) -> _Answer:
    """Call `function(*arguments)` where the GPU is.

    Where a GPU is lent, that is another process: function, arguments and answer are pickled, so the function is a module's own, or a method
    of something small. Call it in the thread that gradio called, since the loan is booked on the visitor whose request that is.

    Args:
        seconds: How long it may take; cut to 1 to `MAX_SECONDS`.
        function: What to call.
        *arguments: What to call it with.

    Raises:
        QamDetrError: As `function`.
    """
    answer = _borrow(seconds, function, arguments)
    if isinstance(answer, _Refusal):
        raise answer.error
    done: _Answer = answer
    return done


def open_retriever(checkpoint: str) -> MomentRetriever:
    """Load a checkpoint; where a GPU is lent, large encoders will borrow it and all else stays on the CPU.

    Raises:
        QamDetrError: See `MomentRetriever.from_pretrained`.
    """
    if not ON_LOAN:
        return MomentRetriever.from_pretrained(checkpoint)
    retriever = MomentRetriever.from_pretrained(checkpoint, device="cpu")
    return BorrowingRetriever(checkpoint, retriever) if wants_gpu(retriever.config) else retriever


def wants_gpu(config: Config) -> bool:
    """Whether a checkpoint reads streams of large encoders."""
    heard = {joint_of(config.data.combo) or name if name == OPEN else name for name in config.model.audio_streams}
    return not set(get_combo("pocket").audio_streams) >= heard


class BorrowingRetriever(MomentRetriever):
    """Encodes recordings on a GPU that is lent; everything else is done here, on the CPU."""

    def __init__(self, checkpoint: str, here: MomentRetriever) -> None:
        """Open the encoders a second time, for the GPU.

        Args:
            checkpoint: Name or folder.
            here: The same checkpoint, on the CPU.
        """
        super().__init__(here.members, here.encoder)
        self._checkpoint = str(find_checkpoint(checkpoint))
        _gpu_encoder(self._checkpoint)  # the process that borrows is a fork of this one, and finds it there

    def encoding(self, source: Source, **choice: Any) -> Generator[Step, None, Recording]:  # noqa: ANN401 - as `Sound`
        """Encode a file; asks for a GPU for as long as the recording's length wants.

        The process that borrows cannot tell this one how far it is, nor be stopped.

        Raises:
            QamDetrError: See `MomentRetriever.encode`.
        """
        if not isinstance(source, (str, Path)):
            return (yield from super().encoding(source, **choice))
        yield Step("on a GPU that is lent", None)
        return run_on_gpu(encoding_seconds(source), _encode, self._checkpoint, str(source), choice)


def encoding_seconds(path: str | Path) -> float:
    """Tell how long encoding a file on a GPU may take, by the length of the recording."""
    length_seconds = stated_seconds(path)
    if length_seconds is None:
        file = Path(path)
        length_seconds = file.stat().st_size / _COMPRESSED_BYTES_PER_SECOND if file.is_file() else 0.0
    return START_SECONDS + SECONDS_PER_MINUTE * length_seconds / 60


def open_verifier(name: str, settings: AppSettings, trained: VerifierConfig) -> Verifier | None:
    """Make a verifier that the page offers; `none` gives None.

    Raises:
        QamDetrError: See `make_verifier`.
    """
    config = settings.verifier_config(name, trained)
    if not (ON_LOAN and name == "qwen2.5-omni"):
        return make_verifier(name, config)
    from qamdetr.verifiers.base import CachedVerifier, cache_dir
    from qamdetr.verifiers.qwen_omni import QwenOmniVerifier

    return CachedVerifier(BorrowingVerifier(QwenOmniVerifier(config)), cache_dir(config))


class BorrowingVerifier(WrappedVerifier):
    """Asks `inner`, which is small until it is asked, on a GPU that is lent."""

    def verify(self, recording: Recording, query: str, text: Mapping[str, TextFeatures], candidates: Sequence[Candidate]) -> list[float]:
        """Score candidates; see `Verifier`. It hears the file, so the features stay here.

        Raises:
            QamDetrError: As `inner`.
        """
        seconds = START_SECONDS + SECONDS_PER_CANDIDATE * len(candidates)
        return run_on_gpu(seconds, self.inner.verify, replace(recording, streams={}), query, {}, list(candidates))


@functools.cache
def _gpu_encoder(checkpoint: str) -> Streams:
    from qamdetr.config import load_config

    config = load_config(Path(checkpoint) / CONFIG_FILE)
    return open_encoder(config, checkpoint, device="cuda")


def _encode(checkpoint: str, path: str, choice: Mapping[str, Any]) -> Recording:
    import torch

    with torch.inference_mode():
        return _gpu_encoder(checkpoint).encode(Sound(path, **choice))


def _lent_seconds(seconds: float, function: Callable[..., Any], arguments: tuple[object, ...]) -> int:
    return min(max(math.ceil(seconds), 1), MAX_SECONDS)


def _work(seconds: float, function: Callable[..., Any], arguments: tuple[object, ...]) -> Any:  # noqa: ANN401 - whatever the function gives
    try:
        return function(*arguments)
    except QamDetrError as error:
        return _Refusal(error)


def _work_on_loan(seconds: float, function: Callable[..., Any], arguments: tuple[object, ...]) -> bytes:
    # Between processes tensors travel as open files, which end with the process that made them; bytes are the receiver's own.
    return pickle.dumps(_work(seconds, function, arguments))


def _register() -> Callable[..., Any]:
    """Make what borrows; a Space on ZeroGPU does not start unless `spaces` knows a function before the page is launched."""
    if not ON_LOAN:
        return _work
    lent: Callable[..., bytes] = importlib.import_module("spaces").GPU(duration=_lent_seconds)(_work_on_loan)

    def borrow(seconds: float, function: Callable[..., Any], arguments: tuple[object, ...]) -> Any:  # noqa: ANN401 - see `_work`
        return pickle.loads(lent(seconds, function, arguments))

    return borrow


_borrow = _register()
