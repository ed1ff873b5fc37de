"""A recording in columns: the same whether read in one piece or many, and right about where and how high a sound is."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile

from qamdetr import overview
from qamdetr.overview import BANDS, hz_to_mel, read_overview

RATE_HZ = 16000


@pytest.fixture
def tone(tmp_path):
    """Silence with a tone of 2 kHz from second 3 to 4 of 10."""
    time = np.arange(10 * RATE_HZ) / RATE_HZ
    samples = np.where((time >= 3) & (time < 4), 0.5 * np.sin(2 * np.pi * 2000 * time), 0.0)
    soundfile.write(tmp_path / "tone.wav", np.stack([samples, samples], axis=1), RATE_HZ)
    return str(tmp_path / "tone.wav")


def test_place_and_height_of_a_tone(tone):
    seen = read_overview(tone, 10.0, 100)
    assert seen.peaks.shape == (2, 100)
    assert seen.levels_db.shape == (BANDS, 100)
    loud = np.flatnonzero(seen.peaks[1] > 0.1)
    assert (loud.min(), loud.max()) == (30, 39)
    assert seen.peaks[0][35] == pytest.approx(-0.5, abs=0.01)
    band = int(seen.levels_db[:, 35].argmax())
    assert band == pytest.approx(float(hz_to_mel(2000) / hz_to_mel(seen.top_hz)) * BANDS, abs=1.5)
    assert seen.levels_db[band, 35] > seen.levels_db[band, 10] + 60


@pytest.mark.parametrize("columns", [1, 7, 100, 1200])
def test_pieces_do_not_show(tone, columns, monkeypatch):
    whole = read_overview(tone, 10.0, columns)
    monkeypatch.setattr(overview, "_CHUNK_SAMPLES", 5000)
    pieces = read_overview(tone, 10.0, columns)
    np.testing.assert_array_equal(whole.peaks, pieces.peaks)
    np.testing.assert_allclose(whole.levels_db, pieces.levels_db, atol=1e-3)


def test_very_short_recordings_and_false_lengths(tmp_path):
    soundfile.write(tmp_path / "short.wav", np.full(100, 0.25), 1000)
    assert read_overview(str(tmp_path / "short.wav"), 0.1, 1200).peaks.shape == (2, 100)
    longer = read_overview(str(tmp_path / "short.wav"), 0.2, 10)
    assert np.isfinite(longer.levels_db).all()
    assert longer.peaks[1, -1] == 0.0
