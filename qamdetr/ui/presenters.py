"""From recordings and results to what the page shows: plain JSON-able values and short messages. Pure: no gradio, no files, no state."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from qamdetr.spans import pairwise_iou
from qamdetr.types import Moment, Recording, Result, Window

View = dict[str, Any]
"""What `player.js` draws; its keys are documented in `empty_view`, `recording_view` and `result_view`."""

MAX_COLUMNS = 1200
"""Columns of the drawn waveform: more than a wide screen has room for, and still only some 12 kB."""

MAX_GAIN = 20.0
"""Quiet recordings are drawn larger, up to this factor, so that their shape can be seen; noise floors stay flat."""

LIKELY_SHARE = 0.5
"""Moments under this share of the best score are shown as "less likely": the decoder always fills all its slots."""

CARD_SECTION = "What it can and cannot hear"
"""Heading of the checkpoint card's section that the page quotes."""

HEARING_FALLBACK = (
    "The *pocket* encoder is small, made by this project and runs offline. It knows everyday sounds (animals, weather, water, "
    "machines, speech, instruments, alarms) better than rare ones. It does not understand what is said, who says it, or music by name."
)


def empty_view() -> View:
    """Show the page before any recording: `state` alone."""
    return {"state": "empty"}


def busy_view(text: str) -> View:
    """Show work in progress: the player keeps what it shows and says `busy` above it."""
    return {"state": "busy", "busy": text}


def recording_view(recording: Recording, audio: dict[str, Any], title: str) -> View:
    """Show a recording without a query.

    Args:
        recording: The encoded recording.
        audio: The file in the form the page's server understands; passed through.
        title: Name to show.

    Returns:
        `state, title, duration` (seconds), `peaks` (`[low, high]`, each one value in [-1, 1] per column), `audio`.
    """
    return {
        "state": "ready",
        "title": title,
        "duration": round(recording.duration_seconds, 3),
        "peaks": display_peaks(recording.peaks),
        "audio": audio,
    }


def result_view(base: View, result: Result, truth: Sequence[Window] | None) -> View:
    """Show a recording with the answer to one query.

    Args:
        base: What `recording_view` returned.
        result: The answer.
        truth: True windows in seconds when they are known (examples); empty when the sound is known to be absent.

    Returns:
        `base` with `query, found, message, notes, encoder, verifier, beta, likely_share, saliency, moments, truth`.
    """
    return {
        **base,
        "state": "result",
        "query": result.query,
        "found": result.found,
        "message": answer_message(result, truth),
        "notes": list(result.notes),
        "encoder": result.encoder,
        "verifier": result.verifier,
        "beta": result.beta,
        "likely_share": LIKELY_SHARE,
        "saliency": [round(value, 3) for value in result.saliency],
        "moments": moment_rows(result.moments, truth),
        "truth": None if truth is None else [[round(start, 3), round(end, 3)] for start, end in truth],
    }


def moment_rows(moments: Sequence[Moment], truth: Sequence[Window] | None) -> list[dict[str, Any]]:
    """Rows of the candidates table, in the given order (best first); `iou` is against the best true window, None when unknown."""
    overlaps = best_ious([moment.window for moment in moments], truth)
    return [
        {
            "rank": rank,
            "start": round(moment.start_seconds, 3),
            "end": round(moment.end_seconds, 3),
            "score": moment.score,
            "decoder_score": moment.decoder_score,
            "foreground": moment.foreground,
            "quality": moment.quality,
            "verifier_score": moment.verifier_score,
            "iou": None if iou is None else round(iou, 3),
        }
        for rank, (moment, iou) in enumerate(zip(moments, overlaps, strict=True), start=1)
    ]


def best_ious(windows: Sequence[Window], truth: Sequence[Window] | None) -> list[float | None]:
    """For each window its largest IoU with a true window; 0 when nothing is true, None when the truth is unknown."""
    if truth is None:
        return [None] * len(windows)
    if not truth or not windows:
        return [0.0] * len(windows)
    iou = pairwise_iou(torch.tensor(windows, dtype=torch.float64), torch.tensor(truth, dtype=torch.float64))
    return [float(value) for value in iou.max(dim=1).values]


def answer_message(result: Result, truth: Sequence[Window] | None) -> dict[str, str]:
    """Say in words what was found: `kind` (found, absent or none), `title` and `detail`."""
    if not result.moments:
        return {"kind": "none", "title": "Nothing to show", "detail": "The model proposed no moment. Try other words for the same sound."}
    known_absent = truth is not None and not truth
    if not result.found:
        detail = f"Nothing scores high enough for “{result.query}”. The best guess is shown, marked as such."
        if known_absent:
            detail += " And indeed: the sound is not in this example."
        return {"kind": "absent", "title": "Not in this recording", "detail": detail}
    likely = sum(moment.score >= LIKELY_SHARE * result.moments[0].score for moment in result.moments)
    title = "1 likely moment" if likely == 1 else f"{likely} likely moments"
    detail = f"for “{result.query}”, best first. Press one to hear it."
    if known_absent:
        detail += " Beware: the sound is not in this example, so this is a mistake of the model."
    return {"kind": "found", "title": title, "detail": detail}


def display_peaks(peaks: np.ndarray, max_columns: int = MAX_COLUMNS) -> list[list[float]]:
    """Thin out and scale a waveform overview for drawing.

    Args:
        peaks: `(2, columns)` minimum and maximum per column, in [-1, 1].
        max_columns: Most columns to return; neighbours are merged by minimum and maximum, so no peak is lost.

    Returns:
        `[low, high]`, two decimals, scaled so that the loudest peak is 1 or the gain is `MAX_GAIN`.
    """
    low, high = np.asarray(peaks, dtype=np.float64)
    if low.size > max_columns:
        starts = np.linspace(0, low.size, max_columns, endpoint=False).astype(int)
        low, high = np.minimum.reduceat(low, starts), np.maximum.reduceat(high, starts)
    loudest = max(np.abs(low).max(initial=0.0), np.abs(high).max(initial=0.0))
    gain = min(MAX_GAIN, 1.0 / loudest) if loudest > 0 else 1.0
    return [np.round(low * gain, 2).tolist(), np.round(high * gain, 2).tolist()]


def hearing_note(cards: Iterable[str]) -> str:
    """Body of the section `CARD_SECTION` of the first checkpoint card that has one, or a general note."""
    for card in cards:
        heading = re.search(rf"^(#+)\s*{re.escape(CARD_SECTION)}\s*$", card, flags=re.MULTILINE | re.IGNORECASE)
        if heading:
            next_heading = rf"^#{{1,{len(heading[1])}}}\s"  # of the same or a higher level: subsections belong to it
            return re.split(next_heading, card[heading.end() :], maxsplit=1, flags=re.MULTILINE)[0].strip()
    return HEARING_FALLBACK
