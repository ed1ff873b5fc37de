"""The crop around a candidate."""

from __future__ import annotations

from qamdetr.verifiers.base import crop_window


def test_the_crop_is_half_a_length_wider_on_both_sides_and_ends_with_the_recording():
    assert crop_window((10, 20), 60) == (5, 25)
    assert crop_window((1, 5), 60) == (0, 7)
    assert crop_window((50, 59), 60.0) == (45.5, 60)
