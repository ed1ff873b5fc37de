"""The offline stand-in."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_system import recording_of

from qamdetr.errors import QamDetrError
from qamdetr.types import Candidate, TextFeatures
from qamdetr.verifiers.pocket import PocketCoefficients, PocketVerifier, clip_similarity

ALIKE = torch.eye(8)[0]
OTHER = torch.eye(8)[1]
TEXT = {"pocket": TextFeatures(torch.ones(1, 8), ((0, 1),), ALIKE)}


def candidate(start, end):
    return Candidate(float(start), float(end), 0.5, 0.5, 0.25)


def scene(*, true=(10, 20), num_clips=60):
    """Clips that sound like the query inside `true` and like something else outside."""
    return recording_of(torch.stack([3 * ALIKE if true[0] <= i < true[1] else OTHER for i in range(num_clips)]))


def test_similarity_is_a_cosine_whatever_the_length_of_vectors():
    assert clip_similarity(scene(), TEXT).tolist() == [1.0 if 10 <= i < 20 else 0.0 for i in range(60)]


def test_the_true_window_beats_wider_narrower_and_wrong_ones():
    true, wider, shifted, wrong = PocketVerifier().verify(
        scene(), "a", TEXT, [candidate(10, 20), candidate(5, 30), candidate(15, 25), candidate(40, 50)]
    )
    assert true > max(wider, shifted) > min(wider, shifted) > wrong
    narrow = PocketVerifier().verify(scene(), "a", TEXT, [candidate(13, 15)])[0]
    assert true > narrow, "the sound goes on around a window that is too narrow"


def test_scores_follow_the_documented_logistic():
    coefficients = PocketCoefficients(bias=-1.0, inside=2.0, contrast=0.5)
    # Of [9, 21): 10 clips alike out of 12 inside; the rest of the crop [3, 27) holds none.
    (score,) = PocketVerifier(coefficients=coefficients).verify(scene(), "a", TEXT, [candidate(9, 21)])
    mean = 10 / 12
    assert score == pytest.approx(1 / (1 + math.exp(-(-1 + 2 * mean + 0.5 * mean))))


def test_parts_of_clips_count_by_their_share():
    coefficients = PocketCoefficients(bias=0.0, inside=1.0, contrast=0.0)
    (score,) = PocketVerifier(coefficients=coefficients).verify(scene(), "a", TEXT, [candidate(9.75, 10.25)])
    assert score == pytest.approx(1 / (1 + math.exp(-0.5)))


def test_a_window_over_the_whole_recording_has_no_contrast():
    coefficients = PocketCoefficients(bias=0.0, inside=0.0, contrast=100.0)
    assert PocketVerifier(coefficients=coefficients).verify(scene(), "a", TEXT, [candidate(0, 60)]) == [0.5]


def test_without_a_joint_space_it_says_so():
    for pooled in (None, torch.ones(5)):
        text = {"roberta": TextFeatures(torch.ones(1, 8), ((0, 1),), pooled)}
        with pytest.raises(QamDetrError, match="'pocket' has no joint space"):
            PocketVerifier().verify(scene(), "a", text, [candidate(0, 1)])
