"""Sound: all that a file holds, on the file's own clock, whatever its header says, and a note wherever that is not so."""

from __future__ import annotations

import io
import itertools
import math
import os
import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from sounds import BURSTS, RATE, SECONDS, bursts, encode, heard

from qamdetr import audio
from qamdetr.audio import BANDS, PeakEnvelope, Sound, StreamResampler, find_recordings, hz_to_mel, num_clips, resample, stated_seconds
from qamdetr.errors import AudioError

PCM = {"wav": ("wav", "pcm_s16le"), "aiff": ("aiff", "pcm_s16be"), "w64": ("w64", "pcm_s16le"), "caf": ("caf", "pcm_s16be")}
FORMATS = {**PCM, "flac": ("flac", "flac"), "mp3": ("mp3", "libmp3lame")}
STATED = {"short": 0.25, "right": 1.0, "long": 2.0, "zero": 0.0, "unknown": None}
FIELDS = {
    "wav": (b"data", 4, 4, "little"),
    "aiff": (b"SSND", 4, 4, "big"),
    "w64": (b"data", 16, 8, "little"),
    "caf": (b"data", 4, 8, "big"),
}


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, shape).astype(np.float32)


def write(path: Path, samples: np.ndarray, rate: int, **how: str) -> Path:
    soundfile.write(path, samples, rate, **how)
    return path


def restate(data: bytes, kind: str, stated: float | None) -> bytes:
    """Let a header state another length."""
    new = bytearray(data)
    if kind == "flac":  # 36 bits of samples
        length = 0 if stated is None else round(stated * SECONDS * RATE)
        new[18:26] = (int.from_bytes(new[18:26], "big") >> 36 << 36 | length).to_bytes(8, "big")
    elif kind == "mp3":  # frames, in the header of Xing or LAME
        at = max(data.find(b"Xing"), data.find(b"Info"))
        frames = int.from_bytes(data[at + 8 : at + 12], "big")
        new[at + 8 : at + 12] = round(frames * (stated or 0)).to_bytes(4, "big")
        new[at : at + 4] = b"\0\0\0\0" if stated is None else new[at : at + 4]
    else:
        name, field, width, order = FIELDS[kind]
        at = data.find(name) + field
        size = int.from_bytes(data[at : at + width], order)
        new[at : at + width] = (256**width - 1 if stated is None else round(size * stated)).to_bytes(width, order)
    return bytes(new)


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("plain")
    return {kind: encode(folder / "x", bursts(), codec=codec, kind=muxer).read_bytes() for kind, (muxer, codec) in FORMATS.items()}


