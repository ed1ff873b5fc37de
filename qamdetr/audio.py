"""Audio files to mono samples: decode, resample, cut, and count clips. Says clearly why a file cannot be used."""

from __future__ import annotations

import math
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import soundfile
import soxr

from qamdetr.errors import AudioError
from qamdetr.progress import tell

MAX_SECONDS = 2 * 3600.0
"""Longest recording that is read unless the caller allows more; two hours at 48 kHz are 1.4 GB of mono samples."""

MIN_SECONDS = 0.1
"""Shorter files hold no sound that a one-second clip could describe."""

MIN_RATE_HZ, MAX_RATE_HZ = 1_000, 768_000
"""Sample rates outside are taken for a broken header."""

AUDIO_SUFFIXES = (
    *(".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif", ".au", ".opus"),  # libsndfile
    *(".m4a", ".mp4", ".webm", ".mkv", ".mov", ".aac", ".wma", ".3gp", ".avi"),  # ffmpeg
)
"""Endings under which recordings are looked for in folders; `decode` itself goes by content."""

_BLOCK_FRAMES = 1 << 18
_SHOWN_HINT = "convert the file to WAV, FLAC, OGG or MP3"

# Only real media containers: a playlist could make ffmpeg open other files or addresses.
_FFMPEG_FORMATS = "mov,mp4,m4a,3gp,matroska,webm,aac,ac3,eac3,asf,avi,flv,mpegts,mpeg,amr,aiff,caf,ogg,mp3,wav,w64,flac,ape,wv,tta,au"


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
    path = Path(path)
    _check_file(path)
    try:
        file = soundfile.SoundFile(path)
    except (soundfile.LibsndfileError, TypeError, ValueError):
        waveform = _decode_with_ffmpeg(path, max_seconds)
    else:
        with file:
            waveform = _decode_with_libsndfile(path, file, max_seconds)
    if len(waveform.samples) == 0:
        raise AudioError(f"{path} holds no samples (length 0 s); record or export it again.")
    if waveform.duration_seconds < MIN_SECONDS:
        raise AudioError(f"{path} lasts {waveform.duration_seconds:.3f} s; the shortest that can be used is {MIN_SECONDS} s.")
    return waveform


def load(path: str | Path, sample_rate_hz: int, *, max_seconds: float = MAX_SECONDS) -> Waveform:
    """Decode and resample in one step.

    Raises:
        AudioError: As `decode`.
    """
    return resample(decode(path, max_seconds=max_seconds), sample_rate_hz)


def ffmpeg_command(path: Path, *output: str, start_seconds: float = 0.0) -> list[str]:
    """Command that decodes the first audio track of a file from a second on; `output` says how it is written, and where.

    Raises:
        AudioError: ffmpeg is not installed.
    """
    program = shutil.which("ffmpeg")
    if program is None:
        raise AudioError(
            f"{path} is not a WAV, FLAC, OGG or MP3 file that can be read; install ffmpeg to read M4A, WebM and video, or {_SHOWN_HINT}."
        )
    command = [program, "-nostdin", "-v", "error", "-protocol_whitelist", "file,pipe", "-format_whitelist", _FFMPEG_FORMATS]
    seek = ["-ss", f"{start_seconds:.6f}"] if start_seconds else []
    return [*command, *seek, "-i", str(path.resolve()), "-map", "0:a:0", *output]


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
    length = math.ceil(len(waveform.samples) * sample_rate_hz / waveform.sample_rate_hz)
    samples = soxr.resample(waveform.samples, waveform.sample_rate_hz, sample_rate_hz, quality="HQ")
    if len(samples) < length:
        samples = np.pad(samples, (0, length - len(samples)))
    return Waveform(np.ascontiguousarray(samples[:length], dtype=np.float32), sample_rate_hz)


def crop(waveform: Waveform, start_seconds: float, end_seconds: float) -> Waveform:
    """Cut `[start, end)` out, clamped to the recording; the samples are a view, not a copy."""
    begin = max(0, round(start_seconds * waveform.sample_rate_hz))
    end = max(begin, round(end_seconds * waveform.sample_rate_hz))
    return Waveform(waveform.samples[begin:end], waveform.sample_rate_hz)


def num_clips(duration_seconds: float) -> int:
    """Count the one-second clips of a recording: `ceil(duration)`, at least 1; a microsecond over does not open a new clip."""
    return max(1, math.ceil(round(duration_seconds, 6)))


def peak_envelope(samples: np.ndarray, columns: int) -> np.ndarray:
    """Lowest and highest sample of each of `columns` equal stretches, for drawing.

    Returns:
        `(2, columns)` float32 in [-1, 1]: minima, then maxima; stretches repeat samples where there are fewer samples than columns.
    """
    if len(samples) == 0:
        return np.zeros((2, columns), dtype=np.float32)
    starts = np.arange(columns, dtype=np.int64) * len(samples) // columns
    envelope = np.stack([np.minimum.reduceat(samples, starts), np.maximum.reduceat(samples, starts)])
    return envelope.clip(-1, 1).astype(np.float32)


