"""Audio files to blocks of mono samples, however long the file is. Says clearly why a file cannot be used."""

from __future__ import annotations

import shutil
import struct
import subprocess
import tempfile
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import soundfile

from qamdetr.errors import AudioError

MAX_SECONDS = 2 * 3600.0
"""Longest recording that is read unless the caller allows more; two hours at 48 kHz are 1.4 GB of mono samples."""

MIN_SECONDS = 0.1
"""Shorter files hold no sound that a one-second clip could describe."""

MIN_RATE_HZ, MAX_RATE_HZ = 1_000, 768_000
"""Sample rates outside are taken for a broken header."""

_BLOCK_FRAMES = 1 << 18
_SHOWN_HINT = "convert the file to WAV, FLAC, OGG or MP3"

# Only real media containers: a playlist could make ffmpeg open other files or addresses.
_FFMPEG_FORMATS = "mov,mp4,m4a,3gp,matroska,webm,aac,ac3,eac3,asf,avi,flv,mpegts,mpeg,amr,aiff,caf,ogg,mp3,wav,w64,flac,ape,wv,tta,au"


class Block(NamedTuple):
    """Some samples of a recording, behind those of the block before.

    Attributes:
        samples: `(n,)` mono float32 as in `Waveform`.
        sample_rate_hz: Of the file.
        end_frame: How many samples were read with this block.
        stated_frames: How many there are according to the header; 0 where it says nothing.
    """

    samples: np.ndarray
    sample_rate_hz: int
    end_frame: int
    stated_frames: int

    @property
    def share(self) -> float | None:
        """How much of the recording is read, in [0, 1]; None where the header does not tell."""
        return min(self.end_frame / self.stated_frames, 1.0) if self.stated_frames else None


def mono_blocks(path: str | Path, *, max_seconds: float = MAX_SECONDS) -> Generator[Block, None, None]:
    """Read what `decode` reads, block by block, in the memory of a block; whoever stops before the end closes the iterator.

    Raises:
        AudioError: As `decode`; some of it shows only at the end.
    """
    path = Path(path)
    _check_file(path)
    frames, rate = 0, 0
    try:
        file = soundfile.SoundFile(path)
    except (soundfile.LibsndfileError, TypeError, ValueError):
        source = _ffmpeg_blocks(path, max_seconds)
    else:
        source = _libsndfile_blocks(path, file, max_seconds)
    with closing(source):
        for block in source:
            frames, rate = block.end_frame, block.sample_rate_hz
            yield block
    if frames == 0:
        raise AudioError(f"{path} holds no samples (length 0 s); record or export it again.")
    if frames / rate < MIN_SECONDS:
        raise AudioError(f"{path} lasts {frames / rate:.3f} s; the shortest that can be used is {MIN_SECONDS} s.")


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


def _to_mono(block: np.ndarray) -> np.ndarray:
    """Average the channels of `(frames, channels)` float32, which may be changed; `(frames,)`."""
    if not np.isfinite(block).all():
        np.nan_to_num(block, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    mono: np.ndarray
    if block.shape[1] == 2:  # the same bits as the mean's, in a twentieth of its time
        mono = (block[:, 0] + block[:, 1]) / np.float32(2)
    else:
        mono = block[:, 0] if block.shape[1] == 1 else block.mean(axis=1, dtype=np.float32)
    return mono


def _libsndfile_blocks(path: Path, file: soundfile.SoundFile, max_seconds: float) -> Generator[Block, None, None]:
    with file:
        rate = int(file.samplerate)
        _check_rate(path, rate)
        stated = max(int(file.frames), 0)
        _check_length(path, stated, rate, max_seconds)
        frames = 0
        try:
            while len(block := file.read(_BLOCK_FRAMES, dtype="float32", always_2d=True)):
                frames += len(block)
                _check_length(path, frames, rate, max_seconds, at_least=True)
                yield Block(_to_mono(block), rate, frames, stated)
        except soundfile.LibsndfileError as error:
            told = f"{path} is damaged after {frames / rate:.1f} s ({error.error_string}); export it again or {_SHOWN_HINT}."
            raise AudioError(told) from error
        # MP3 headers only estimate the length. Of most other files that were cut off, libsndfile states the length that is left, which is
        # then all there is to hear.
        if frames < stated and file.format not in {"MP3", "MPEG"}:
            raise AudioError(f"{path} breaks off after {frames / rate:.1f} s of {stated / rate:.1f} s; copy or export it again.")


def _ffmpeg_blocks(path: Path, max_seconds: float) -> Generator[Block, None, None]:
    """Decode through ffmpeg as an AU stream, whose 24-byte header carries rate and channels and needs no length."""
    command = ffmpeg_command(path, "-c:a", "pcm_f32be", "-f", "au", "-")
    with tempfile.TemporaryFile() as messages:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=messages)
        try:
            complete = process.stdout is not None and (yield from _au_blocks(path, process.stdout, max_seconds))
            code = process.wait()
        finally:
            process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()
        if code == 0 and complete:
            return
        messages.seek(0)
        lines = messages.read().decode("utf-8", errors="replace").strip().splitlines()
    if any("matches no streams" in line for line in lines):
        raise AudioError(f"{path} has no audio track; give a file with sound.")
    # What ffmpeg says of noise is about its own parts, such as a filter graph.
    raise AudioError(f"{path} cannot be decoded as audio: it is damaged, or something else; check that it plays, or {_SHOWN_HINT}.")


def _au_blocks(path: Path, stream: IO[bytes], max_seconds: float) -> Generator[Block, None, bool]:
    """Read an AU stream of float32; returns whether it had a whole header."""
    header = stream.read(24)
    if len(header) < 24:
        return False
    _, offset, _, _, rate, channels = struct.unpack(">4s5I", header)
    stream.read(offset - len(header))
    _check_rate(path, rate)
    frames = 0
    for block in _float_blocks(stream, channels):
        frames += len(block)
        _check_length(path, frames, rate, max_seconds, at_least=True)
        yield Block(_to_mono(block), rate, frames, 0)
    return True


def _float_blocks(stream: IO[bytes], channels: int) -> Iterator[np.ndarray]:
    frame_bytes = 4 * channels
    while data := stream.read(_BLOCK_FRAMES * frame_bytes):
        whole = len(data) // frame_bytes * frame_bytes
        yield np.frombuffer(data[:whole], dtype=">f4").astype(np.float32).reshape(-1, channels)
