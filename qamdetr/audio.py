"""Audio files to mono samples: decode, resample, cut, and count clips."""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from qamdetr.audio_blocks import MAX_SECONDS, Block, mono_blocks
from qamdetr.errors import AudioError
from qamdetr.progress import tell

AUDIO_SUFFIXES = (
    *(".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif", ".au", ".opus"),  # libsndfile
    *(".m4a", ".mp4", ".webm", ".mkv", ".mov", ".aac", ".wma", ".3gp", ".avi"),  # ffmpeg
)
"""Endings under which recordings are looked for in folders; `decode` itself goes by content."""


@dataclass(frozen=True)
class Waveform:
    """Mono samples, float32 `(samples,)`, full scale at [-1, 1] (float files may exceed it), always finite."""

    samples: np.ndarray
    sample_rate_hz: int

    @property
    def duration_seconds(self) -> float:
        """Length in seconds."""
        return len(self.samples) / self.sample_rate_hz


def decode(path: str | Path, *, max_seconds: float = MAX_SECONDS) -> Waveform:
    """Read a file at its own sample rate; channels are averaged, samples that are not finite become 0.

    libsndfile reads WAV, FLAC, OGG, MP3 and the like; anything else (M4A, WebM, video) goes through `ffmpeg` where it is installed.

    Raises:
        AudioError: The file is missing, a folder, empty, corrupt, without sound, shorter than 0.1 s or longer than `max_seconds`.
    """
    buffer = _MonoBuffer()
    rate = 0
    with closing(mono_blocks(path, max_seconds=max_seconds)) as blocks:
        for block in blocks:
            rate = block.sample_rate_hz
            buffer.append(block)
            tell(block.share)
    return Waveform(buffer.finish(), rate)


def load(path: str | Path, sample_rate_hz: int, *, max_seconds: float = MAX_SECONDS) -> Waveform:
    """Decode and resample in one step.

    Raises:
        AudioError: As `decode`.
    """
    return resample(decode(path, max_seconds=max_seconds), sample_rate_hz)


def find_recordings(folder: str | Path) -> dict[str, Path]:
    """Map each `vid` (the stem) to its audio file in a folder, by the endings of `AUDIO_SUFFIXES`.

    Raises:
        AudioError: No such folder, or two files of one stem.
    """
    found: dict[str, Path] = {}
    try:
        paths = sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in AUDIO_SUFFIXES and not path.name.startswith("."))
    except OSError as error:
        raise AudioError(f"Cannot list {folder} ({error.strerror}); give a folder of audio files.") from error
    for path in paths:
        if path.stem in found:
            raise AudioError(f"{folder} holds both {found[path.stem].name} and {path.name}; keep one file per recording.")
        found[path.stem] = path
    return found


def stated_seconds(path: str | Path) -> float | None:
    """Length of a recording as its header states it, without decoding; None where it states none that libsndfile can read."""
    try:
        info = soundfile.info(str(path))
    except (soundfile.LibsndfileError, TypeError, ValueError):
        return None
    return float(info.duration) if 0 < info.duration < math.inf else None


def resample(waveform: Waveform, sample_rate_hz: int) -> Waveform:
    """Change the sample rate (soxr, high quality).

    The result has `ceil(samples * ratio)` samples, so that `num_clips` is the same before and after.
    """
    if sample_rate_hz == waveform.sample_rate_hz:
        return waveform
    length = resampled_length(len(waveform.samples), waveform.sample_rate_hz, sample_rate_hz)
    samples = soxr.resample(waveform.samples, waveform.sample_rate_hz, sample_rate_hz, quality="HQ")
    if len(samples) < length:
        samples = np.pad(samples, (0, length - len(samples)))
    return Waveform(np.ascontiguousarray(samples[:length], dtype=np.float32), sample_rate_hz)


def resampled_length(num_samples: int, from_hz: int, to_hz: int) -> int:
    """Count the samples that `resample` gives."""
    return math.ceil(num_samples * to_hz / from_hz)


def crop(waveform: Waveform, start_seconds: float, end_seconds: float) -> Waveform:
    """Cut `[start, end)` out, clamped to the recording; the samples are a view, not a copy."""
    begin = max(0, round(start_seconds * waveform.sample_rate_hz))
    end = max(begin, round(end_seconds * waveform.sample_rate_hz))
    return Waveform(waveform.samples[begin:end], waveform.sample_rate_hz)


def num_clips(duration_seconds: float) -> int:
    """Count the one-second clips of a recording: `ceil(duration)`, at least 1; a microsecond over does not open a new clip."""
    return max(1, math.ceil(round(duration_seconds, 6)))


class _MonoBuffer:
    """Collects blocks in one array that grows in place, so that a long file is never held twice."""

    def __init__(self) -> None:
        self._samples = np.empty(0, dtype=np.float32)
        self._frames = 0

    def append(self, block: Block) -> None:
        if block.end_frame > len(self._samples):
            self._samples.resize(max(block.end_frame, block.stated_frames, len(self._samples) * 3 // 2), refcheck=False)
        self._samples[self._frames : block.end_frame] = block.samples
        self._frames = block.end_frame

    def finish(self) -> np.ndarray:
        self._samples.resize(self._frames, refcheck=False)
        return self._samples
