"""Opens the encoders of a combo and turns files into `Recording`s and queries into `TextFeatures`."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, channels_last

from qamdetr import audio as audio_files
from qamdetr.config import CHECKPOINT_DIR
from qamdetr.errors import CheckpointError, ConfigError
from qamdetr.features.base import AudioEncoder, TextEncoder, get_combo
from qamdetr.types import Recording, TextFeatures

PEAK_COLUMNS = 2000
"""Columns of the waveform overview; about two per pixel of a wide screen."""

POCKET_CHECKPOINT = "pocket-encoder"


class ComboEncoder:
    """All encoders of one combo behind two methods: one for recordings, one for queries."""

    def __init__(self, name: str, audio: Mapping[str, AudioEncoder], text: Mapping[str, TextEncoder], fingerprint: str) -> None:
        self.name = name
        self.audio = audio
        self.text = text
        self.fingerprint = fingerprint
        """Short hash of all weights; feature caches are valid for one fingerprint only."""

    def encode_recording(self, path: str | Path) -> Recording:
        """Decode a file once and run every audio stream on it.

        Raises:
            AudioError: The file cannot be used.
        """
        path = Path(path)
        waveform = audio_files.decode(path)
        streams: dict[str, Tensor] = {}
        for rate in sorted({encoder.sample_rate_hz for encoder in self.audio.values()}):
            samples = audio_files.resample(waveform, rate).samples
            for name, encoder in self.audio.items():
                if encoder.sample_rate_hz == rate:
                    streams[name] = encoder.encode_audio(samples)
        clips = audio_files.num_clips(waveform.duration_seconds)
        return Recording(
            name=path.name,
            path=str(path),
            duration_seconds=waveform.duration_seconds,
            # Resampling may round a recording of whole seconds up by a sample, hence the cut.
            streams={name: streams[name][:clips] for name in self.audio},
            peaks=audio_files.peak_envelope(waveform.samples, PEAK_COLUMNS),
        )

    def encode_query(self, query: str) -> dict[str, TextFeatures]:
        """Encode a query with every text stream, main stream first."""
        return {name: encoder.encode_text(query) for name, encoder in self.text.items()}


@functools.lru_cache(maxsize=4)
def load_combo(name: str) -> ComboEncoder:
    """Open the encoders of a combo; read-only and shared, so it is opened once.

    Raises:
        ConfigError: Unknown combo, or one whose encoders this version does not have.
        CheckpointError: The weights of an encoder are missing.
    """
    combo = get_combo(name)
    missing = sorted({*combo.audio_streams, *combo.text_streams} - set(_OPENERS))
    if missing:
        raise ConfigError(f"Combo {name!r} needs the encoders {', '.join(missing)}, which this version does not have; use combo 'pocket'.")
    opened = {stream: _OPENERS[stream]() for stream in {*combo.audio_streams, *combo.text_streams}}
    audio = {stream: opened[stream][0] for stream in combo.audio_streams}
    text = {stream: opened[stream][1] for stream in combo.text_streams}
    fingerprint = hashlib.sha256("".join(opened[stream][2] for stream in sorted(opened)).encode()).hexdigest()[:16]
    return ComboEncoder(name, audio, text, fingerprint)


def _open_pocket() -> tuple[AudioEncoder, TextEncoder, str]:
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
    fingerprint = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    return PocketAudioEncoder(audio), PocketTextEncoder(text, tokenizer), fingerprint


def _open_mel_stats() -> tuple[AudioEncoder, TextEncoder | None, str]:
    from qamdetr.features.pocket_audio import MelStatsEncoder

    return MelStatsEncoder(), None, "mel_stats-1"


_OPENERS: dict[str, Callable[[], tuple[Any, Any, str]]] = {"pocket": _open_pocket, "mel_stats": _open_mel_stats}
"""Stream -> function that returns its audio encoder, its text encoder (or None), and a fingerprint of its weights."""
