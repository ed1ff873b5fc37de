"""A recording on disk, read in parts with its own channels and rate, so that cutting and drawing an hour of it costs little memory."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

from qamdetr.audio_blocks import ffmpeg_command
from qamdetr.errors import AudioError

BLOCK_FRAMES = 1 << 16

_EXACT_CONTAINERS = frozenset({"WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "FLAC"})
"""Where seeking lands on the very sample; in Ogg files libsndfile 1.2 lands beside it now and then."""

_MARGIN_SECONDS = 0.5  # after the end that is asked for, so that rounding never costs the last sample


@contextlib.contextmanager
def open_sound(path: str | Path, *, end_seconds: float | None = None) -> Iterator[soundfile.SoundFile]:
    """Open a recording so that `seek` and `read` give its exact samples; compressed ones are first decoded to a temporary file on disk.

    Integer samples stay what they are. Lossy formats, and those that only ffmpeg reads, come at 16 bits.

    Args:
        path: Anything that `audio.decode` reads.
        end_seconds: Nothing after it is needed; None for all.

    Raises:
        AudioError: The file is gone or damaged, or the disk is full.
    """
    path = Path(path)
    if not path.is_file():
        raise AudioError(f"{path} is no longer there; open the recording again.")
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(_open(path, end_seconds, stack))
        except (OSError, soundfile.LibsndfileError) as error:
            raise AudioError(f"{path} cannot be read again ({error}); open it anew, or free space for temporary files.") from error
        yield file


@contextlib.contextmanager
def open_part(path: str | Path, start_seconds: float, end_seconds: float) -> Iterator[tuple[soundfile.SoundFile, int]]:
    """Open a recording to read the part `[start, end)`, without decoding what lies before or after it.

    Enough to draw from, not to cut from: in compressed formats the begin may lie some milliseconds beside.

    Args:
        path: Anything that `audio.decode` reads.
        start_seconds: Begin of the part.
        end_seconds: End of the part.

    Yields:
        The file, and its frame at which the part begins.

    Raises:
        AudioError: The file is gone or damaged, or the disk is full.
    """
    path = Path(path)
    if not path.is_file():
        raise AudioError(f"{path} is no longer there; open the recording again.")
    with contextlib.ExitStack() as stack:
        try:
            file, begins_seconds = stack.enter_context(soundfile.SoundFile(path)), start_seconds
        except (soundfile.LibsndfileError, TypeError, ValueError):
            plain = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qamdetr-"))) / "part.w64"
            _decode_with_ffmpeg(path, plain, end_seconds - start_seconds, start_seconds)
            file, begins_seconds = stack.enter_context(soundfile.SoundFile(plain)), 0.0
        yield file, round(begins_seconds * file.samplerate)


def blocks(file: soundfile.SoundFile, first: int, last: int, *, dtype: str = "float32") -> Iterator[np.ndarray]:
    """Read the frames `[first, last)` as arrays `(frames, channels)` of at most `BLOCK_FRAMES`; stops early where the file ends."""
    file.seek(min(first, file.frames))
    left = last - first
    while left > 0 and len(block := file.read(min(BLOCK_FRAMES, left), dtype=dtype, always_2d=True)):
        left -= len(block)
        yield block


def _open(path: Path, end_seconds: float | None, stack: contextlib.ExitStack) -> soundfile.SoundFile:
    try:
        file = soundfile.SoundFile(path)
    except (soundfile.LibsndfileError, TypeError, ValueError):
        file = None
    if file is not None and file.format in _EXACT_CONTAINERS:
        return file
    plain = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qamdetr-"))) / "plain.w64"
    if file is None:
        _decode_with_ffmpeg(path, plain, end_seconds)
    else:
        with file:
            _decode_with_libsndfile(file, plain, end_seconds)
    return soundfile.SoundFile(plain)


def _decode_with_libsndfile(file: soundfile.SoundFile, plain: Path, end_seconds: float | None) -> None:
    # MP3 headers only estimate the length: read until the end shows itself.
    last = sys.maxsize if end_seconds is None else round((end_seconds + _MARGIN_SECONDS) * file.samplerate)
    with soundfile.SoundFile(plain, "w", file.samplerate, file.channels, "PCM_16", format="W64") as copy:
        for block in blocks(file, 0, last):
            copy.write(block)


def _decode_with_ffmpeg(path: Path, plain: Path, seconds: float | None, start_seconds: float = 0.0) -> None:
    length = () if seconds is None else ("-t", f"{seconds + _MARGIN_SECONDS:.3f}")
    command = ffmpeg_command(path, *length, "-c:a", "pcm_s16le", "-f", "w64", str(plain), start_seconds=start_seconds)
    done = subprocess.run(command, check=False, capture_output=True, text=True, errors="replace")
    if done.returncode != 0:
        told = " ".join(done.stderr.strip().splitlines()[-1:])[:160]
        raise AudioError(f"{path} cannot be decoded as audio ({told}); check that it plays.")
