"""The offline stand-in."""

from __future__ import annotations

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


@pytest.mark.parametrize("pooled", [None, torch.ones(5)])
def test_without_a_joint_space_it_says_so(pooled):
    with pytest.raises(QamDetrError, match="'pocket' has no joint space"):
        scores((0, 1), pooled=pooled)
