"""Decoding of real files of many kinds, and what a user reads when a file cannot be used."""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from qamdetr import audio
from qamdetr.errors import AudioError

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the ffmpeg executable")


def tone(seconds: float, rate: int, channels: int = 1, hz: float = 440.0) -> np.ndarray:
    wave = 0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)
    return np.stack([wave * (1 - 0.5 * channel) for channel in range(channels)], axis=1)


def write(path: Path, samples: np.ndarray, rate: int, **options: str) -> Path:
    soundfile.write(path, samples, rate, **options)
    return path


def spectral_peak_hz(waveform: audio.Waveform) -> float:
    spectrum = np.abs(np.fft.rfft(waveform.samples))
    return float(spectrum.argmax() / waveform.duration_seconds)


@pytest.mark.parametrize(
    ("suffix", "subtype", "rate", "channels"),
    [
        (".wav", "PCM_U8", 8000, 1),
        (".wav", "PCM_16", 44100, 2),
        (".wav", "PCM_24", 96000, 6),
        (".wav", "DOUBLE", 11025, 2),
        (".wav", "ULAW", 8000, 1),
        (".flac", "PCM_24", 48000, 2),
        (".ogg", "VORBIS", 22050, 2),
        (".mp3", "MPEG_LAYER_III", 32000, 1),
    ],
)
def test_decode_reads_every_kind_at_its_own_rate(tmp_path, suffix, subtype, rate, channels):
    path = write(tmp_path / f"tone{suffix}", tone(1.5, rate, channels) / channels, rate, subtype=subtype)
    waveform = audio.decode(path)
    assert waveform.sample_rate_hz == rate
    assert waveform.samples.dtype == np.float32
    assert waveform.samples.ndim == 1
    assert waveform.duration_seconds == pytest.approx(1.5, abs=0.08)
    assert spectral_peak_hz(waveform) == pytest.approx(440, abs=2)


def test_decode_averages_channels(tmp_path):
    stereo = np.stack([np.full(8000, 0.6), np.full(8000, -0.2)], axis=1)
    waveform = audio.decode(write(tmp_path / "a.wav", stereo, 8000, subtype="FLOAT"))
    np.testing.assert_allclose(waveform.samples, 0.2, atol=1e-6)


def test_samples_that_are_not_finite_become_silence_in_their_channel_alone(tmp_path):
    samples = np.full((8000, 2), 0.5)
    samples[10, 0], samples[11, 0], samples[12, 1] = np.nan, np.inf, -np.inf
    waveform = audio.decode(write(tmp_path / "a.wav", samples, 8000, subtype="FLOAT"))
    np.testing.assert_allclose(waveform.samples[10:13], 0.25)
    np.testing.assert_allclose(np.delete(waveform.samples, [10, 11, 12]), 0.5)


def test_names_need_not_be_ascii(tmp_path):
    assert len(audio.decode(write(tmp_path / "犬 が吠える é.wav", tone(0.5, 8000), 8000)).samples) == 4000


def test_content_counts_not_the_ending(tmp_path):
    source = write(tmp_path / "a.wav", tone(0.5, 8000), 8000)
    for name in ("a.raw", "a", "a.m4a"):
        shutil.copy(source, tmp_path / name)
        assert len(audio.decode(tmp_path / name).samples) == 4000


@needs_ffmpeg
@pytest.mark.parametrize(("name", "options"), [("a.m4a", ["-c:a", "aac"]), ("a.webm", ["-c:a", "libopus"]), ("a.mkv", ["-c:a", "ac3"])])
def test_ffmpeg_reads_what_libsndfile_cannot(tmp_path, name, options):
    source = write(tmp_path / "a.wav", tone(2, 48000, 2), 48000)
    subprocess.run(["ffmpeg", "-v", "error", "-i", source, *options, tmp_path / name], check=True)
    waveform = audio.decode(tmp_path / name)
    assert waveform.sample_rate_hz == 48000
    assert waveform.duration_seconds == pytest.approx(2, abs=0.1)
    assert spectral_peak_hz(waveform) == pytest.approx(440, abs=2)
    # The mean of a channel at 0.5 and one at 0.25.
    assert np.abs(waveform.samples[9600:-9600]).max() == pytest.approx(0.375, abs=0.03)
    with pytest.raises(AudioError, match=r"lasts more than 0.01667 minutes; the longest"):
        audio.decode(tmp_path / name, max_seconds=1)


@needs_ffmpeg
def test_a_video_without_sound_is_told_apart(tmp_path):
    path = tmp_path / "silent.mp4"
    subprocess.run(["ffmpeg", "-v", "error", "-f", "lavfi", "-i", "color=s=32x32:d=1", "-c:v", "mpeg4", path], check=True)
    with pytest.raises(AudioError, match="has no audio track"):
        audio.decode(path)


@needs_ffmpeg
def test_a_playlist_opens_no_other_file(tmp_path):
    secret = write(tmp_path / "secret.wav", tone(1, 8000), 8000)
    playlist = tmp_path / "list.m4a"
    playlist.write_text(f"ffconcat version 1.0\nfile {secret.name}\n")
    with pytest.raises(AudioError, match="cannot be decoded"):
        audio.decode(playlist)


def test_without_ffmpeg_the_message_names_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    path = tmp_path / "a.m4a"
    path.write_bytes(b"\0\0\0\x18ftypM4A " + b"\0" * 100)
    with pytest.raises(AudioError, match=r"a\.m4a .*install ffmpeg .*or convert the file to WAV"):
        audio.decode(path)