@pytest.mark.parametrize(("kind", "stated", "joined", "cut"), [*itertools.product(FORMATS, STATED, (False, True), (False, True))])
def test_what_is_there_is_heard_whatever_the_header_states(plain, tmp_path, kind, stated, joined, cut):
    data = restate(plain[kind], kind, STATED[stated])
    data += plain[kind] if joined else b""
    length = SECONDS * (1 + joined)
    if cut:
        data, length = data[: len(data) * 3 // 4], length * 3 / 4
    (tmp_path / "x").write_bytes(data)
    sound = Sound(tmp_path / "x")
    samples = sound.samples()
    # A joined MP3 brings the delay of its encoder along, and compressed bytes are no measure of time.
    assert sound.duration_seconds == pytest.approx(length, abs=0.25 if kind == "mp3" else 0.5 if kind == "flac" and cut else 0.01)
    expected = [begin for begin in (*BURSTS, *(begin + SECONDS for begin in BURSTS)) if begin + 0.15 < sound.duration_seconds]
    # The header of a file that was joined to one of false length is taken for two milliseconds of sound.
    found = [begin for begin in heard(samples, RATE) if abs(begin - SECONDS) > 0.02]
    assert found == pytest.approx([begin for begin in expected if joined or begin < SECONDS], abs=0.25)
    ends = [note for note in sound.notes if note.startswith("the file ends after")]
    if stated == "right" and not joined:
        assert ends == (["the file ends after 0:03 of 0:04"] if cut else [])
    if stated in {"zero", "unknown", "short"} and not cut:
        assert ends == []
    assert list(sound.reading())[-1] == pytest.approx(1.0, abs=0.1)
    np.testing.assert_array_equal(sound.part(1.25, 2.5), samples[round(1.25 * RATE) : round(2.5 * RATE)])


@pytest.mark.parametrize(("kind", "codec", "picture", "ending"), [
    ("mp4", "aac", 8, "x.mp4"), ("mov", "pcm_s16le", 8, "x.mov"), ("matroska", "flac", 8, "x.mkv"), ("matroska", "aac", 0, "x.mka"),
    ("webm", "libopus", 0, "x.webm"), ("mpegts", "mp2", 8, "x.ts"), ("mpeg", "mp2", 8, "x.mpg"),
])  # fmt: skip
@pytest.mark.parametrize("late", [0.0, 3.0])
def test_times_are_those_of_the_files_clock(tmp_path, kind, codec, picture, ending, late):
    path = encode(tmp_path / ending, bursts(48000), codec=codec, kind=kind, rate=48000, late=late, picture=picture)
    sound = Sound(path)
    assert heard(sound.samples(), sound.rate_hz) == pytest.approx([late + begin for begin in BURSTS], abs=0.06)
    assert heard(sound.part(late + 1.0, late + 3.0), sound.rate_hz) == pytest.approx([0.3, 1.1], abs=0.06)
    assert sound.notes == ()


def test_lost_packets_are_silence_and_told(tmp_path):
    path = encode(tmp_path / "x.mkv", bursts(), codec="flac", kind="matroska", lost=(1.0, 2.0))
    sound = Sound(path)
    assert heard(sound.samples(), RATE) == pytest.approx([0.5, 2.1, 3.4], abs=0.06)
    assert len(sound.notes) == 1
    assert "s of sound are missing within the file; they are taken for silence" in sound.notes[0]


def test_a_clock_that_was_running_for_hours_is_told_not_filled(tmp_path):
    sound = Sound(encode(tmp_path / "x.mka", bursts(), codec="flac", kind="matroska", late=7200))
    assert heard(sound.samples(), RATE) == pytest.approx(BURSTS, abs=0.06)
    assert sound.notes == ("the file's clock leaps from 0:00 to 2:00:00; times count on without the leap",)


@pytest.mark.parametrize(
    ("kind", "codec"), [("ogg", "libopus"), ("ogg", "flac"), ("adts", "aac"), ("mpegts", "mp2"), ("matroska", "flac"), ("ipod", "aac")]
)
def test_joined_streams_are_heard_to_the_end(tmp_path, kind, codec):
    data = encode(tmp_path / "one", bursts(48000), codec=codec, kind=kind, rate=48000).read_bytes()
    (tmp_path / "x").write_bytes(data + data)
    sound = Sound(tmp_path / "x")
    expected = [begin + SECONDS * part for part in (0, 1) for begin in BURSTS]
    assert heard(sound.samples(), sound.rate_hz) == pytest.approx(expected, abs=0.12)


def test_joined_files_may_differ_in_rate_and_channels(tmp_path):
    one = encode(tmp_path / "one.mp3", bursts(), codec="libmp3lame").read_bytes()
    two = encode(tmp_path / "two.mp3", np.stack([bursts(44100)] * 2, axis=1), codec="libmp3lame", rate=44100).read_bytes()
    (tmp_path / "x.mp3").write_bytes(one + two)
    sound = Sound(tmp_path / "x.mp3")
    assert heard(sound.samples(), RATE) == pytest.approx([begin + SECONDS * part for part in (0, 1) for begin in BURSTS], abs=0.2)


@pytest.mark.parametrize(("kind", "codec", "note"), [
    ("mpegts", "mp2", "breaks off"), ("ac3", "ac3", "breaks off"), ("mp2", "mp2", "breaks off"), ("mpegts", "ac3", "breaks off"),
    ("ogg", "libopus", "breaks off after"), ("matroska", "flac", "of 0:04"), ("webm", "libopus", "of 0:04"), ("adts", "aac", "breaks off"),
])  # fmt: skip
def test_cut_off_files_are_heard_as_far_as_they_go_and_told(tmp_path, kind, codec, note):
    data = encode(tmp_path / "whole", bursts(48000), codec=codec, kind=kind, rate=48000).read_bytes()
    (tmp_path / "x").write_bytes(data[: len(data) * 3 // 4])
    sound = Sound(tmp_path / "x")
    assert 1 < sound.duration_seconds < 3.9
    assert any(note in told for told in sound.notes)


def test_damage_in_the_middle_is_passed_over_with_the_clock_kept(tmp_path):
    data = bytearray(encode(tmp_path / "x.flac", bursts(), codec="flac").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 200] = bytes(200)
    (tmp_path / "x.flac").write_bytes(data)
    assert heard(Sound(tmp_path / "x.flac").samples(), RATE)[-1] == pytest.approx(3.4, abs=0.06)


@pytest.mark.parametrize(("suffix", "subtype", "rate", "channels"), [
    (".wav", "PCM_U8", 8000, 1), (".wav", "PCM_16", 44100, 2), (".wav", "PCM_24", 96000, 6), (".wav", "PCM_32", 1000, 1),
    (".wav", "DOUBLE", 11025, 2), (".wav", "ULAW", 8000, 1), (".rf64", "PCM_16", 48000, 2), (".wav", "FLOAT", 500_000, 1),
    (".flac", "PCM_24", 48000, 2), (".aiff", "PCM_S8", 22050, 1), (".au", "PCM_16", 16000, 2), (".caf", "FLOAT", 48000, 8),
])  # fmt: skip
def test_lossless_files_give_their_very_samples(tmp_path, suffix, subtype, rate, channels):
    how = {".rf64": "RF64", ".wav": "WAVEX" if channels == 6 else "WAV"}.get(suffix, suffix[1:].upper())
    path = write(tmp_path / f"犬 é #%{suffix}", noise(rate // 2, channels), rate, subtype=subtype, format=how)
    stored = soundfile.read(path, dtype="float32", always_2d=True)[0]
    sound = Sound(path)
    np.testing.assert_allclose(sound.samples(), stored.mean(axis=1, dtype=np.float32), atol=0 if channels < 3 else 1e-7)
    assert (sound.rate_hz, sound.notes) == (rate, ())
    native = sound.part(0.1, 0.3, mono=False)
    np.testing.assert_allclose(audio._to_float(native), stored[round(0.1 * rate) : round(0.3 * rate)], atol=1e-7)


@pytest.mark.parametrize(("suffix", "codec", "kind"), [
    ("mp3", None, None), ("ogg", None, None), ("m4a", "aac", "ipod"), ("webm", "libopus", "webm"), ("wma", "wmav2", "asf"),
    ("ac3", "ac3", None), ("mkv", "aac", "matroska"), ("wv", "wavpack", None), ("m4a", "alac", "ipod"), ("amr", "libopencore_amrnb", None),
    ("3gp", "aac", "3gp"),
])  # fmt: skip
def test_everything_people_record_with_is_read(tmp_path, suffix, codec, kind):
    rate = 8000 if suffix == "amr" else 48000
    path = tmp_path / f"x.{suffix}"
    if codec is None:
        write(path, bursts(rate), rate)
    else:
        encode(path, bursts(rate), codec=codec, kind=kind, rate=rate, **({"strict": "-2"} if suffix == "amr" else {}))
    sound = Sound(path)
    assert heard(sound.samples(), sound.rate_hz) == pytest.approx(BURSTS, abs=0.06)
    assert sound.duration_seconds == pytest.approx(SECONDS, abs=0.15)
    assert stated_seconds(path) == pytest.approx(SECONDS, abs=0.3)


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"".join(name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2) for name, content in chunks)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WAVE" + body


def test_chunks_and_tags_around_the_samples_are_not_heard(tmp_path):
    samples = (bursts() * 32767).astype("<i2").tobytes()
    form = b"fmt ", struct.pack("<HHIIHH", 1, 1, RATE, 2 * RATE, 2, 16)
    more = [(b"guan", b"GUANO|Version: 1.0\n" * 9), (b"id3 ", noise(40_000).tobytes())]
    behind = riff(form, (b"data", samples), *more)
    before = riff((b"JUNK", bytes(501)), (b"bext", bytes(602)), form, *more, (b"data", samples))
    for content in (behind, before, riff(form, (b"data", samples)) + b"TAG" + noise(31).tobytes()):
        assert len(Sound(io.BytesIO(content)).samples()) == len(samples) // 2
    mp3 = encode(tmp_path / "x.mp3", bursts(), codec="libmp3lame").read_bytes()
    tag = mp3.find(b"\xff\xfb")
    picture = b"APIC" + struct.pack(">I", 3_000_000 - 20) + b"\0\0" + noise(750_000).tobytes()[: 3_000_000 - 20]
    size = len(picture)
    header = b"ID3\3\0\0" + bytes([size >> 21 & 127, size >> 14 & 127, size >> 7 & 127, size & 127])
    (tmp_path / "cover.mp3").write_bytes(header + picture + mp3[max(tag, 0) :])
    assert heard(Sound(tmp_path / "cover.mp3").samples(), RATE) == pytest.approx(BURSTS, abs=0.06)


@pytest.mark.parametrize("kind", ["RIFF", "W64", "RF64"])
def test_files_over_four_gigabytes_are_read_to_the_end(tmp_path, kind):
    # The hole in the file costs no disk; only its end is read, since that is what the header does not reach.
    path, seconds, rate = tmp_path / "big", 2200, 500_000
    write(path, np.zeros((100, 2)), rate, subtype="PCM_16", format="WAV" if kind == "RIFF" else kind)
    data = path.read_bytes()
    at = data.find(b"data")
    size = seconds * rate * 4
    with path.open("r+b") as file:
        if kind == "RIFF":
            file.seek(at + 4)
            file.write(struct.pack("<I", size % 2**32))
        elif kind == "W64":
            file.seek(at + 16)
            file.write(struct.pack("<Q", size + 24))
        else:
            file.seek(data.find(b"ds64") + 16)
            file.write(struct.pack("<Q", size))
        begin = at + (24 if kind == "W64" else 8)
        file.seek(begin + size - 4 * rate)
        file.write((np.stack([np.full(rate, 0.25)] * 2, axis=1) * 32768).astype("<i2").tobytes())
    run = audio._Run(str(path), "big", None, None)
    blocks = run.between(seconds - 2.0, seconds + 9.0, origin=0.0)
    found = np.concatenate([run.mono(block)[1] for block in blocks])
    assert len(found) == 2 * rate
    assert (found[:rate] == 0).all()
    assert (found[rate:] == 0.25).all()


def test_where_the_mean_would_lose_the_sound_the_loudest_channel_is_heard():
    wave = bursts()
    for channels, best in (
        (np.stack([wave, -wave], axis=1), 1),
        (np.stack([0.8 * wave, -wave], axis=1), 2),
        (np.eye(32)[6] * wave[:, None], 7),
    ):
        sound = Sound((channels.astype(np.float32), RATE))
        np.testing.assert_array_equal(sound.samples(), channels[:, best - 1].astype(np.float32))
        assert sound.notes == (f"channel {best} of {channels.shape[1]} is heard alone: in the mean of all its sound would be lost",)
        chosen = Sound((channels.astype(np.float32), RATE), channel=2)
        np.testing.assert_array_equal(chosen.samples(), channels[:, 1].astype(np.float32))
        assert chosen.notes == ()
        np.testing.assert_array_equal(sound.part(0.5, 1.0), sound.samples()[RATE // 2 : RATE])


def test_a_silent_track_gives_way_to_one_that_sounds(tmp_path):
    silent = np.zeros_like(bursts())
    both = Sound(encode(tmp_path / "a.mkv", silent, bursts(), codec="flac", kind="matroska"))
    assert heard(both.samples(), RATE) == pytest.approx(BURSTS, abs=0.02)
    assert both.notes == ("audio track 2 of 2 is heard, since track 1 is silent",)
    assert heard(both.part(3.0, 4.0), RATE) == pytest.approx([0.4], abs=0.02)
    first = Sound(encode(tmp_path / "b.mkv", bursts(), 0.5 * bursts()[::-1], codec="flac", kind="matroska"))
    assert heard(first.samples(), RATE) == pytest.approx(BURSTS, abs=0.02)
    assert first.notes == ("audio track 1 of 2 is heard",)
    second = Sound(tmp_path / "b.mkv", track=2)
    assert heard(second.samples(), RATE)[0] == pytest.approx(SECONDS - BURSTS[-1] - 0.2, abs=0.02)
    with pytest.raises(AudioError, match="has 2 audio tracks; there is no track 3"):
        Sound(tmp_path / "b.mkv", track=3).samples()


class Collector:
    def __init__(self, rate_hz: int) -> None:
        self.rate_hz, self.begun, self.parts = rate_hz, 0, list[np.ndarray]()

    def begin(self) -> None:
        self.begun, self.parts = self.begun + 1, []

    def feed(self, samples: np.ndarray) -> None:
        self.parts.append(samples)


def test_one_reading_feeds_all_listeners_and_begins_anew_for_a_better_choice(tmp_path):
    path = write(tmp_path / "a.flac", np.stack([noise(700_000), noise(700_000, seed=1)], axis=1), 44100)
    listeners, sound = [Collector(24000), Collector(44100), Collector(24000)], Sound(path)
    shares = list(sound.reading(listeners, peak_columns=100))
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1, abs=0.05)
    for listener in listeners:
        expected = sound.samples(listener.rate_hz)
        assert len(expected) == math.ceil(700_000 * listener.rate_hz / 44100)
        np.testing.assert_array_equal(np.concatenate(listener.parts), expected)
    np.testing.assert_array_equal(sound.peaks, envelope(sound.samples(), 100))
    opposite, listener = np.stack([bursts(), -bursts()], axis=1), Collector(RATE)
    list(Sound((opposite, RATE)).reading([listener]))
    assert listener.begun == 2
    np.testing.assert_array_equal(np.concatenate(listener.parts), bursts())


def test_a_reading_may_stop_and_a_file_may_change(tmp_path):
    path = write(tmp_path / "a.wav", noise(160_000), 8000)
    steps = Sound(path).reading([Collector(8000)])
    assert next(steps) < 0.5
    steps.close()
    sound = Sound(path)
    assert sound.duration_seconds == 20
    write(path, noise(80_000), 8000)
    with pytest.raises(AudioError, match=r"a\.wav was changed while it was read; open it again"):
        sound.samples()
    assert Sound(path).duration_seconds == 10


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "ogg", "m4a", "mkv"])
def test_parts_are_the_samples_at_their_place_at_any_rate(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    lossy = suffix in {"m4a", "mkv"}  # AAC has noise drawn by the decoder
    samples = np.stack([np.tile(bursts(48000), 3)] * 2, axis=1) if lossy else noise(12 * 48000, 2)
    if lossy:
        encode(path, samples, codec="aac", rate=48000)
    else:
        write(path, samples, 48000)
    sound = Sound(path)
    whole, atol = sound.samples(), 0.02 if lossy else 2e-5
    for start, end in ((0, 1), (5.4321, 7.9), (11, 30), (20, 21)):
        np.testing.assert_allclose(sound.part(start, end), whole[round(start * 48000) : round(end * 48000)], atol=atol)
        other = resample(whole, 48000, 44100)[round(start * 44100) : round(end * 44100)]
        np.testing.assert_allclose(sound.part(start, end, rate_hz=44100), other, atol=atol)
        assert sound.part(start, end, mono=False).shape == (len(whole[round(start * 48000) : round(end * 48000)]), 2 if len(other) else 1)


def test_a_range_has_its_own_length_and_part_keeps_the_files_clock():
    samples = noise(80_000)
    sound = Sound((samples, 8000), start_seconds=2.5, end_seconds=4)
    np.testing.assert_array_equal(sound.samples(), samples[20_000:32_000])
    assert sound.duration_seconds == 1.5
    np.testing.assert_array_equal(sound.part(2.5, 3), samples[20_000:24_000])
    for choice, told in (({"start_seconds": 11}, "lasts 10.0 s; it cannot be read from 11 s on"),
                         ({"start_seconds": 3, "end_seconds": 2}, "from 3 s to 2 s"),
                         ({"channel": 2}, "has 1 channel; there is no channel 2"), ({"track": 2}, "has 1 audio track")):  # fmt: skip
        with pytest.raises(AudioError, match=told):
            Sound((samples, 8000), **choice).samples()


@pytest.mark.parametrize(("lead", "silent"), [(0, 0.0), (2400, 0.3), (8000 * 59, 59.0), (8000 * 60 + 4000, 0.0)])
def test_silence_in_front_is_measured_up_to_a_minute(lead, silent):
    assert Sound((np.concatenate([np.zeros(lead, dtype=np.float32), 0.5 + 0 * noise(800)]), 8000)).silent_seconds() == silent
    assert Sound((np.zeros(8000, dtype=np.float32), 8000)).silent_seconds() == 0.0


def test_samples_that_are_no_sound_are_silenced_and_told():
    samples = np.full((8000, 2), 0.5, dtype=np.float32)
    samples[10, 0], samples[11, 0], samples[12, 1], samples[13, 1] = np.nan, np.inf, -np.inf, 1e20
    sound = Sound((samples, 8000))
    np.testing.assert_allclose(sound.samples()[10:14], 0.25)
    np.testing.assert_allclose(np.delete(sound.samples(), range(10, 14)), 0.5)
    assert sound.notes == ("4 samples that can be no sound (not finite, or far beyond full scale) were silenced",)


@pytest.mark.parametrize("dtype", ["int16", "int32", "float32", "float64"])
def test_arrays_and_open_files_need_no_path(tmp_path, dtype):
    scale = np.iinfo(dtype).max if dtype.startswith("int") else 1
    sound = Sound(((bursts() * scale).astype(dtype), RATE))
    assert (sound.path, sound.duration_seconds) == ("", SECONDS)
    np.testing.assert_allclose(sound.samples(), bursts(), atol=1e-4)
    path = write(tmp_path / "a.flac", bursts(), RATE)
    with path.open("rb") as file:
        opened = Sound(file)
        assert (opened.name, opened.path, opened.duration_seconds) == ("a.flac", "", SECONDS)
    assert Sound(io.BytesIO(path.read_bytes())).duration_seconds == SECONDS


@pytest.mark.skipif(os.name != "posix", reason="pipes are files on POSIX alone")
@pytest.mark.parametrize("name", ["fifo", "-", "/dev/stdin"])
def test_pipes_are_read_as_often_as_needed(tmp_path, name):
    data = encode(tmp_path / "x.mp3", bursts(), codec="libmp3lame").read_bytes()
    code = "import sys; from qamdetr.audio import Sound; s = Sound(sys.argv[1]); print(s.samples().size, s.samples().size)"
    source = str(tmp_path / "fifo") if name == "fifo" else name
    if name == "fifo":
        os.mkfifo(source)
        threading.Thread(target=Path(source).write_bytes, args=(data,)).start()
    environment = {**os.environ, "PYTHONPATH": str(Path(audio.__file__).parents[1]), "TMPDIR": str(tmp_path)}
    told = subprocess.run([sys.executable, "-c", code, source], input=data, capture_output=True, check=True, env=environment, timeout=60)
    assert told.stdout.split() == [b"64000", b"64000"]
    assert told.stderr == b""
    assert not list(tmp_path.glob("qamdetr-*"))


MP4_WITHOUT_INDEX = b"\0\0\0\x18ftypM4A " + b"\0" * 100


@pytest.mark.parametrize(("content", "told"), [
    (b"RIFF\xff\xff\xff\xffWAVEjunk", "cannot be decoded"), (b"fLaC" + bytes(200), "cannot be decoded"),
    (b"OggS" + bytes(99), "cannot be decoded"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "is a Git LFS pointer, not the sound itself; fetch"),
    (MP4_WITHOUT_INDEX, "breaks off before its index, which MP4 files have at the end; copy or export it again"),
    (b"ffconcat version 1.0\nfile secret.wav\n", "cannot be decoded"), (b"#EXTM3U\n#EXTINF:1\nsecret.wav\n", "cannot be decoded"),
    (0.0999, r"lasts 0\.099896 s; the shortest"),
    (500, "sample rate of 500 Hz; 1000 to 768000 Hz can be used; give the recording at its original rate"),
    (2_000_000_000, "sample rate of 2000000000 Hz; 1000 to 768000 Hz can be used; convert"),
])  # fmt: skip
def test_what_cannot_be_used_is_one_clear_line(tmp_path, capfd, content, told):
    write(tmp_path / "secret.wav", bursts(), RATE)
    path = tmp_path / "x"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        write(path, np.zeros(round(content * 48000) if content < 1 else 48000), 48000, format="WAV")
        data = bytearray(path.read_bytes())
        data[24:28] = struct.pack("<I", content) if content >= 1 else data[24:28]
        path.write_bytes(data)
    with pytest.raises(AudioError, match=told) as caught:
        Sound(path).samples()
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_names_that_lead_nowhere(tmp_path):
    for path, told in ((Path("/dev/null"), "is a device"), ("a\0b", "cannot be opened"),
                       ("http://localhost/x.wav", "does not exist"), ("concat:a.wav|b.wav", "does not exist")):  # fmt: skip
        with pytest.raises(AudioError, match=told):
            Sound(path).samples()
    encode(tmp_path / "silent.mp4", codec="aac", kind="mp4", picture=1.0)
    with pytest.raises(AudioError, match="has no audio track; give a file with sound"):
        Sound(tmp_path / "silent.mp4").samples()


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ((np.zeros((2, 8000)), 8000), r"array of shape \(2, 8000\) at 8000 Hz; give \(n,\) or \(n, channels\), not \(channels, n\)"),
        ((np.zeros((8000, 2, 2)), 8000), r"array of shape \(8000, 2, 2\)"),
        ((np.zeros(0), 8000), r"array of shape \(0,\)"),
        ((np.zeros(8000), 0), "at 0 Hz"),
        (None, r"is NoneType; give a path, an open binary file or \(samples, rate_hz\)"),
    ],
)
def test_objects_that_are_no_recording(source, told):
    with pytest.raises(AudioError, match=told):
        Sound(source).samples()


def test_too_long_quotes_limit_and_remedy(tmp_path):
    path = write(tmp_path / "long.wav", np.zeros(8000 * 90), 8000, subtype="PCM_U8")
    with pytest.raises(AudioError, match=r"lasts more than 1 minutes; the longest that can be used is 1 minutes; cut it into parts"):
        Sound(path, max_seconds=60).samples()
    assert Sound(path, max_seconds=90).duration_seconds == 90


@pytest.mark.slow
def test_a_day_of_sound_takes_little_memory(tmp_path):
    path = write(tmp_path / "day.wav", np.zeros(8000), 8000, subtype="PCM_U8")
    with path.open("r+b") as file:  # all silence: a hole that takes no disk, as a header would not tell it
        file.truncate(44 + 24 * 3600 * 8000)
        file.seek(40)
        file.write(struct.pack("<I", 24 * 3600 * 8000))
    code = (
        "import resource, sys; from qamdetr.audio import Sound; peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "base = peak(); s = Sound(sys.argv[1]); [*s.reading(peak_columns=9)]; print(s.duration_seconds, (peak() - base) // 1024)"
    )
    told = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True).stdout.split()
    assert float(told[0]) == 24 * 3600
    assert int(told[1]) < 150


@pytest.mark.parametrize(("from_hz", "to_hz"), [(44100, 24000), (48000, 24000), (7001, 16000), (192000, 24000), (24000, 24000)])
@pytest.mark.parametrize("seconds", [0.1, 1.0, 2.0003])
def test_resampling_in_blocks_gives_the_same_bits(from_hz, to_hz, seconds):
    samples, resampler = noise(round(seconds * from_hz)), StreamResampler(from_hz, to_hz)
    whole, least = resample(samples, from_hz, to_hz), int(len(samples) * to_hz / from_hz)
    np.testing.assert_array_equal(whole[:least], soxr.resample(samples, from_hz, to_hz, quality="HQ")[:least])
    parts = [resampler.add(samples[begin : begin + 10_007]) for begin in range(0, len(samples), 10_007)]
    np.testing.assert_array_equal(np.concatenate([*parts, resampler.finish()]), whole)
    assert num_clips(len(whole) / to_hz) == num_clips(len(samples) / from_hz)


def test_num_clips_is_the_ceiling():
    assert [num_clips(seconds) for seconds in (0.1, 1.0, 1.00001, 59.2, 3 * 0.1 / 0.1)] == [1, 1, 2, 60, 3]


def envelope(samples: np.ndarray, columns: int, block: int = 1 << 18) -> np.ndarray:
    peaks = PeakEnvelope()
    for begin in range(0, len(samples), block):
        peaks.add(samples[begin : begin + block])
    return peaks.columns(columns)


@pytest.mark.parametrize("num_samples", [8, 1023, 1025, 4097, 70_003])
@pytest.mark.parametrize("block", [77, 5000])
def test_peaks_of_long_recordings_lose_no_extreme(monkeypatch, num_samples, block):
    monkeypatch.setattr(audio, "_MAX_GROUPS", 1024)
    samples = noise(num_samples)
    samples[[num_samples // 3, num_samples // 2, num_samples - 1]] = 0.99, -0.98, 0.97
    found = envelope(samples, 16, block)
    # A stretch may begin up to a group early, hence take a little of its neighbour, but never misses what is its own middle.
    edges, slack = np.arange(17) * num_samples // 16, max(1, 2 * num_samples // 1024)
    for column in range(16):
        inner = samples[edges[column] : max(edges[column + 1] - slack, edges[column] + 1)]
        outer = samples[max(edges[column] - slack, 0) : edges[column + 1] + slack]
        assert outer.min() <= found[0, column] <= inner.min()
        assert inner.max() <= found[1, column] <= outer.max()


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_drawings_show_place_and_height_of_a_tone(tmp_path, suffix):
    time = np.arange(10 * RATE) / RATE
    tone = np.where((time >= 3) & (time < 4), 0.5 * np.sin(2 * np.pi * 2000 * time), 0.0)
    sound = Sound(write(tmp_path / f"tone.{suffix}", np.stack([tone, tone], axis=1), RATE))
    seen = sound.overview(100)
    assert (seen.peaks.shape, seen.levels_db.shape) == ((2, 100), (BANDS, 100))
    loud = np.flatnonzero(seen.peaks[1] > 0.1)
    assert (loud.min(), loud.max()) == (pytest.approx(30, abs=1), pytest.approx(39, abs=1))
    band = int(seen.levels_db[:, 35].argmax())
    assert band == pytest.approx(float(hz_to_mel(2000) / hz_to_mel(seen.top_hz)) * BANDS, abs=1.5)
    assert seen.levels_db[band, 35] > seen.levels_db[band, 10] + 50
    close = sound.part_peaks(2.9, 3.4, 300)
    np.testing.assert_array_equal(close, envelope(sound.samples()[round(2.9 * RATE) : round(3.4 * RATE)], 300))
    assert sound.part_peaks(3.0, 3.001, 2000).shape == (2, 16)
    assert not sound.part_peaks(9.0, 11.0, 200)[:, 100:].any()


def test_recordings_are_listed_by_stem_and_what_is_no_recording_is_left_out(tmp_path):
    for name in ("a.flac", "b.1.wav", "c.MP3", ".hidden.wav", "a.txt", "notes", "d.caf", "e.m4b"):
        (tmp_path / name).write_bytes(b"")
    assert sorted(find_recordings(tmp_path)) == ["a", "b.1", "c", "d", "e"]
