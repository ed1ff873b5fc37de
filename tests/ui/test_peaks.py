from __future__ import annotations

import numpy as np
import pytest

from qamdetr.ui import peaks


def test_display_peaks_keeps_every_peak_when_thinning():
    low, high = np.full(5000, -0.1), np.full(5000, 0.1)
    high[3333], low[17] = 1.0, -0.8
    shown_low, shown_high = peaks.display_peaks(np.stack([low, high]))
    assert len(shown_low) == len(shown_high) == peaks.MAX_COLUMNS
    assert max(shown_high) == 1.0
    assert min(shown_low) == -0.8
    assert shown_high.index(1.0) == pytest.approx(3333 / 5000 * peaks.MAX_COLUMNS, abs=1)


def test_display_peaks_enlarges_quiet_recordings_but_only_so_far():
    quiet = np.array([[-0.1, -0.05], [0.1, 0.05]])
    assert peaks.display_peaks(quiet) == [[-1.0, -0.5], [1.0, 0.5]]
    noise_floor = quiet / 1000
    assert max(peaks.display_peaks(noise_floor)[1]) == pytest.approx(1e-4 * peaks.MAX_GAIN, abs=0.005)
    assert peaks.display_peaks(np.zeros((2, 3))) == [[0.0] * 3, [0.0] * 3]


def test_finer_peaks_are_on_the_scale_of_the_overview_and_never_beyond_it():
    overview = np.array([[-0.1, -0.05], [0.1, 0.05]])
    gain = peaks.display_gain(overview)
    assert peaks.scaled_peaks(overview, gain) == peaks.display_peaks(overview)
    assert peaks.scaled_peaks(np.array([[-0.2], [0.03]]), gain) == [[-1.0], [0.3]]
