"""What the page can give away: the kinds of files, what goes into them, and how they are made. No gradio: a folder in, a file out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qamdetr.errors import AudioError, QamDetrError
from qamdetr.export.safe_text import file_name_part
from qamdetr.export.text import Answer, export
from qamdetr.files import write_whole
from qamdetr.ui.lane_results import LaneResult, default_choice, reranked

NOTHING_YET = "There is nothing to export yet: open a recording and look for a sound first."
NOTHING_CHOSEN = "No moment is chosen: check the ones you want in the table of candidates."
NOTHING_FOUND = "Nothing was found, so no moment is chosen. If you want a guess anyway, check it in the table of candidates."


@dataclass(frozen=True)
class ExportKind:
    """One kind of file.

    Attributes:
        label: What it is called and what it is for, in plain words.
        ending: Follows the recording's name in that of the file.
        file_format: Of `qamdetr.export.text`, or `wav`, `flac` (a ZIP of sounds), `png`, `svg` (a figure).
    """

    label: str
    ending: str
    file_format: str


EXPORT_KINDS: dict[str, ExportKind] = {
    kind.file_format: kind
    for kind in (
        ExportKind("Spreadsheet (.csv): a row per moment with its scores", "-moments.csv", "csv"),
        ExportKind("Sounds (.zip of WAV): each moment as a file of its own", "-moments.zip", "wav"),
        ExportKind("Sounds (.zip of FLAC): the same, lossless, about half the size", "-moments-flac.zip", "flac"),
        ExportKind("Audacity labels (.txt): in Audacity, choose File, Import, Labels", "-labels.txt", "audacity"),
        ExportKind("Figure (.png): for slides and documents", "-moments.png", "png"),
        ExportKind("Figure (.svg): for print, sharp at any size", "-moments.svg", "svg"),
        ExportKind("Subtitles (.srt): for VLC and video editors", ".srt", "srt"),
        ExportKind("Captions (.vtt): for players on web pages", ".vtt", "vtt"),
        ExportKind("Raven selection table (.txt): for Raven Pro and Raven Lite", ".selections.txt", "raven"),
        ExportKind("RTTM (.rttm): for tools that score detection and diarisation", ".rttm", "rttm"),
        ExportKind("JSON (.json): for programs, with the relevance of each second", "-moments.json", "json"),
    )
}

_FIGURES = ("png", "svg")
_SAYS_NOTHING_FOUND = (*_FIGURES, "json")
"""Kinds that are worth having of a sound that was not found: "not in this recording" is an answer too."""

_SOUNDS = ("wav", "flac")


def what_is_missing(lanes: Sequence[LaneResult], chosen: Sequence[tuple[int, int]] | None, beta: float, kind: str) -> str:
    """Say why there is nothing to export, and what to do; empty where there is something.

    Figures and JSON also show a query whose sound was not found.
    """
    if not lanes:
        return NOTHING_YET
    if kind in _SAYS_NOTHING_FOUND or (default_choice(lanes, beta) if chosen is None else chosen):
        return ""
    return NOTHING_FOUND if chosen is None else NOTHING_CHOSEN


def picked_answers(lanes: Sequence[LaneResult], chosen: Sequence[tuple[int, int]] | None, beta: float) -> list[Answer]:
    """Turn lanes into answers as the page shows them.

    Args:
        lanes: The answers on the page.
        chosen: `(lane, index in the moments of its result)`; None for what is chosen at first (`default_choice`).
        beta: The weight of the verifier that the page shows, in [0, 1]; scores and ranks follow it.

    Returns:
        One answer per lane; those of which nothing is chosen have no ranks.

    Raises:
        QamDetrError: `beta` out of range.
    """
    pairs = default_choice(lanes, beta) if chosen is None else chosen
    answers = []
    for number, lane in enumerate(lanes):
        wanted = {replace(lane.result.moments[index], score=0.0) for owner, index in pairs if owner == number}
        shown = reranked(lane.result, beta)
        ranks = tuple(rank for rank, moment in enumerate(shown.moments, start=1) if replace(moment, score=0.0) in wanted)
        name = "" if lane.label == shown.query else lane.label.removeprefix(f"{shown.query} · ")
        answers.append(Answer(shown, ranks, name, lane.how, lane.truth))
    return answers


def make_export(lanes: Sequence[LaneResult], chosen: Sequence[tuple[int, int]] | None, beta: float, kind: str, folder: Path) -> Path:
    """Make a file of one of `EXPORT_KINDS`, named after the recording; it appears whole or not at all.

    Args:
        lanes: The answers on the page, all about one recording; `what_is_missing` has found nothing missing.
        chosen: As `picked_answers`.
        beta: As `picked_answers`.
        kind: Key of `EXPORT_KINDS`.
        folder: Where the file goes; made if it is not there.

    Raises:
        QamDetrError: The recording is gone, there is more than the format can hold, or the disk refuses; the recording is called by its
            name alone.
    """
    audio = Path(lanes[0].result.audio)
    answers = picked_answers(lanes, chosen, beta)
    path = folder / f"{file_name_part(audio.stem, fallback='recording', max_letters=60)}{EXPORT_KINDS[kind].ending}"
    try:
        if kind in _FIGURES:
            _write_figure(answers, kind, path)
        elif kind in _SOUNDS:
            _write_sounds(answers, kind, path)
        else:
            _write_text(answers, kind, path)
    except AudioError as error:
        # Where a file lies is the server's business.
        raise AudioError(str(error).replace(str(audio), audio.name)) from error
    except OSError as error:
        raise QamDetrError(
            f"{path.name} cannot be written ({error.strerror or error}); choose fewer moments, or free disk space."
        ) from error
    return path


def _write_figure(answers: Sequence[Answer], kind: str, path: Path) -> None:
    from qamdetr.export.figure import draw_figure

    # Without ranks, a lane whose sound was not found shows its best guess.
    shown = [answer if answer.ranks or answer.result.found else replace(answer, ranks=None) for answer in answers]
    write_whole(path, draw_figure(shown, "svg" if kind == "svg" else "png"))


def _write_sounds(answers: Sequence[Answer], kind: str, path: Path) -> None:
    from qamdetr.export.clips import write_clips

    write_clips(answers, path, "flac" if kind == "flac" else "wav")


def _write_text(answers: Sequence[Answer], kind: str, path: Path) -> None:
    kept = [answer for answer in answers if answer.ranks or (kind in _SAYS_NOTHING_FOUND and not answer.result.found)]
    named = [replace(answer, result=replace(answer.result, audio=Path(answer.result.audio).name)) for answer in kept]
    # Excel takes a file for UTF-8 only when it begins with this mark; other readers of CSV skip it.
    write_whole(path, export(named, kind).encode("utf-8-sig" if kind == "csv" else "utf-8", errors="backslashreplace"))
