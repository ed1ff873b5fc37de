"""Moments as audio: a ZIP of one WAV or FLAC file per moment, and a list of them."""

from __future__ import annotations

import itertools
import shutil
import tempfile
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeAlias

import numpy as np
import soundfile

from qamdetr.audio import Sound
from qamdetr.errors import AudioError
from qamdetr.export.text import Answer, cell, clock, csv_text, file_name_part, score_cells
from qamdetr.files import replacing

if TYPE_CHECKING:
    from qamdetr.types import Moment

MANIFEST_NAME = "moments.csv"

MAX_ARCHIVE_BYTES = 2 * 1024**3
"""Most that one archive may hold; a single file stays well within what WAV can state."""

_NO_DATE = (1980, 1, 1, 0, 0, 0)  # the oldest that an archive can state: the day of the export says nothing about the sound
_FLAC_SUBTYPES = {"PCM_U8": "PCM_S8", "PCM_16": "PCM_16"}  # 24 bits for all others: FLAC has no floats and no unsigned bytes
_Cut: TypeAlias = "tuple[str, Answer, int, Moment]"  # name of the file, and the moment with its rank


def write_clips(answers: Sequence[Answer], path: Path, audio_format: str = "wav") -> None:
    """Cut the moments out of their recordings into one ZIP of `wav` or `flac`; it appears whole or not at all.

    The samples are the recording's own: rate, channels (or the chosen one) and bits stay, nothing is resampled or mixed. FLAC has no float
    samples and at most 24 bits; lossy recordings come at 16. Names are `query_rank_start-end`, after the recording's name where there are
    several; `moments.csv` lists them with exact times and scores. One moment is on disk at a time, and only a block of it in memory.

    Raises:
        AudioError: A recording is gone or cannot be read, or the moments hold more than `MAX_ARCHIVE_BYTES`.
        OSError: The disk refuses.
    """
    cuts = _plan(answers, audio_format)
    size = 0
    with replacing(path) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo(MANIFEST_NAME, _NO_DATE), _manifest(cuts).encode("utf-8-sig"), zipfile.ZIP_DEFLATED)
        for name, answer, _, moment in cuts:
            if not Path(answer.result.audio).is_file():
                raise AudioError("is no longer there", "open the recording again", answer.result.audio)
            with tempfile.TemporaryFile() as clip:
                _write(clip, Sound(answer.result.audio, **answer.result.heard), moment, audio_format)
                size += clip.seek(0, 2)
                if size > MAX_ARCHIVE_BYTES:
                    told = f"The {len(cuts)} moments hold at least {size / 1024**3:.1f} GB of sound; the limit is"
                    raise AudioError(f"{told} {MAX_ARCHIVE_BYTES / 1024**3:g} GB", "choose fewer or shorter ones")
                clip.seek(0)
                with archive.open(zipfile.ZipInfo(name, _NO_DATE), "w", force_zip64=True) as entry:
                    shutil.copyfileobj(clip, entry, 1 << 20)


def _plan(answers: Sequence[Answer], audio_format: str) -> list[_Cut]:
    """Name the files; names that differ in case alone are one to some file systems."""
    several = len({answer.result.audio for answer in answers}) > 1
    cuts: list[_Cut] = []
    seen: Counter[str] = Counter()
    for answer in answers:
        prefix = f"{file_name_part(Path(answer.result.audio).stem, fallback='recording')}_" if several else ""
        title = file_name_part(answer.title, fallback="moment")
        for rank, moment in answer.moments():
            start, end = (f"{clock(seconds).replace(':', 'm')}s" for seconds in moment.window)
            stem = f"{prefix}{title}_{rank:02d}_{start}-{end}"
            seen[stem.casefold()] += 1
            number = f"_{seen[stem.casefold()]}" if seen[stem.casefold()] > 1 else ""
            cuts.append((f"{stem}{number}.{audio_format}", answer, rank, moment))
    return cuts


def _manifest(cuts: Sequence[_Cut]) -> str:
    rows = [["file", "recording", "query", "lane", "rank", "start", "end", "score", "decoder_score", "verifier_score"]]
    for name, answer, rank, moment in cuts:
        told = (Path(answer.result.audio).name, answer.result.query, answer.name)
        rows.append([name, *map(cell, told), str(rank), *score_cells(moment)[:5]])
    return csv_text(rows)


def _write(clip: IO[bytes], sound: Sound, moment: Moment, audio_format: str) -> None:
    """Write one moment, within the recording and never none of it, to a file that can be wound back."""
    rate, end = sound.rate_hz, sound.duration_seconds
    last = max(1, min(round(moment.end_seconds * rate), round(end * rate)))
    first = max(0, min(round(moment.start_seconds * rate), last - 1))
    blocks = sound.part_blocks(first / rate, last / rate, mono=False)
    begin = next(blocks)
    channels = int(begin.shape[1])
    subtype = _FLAC_SUBTYPES.get(sound.subtype, "PCM_24") if audio_format == "flac" else sound.subtype
    try:
        with soundfile.SoundFile(clip, "w", rate, channels, subtype, format=audio_format.upper()) as file:
            for block in itertools.chain([begin], blocks):
                file.write(_writable(block, sound.subtype))
    except soundfile.LibsndfileError as error:
        what = f"{channels} channels at {rate} Hz cannot be written as {audio_format.upper()} ({error.error_string})"
        raise AudioError(what, "choose the other audio format") from error


def _writable(samples: np.ndarray, subtype: str) -> np.ndarray:
    """Bring samples to a type that soundfile writes without loss; what is not finite becomes 0."""
    if samples.dtype == np.uint8:
        return np.left_shift(samples.astype(np.int16) - 128, 8)
    if samples.dtype.kind == "f":
        samples = np.nan_to_num(samples, posinf=0.0, neginf=0.0)
        return np.rint(samples * 32768).clip(-32768, 32767).astype(np.int16) if subtype == "PCM_16" else samples
    return samples
