"""The offline stand-in."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_system import candidate, recording_of

from qamdetr.errors import QamDetrError
from qamdetr.types import TextFeatures
from qamdetr.verifiers import pocket

ALIKE, OTHER = torch.eye(8)[:2]
SCENE = recording_of(torch.stack([3 * ALIKE if 10 <= i < 20 else OTHER for i in range(60)]))  # sounds like the query from 10 to 20 s


def scores(*windows, pooled=ALIKE):
    text = {"pocket": TextFeatures(torch.ones(1, 8), ((0, 1),), pooled)}
    return pocket.PocketVerifier().verify(SCENE, "a", text, [candidate(*window) for window in windows])


def test_the_true_window_beats_wider_narrower_and_wrong_ones():
    true, wider, shifted, narrow, wrong = scores((10, 20), (5, 30), (15, 25), (13, 15), (40, 50))
    assert true > max(wider, shifted, narrow) > min(wider, shifted) > wrong


@pytest.mark.parametrize(
    ("coefficients", "window", "logit"),
    [
        ((-1.0, 2.0, 0.5), (9, 21), -1 + 2 * 10 / 12 + 0.5 * 10 / 12),  # 10 of the 12 clips inside are alike, none around
        ((0.0, 1.0, 0.0), (9.75, 10.25), 0.5),  # parts of clips count by their share
        ((0.0, 0.0, 100.0), (0, 60), 0.0),  # over the whole recording there is no contrast
    ],
)
def test_scores_follow_the_documented_logistic(monkeypatch, coefficients, window, logit):
    for name, value in zip(("BIAS", "INSIDE", "CONTRAST"), coefficients, strict=True):
        monkeypatch.setattr(pocket, name, value)
    assert scores(window) == [pytest.approx(1 / (1 + math.exp(-logit)))]


@pytest.mark.parametrize("pooled", [None, torch.ones(5)])
def test_without_a_joint_space_it_says_so(pooled):
    with pytest.raises(QamDetrError, match="'pocket' has no joint space"):
        scores((0, 1), pooled=pooled)
