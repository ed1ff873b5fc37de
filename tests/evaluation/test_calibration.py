"""The found threshold: half-way between what it separates, balanced over unequal sides."""

from __future__ import annotations

import numpy as np
import pytest

from qamdetr.evaluation.calibration import calibrate_found_threshold


def test_separable_scores_are_separated_half_way() -> None:
    threshold, accuracy = calibrate_found_threshold([0.6, 0.9, 0.8], [0.1, 0.2])
    assert threshold == pytest.approx(0.4)
    assert accuracy == 1.0


def test_both_sides_weigh_the_same() -> None:
    # Refusing the ten absent queries at 0.5 loses the one present query: by plain accuracy worth it, balanced not.
    threshold, accuracy = calibrate_found_threshold([0.5], [0.55] + [0.1] * 9)
    assert threshold < 0.5
    assert accuracy == pytest.approx(0.95)


def test_agrees_with_trying_every_threshold() -> None:
    rng = np.random.default_rng(0)
    present, absent = rng.beta(4, 2, 200).tolist(), rng.beta(2, 4, 60).tolist()
    threshold, accuracy = calibrate_found_threshold(present, absent)

    def balanced(value: float) -> float:
        return 0.5 * float(np.mean(np.array(present) >= value)) + 0.5 * float(np.mean(np.array(absent) < value))

    assert balanced(threshold) == pytest.approx(accuracy)
    assert accuracy == pytest.approx(max(balanced(value) for value in np.linspace(0, 1, 2001)), abs=1e-9)


def test_one_side_alone_means_always_found() -> None:
    assert calibrate_found_threshold([0.5], []) == (0.0, 0.5)
    assert calibrate_found_threshold([], [0.5]) == (0.0, 0.5)
