"""Moments cut out of their recordings: the archive is read back sample by sample."""

from __future__ import annotations

import csv
import io
import re
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from qamdetr.errors import AudioError
from qamdetr.export import clips as export_audio
from qamdetr.export.clips import MANIFEST_NAME, write_clips
from qamdetr.export.text import Answer
from qamdetr.types import Moment, Result

MOMENTS = tuple(
    Moment(start, end, 0.9, 0.8, 0.72, 0.5, score=score) for start, end, score in ((2.0, 3.5, 0.9), (0.25, 0.75, 0.6), (2.5, 2.5004, 0.3))
)
RESULT = Result("rec/walk.wav", 4.0, "a dog barks", True, "pocket", "pocket", 0.35, MOMENTS, (0.5, 0.25, 1.0, 0.0))


def write_recording(path, *, subtype=None, rate_hz=8000):
    samples = np.random.default_rng(0).uniform(-0.6, 0.6, (rate_hz * 4, 2))
    with soundfile.SoundFile(path, "w", rate_hz, 2, subtype) as file:
        for begin in range(0, len(samples), 1000):  # libsndfile's Vorbis encoder does not take all at once
            file.write(samples[begin : begin + 1000])
    return replace(RESULT, audio=str(path))


def cut_out(result, audio_format="wav"):
    """For each row of the list: samples, rate and subtype of its file, and what the recording holds there; and the rows."""
    path = Path(result.audio).with_name("out.zip")
    write_clips([Answer(result)], path, audio_format)
    whole, rate_hz = soundfile.read(result.audio, always_2d=True)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        rows = list(csv.DictReader(io.StringIO(archive.read(MANIFEST_NAME).decode("utf-8-sig"))))
        assert archive.namelist() == [MANIFEST_NAME, *(row["file"] for row in rows)]
        for row in rows:
            begin, end = (round(float(row[side]) * rate_hz) for side in ("start", "end"))
            with soundfile.SoundFile(io.BytesIO(archive.read(row["file"]))) as file:
                assert file.samplerate == rate_hz
                yield file.read(always_2d=True), file.subtype, whole[begin:end]


RECORDED = [("a.wav", "PCM_16"), ("a.wav", "PCM_24"), ("a.wav", "PCM_U8"), ("a.wav", "FLOAT"), ("a.flac", "PCM_24"), ("a.aiff", "PCM_S8")]


@pytest.mark.parametrize("audio_format", ["wav", "flac"])
@pytest.mark.parametrize(("name", "subtype"), RECORDED)
def test_cut_samples_are_those_of_the_recording(tmp_path, name, subtype, audio_format):
    result = write_recording(tmp_path / name, subtype=subtype)
    for samples, _, there in cut_out(replace(result, heard={"channel": 2}), audio_format):
        np.testing.assert_allclose(samples, there[:, 1:], rtol=0, atol=2.0**-23)
    cuts = list(cut_out(result, audio_format))
    assert len(cuts) == 3
    for samples, written, there in cuts:
        assert written == "PCM_24" or subtype != "PCM_24"
        exact = not (subtype == "FLOAT" and audio_format == "flac")
        np.testing.assert_allclose(samples, there, rtol=0, atol=0 if exact else 2.0**-23)


@pytest.mark.parametrize("name", ["a.ogg", "a.mp3"])
def test_lossy_recordings_come_at_16_bits_and_in_the_right_place(tmp_path, name):
    for samples, written, there in cut_out(write_recording(tmp_path / name, rate_hz=44100)):
        assert written == "PCM_16"
        np.testing.assert_allclose(samples, there.clip(-1, 1), rtol=0, atol=1.01 / 32768)


def test_names_carry_query_rank_and_times_and_no_tricks(tmp_path):
    result = write_recording(tmp_path / "walk é.wav")
    queries = ("a dog barks", "A DOG BARKS", "../../etc/passwd", "..\\..\\x", "=cmd()\n", "🦊", "CON")
    write_clips([Answer(replace(result, query=query)) for query in queries], tmp_path / "out.zip")
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        names = archive.namelist()
        rows = list(csv.DictReader(io.StringIO(archive.read(MANIFEST_NAME).decode("utf-8-sig"))))
    assert "a-dog-barks_01_0m02.000s-0m03.500s.wav" in names
    assert "A-DOG-BARKS_01_0m02.000s-0m03.500s_2.wav" in names
    assert len({name.casefold() for name in names}) == len(names) == 1 + 3 * 7
    assert all(re.fullmatch(r"[\w-]+_\d\d_\d+m\d\d\.\d{3}s-\d+m\d\d\.\d{3}s(_\d+)?\.wav", name) for name in names[1:])
    assert {row["recording"] for row in rows} == {"walk é.wav"}
    assert not any(value.strip()[:1] in {*"=+-@\uff1d\uff0b\uff0d\uff20"} for row in rows for value in row.values())


def test_archives_are_the_same_each_time_and_appear_whole(tmp_path, monkeypatch):
    result = write_recording(tmp_path / "a.wav")
    for name in ("one.zip", "two.zip"):
        write_clips([Answer(result)], tmp_path / name)
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    monkeypatch.setattr(export_audio, "MAX_ARCHIVE_BYTES", 1000)
    with pytest.raises(AudioError, match=r"3 moments hold at least .* choose fewer or shorter"):
        write_clips([Answer(result)], tmp_path / "three.zip")
    monkeypatch.undo()
    Path(result.audio).unlink()
    with pytest.raises(AudioError, match="no longer there"):
        write_clips([Answer(result)], tmp_path / "four.zip")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.zip", "two.zip"]
