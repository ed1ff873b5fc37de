"""A recording in columns: the same whether read in one piece or many, and right about where and how high a sound is."""

from __future__ import annotations

import shutil
import subprocess

import numpy as np
import pytest
import soundfile

from qamdetr import overview
from qamdetr.errors import AudioError
from qamdetr.overview import BANDS, hz_to_mel, read_overview, read_peaks

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


def test_peaks_of_a_part_are_those_of_its_samples(tone, monkeypatch):
    part, _ = soundfile.read(tone, start=int(2.9 * RATE_HZ), stop=int(3.4 * RATE_HZ), dtype="float32")
    mono = part.mean(axis=1)
    starts = np.arange(300) * len(mono) // 300
    expected = np.stack([np.minimum.reduceat(mono, starts), np.maximum.reduceat(mono, starts)])
    np.testing.assert_array_equal(read_peaks(tone, 2.9, 3.4, 300), expected)
    monkeypatch.setattr(overview, "_CHUNK_SAMPLES", 700)
    np.testing.assert_array_equal(read_peaks(tone, 2.9, 3.4, 300), expected)


def test_a_part_has_no_more_columns_than_samples_and_is_silent_after_the_end(tone):
    assert read_peaks(tone, 3.0, 3.001, 2000).shape == (2, 16)
    beyond = read_peaks(tone, 9.0, 11.0, 200)
    assert not beyond[:, 100:].any()


def test_only_the_part_is_read(tone, monkeypatch):
    frames = []
    read = soundfile.SoundFile.read
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda file, count, **how: (frames.append(count), read(file, count, **how))[1])
    read_peaks(tone, 5.0, 5.5, 100)
    assert sum(frames) <= RATE_HZ


def test_a_part_of_a_file_that_is_gone(tmp_path):
    with pytest.raises(AudioError, match="no longer there"):
        read_peaks(str(tmp_path / "gone.wav"), 0.0, 1.0, 10)


@pytest.mark.parametrize("ending", ["flac", "ogg", "mp3"])
def test_a_part_of_a_compressed_recording_begins_where_it_should(tone, tmp_path, ending):
    samples, rate = soundfile.read(tone)
    path = tmp_path / f"tone.{ending}"
    soundfile.write(path, samples, rate)
    loud = np.flatnonzero(read_peaks(str(path), 2.5, 4.5, 200)[1] > 0.2)
    assert (loud.min(), loud.max()) == (pytest.approx(50, abs=3), pytest.approx(149, abs=3))


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg (Debian: apt-get install ffmpeg)")
def test_a_part_of_a_recording_that_only_ffmpeg_reads(tone, tmp_path):
    path = tmp_path / "tone.m4a"
    subprocess.run(["ffmpeg", "-v", "error", "-i", tone, "-c:a", "aac", str(path)], check=True)
    loud = np.flatnonzero(read_peaks(str(path), 2.5, 4.5, 200)[1] > 0.2)
    assert (loud.min(), loud.max()) == (pytest.approx(50, abs=6), pytest.approx(149, abs=6))
