"""From recordings and answers to what the page shows: plain JSON-able values and short messages. Pure: no gradio, no files, no state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from qamdetr.inference.rerank import LIKELY_OVERLAP, LIKELY_SCORE, LIKELY_SHARE, VERIFIER_SAYS_YES, mark_likely, rerank
from qamdetr.spans import pairwise_iou
from qamdetr.types import Moment, Recording, Result, Window


@dataclass(frozen=True)
class LaneResult:
    """One answer and how it is shown: one lane of the player.

    Attributes:
        label: What the lane is called, such as "a dog barks" or "Without 3-way fusion".
        how: What kind of model answered: empty, "trained this way: …" or "bypassed in the full model: …".
        result: The answer.
        truth: True windows in seconds when they are known (examples); empty when the sound is known to be absent.
        threshold: `second_threshold` of the model for this answer; 0 where it was not calibrated, and names anything.
    """

    label: str
    how: str
    result: Result
    truth: Sequence[Window] | None
    threshold: float = 0.0


def reranked(lane: LaneResult, beta: float) -> Result:
    """Return an answer as the player shows it at another weight of the verifier, in [0, 1]; the same one where no verifier looked."""
    result = lane.result
    verified = [moment.verifier_score for moment in result.moments if moment.verifier_score is not None]
    if result.verifier == "none" or len(verified) < len(result.moments):
        return result
    by_decoder = sorted(result.moments, key=lambda moment: -moment.decoder_score)
    scores = [moment.verifier_score for moment in by_decoder if moment.verifier_score is not None]
    moments = mark_likely(rerank(by_decoder, scores, beta), found=result.found, threshold=lane.threshold)
    return replace(result, beta=beta, moments=moments)


def default_choice(lanes: Sequence[LaneResult], beta: float) -> list[tuple[int, int]]:
    """Choose for export what the player has checked at first: the likely moments of every lane, at a weight of the verifier in [0, 1].

    Returns:
        `(lane, candidate)`; `candidate` is the index in the moments of the lane's result.
    """
    chosen = []
    for number, lane in enumerate(lanes):
        likely = {moment.window for moment in reranked(lane, beta).moments if moment.likely}
        chosen += [(number, candidate) for candidate, moment in enumerate(lane.result.moments) if moment.window in likely]
    return chosen


def checked_choice(sent: object, lanes: Sequence[LaneResult]) -> list[tuple[int, int]]:
    """Read the `chosen` of the player's event `select`; pairs that name no moment are left out, as anyone may send anything.

    Returns:
        `(lane, candidate)`, each once, in order.
    """
    every = [(number, candidate) for number, lane in enumerate(lanes) for candidate in range(len(lane.result.moments))]
    pairs = sent if isinstance(sent, list) else []
    wanted = {tuple(pair) for pair in pairs if isinstance(pair, list) and all(isinstance(index, int) for index in pair)}
    return [pair for pair in every if pair in wanted]


def best_ious(windows: Sequence[Window], truth: Sequence[Window] | None) -> list[float | None]:
    """For each window its largest IoU with a true window; 0 when nothing is true, None when the truth is unknown."""
    if truth is None:
        return [None] * len(windows)
    if not truth or not windows:
        return [0.0] * len(windows)
    iou = pairwise_iou(torch.tensor(windows, dtype=torch.float64), torch.tensor(truth, dtype=torch.float64))
    return [float(value) for value in iou.max(dim=1).values]


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


def busy_view(text: str, share: float | None = None, *, cancel: bool = False) -> View:
    """Show work in progress: the player keeps what it shows and says above it what is done.

    Args:
        text: The stage of the work, in words.
        share: Done so far, in [0, 1] (cut to it); None when it cannot be known.
        cancel: Offer a button that fires the player's event `cancel`.
    """
    return {"state": "busy", "busy": text, "share": None if share is None else round(min(max(share, 0.0), 1.0), 3), "cancel": cancel}


def recording_view(recording: Recording, audio: dict[str, Any], title: str, look: str = "") -> View:
    """Show a recording without a query.

    Args:
        recording: The encoded recording.
        audio: The file in the form the page's server understands; passed through.
        title: Name to show.
        look: What `CloserLook` gives finer peaks for; empty for none.

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

    Returns:
        `base` with `beta` and `verifier` (of the first lane that a verifier looked at; else 0 and `none`), `shared_how` (what `shared_how`
        says of all lanes) and `lanes`, each with `label, how, query, found, message, notes, encoder, verifier, likely, saliency,
        clip_seconds, moments, truth`.
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
        "message": answer_message(result, truth, can_refuse=lane.threshold > 0),
        "notes": list(result.notes),
        "encoder": result.encoder,
        "verifier": result.verifier,
        "likely": {
            "score": LIKELY_SCORE,
            "share": LIKELY_SHARE,
            "overlap": LIKELY_OVERLAP,
            "yes": VERIFIER_SAYS_YES,
            "threshold": lane.threshold,
        },
        "saliency": [round(value, 3) for value in result.saliency],
        "clip_seconds": result.clip_seconds,
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
            "probability": moment.decoder_score if moment.probability is None else moment.probability,
            "foreground": moment.foreground,
            "quality": moment.quality if by_quality else None,
            "verifier_score": moment.verifier_score,
            "iou": None if iou is None else round(iou, 3),
        }
        for rank, (moment, iou) in enumerate(zip(moments, overlaps, strict=True), start=1)
    ]


