"""Files read block by block: little memory, nothing left behind when the reader stops early."""

from __future__ import annotations

import shutil
import subprocess
from contextlib import closing

import numpy as np
import pytest
import soundfile

from qamdetr import audio, audio_blocks
from qamdetr.audio_blocks import mono_blocks


@pytest.mark.parametrize("channels", [1, 2, 3, 6])
def test_blocks_are_the_mean_of_the_channels_to_the_bit(tmp_path, channels):
    path = tmp_path / "a.wav"
    samples = np.random.default_rng(0).standard_normal((700_001, channels)).astype(np.float32)
    soundfile.write(path, samples, 44100, subtype="FLOAT")
    blocks = list(mono_blocks(path))
    expected = samples.mean(axis=1, dtype=np.float32)
    np.testing.assert_array_equal(np.concatenate([block.samples for block in blocks]), expected)
    np.testing.assert_array_equal(audio.decode(path).samples, expected)
    assert [block.end_frame for block in blocks] == [1 << 18, 2 << 18, 700_001]
    assert [block.share for block in blocks] == pytest.approx([0.3745, 0.749, 1.0], abs=1e-3)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the ffmpeg executable")
def test_ffmpeg_ends_with_its_reader(tmp_path, monkeypatch):
    source, path = tmp_path / "a.wav", tmp_path / "a.m4a"
    soundfile.write(source, np.zeros(60 * 48000, dtype=np.float32), 48000)
    subprocess.run(["ffmpeg", "-v", "error", "-i", source, path], check=True)
    started = []
    popen = subprocess.Popen
    monkeypatch.setattr(audio_blocks.subprocess, "Popen", lambda *args, **options: started.append(popen(*args, **options)) or started[-1])
    with closing(mono_blocks(path)) as blocks:
        assert next(blocks).share is None
        assert started[0].poll() is None
    assert started[0].poll() is not None
