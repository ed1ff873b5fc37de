"""Recordings as streams: the samples of `audio.load`, whatever the blocks, with the waveform's extremes and little memory."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import soundfile

from qamdetr import audio, sample_stream
from qamdetr.errors import AudioError
from qamdetr.progress import heard_by
from qamdetr.sample_stream import PeakEnvelope, StreamResampler, listen

RATES = [(44100, 24000), (48000, 24000), (11025, 24000), (7001, 16000), (192000, 24000), (44100, 48000), (24000, 24000)]


class Collector:
    """Keeps all that it is given."""

    def __init__(self, sample_rate_hz):
        self.sample_rate_hz = sample_rate_hz
        self.blocks = []

    def add(self, samples):
        self.blocks.append(samples)


def noise(num_samples, seed=0):
    return (0.3 * np.random.default_rng(seed).standard_normal(num_samples)).astype(np.float32)


def envelope(samples, columns, block=1 << 18):
    peaks = PeakEnvelope()
    for begin in range(0, len(samples), block):
        peaks.add(samples[begin : begin + block])
    return peaks.columns(columns)


@pytest.mark.parametrize(("from_hz", "to_hz"), RATES)
@pytest.mark.parametrize("seconds", [0.1, 1.0, 2.0003, 7.77])
@pytest.mark.parametrize("block", [1 << 18, 10_007])
def test_resampling_in_blocks_gives_the_same_bits(from_hz, to_hz, seconds, block):
    samples = noise(round(seconds * from_hz))
    resampler = StreamResampler(from_hz, to_hz)
    parts = [resampler.add(samples[begin : begin + block]) for begin in range(0, len(samples), block)]
    whole = audio.resample(audio.Waveform(samples, from_hz), to_hz).samples
    np.testing.assert_array_equal(np.concatenate([*parts, resampler.finish()]), whole)


def test_every_listener_gets_all_samples_at_its_rate_and_so_does_who_reads_again(tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, np.stack([noise(700_000), noise(700_000, 1)], axis=1).clip(-1, 1), 44100)
    listeners = [Collector(24000), Collector(44100), Collector(24000)]
    shares = []
    with heard_by(shares.append):
        sound = listen(path, listeners, peak_columns=100)
    assert shares == pytest.approx([0.3745, 0.749, 1.0], abs=1e-3)
    assert (sound.sample_rate_hz, sound.num_samples) == (44100, 700_000)
    np.testing.assert_array_equal(sound.peaks, envelope(audio.decode(path).samples, 100))
    for listener in listeners:
        expected = audio.load(path, listener.sample_rate_hz).samples
        np.testing.assert_array_equal(np.concatenate(listener.blocks), expected)
        stream = sound.at(listener.sample_rate_hz)
        assert len(stream) == len(expected)
        for _ in range(2):
            np.testing.assert_array_equal(np.concatenate(list(stream)), expected)


@pytest.mark.parametrize("seconds", [1.5, 3.0])
def test_a_file_that_changed_meanwhile_is_told(tmp_path, seconds):
    path = tmp_path / "a.wav"
    soundfile.write(path, noise(16000), 8000)
    stream = listen(path, [], peak_columns=10).at(16000)
    soundfile.write(path, noise(round(seconds * 8000)), 8000)
    with pytest.raises(AudioError, match=r"a\.wav was changed while it was read; open it again"):
        list(stream)
    path.unlink()
    with pytest.raises(AudioError, match=r"a\.wav does not exist"):
        list(stream)


def test_peaks_are_the_extremes_of_each_stretch():
    samples = np.array([0, 1, -1, 0.5, 0.2, 0.1, -3, 2], dtype=np.float32)
    np.testing.assert_allclose(envelope(samples, 4), [[0, -1, 0.1, -1], [1, 0.5, 0.2, 1]])
    np.testing.assert_allclose(envelope(samples, 4, block=3), [[0, -1, 0.1, -1], [1, 0.5, 0.2, 1]])
    assert envelope(samples, 20).shape == (2, 20)
    assert envelope(samples[:0], 5).shape == (2, 5)


@pytest.mark.parametrize("num_samples", [1023, 1024, 1025, 4097, 70_003])
@pytest.mark.parametrize("block", [1, 77, 5000])
def test_peaks_of_long_recordings_lose_no_extreme(monkeypatch, num_samples, block):
    if num_samples // block > 5000:
        pytest.skip("slow, and 4097 single samples are enough")
    monkeypatch.setattr(sample_stream, "_MAX_GROUPS", 1024)
    samples = noise(num_samples).clip(-0.9, 0.9)
    samples[[num_samples // 3, num_samples // 2, num_samples - 1]] = 0.99, -0.98, 0.97
    found = envelope(samples, 16, block)
    # A stretch may begin up to a group early, hence take a little of its neighbour, but never misses what is its own middle.
    edges = np.arange(17) * num_samples // 16
    slack = max(1, 2 * num_samples // 1024)
    for column in range(16):
        inner = samples[edges[column] : max(edges[column + 1] - slack, edges[column] + 1)]
        outer = samples[max(edges[column] - slack, 0) : edges[column + 1] + slack]
        assert outer.min() <= found[0, column] <= inner.min()
        assert inner.max() <= found[1, column] <= outer.max()
    assert found.max() == np.float32(0.99)
    assert found.min() == np.float32(-0.98)


@pytest.mark.slow
def test_a_long_file_takes_the_memory_of_a_short_one(tmp_path):
    rate = 44100
    for name, minutes in (("short.wav", 4), ("long.wav", 34)):
        with soundfile.SoundFile(tmp_path / name, "w", rate, 2, "PCM_16") as file:
            for _ in range(minutes):
                file.write(np.zeros((rate * 60, 2), dtype=np.int16))
    script = (
        "import resource, sys; from qamdetr.features.base import open_streams; combo = open_streams(['pocket', 'mel_stats'], ['pocket']);"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "combo.encode_recording(sys.argv[1]); base = peak(); combo.encode_recording(sys.argv[2]); print((peak() - base) / 1024)"
    )
    told = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "short.wav", tmp_path / "long.wav"], capture_output=True, text=True, check=True
    )
    assert float(told.stdout) < 150, "MiB for half an hour more, whose samples alone are 303 at its rate and 165 at the encoders'"
