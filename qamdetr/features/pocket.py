"""Opens the pocket encoders, which come with the project."""

from __future__ import annotations

import hashlib

from torch import channels_last

from qamdetr.config import CHECKPOINT_DIR
from qamdetr.errors import CheckpointError
from qamdetr.features.base import OpenedStream

POCKET_CHECKPOINT = "pocket-encoder"


def open_pocket() -> OpenedStream:
    """Open the pocket audio and text encoder.

    Raises:
        CheckpointError: The weights are missing or damaged.
    """
    from safetensors.torch import load_file
    from tokenizers import Tokenizer

    from qamdetr.features.pocket_audio import PocketAudioConfig, PocketAudioEncoder, PocketAudioModel
    from qamdetr.features.pocket_text import PocketTextConfig, PocketTextEncoder, PocketTextModel, unpack_state

    folder = CHECKPOINT_DIR / POCKET_CHECKPOINT
    files = [folder / name for name in ("audio.safetensors", "text.safetensors", "tokenizer.json")]
    lacking = [file.name for file in files if not file.is_file()]
    if lacking:
        raise CheckpointError(f"{folder} lacks {', '.join(lacking)}; restore the folder from the repository or set QAMDETR_CHECKPOINTS.")

    audio, text = PocketAudioModel(PocketAudioConfig()), PocketTextModel(PocketTextConfig())
    try:
        audio.load_state_dict({key: value.float() if value.is_floating_point() else value for key, value in load_file(files[0]).items()})
        text.load_state_dict(unpack_state(load_file(files[1])))
        tokenizer = Tokenizer.from_file(str(files[2]))
    except Exception as error:  # safetensors and tokenizers raise classes of their own, torch RuntimeError
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(
            f"{folder} cannot be read ({reason}); restore it from the repository (with Git LFS: `git lfs pull`)."
        ) from error
    audio = audio.to(memory_format=channels_last)  # type: ignore[call-overload]
    # Of the files, not of the weights: the shipped checkpoints name this version.
    fingerprint = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    return OpenedStream(PocketAudioEncoder(audio), PocketTextEncoder(text, tokenizer), fingerprint)


def open_mel_stats() -> OpenedStream:
    """Open the handcrafted audio stream."""
    from qamdetr.features.pocket_audio import MelStatsEncoder

    return OpenedStream(MelStatsEncoder(), None, "mel_stats-1")