def test_missing_folder_and_empty_files(tmp_path):
    with pytest.raises(AudioError, match=r"no\.wav does not exist"):
        audio.decode(tmp_path / "no.wav")
    with pytest.raises(AudioError, match="is a folder"):
        audio.decode(tmp_path)
    (tmp_path / "empty.wav").touch()
    with pytest.raises(AudioError, match=r"is empty \(0 bytes\)"):
        audio.decode(tmp_path / "empty.wav")
    with pytest.raises(AudioError, match="holds no samples"):
        audio.decode(write(tmp_path / "nothing.wav", np.zeros((0, 1)), 8000))
    with pytest.raises(AudioError, match=r"lasts 0\.050 s; the shortest that can be used is 0\.1 s"):
        audio.decode(write(tmp_path / "blip.wav", tone(0.05, 8000), 8000))


@pytest.mark.parametrize(
    "content", [b"this is text, not sound\n" * 50, b"RIFF\xff\xff\xff\xffWAVEjunk", b"fLaC" + bytes(200), b"OggS" + bytes(99)]
)
def test_corrupt_files_are_one_clear_line(tmp_path, content):
    path = tmp_path / "broken.wav"
    path.write_bytes(content)
    with pytest.raises(AudioError) as caught:
        audio.decode(path)
    assert "broken.wav" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_cut_off_says_where(tmp_path):
    rng = np.random.default_rng(0)
    path = write(tmp_path / "a.flac", rng.uniform(-0.5, 0.5, 80000), 8000)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(AudioError, match=r"(breaks off after|is damaged after) \d"):
        audio.decode(path)


def test_too_long_quotes_length_limit_and_remedy(tmp_path):
    path = write(tmp_path / "long.wav", np.zeros(8000 * 90), 8000, subtype="PCM_U8")
    with pytest.raises(AudioError, match=r"lasts 1\.5 minutes; the longest that can be used is 1 minutes; cut it"):
        audio.decode(path, max_seconds=60)
    assert audio.decode(path, max_seconds=90).duration_seconds == 90


def test_an_absurd_sample_rate_is_refused(tmp_path):
    path = write(tmp_path / "a.wav", tone(1, 8000), 8000)
    content = bytearray(path.read_bytes())
    content[24:28] = struct.pack("<I", 2_000_000_000)
    path.write_bytes(content)
    with pytest.raises(AudioError, match="sample rate of 2000000000 Hz"):
        audio.decode(path)


@pytest.mark.parametrize("rate", [16000, 32000, 48000])
def test_resample_keeps_the_sound_and_the_number_of_clips(tmp_path, rate):
    for extra in (0, 1, -1):
        samples = tone(3, 44100)[:, 0].astype(np.float32)
        samples = np.pad(samples, (0, 1)) if extra > 0 else samples[: len(samples) + extra]
        before = audio.Waveform(samples, 44100)
        after = audio.resample(before, rate)
        assert audio.num_clips(after.duration_seconds) == audio.num_clips(before.duration_seconds) == (4 if extra > 0 else 3)
        assert spectral_peak_hz(after) == pytest.approx(440, abs=2)
        assert np.sqrt((after.samples**2).mean()) == pytest.approx(0.5 / np.sqrt(2), rel=0.01)


def test_load_decodes_and_resamples(tmp_path):
    waveform = audio.load(write(tmp_path / "a.wav", tone(1, 44100, 2), 44100), 16000)
    assert (waveform.sample_rate_hz, len(waveform.samples)) == (16000, 16000)


@pytest.mark.parametrize(("seconds", "clips"), [(0.1, 1), (1.0, 1), (1.00001, 2), (59.2, 60), (300.0, 300), (3 * 0.1 / 0.1, 3)])
def test_num_clips_is_the_ceiling(seconds, clips):
    assert audio.num_clips(seconds) == clips


def test_crop_cuts_whole_samples_inside_the_recording():
    waveform = audio.Waveform(np.arange(1000, dtype=np.float32), 100)
    np.testing.assert_array_equal(audio.crop(waveform, 2.0, 2.05).samples, np.arange(200, 205))
    assert len(audio.crop(waveform, -5, 99).samples) == 1000
    assert len(audio.crop(waveform, 50, 60).samples) == 0


@pytest.mark.slow
def test_a_long_stereo_file_is_held_once(tmp_path):
    rate, minutes = 48000, 15
    path = tmp_path / "long.wav"
    with soundfile.SoundFile(path, "w", rate, 2, "PCM_16") as file:
        for _ in range(minutes):
            file.write(np.zeros((rate * 60, 2), dtype=np.int16))
    script = (
        "import resource, sys; from qamdetr import audio; base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "w = audio.decode(sys.argv[1]); print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) * 1024 / w.samples.nbytes)"
    )
    told = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True)
    assert float(told.stdout) < 1.2


def test_recordings_are_listed_by_stem_and_what_is_no_recording_is_left_out(tmp_path):
    for name in ("a.flac", "b.1.wav", "c.MP3", ".hidden.wav", "a.txt", "notes"):
        (tmp_path / name).write_bytes(b"")
    assert audio.find_recordings(tmp_path) == {"a": tmp_path / "a.flac", "b.1": tmp_path / "b.1.wav", "c": tmp_path / "c.MP3"}
    (tmp_path / "a.ogg").write_bytes(b"")
    with pytest.raises(AudioError, match=r"holds both a\.flac and a\.ogg; keep one file per recording"):
        audio.find_recordings(tmp_path)
    with pytest.raises(AudioError, match="Cannot list"):
        audio.find_recordings(tmp_path / "nowhere")
