"""One answer as one lane of the player: what is likely, how it ranks at another weight, what is chosen for export. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from qamdetr.inference.rerank import rerank
from qamdetr.spans import pairwise_iou
from qamdetr.types import Moment, Result, Window

LIKELY_SHARE = 0.5
"""Moments under this share of the best score are shown as "less likely": the decoder always fills all its slots."""


@dataclass(frozen=True)
class LaneResult:
    """One answer and how it is shown: one lane of the player.

    Attributes:
        label: What the lane is called, such as "a dog barks" or "Without 3-way fusion".
        how: What kind of model answered: empty, "trained this way: …" or "bypassed in the full model: …".
        result: The answer.
        truth: True windows in seconds when they are known (examples); empty when the sound is known to be absent.
        can_refuse: The model has a threshold under which it says that the sound is not there; one that was not calibrated has none.
    """

    label: str
    how: str
    result: Result
    truth: Sequence[Window] | None
    can_refuse: bool = True


def reranked(result: Result, beta: float) -> Result:
    """Return an answer as the player shows it at another weight of the verifier; the same one where no verifier looked.

    Args:
        result: The answer as the server gave it.
        beta: Weight of the verifier, in [0, 1].

    Raises:
        QamDetrError: `beta` out of range.
    """
    verified = [moment.verifier_score for moment in result.moments if moment.verifier_score is not None]
    if result.verifier == "none" or len(verified) < len(result.moments):
        return result
    by_decoder = sorted(result.moments, key=lambda moment: -moment.decoder_score)
    scores = [moment.verifier_score for moment in by_decoder if moment.verifier_score is not None]
    return replace(result, beta=beta, moments=rerank(by_decoder, scores, beta))


def default_choice(lanes: Sequence[LaneResult], beta: float) -> list[tuple[int, int]]:
    """Choose for export what the player has checked at first: the likely moments of every lane whose sound was found.

    Args:
        lanes: The answers on the page.
        beta: The weight of the verifier that the page shows, in [0, 1].

    Returns:
        `(lane, candidate)`; `candidate` is the index in the moments of the lane's result.
    """
    chosen = []
    for number, lane in enumerate(lanes):
        moments = lane.result.moments
        shown = reranked(lane.result, beta).moments
        windows = {moment.window for moment in shown if lane.result.found and is_likely(moment, shown[0])}
        chosen += [(number, candidate) for candidate, moment in enumerate(moments) if moment.window in windows]
    return chosen


def checked_choice(sent: object, lanes: Sequence[LaneResult]) -> list[tuple[int, int]]:
    """Read the `chosen` of the player's event `select`; pairs that name no moment are left out, as anyone may send anything.

    Args:
        sent: What the browser sent: `[[lane, candidate], …]`.
        lanes: The answers on the page.

    Returns:
        `(lane, candidate)`, each once, in order.
    """
    every = [(number, candidate) for number, lane in enumerate(lanes) for candidate in range(len(lane.result.moments))]
    pairs = sent if isinstance(sent, list) else []
    wanted = {tuple(pair) for pair in pairs if isinstance(pair, list) and all(isinstance(index, int) for index in pair)}
    return [pair for pair in every if pair in wanted]


def is_likely(moment: Moment, best: Moment) -> bool:
    """Whether a moment is shown at once: its score is at least `LIKELY_SHARE` of the best one's."""
    return moment.score >= LIKELY_SHARE * best.score


def best_ious(windows: Sequence[Window], truth: Sequence[Window] | None) -> list[float | None]:
    """For each window its largest IoU with a true window; 0 when nothing is true, None when the truth is unknown."""
    if truth is None:
        return [None] * len(windows)
    if not truth or not windows:
        return [0.0] * len(windows)
    iou = pairwise_iou(torch.tensor(windows, dtype=torch.float64), torch.tensor(truth, dtype=torch.float64))
    return [float(value) for value in iou.max(dim=1).values]
