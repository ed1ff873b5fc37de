"""The threshold under which the answer is "not in this recording", calibrated on queries whose sound is absent."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def calibrate_found_threshold(present_scores: Sequence[float], absent_scores: Sequence[float]) -> tuple[float, float]:
    """Choose the threshold with the best balanced accuracy of `score >= threshold` as "the sound is there".

    Balanced: the mean of the share of present queries found and the share of absent queries refused, so that their numbers do not
    matter. It lies half-way between two scores.

    Args:
        present_scores: Best decoder score of each query whose sound is in its recording.
        absent_scores: Likewise where it is not.

    Returns:
        Threshold and balanced accuracy, both in [0, 1]; `(0, 0.5)`, "always found", when one side is empty.
    """
    if not present_scores or not absent_scores:
        return 0.0, 0.5
    present, absent = np.sort(present_scores), np.sort(absent_scores)
    edges = np.unique(np.concatenate([[0.0], present, absent, [1.0]]))
    thresholds = (edges[:-1] + edges[1:]) / 2
    found = 1 - np.searchsorted(present, thresholds, side="left") / len(present)
    refused = np.searchsorted(absent, thresholds, side="left") / len(absent)
    balanced = (found + refused) / 2
    best = int(balanced.argmax())
    return float(thresholds[best]), float(balanced[best])
