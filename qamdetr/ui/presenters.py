"""From recordings and results to what the page shows: plain JSON-able values and short messages. Pure: no gradio, no files, no state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from qamdetr.types import Moment, Recording, Result, Window
from qamdetr.ui.lane_results import LIKELY_SHARE, LaneResult, best_ious, is_likely
from qamdetr.ui.peaks import display_peaks

NEVER_REFUSES = (
    "This model names something for any sound, however low the score: it was not calibrated, so it has no threshold for “not here”."
)

View = dict[str, Any]
"""What `player.js` draws; its keys are documented in `empty_view`, `recording_view` and `result_view`."""

TRAINED = "trained this way: "
"""How the description of a model begins that was trained as it answers, and not bypassed."""


def empty_view() -> View:
    """Show the page before any recording: `state` alone."""
    return {"state": "empty"}


def busy_view(text: str, share: float | None = None, seconds_left: float | None = None, *, cancel: bool = False) -> View:
    """Show work in progress: the player keeps what it shows and says above it what is done.

    Args:
        text: The stage of the work, in words.
        share: Done so far, in [0, 1] (cut to it); None when it cannot be known.
        seconds_left: Time left in seconds, not negative; None when it cannot be known.
        cancel: Offer a button that fires the player's event `cancel`.

    Returns:
        `state, busy, share, left, cancel`; `left` is the time in words, empty when it is unknown.
    """
    return {
        "state": "busy",
        "busy": text,
        "share": None if share is None else round(min(max(share, 0.0), 1.0), 3),
        "left": "" if seconds_left is None else time_left(seconds_left),
        "cancel": cancel,
    }


def time_left(seconds: float) -> str:
    """Say a time left in words, no finer than it can be known."""
    if seconds < 2:
        return "almost done"
    if seconds < 55:
        return f"about {5 * math.ceil(seconds / 5)} s left"
    if seconds < 3570:
        minutes = max(1, round(seconds / 60))
        return "about 1 minute left" if minutes == 1 else f"about {minutes} minutes left"
    return f"about {seconds / 3600:.1f} hours left"


def recording_view(recording: Recording, audio: dict[str, Any], title: str, look: str = "") -> View:
    """Show a recording without a query.

    Args:
        recording: The encoded recording.
        audio: The file in the form the page's server understands; passed through.
        title: Name to show.
        look: What `closer_look` gives finer peaks for; empty for none.

    Returns:
        `state, title, duration` (seconds), `peaks` (`[low, high]`, each one value in [-1, 1] per column), `audio`, `look`.
    """
    return {
        "state": "ready",
        "title": title,
        "duration": round(recording.duration_seconds, 3),
        "peaks": display_peaks(recording.peaks),
        "audio": audio,
        "look": look,
    }


def result_view(base: View, lanes: Sequence[LaneResult]) -> View:
    """Show a recording with its answers, one lane each.

    Args:
        base: What `recording_view` returned.
        lanes: The answers, in the order of the page.

    Returns:
        `base` with `beta` and `verifier` (of the first lane that a verifier looked at; else 0 and `none`), `shared_how` (what `shared_how`
        says of all lanes) and `lanes`, each with `label, how, query, found, message, notes, encoder, verifier, likely_share, saliency,
        moments, truth`.
    """
    shared, hows = shared_how([lane.how for lane in lanes])
    verified = next((lane.result for lane in lanes if lane.result.verifier != "none"), None)
    return {
        **base,
        "state": "result",
        "beta": verified.beta if verified else 0.0,
        "verifier": verified.verifier if verified else "none",
        "shared_how": shared,
        "lanes": [_lane_view(lane, how) for lane, how in zip(lanes, hows, strict=True)],
    }


def shared_how(hows: Sequence[str]) -> tuple[str, list[str]]:
    """Say once what kind of model answered, where several lanes would say the same.

    Args:
        hows: `LaneResult.how` of each lane.

    Returns:
        A sentence for all, empty where they differ in kind or there is one lane; and what is left to say at each lane.
    """
    if len(hows) < 2 or not all(how.startswith(TRAINED) for how in hows):
        return "", list(hows)
    if len(set(hows)) == 1:
        return f"All answers come from one model, {hows[0]}.", [""] * len(hows)
    return "Each model was trained this way; nothing is bypassed.", [how.removeprefix(TRAINED) for how in hows]


def _lane_view(lane: LaneResult, how: str) -> dict[str, Any]:
    result, truth = lane.result, lane.truth
    return {
        "label": lane.label,
        "how": how,
        "query": result.query,
        "found": result.found,
        "message": answer_message(result, truth, can_refuse=lane.can_refuse),
        "notes": list(result.notes),
        "encoder": result.encoder,
        "verifier": result.verifier,
        "likely_share": LIKELY_SHARE,
        "saliency": [round(value, 3) for value in result.saliency],
        "moments": moment_rows(result.moments, truth),
        "truth": None if truth is None else [[round(start, 3), round(end, 3)] for start, end in truth],
    }


def moment_rows(moments: Sequence[Moment], truth: Sequence[Window] | None) -> list[dict[str, Any]]:
    """Rows of the candidates table, in the given order (best first).

    `iou` is against the best true window, None when unknown; `quality` is None where it does not rank: without the head, or with it
    bypassed, it is 1 for all.
    """
    by_quality = any(moment.quality != 1 for moment in moments)
    overlaps = best_ious([moment.window for moment in moments], truth)
    return [
        {
            "rank": rank,
            "start": round(moment.start_seconds, 3),
            "end": round(moment.end_seconds, 3),
            "score": moment.score,
            "decoder_score": moment.decoder_score,
            "foreground": moment.foreground,
            "quality": moment.quality if by_quality else None,
            "verifier_score": moment.verifier_score,
            "iou": None if iou is None else round(iou, 3),
        }
        for rank, (moment, iou) in enumerate(zip(moments, overlaps, strict=True), start=1)
    ]


def answer_message(result: Result, truth: Sequence[Window] | None, *, can_refuse: bool = True) -> dict[str, str]:
    """Say in words what was found: `kind` (found, absent or none), `title` and `detail`; `can_refuse` is that of `LaneResult`."""
    if not result.moments:
        return {"kind": "none", "title": "Nothing to show", "detail": "The model proposed no moment. Try other words for the same sound."}
    known_absent = truth is not None and not truth
    if not result.found:
        detail = f"Nothing scores high enough for “{result.query}”. The best guess is shown, marked as such."
        if known_absent:
            detail += " And indeed: the sound is not in this example."
        return {"kind": "absent", "title": "Not in this recording", "detail": detail}
    likely = sum(is_likely(moment, result.moments[0]) for moment in result.moments)
    title = "1 likely moment" if likely == 1 else f"{likely} likely moments"
    detail = f"for “{result.query}”, best first. Press one to hear it."
    if not can_refuse:
        detail += f" {NEVER_REFUSES}"
    if known_absent:
        detail += " Beware: the sound is not in this example, so this is a mistake of the model."
    return {"kind": "found", "title": title, "detail": detail}
