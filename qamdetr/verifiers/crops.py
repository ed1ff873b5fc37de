"""Cuts what a verifier listens to out of the recording's file: decoded and resampled once, then one crop per candidate."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qamdetr import audio
from qamdetr.audio_blocks import MAX_SECONDS
from qamdetr.errors import QamDetrError
from qamdetr.features.store import content_key
from qamdetr.types import Candidate, Recording, Window
from qamdetr.verifiers.base import crop_window

SAMPLE_RATE_HZ = 16_000

MAX_CROP_SECONDS = 300.0
"""What Qwen2.5-Omni's feature extractor takes (`chunk_length` of the published checkpoints)."""

MIN_CROP_SECONDS = 0.1
"""Shorter crops, around windows of milliseconds, would leave the audio encoder without a single output."""

_CHANGED_SECONDS = 1.0
"""Manifests round durations; a file that differs by more is not the one that was encoded."""

_decoding = threading.Lock()


@dataclass(frozen=True)
class Crop:
    """One candidate with its surroundings.

    Attributes:
        samples: `(n,)` float32 mono at 16 kHz.
        window: The candidate, in seconds from the begin of the crop.
    """

    samples: np.ndarray
    window: Window

    @property
    def duration_seconds(self) -> float:
        """Length of the crop."""
        return len(self.samples) / SAMPLE_RATE_HZ


def read_crops(recording: Recording, candidates: Sequence[Candidate], max_seconds: float = MAX_CROP_SECONDS) -> list[Crop]:
    """Cut one crop per candidate.

    Args:
        recording: Its `path` leads to the file. The last file decoded is remembered.
        candidates: Windows in seconds.
        max_seconds: What the model can listen to at once; see `crop_bounds`.

    Raises:
        QamDetrError: The recording has no file, the file is gone or another than was encoded, or a window is longer than `max_seconds`.
    """
    bounds = [crop_bounds(candidate.window, recording.duration_seconds, max_seconds) for candidate in candidates]
    path, size, changed = _file_state(recording)
    with _decoding:
        waveform = _decode(path, size, changed, max(MAX_SECONDS, recording.duration_seconds + 1))
    if abs(waveform.duration_seconds - recording.duration_seconds) > _CHANGED_SECONDS:
        raise QamDetrError(
            f"{path} lasts {waveform.duration_seconds:.1f} s, but {recording.duration_seconds:.1f} s were encoded; encode it again."
        )
    return [_cut(waveform, candidate.window, crop) for candidate, crop in zip(candidates, bounds, strict=True)]


def crop_bounds(window: Window, duration_seconds: float, max_seconds: float = MAX_CROP_SECONDS) -> Window:
    """Start and end of the crop in the recording: the window with its context.

    Where that is longer than the model can listen to, both sides of the context shrink alike and the window stays whole: nothing that
    the model is asked about is ever cut off.

    Raises:
        QamDetrError: The window alone is too long.
    """
    start, end = crop_window(window, duration_seconds)
    if end - start > max_seconds:
        room = max_seconds - (window[1] - window[0])
        if room < 0:
            raise QamDetrError(
                f"A candidate lasts {window[1] - window[0]:.1f} s; the verifier can listen to {max_seconds:g} s at most; "
                "use verifier 'pocket', or lower inference.section_clips."
            )
        share = room / ((window[0] - start) + (end - window[1]))
        start, end = window[0] - share * (window[0] - start), window[1] + share * (end - window[1])
    if end - start < MIN_CROP_SECONDS:
        start = max(0.0, min((start + end - MIN_CROP_SECONDS) / 2, duration_seconds - MIN_CROP_SECONDS))
        end = start + MIN_CROP_SECONDS
    return start, end


def recording_digest(recording: Recording) -> str:
    """Hash of the recording's file, all of it; remembered while the file stays as it is.

    Raises:
        QamDetrError: As `read_crops`.
    """
    return _digest(*_file_state(recording))


def _cut(waveform: audio.Waveform, window: Window, bounds: Window) -> Crop:
    end = min(bounds[1], waveform.duration_seconds)
    start = max(0.0, min(bounds[0], end - MIN_CROP_SECONDS))
    return Crop(audio.crop(waveform, start, end).samples, (min(max(window[0], start), end) - start, min(window[1], end) - start))


def _file_state(recording: Recording) -> tuple[str, int, int]:
    """Path, size and time of the last change.

    Raises:
        QamDetrError: There is no such file.
    """
    if not recording.path:
        raise QamDetrError(
            f"The recording {recording.name!r} has no file to listen to; encode it from a file, or use verifier 'pocket' or 'none'."
        )
    try:
        state = Path(recording.path).stat()
    except OSError as error:
        reason = error.strerror or error
        raise QamDetrError(f"{recording.path} cannot be listened to ({reason}); put the file back and encode it again.") from error
    return os.fspath(recording.path), state.st_size, state.st_mtime_ns


# Size and time of the last change make the key: a file that is replaced is read anew.
@functools.lru_cache(maxsize=1)
def _decode(path: str, size: int, changed: int, max_seconds: float) -> audio.Waveform:
    return audio.resample(audio.decode(path, max_seconds=max_seconds), SAMPLE_RATE_HZ)


@functools.lru_cache(maxsize=256)
def _digest(path: str, size: int, changed: int) -> str:
    try:
        return content_key(Path(path))
    except OSError as error:
        raise QamDetrError(f"{path} cannot be read ({error.strerror or error}); check the file.") from error
