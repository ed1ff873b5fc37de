"""What the page can give away: the kinds of files, what goes into them, and how they are made. No gradio: a folder in, a file out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from qamdetr.errors import AudioError, QamDetrError
from qamdetr.export import EXPORTS, ExportInfo
from qamdetr.export.text import Answer, file_name_part
from qamdetr.ui.lane_results import LaneResult, default_choice, reranked

NOTHING_YET = "There is nothing to export yet: open a recording and look for a sound first."
NOTHING_CHOSEN = "No moment is chosen: check the ones you want in the table of candidates."
NOTHING_FOUND = "Nothing was found, so no moment is chosen. If you want a guess anyway, check it in the table of candidates."


EXPORT_KINDS: dict[str, ExportInfo] = {
    name: info for name, info in sorted(EXPORTS.items(), key=lambda item: (item[0] != "csv", item[1].label)) if info.ending
}
"""What the page offers, the spreadsheet first."""

_FIGURES = ("png", "svg")
_SAYS_NOTHING_FOUND = (*_FIGURES, "json")
"""Kinds that are worth having of a sound that was not found: "not in this recording" is an answer too."""


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
        EXPORT_KINDS[kind].write(_shown(answers, kind), path)
    except AudioError as error:
        # Where a file lies is the server's business.
        raise AudioError(str(error).replace(str(audio), audio.name)) from error
    except OSError as error:
        raise QamDetrError(
            f"{path.name} cannot be written ({error.strerror or error}); choose fewer moments, or free disk space."
        ) from error
    return path


def _shown(answers: Sequence[Answer], kind: str) -> list[Answer]:
    if kind in _FIGURES:  # without ranks, a lane whose sound was not found shows its best guess
        return [answer if answer.ranks or answer.result.found else replace(answer, ranks=None) for answer in answers]
    if EXPORT_KINDS[kind].to_file:
        return list(answers)
    kept = [answer for answer in answers if answer.ranks or (kind in _SAYS_NOTHING_FOUND and not answer.result.found)]
    return [replace(answer, result=replace(answer.result, audio=Path(answer.result.audio).name)) for answer in kept]
