"""Moments as audio: a ZIP of one WAV or FLAC file per moment, and a list of them."""

from __future__ import annotations

import csv
import io
import itertools
import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal

import numpy as np
import soundfile

from qamdetr.audio import Sound
from qamdetr.errors import AudioError
from qamdetr.export.text import Answer, as_answers, cell, file_name_part
from qamdetr.files import replacing

if TYPE_CHECKING:
    from qamdetr.types import Moment, Result

AudioFormat = Literal["wav", "flac"]

MANIFEST_NAME = "moments.csv"

MAX_ARCHIVE_BYTES = 2 * 1024**3
"""Most sound, counted without compression, that one archive may hold; a single file stays well within what WAV can state."""

_NO_DATE = (1980, 1, 1, 0, 0, 0)  # the oldest that an archive can state: the day of the export says nothing about the sound

# What the samples of a recording are written as, by what they are in it; FLAC has no floats and no unsigned bytes.
_SUBTYPES = {
    "wav": {"PCM_U8": "PCM_U8", "PCM_16": "PCM_16", "PCM_24": "PCM_24", "PCM_32": "PCM_32", "FLOAT": "FLOAT", "DOUBLE": "DOUBLE"},
    "flac": {"PCM_U8": "PCM_S8", "PCM_16": "PCM_16", "PCM_24": "PCM_24", "PCM_32": "PCM_24", "FLOAT": "PCM_24", "DOUBLE": "PCM_24"},
}
_BYTES = {"PCM_U8": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8}


@dataclass(frozen=True)
class _Cut:
    answer: Answer
    rank: int
    moment: Moment
    name: str


def write_clips(results: Sequence[Result | Answer], path: Path, audio_format: AudioFormat = "wav") -> int:
    """Cut the moments out of their recordings into one ZIP; it appears whole or not at all.

    The samples are the recording's own: rate, channels (or the chosen one) and bits stay, nothing is resampled or mixed. FLAC has no float
    samples and at most 24 bits; lossy recordings come at 16. Names are `query_rank_start-end`, after the recording's name where there are
    several; `moments.csv` lists them with exact times and scores. One moment is on disk at a time, and only a block of it in memory.

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
    size = 0.0
    with replacing(path) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo(MANIFEST_NAME, _NO_DATE), _manifest(cuts).encode("utf-8-sig"), zipfile.ZIP_DEFLATED)
        for audio in dict.fromkeys(cut.answer.result.audio for cut in cuts):
            if not Path(audio).is_file():
                raise AudioError(f"{audio} is no longer there", "open the recording again")
            for cut in sorted((cut for cut in cuts if cut.answer.result.audio == audio), key=lambda cut: cut.moment.start_seconds):
                sound = Sound(audio, **cut.answer.result.heard)
                with tempfile.TemporaryFile() as clip:
                    size += _write(clip, sound, cut.moment, audio_format)
                    if size > MAX_ARCHIVE_BYTES:
                        told = f"The {len(cuts)} moments hold at least {size / 1024**3:.1f} GB of sound; the limit is"
                        raise AudioError(f"{told} {MAX_ARCHIVE_BYTES / 1024**3:g} GB", "choose fewer or shorter ones")
                    clip.seek(0)
                    with archive.open(zipfile.ZipInfo(cut.name, _NO_DATE), "w", force_zip64=True) as entry:
                        shutil.copyfileobj(clip, entry, 1 << 20)
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


def _write(clip: IO[bytes], sound: Sound, moment: Moment, audio_format: AudioFormat) -> int:
    """Write one moment, within the recording and never none of it, to a file that can be wound back; returns the bytes of its samples."""
    rate, end = sound.rate_hz, sound.duration_seconds
    last = max(1, min(round(moment.end_seconds * rate), round(end * rate)))
    first = max(0, min(round(moment.start_seconds * rate), last - 1))
    blocks = sound.part_blocks(first / rate, last / rate, mono=False)
    begin = next(blocks)
    channels = int(begin.shape[1])
    subtype = _SUBTYPES[audio_format][sound.subtype]
    try:
        with soundfile.SoundFile(clip, "w", rate, channels, subtype, format=audio_format.upper()) as file:
            for block in itertools.chain([begin], blocks):
                file.write(_writable(block, sound.subtype))
    except soundfile.LibsndfileError as error:
        what = f"{channels} channels at {rate} Hz cannot be written as {audio_format.upper()} ({error.error_string})"
        raise AudioError(what, "choose the other audio format") from error
    return (last - first) * channels * _BYTES[sound.subtype]


def _writable(samples: np.ndarray, subtype: str) -> np.ndarray:
    """Bring samples to a type that soundfile writes without loss; what is not finite becomes 0."""
    if samples.dtype == np.uint8:
        return np.left_shift(samples.astype(np.int16) - 128, 8)
    if samples.dtype.kind == "f":
        samples = np.nan_to_num(samples, posinf=0.0, neginf=0.0)
        return np.rint(samples * 32768).clip(-32768, 32767).astype(np.int16) if subtype == "PCM_16" else samples
    return samples