def answer_message(result: Result, truth: Sequence[Window] | None, *, can_refuse: bool = True) -> dict[str, str]:
    """Say in words what was found: `kind` (found, absent or none), `title` and `detail`; `can_refuse`: the model was calibrated."""
    if not result.moments:
        return {"kind": "none", "title": "Nothing to show", "detail": "The model proposed no moment. Try other words for the same sound."}
    known_absent = truth is not None and not truth
    if not result.understood:
        return {"kind": "absent", "title": "These words are not known", "detail": "What comes nearest is shown, marked as a guess."}
    if not result.found:
        enough = (
            "A sound like “{}” may be there, but the best guess is not sure enough"
            if result.perhaps
            else "Nothing scores high enough for “{}”"
        )
        detail = f"{enough.format(result.query)}. The best guess is shown, marked as such."
        if known_absent:
            detail += " And indeed: the sound is not in this example."
        return {"kind": "absent", "title": "Perhaps in this recording" if result.perhaps else "Nothing found", "detail": detail}
    likely = sum(moment.likely for moment in result.moments)
    title = "1 likely moment" if likely == 1 else f"{likely} likely moments"
    detail = f"for “{result.query}”, best first. Press one to hear it."
    if not can_refuse:
        detail += f" {NEVER_REFUSES}"
    if known_absent:
        detail += " Beware: the sound is not in this example, so this is a mistake of the model."
    return {"kind": "found", "title": title, "detail": detail}


MAX_COLUMNS = 4000
"""Columns of the drawn waveform: enough to zoom into, and still only some 40 kB."""

MAX_GAIN = 20.0
"""Quiet recordings are drawn larger, up to this factor, so that their shape can be seen; noise floors stay flat."""


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
    return scaled_peaks(np.stack([low, high]), display_gain(peaks))


def display_gain(peaks: np.ndarray) -> float:
    """Factor by which a recording with these peaks is drawn larger: the loudest reaches 1, at most by `MAX_GAIN`."""
    loudest = float(np.abs(peaks).max(initial=0.0))
    return min(MAX_GAIN, 1.0 / loudest) if loudest > 0 else 1.0


def scaled_peaks(peaks: np.ndarray, gain: float) -> list[list[float]]:
    """Peaks `(2, columns)` as `[low, high]` for drawing: times the gain, cut to [-1, 1], two decimals."""
    low, high = np.round(np.clip(np.asarray(peaks, dtype=np.float64) * gain, -1.0, 1.0), 2).tolist()
    return [low, high]
