"""Moments as audio: a ZIP of one WAV or FLAC file per moment, and a list of them."""

from __future__ import annotations

import csv
import io
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import soundfile

from qamdetr.errors import AudioError
from qamdetr.export.text import Answer, as_answers, cell, file_name_part
from qamdetr.files import replacing
from qamdetr.sound_file import blocks, open_sound

if TYPE_CHECKING:
    from qamdetr.types import Moment, Result

AudioFormat = Literal["wav", "flac"]

MANIFEST_NAME = "moments.csv"

MAX_ARCHIVE_BYTES = 2 * 1024**3
"""Most sound, counted without compression, that one archive may hold; a single file stays well within what WAV can state."""

_NO_DATE = (1980, 1, 1, 0, 0, 0)  # the oldest that an archive can state: the day of the export says nothing about the sound

# How samples are read, and what they are written as; all other subtypes are lossy or have 16 bits.
_WAV_SUBTYPES = {
    "PCM_U8": ("int16", "PCM_U8"),
    "PCM_S8": ("int16", "PCM_U8"),
    "PCM_24": ("int32", "PCM_24"),
    "PCM_32": ("int32", "PCM_32"),
    "FLOAT": ("float32", "FLOAT"),
    "DOUBLE": ("float64", "DOUBLE"),
}
_FLAC_SUBTYPES = {
    "PCM_U8": ("int16", "PCM_S8"),
    "PCM_S8": ("int16", "PCM_S8"),
    "PCM_24": ("int32", "PCM_24"),
    "PCM_32": ("int32", "PCM_24"),
    "FLOAT": ("float32", "PCM_24"),
    "DOUBLE": ("float64", "PCM_24"),
}
_BYTES = {"PCM_U8": 1, "PCM_S8": 1, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8}


@dataclass(frozen=True)
class _Cut:
    answer: Answer
    rank: int
    moment: Moment
    name: str


def write_clips(results: Sequence[Result | Answer], path: Path, audio_format: AudioFormat = "wav") -> int:
    """Cut the moments out of their recordings into one ZIP; it appears whole or not at all.

    The samples are the recording's own: rate, channels and bits stay, nothing is resampled or mixed. FLAC has no float samples and at most
    24 bits; lossy recordings come at 16. Names are `query_rank_start-end`, after the recording's name where there are several;
    `moments.csv` lists them with exact times and scores. One moment is on disk at a time, and only a block of it in memory.

    Args:
        results: `audio` of each is the path of its recording; `Answer.moments` says which moments are cut.
        path: Of the archive.
        audio_format: `wav`, or `flac`, which is lossless as well and about half the size.

    Returns:
        How many moments were cut.

    Raises:
        AudioError: A recording is gone or cannot be read, or the moments hold more than `MAX_ARCHIVE_BYTES`.
        OSError: The disk refuses.
    """
    cuts = _plan(as_answers(results), audio_format)
    recordings = list(dict.fromkeys(cut.answer.result.audio for cut in cuts))
    size = 0
    with replacing(path) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo(MANIFEST_NAME, _NO_DATE), _manifest(cuts).encode("utf-8-sig"), zipfile.ZIP_DEFLATED)
        for audio in recordings:
            own = sorted((cut for cut in cuts if cut.answer.result.audio == audio), key=lambda cut: cut.moment.start_seconds)
            with open_sound(audio, end_seconds=max(cut.moment.end_seconds for cut in own)) as sound:
                frames = sum(last - first for first, last in (_frames(cut.moment, sound) for cut in own))
                size += frames * int(sound.channels) * _BYTES.get(sound.subtype, 2)
                if size > MAX_ARCHIVE_BYTES:
                    raise AudioError(
                        f"The {len(cuts)} moments hold at least {size / 1024**3:.1f} GB of sound; the limit is "
                        f"{MAX_ARCHIVE_BYTES / 1024**3:g} GB; choose fewer or shorter ones."
                    )
                for cut in own:
                    _add(archive, cut, sound, audio_format)
    return len(cuts)


def _plan(answers: Sequence[Answer], audio_format: AudioFormat) -> list[_Cut]:
    """Name the files; names that differ in case alone are one to some file systems."""
    several = len({answer.result.audio for answer in answers}) > 1
    taken: set[str] = {MANIFEST_NAME}
    cuts = []
    for answer in answers:
        prefix = f"{file_name_part(Path(answer.result.audio).stem, fallback='recording')}_" if several else ""
        title = file_name_part(answer.title, fallback="moment")
        for rank, moment in answer.moments():
            stem = f"{prefix}{title}_{rank:02d}_{_time(moment.start_seconds)}-{_time(moment.end_seconds)}"
            name, number = f"{stem}.{audio_format}", 1
            while name.casefold() in taken:
                number += 1
                name = f"{stem}_{number}.{audio_format}"
            taken.add(name.casefold())
            cuts.append(_Cut(answer, rank, moment, name))
    return cuts


def _time(seconds: float) -> str:
    milliseconds = round(seconds * 1000)
    return f"{milliseconds // 60_000}m{milliseconds % 60_000 / 1000:06.3f}s"


def _manifest(cuts: Sequence[_Cut]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "recording", "query", "lane", "rank", "start", "end", "score", "decoder_score", "verifier_score"])
    for cut in cuts:
        result, m = cut.answer.result, cut.moment
        numbers = (m.start_seconds, m.end_seconds, m.score, m.decoder_score, m.verifier_score)
        cells = ["" if number is None else f"{number:.4f}" for number in numbers]
        writer.writerow([cut.name, cell(Path(result.audio).name), cell(result.query), cell(cut.answer.name), cut.rank, *cells])
    return text.getvalue()


def _frames(moment: Moment, sound: soundfile.SoundFile) -> tuple[int, int]:
    """First frame, and the one after the last, within the recording and never none."""
    last = max(1, min(round(moment.end_seconds * sound.samplerate), sound.frames))
    return max(0, min(round(moment.start_seconds * sound.samplerate), last - 1)), last


def _add(archive: zipfile.ZipFile, cut: _Cut, sound: soundfile.SoundFile, audio_format: AudioFormat) -> None:
    subtypes = _WAV_SUBTYPES if audio_format == "wav" else _FLAC_SUBTYPES
    dtype, subtype = subtypes.get(sound.subtype, ("int16", "PCM_16"))
    # Headers are completed at the end, which needs a file that can be wound back: an archive cannot.
    with tempfile.TemporaryFile() as clip:
        try:
            with soundfile.SoundFile(clip, "w", sound.samplerate, sound.channels, subtype, format=audio_format.upper()) as file:
                for block in _finite(blocks(sound, *_frames(cut.moment, sound), dtype=dtype)):
                    file.write(block)
        except soundfile.LibsndfileError as error:
            raise AudioError(
                f"{sound.channels} channels at {sound.samplerate} Hz cannot be written as {audio_format.upper()} ({error.error_string}); "
                "choose the other audio format."
            ) from error
        clip.seek(0)
        with archive.open(zipfile.ZipInfo(cut.name, _NO_DATE), "w", force_zip64=True) as entry:
            while data := clip.read(1 << 20):
                entry.write(data)


def _finite(parts: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    for part in parts:
        yield np.nan_to_num(part, copy=False, posinf=0.0, neginf=0.0) if part.dtype.kind == "f" else part