def _check_file(path: Path) -> None:
    try:
        if path.is_dir():
            raise AudioError(f"{path} is a folder; give an audio file.")
        if not path.exists():
            raise AudioError(f"{path} does not exist; check the name and the folder.")
        with path.open("rb") as file:
            empty = not file.read(1)
    except (OSError, ValueError) as error:
        raise AudioError(f"{path} cannot be opened ({error}); check the name and the permissions.") from error
    if empty:
        raise AudioError(f"{path} is empty (0 bytes); record or export it again.")


def _check_length(path: Path, frames: int, sample_rate_hz: int, max_seconds: float, *, at_least: bool = False) -> None:
    seconds = frames / sample_rate_hz
    if seconds > max_seconds:
        length = f"more than {max_seconds / 60:.4g}" if at_least else f"{seconds / 60:.1f}"
        raise AudioError(
            f"{path} lasts {length} minutes; the longest that can be used is {max_seconds / 60:.4g} minutes; cut it into parts."
        )


def _check_rate(path: Path, sample_rate_hz: int) -> None:
    if not MIN_RATE_HZ <= sample_rate_hz <= MAX_RATE_HZ:
        raise AudioError(
            f"{path} states a sample rate of {sample_rate_hz} Hz; {MIN_RATE_HZ} to {MAX_RATE_HZ} Hz can be used; {_SHOWN_HINT}."
        )


class _MonoBuffer:
    """Collects blocks as mono float32 in one array that grows in place, so that a long file is never held twice."""

    def __init__(self, expected_frames: int) -> None:
        self._samples = np.empty(max(expected_frames, _BLOCK_FRAMES), dtype=np.float32)
        self.frames = 0

    def append(self, block: np.ndarray) -> None:
        """Add `(frames, channels)` float32."""
        end = self.frames + len(block)
        if end > len(self._samples):
            self._samples.resize(max(end, len(self._samples) * 3 // 2), refcheck=False)
        if not np.isfinite(block).all():
            np.nan_to_num(block, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
        self._samples[self.frames : end] = block[:, 0] if block.shape[1] == 1 else block.mean(axis=1, dtype=np.float32)
        self.frames = end

    def finish(self) -> np.ndarray:
        self._samples.resize(self.frames, refcheck=False)
        return self._samples


def _decode_with_libsndfile(path: Path, file: soundfile.SoundFile, max_seconds: float) -> Waveform:
    rate = int(file.samplerate)
    _check_rate(path, rate)
    stated = int(file.frames)
    _check_length(path, stated, rate, max_seconds)
    buffer = _MonoBuffer(stated)
    try:
        while len(block := file.read(_BLOCK_FRAMES, dtype="float32", always_2d=True)):
            buffer.append(block)
            _check_length(path, buffer.frames, rate, max_seconds, at_least=True)
            tell(buffer.frames / stated if stated > 0 else None)
    except soundfile.LibsndfileError as error:
        where = buffer.frames / rate
        raise AudioError(f"{path} is damaged after {where:.1f} s ({error.error_string}); export it again or {_SHOWN_HINT}.") from error
    # MP3 headers only estimate the length; elsewhere fewer samples than stated mean that the file was cut off.
    if buffer.frames < stated and file.format not in {"MP3", "MPEG"}:
        raise AudioError(f"{path} breaks off after {buffer.frames / rate:.1f} s of {stated / rate:.1f} s; copy or export it again.")
    return Waveform(buffer.finish(), rate)


def _decode_with_ffmpeg(path: Path, max_seconds: float) -> Waveform:
    """Decode through ffmpeg as an AU stream, whose 24-byte header carries rate and channels and needs no length."""
    command = ffmpeg_command(path, "-c:a", "pcm_f32be", "-f", "au", "-")
    with tempfile.TemporaryFile() as messages:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=messages)
        try:
            waveform = _read_au(path, process.stdout, max_seconds) if process.stdout else None
            code = process.wait()
        finally:
            process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()
        if code == 0 and waveform is not None:
            return waveform
        messages.seek(0)
        lines = messages.read().decode("utf-8", errors="replace").strip().splitlines()
    if any("matches no streams" in line for line in lines):
        raise AudioError(f"{path} has no audio track; give a file with sound.")
    # What ffmpeg says of noise is about its own parts, such as a filter graph.
    raise AudioError(f"{path} cannot be decoded as audio: it is damaged, or something else; check that it plays, or {_SHOWN_HINT}.")


def _read_au(path: Path, stream: IO[bytes], max_seconds: float) -> Waveform | None:
    """Read an AU stream of float32; None when it ends before its header does."""
    header = stream.read(24)
    if len(header) < 24:
        return None
    _, offset, _, _, rate, channels = struct.unpack(">4s5I", header)
    stream.read(offset - len(header))
    _check_rate(path, rate)
    buffer = _MonoBuffer(_BLOCK_FRAMES)
    for block in _float_blocks(stream, channels):
        buffer.append(block)
        _check_length(path, buffer.frames, rate, max_seconds, at_least=True)
        tell(None)
    return Waveform(buffer.finish(), rate)


def _float_blocks(stream: IO[bytes], channels: int) -> Iterator[np.ndarray]:
    frame_bytes = 4 * channels
    while data := stream.read(_BLOCK_FRAMES * frame_bytes):
        whole = len(data) // frame_bytes * frame_bytes
        yield np.frombuffer(data[:whole], dtype=">f4").astype(np.float32).reshape(-1, channels)
