"""Recordings read in parts: exact places whatever the format, and clear words when a file is gone."""

from __future__ import annotations

import shutil
import subprocess

import numpy as np
import pytest
import soundfile

from qamdetr.errors import AudioError
from qamdetr.sound_file import BLOCK_FRAMES, blocks, open_sound


def tone(path, rate_hz=16000, length_seconds=6.0, channels=2):
    time = np.arange(int(rate_hz * length_seconds)) / rate_hz
    samples = np.stack([0.5 * np.sin(2 * np.pi * (200 + 300 * channel + 40 * time) * time) for channel in range(channels)], axis=1)
    with soundfile.SoundFile(path, "w", rate_hz, channels) as file:
        for begin in range(0, len(samples), 1000):
            file.write(samples[begin : begin + 1000])
    return soundfile.read(path, always_2d=True)[0]


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3"])
def test_any_place_holds_what_reading_from_the_start_gives(tmp_path, name):
    whole = tone(tmp_path / name)
    with open_sound(tmp_path / name) as sound:
        assert (sound.samplerate, sound.channels) == (16000, 2)
        for first in (0, 1, 16000, 44100, 70001):
            part = np.concatenate(list(blocks(sound, first, first + 5000)))
            np.testing.assert_allclose(part, whole[first : first + 5000], rtol=0, atol=1.01 / 32768)


def test_blocks_are_small_and_stop_at_the_end(tmp_path):
    whole = tone(tmp_path / "a.wav", length_seconds=10)
    with open_sound(tmp_path / "a.wav") as sound:
        parts = list(blocks(sound, 5, 10**9, dtype="int16"))
    assert max(len(part) for part in parts) == BLOCK_FRAMES
    assert sum(len(part) for part in parts) == len(whole) - 5


def test_compressed_recordings_are_decoded_no_further_than_needed(tmp_path):
    tone(tmp_path / "a.ogg")
    with open_sound(tmp_path / "a.ogg", end_seconds=1.0) as sound:
        assert 16000 <= sound.frames <= 2 * 16000


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")
def test_what_only_ffmpeg_reads(tmp_path):
    whole = tone(tmp_path / "a.wav")
    subprocess.run(["ffmpeg", "-v", "error", "-i", tmp_path / "a.wav", "-c:a", "alac", tmp_path / "a.m4a"], check=True)
    with open_sound(tmp_path / "a.m4a", end_seconds=3.0) as sound:
        assert sound.channels == 2
        part = np.concatenate(list(blocks(sound, 16000, 48000)))
    np.testing.assert_allclose(part, whole[16000:48000], rtol=0, atol=1e-6)


def test_a_file_that_is_gone_or_no_sound_is_told(tmp_path):
    with pytest.raises(AudioError, match=r"gone.wav is no longer there; open the recording again"), open_sound(tmp_path / "gone.wav"):
        pass
    (tmp_path / "text.wav").write_text("no sound")
    with pytest.raises(AudioError, match=r"text.wav"), open_sound(tmp_path / "text.wav"):
        pass
