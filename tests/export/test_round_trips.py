"""What is exported is read back as the programs of its users do: spreadsheets, players, scoring tools, Raven, archives."""

from __future__ import annotations

import csv
import html
import io
import json
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
from qamdetr.export.text import Answer, export
from qamdetr.types import Moment, Result


def moment(start, end, score, verifier_score=None):
    return Moment(start, end, 0.9, 0.8, 0.72, verifier_score, score)


WINDOWS = [(2.0, 3.5), (0.25, 0.75), (2.5, 2.5004)]
RESULT = Result(
    audio="rec/walk.wav",
    duration_seconds=4.0,
    query="a dog barks",
    found=True,
    encoder="pocket",
    verifier="pocket",
    beta=0.35,
    moments=tuple(moment(start, end, score, 0.5) for (start, end), score in zip(WINDOWS, (0.9, 0.6, 0.3), strict=True)),
    saliency=(0.5, 0.25, 1.0, 0.0),
)
BY_TIME = sorted(WINDOWS)
HOSTILE_QUERIES = [
    '=HYPERLINK("http://x","y")',
    "\t\r\n \uff1d1+1",
    "-1 --> 00:00:09.000\n\n9\n00:00:01,000 --> 00:00:02,000\nforged",
    "<script>alert(1)</script> & {\\an8}",
    "NOTE\n\nWEBVTT",
    'a "quoted\tquery',
    "<NA> ;; comment",
    "../../etc/passwd\x00\u202e",
]
hostile = pytest.mark.parametrize("query", HOSTILE_QUERIES)


def seconds(text):
    found = re.fullmatch(r"(\d{2,}):([0-5]\d):([0-5]\d)[.,](\d{3})", text)
    assert found, text
    hours, minutes, whole, thousandths = (int(group) for group in found.groups())
    return hours * 3600 + minutes * 60 + whole + thousandths / 1000


def read_cues(block_text):
    """Cues of WebVTT and SRT: blocks between empty lines; an optional first line, the times, the text."""
    cues = []
    for block in re.split(r"\n{2,}", block_text.strip("\n")):
        lines = block.split("\n")
        lines = lines if "-->" in lines[0] else lines[1:]
        start, end = (seconds(part) for part in lines[0].split(" --> "))
        assert end > start
        assert not any("-->" in line for line in lines[1:])
        cues.append((start, end, lines[1:]))
    return cues


def read_vtt(text):
    header, _, rest = text.partition("\n\n")
    assert header == "WEBVTT"
    cues = read_cues(rest)
    assert [cue[0] for cue in cues] == sorted(cue[0] for cue in cues)
    return cues


def is_formula(value):
    return value.strip()[:1] in {*"=+-@\uff1d\uff0b\uff0d\uff20"}


def test_csv_comes_back():
    rows = list(csv.DictReader(io.StringIO(export([RESULT], "csv"))))
    assert [(float(row["start"]), float(row["end"]), int(row["rank"])) for row in rows] == [
        (*window, rank) for rank, window in enumerate(WINDOWS, start=1)
    ]
    assert {row["query"] for row in rows} == {"a dog barks"}
    assert [float(rows[0][name]) for name in ("score", "decoder_score", "verifier_score", "foreground", "quality")] == [
        0.9,
        0.72,
        0.5,
        0.9,
        0.8,
    ]


def test_json_comes_back():
    (read,) = json.loads(export([RESULT], "json"))
    assert [(item["start"], item["end"]) for item in read["moments"]] == [(2.0, 3.5), (0.25, 0.75), (2.5, 2.5)]


@pytest.mark.parametrize(("name", "reader"), [("vtt", read_vtt), ("srt", read_cues)])
def test_subtitles_come_back(name, reader):
    cues = reader(export([RESULT], name))
    assert [(start, end) for start, end, _ in cues] == [(0.25, 0.75), (2.0, 3.5), (2.5, 2.501)]
    assert cues[1][2] == ["a dog barks (0.90)"]


def test_srt_is_numbered_from_one():
    assert re.findall(r"(?m)^\d+$", export([RESULT], "srt")) == ["1", "2", "3"]


def test_rttm_comes_back():
    rows = [line.split(" ") for line in export([RESULT], "rttm").splitlines()]
    assert all(len(row) == 10 and row[0] == "SPEAKER" and row[1:3] == ["walk", "1"] for row in rows)
    assert all(float(row[4]) > 0 for row in rows)
    assert [(float(row[3]), round(float(row[3]) + float(row[4]), 3)) for row in rows] == [(0.25, 0.75), (2.0, 3.5), (2.5, 2.501)]
    assert {row[7] for row in rows} == {"a_dog_barks"}


def read_raven(text):
    return list(csv.DictReader(io.StringIO(text), delimiter="\t"))


def test_raven_comes_back():
    rows = read_raven(export([RESULT], "raven"))
    assert [int(row["Selection"]) for row in rows] == [1, 2, 3]
    assert [(float(row["Begin Time (s)"]), float(row["End Time (s)"])) for row in rows][:2] == BY_TIME[:2]
    assert {row["Begin File"] for row in rows} == {"walk.wav"}
    assert all(float(row["High Freq (Hz)"]) > float(row["Low Freq (Hz)"]) for row in rows)


def test_raven_opens_several_recordings_as_one_sequence():
    rows = read_raven(export([RESULT, replace(RESULT, audio="b.wav")], "raven"))
    assert (rows[3]["Begin File"], rows[3]["Begin Time (s)"], rows[3]["File Offset (s)"]) == ("b.wav", "4.250", "0.250")


def test_subtitles_of_several_recordings_do_not_go_back_in_time():
    cues = read_vtt(export([RESULT, replace(RESULT, audio="b.wav")], "vtt"))
    assert len(cues) == 6


def test_audacity_comes_back():
    rows = [line.split("\t") for line in export([RESULT], "audacity").splitlines()]
    assert [(float(start), float(end)) for start, end, _ in rows] == BY_TIME


@hostile
def test_hostile_queries_stay_in_their_field(query):
    result = replace(RESULT, query=query, audio=f"{query.replace('/', '_')}.wav")
    rows = list(csv.DictReader(io.StringIO(export([result], "csv"))))
    assert len(rows) == 3
    assert not any(is_formula(value) for row in rows for name, value in row.items() if name in ("audio", "query"))
    assert not any("\n" in value or "\t" in value for row in rows for value in row.values())
    for name in ("vtt", "srt"):
        cues = read_cues(export([result], name).removeprefix("WEBVTT\n\n"))
        assert len(cues) == 3
        assert all(len(lines) == 1 and "<" not in lines[0] for _, _, lines in cues)
    labels = [line.split("\t") for line in export([result], "audacity").splitlines()]
    assert all(len(row) == 3 and not is_formula(row[2]) for row in labels)
    assert all(len(row) == 3 for row in csv.reader(io.StringIO(export([result], "audacity")), delimiter="\t"))
    assert len(labels) == 3
    fields = [line.split() for line in export([result], "rttm").splitlines()]
    assert [len(row) for row in fields] == [10] * 3
    raven = read_raven(export([result], "raven"))
    assert len(raven) == 3
    assert not any(is_formula(row["Query"]) or is_formula(row["Begin File"]) or None in row for row in raven)
    assert json.loads(export([result], "json"))[0]["query"] == query


CAPTIONS = {
    "=1+1": ("=1+1", "=1+1"),
    "-5 dB, a bell": ("-5 dB, a bell", "-5 dB, a bell"),
    "one --> two": ("one --&gt; two", "one --] two"),
    "<b>loud</b> & {clear}": ("&lt;b&gt;loud&lt;/b&gt; &amp; {clear}", "[b]loud[/b] & (clear)"),
    "first\n\nsecond": ("first second", "first second"),
    "\x00": ("", ""),
}


@pytest.mark.parametrize("query", CAPTIONS)
def test_captions_say_what_was_asked_and_nothing_else(query):
    result = replace(RESULT, query=query)
    for name, said in zip(("vtt", "srt"), CAPTIONS[query], strict=True):
        cues = read_cues(export([result], name).removeprefix("WEBVTT\n\n"))
        assert [lines for _, _, lines in cues] == [[f"{said} ({score})".lstrip()] for score in ("0.60", "0.90", "0.30")]


def test_what_players_show_of_vtt_is_the_query():
    for query in ("one --> two", "<b>loud</b> & {clear}"):
        cues = read_vtt(export([replace(RESULT, query=query)], "vtt"))
        assert {html.unescape(lines[0]) for _, _, lines in cues} == {f"{query} ({score})" for score in ("0.60", "0.90", "0.30")}


@pytest.mark.parametrize(("query", "label"), [("=1+1", "=1+1"), ("-5 dB hum", "-5_dB_hum"), ("\n", "_"), ("a\tb", "a_b")])
def test_scoring_tools_compare_labels_as_they_were_asked(query, label):
    rows = [line.split(" ") for line in export([replace(RESULT, query=query)], "rttm").splitlines()]
    assert {row[7] for row in rows} == {label}


@pytest.mark.parametrize("query", ["=1+1", "@SUM(1)", "\uff1d1"])
def test_tables_that_spreadsheets_open_hold_no_formula(query):
    result = replace(RESULT, query=query)
    assert {row["query"] for row in csv.DictReader(io.StringIO(export([result], "csv")))} == {f"'{query}"}
    assert {row["Query"] for row in read_raven(export([result], "raven"))} == {f"'{query}"}
    assert all(line.split("\t")[2].startswith(f"'{query} (") for line in export([result], "audacity").splitlines())


def test_chosen_moments_keep_their_ranks_and_may_be_guesses():
    absent = Answer(replace(RESULT, found=False), ranks=(2, 3))
    rows = list(csv.DictReader(io.StringIO(export([absent], "csv"))))
    assert [int(row["rank"]) for row in rows] == [2, 3]
    assert len(read_vtt(export([absent], "vtt"))) == 2
    (read,) = json.loads(export([absent], "json"))
    assert [item["rank"] for item in read["moments"]] == [2, 3]
    assert read["found"] is False


def test_lanes_of_one_query_are_told_apart():
    other = Answer(RESULT, (1,), "Without 3-way fusion", "bypassed in the full model: 3-way fusion")
    rows = list(csv.DictReader(io.StringIO(export([RESULT, other], "csv"))))
    assert [row["lane"] for row in rows] == ["", "", "", "Without 3-way fusion"]
    assert json.loads(export([other], "json"))[0]["how"] == "bypassed in the full model: 3-way fusion"
    assert "a dog barks, Without 3-way fusion (0.90)" in export([other], "audacity")


def write_recording(path, *, subtype=None, channels=2, rate_hz=8000, length_seconds=4.0):
    rng = np.random.default_rng(0)
    samples = rng.uniform(-0.6, 0.6, (int(rate_hz * length_seconds), channels))
    with soundfile.SoundFile(path, "w", rate_hz, channels, subtype) as file:
        for begin in range(0, len(samples), 1000):
            file.write(samples[begin : begin + 1000])
    return replace(RESULT, audio=str(path))


def read_archive(path):
    """Name -> (samples, rate), and the rows of the list."""
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        rows = list(csv.DictReader(io.StringIO(archive.read(MANIFEST_NAME).decode("utf-8-sig"))))
        sounds = {
            name: soundfile.read(io.BytesIO(archive.read(name)), always_2d=True) for name in archive.namelist() if name != MANIFEST_NAME
        }
    return sounds, rows


@pytest.mark.parametrize("audio_format", ["wav", "flac"])
@pytest.mark.parametrize(
    ("name", "subtype"),
    [
        ("a.wav", "PCM_16"),
        ("a.wav", "PCM_24"),
        ("a.wav", "PCM_U8"),
        ("a.wav", "FLOAT"),
        ("a.flac", "PCM_16"),
        ("a.flac", "PCM_24"),
        ("a.aiff", "PCM_S8"),
    ],
)
def test_cut_samples_are_those_of_the_recording(tmp_path, name, subtype, audio_format):
    result = write_recording(tmp_path / name, subtype=subtype)
    assert write_clips([result], tmp_path / "out.zip", audio_format) == 3
    whole, rate_hz = soundfile.read(result.audio, always_2d=True)
    sounds, rows = read_archive(tmp_path / "out.zip")
    assert [row["file"] for row in rows] == list(dict.fromkeys(row["file"] for row in rows))
    assert set(sounds) == {row["file"] for row in rows}
    for row in rows:
        samples, rate = sounds[row["file"]]
        begin, end = (round(float(row[side]) * rate_hz) for side in ("start", "end"))
        assert rate == rate_hz
        exact = not (subtype == "FLOAT" and audio_format == "flac")
        np.testing.assert_allclose(samples, whole[begin:end], rtol=0, atol=0 if exact else 2.0**-23)


@pytest.mark.parametrize("name", ["a.ogg", "a.mp3"])
def test_lossy_recordings_come_at_16_bits_and_in_the_right_place(tmp_path, name):
    result = write_recording(tmp_path / name, rate_hz=44100)
    write_clips([result], tmp_path / "out.zip")
    whole, rate_hz = soundfile.read(result.audio, always_2d=True)
    sounds, rows = read_archive(tmp_path / "out.zip")
    for row in rows:
        begin, end = (round(float(row[side]) * rate_hz) for side in ("start", "end"))
        np.testing.assert_allclose(sounds[row["file"]][0], whole[begin:end].clip(-1, 1), rtol=0, atol=1.01 / 32768)


def test_names_carry_query_rank_and_times_and_no_tricks(tmp_path):
    result = write_recording(tmp_path / "walk é.wav")
    answers = [
        replace(result, query=query) for query in ("a dog barks", "A DOG BARKS", "../../etc/passwd", "..\\..\\x", "=cmd()\n", "🦊", "CON")
    ]
    write_clips(answers, tmp_path / "out.zip")
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        names = archive.namelist()
    assert "a-dog-barks_01_0m02.000s-0m03.500s.wav" in names
    assert "A-DOG-BARKS_01_0m02.000s-0m03.500s_2.wav" in names
    assert len({name.casefold() for name in names}) == len(names) == 1 + 3 * 7
    assert all(re.fullmatch(r"[\w-]+_\d\d_\d+m\d\d\.\d{3}s-\d+m\d\d\.\d{3}s(_\d+)?\.wav", name) for name in names[1:])
    _, rows = read_archive(tmp_path / "out.zip")
    assert {row["recording"] for row in rows} == {"walk é.wav"}
    assert not any(is_formula(value) for row in rows for value in row.values())


def test_several_recordings_share_an_archive(tmp_path):
    results = [write_recording(tmp_path / "a.wav"), write_recording(tmp_path / "b.flac", channels=1)]
    assert write_clips(results, tmp_path / "out.zip") == 6
    sounds, _ = read_archive(tmp_path / "out.zip")
    assert sorted({name.split("_")[0] for name in sounds}) == ["a", "b"]


def test_archives_are_the_same_each_time_and_appear_whole(tmp_path, monkeypatch):
    result = write_recording(tmp_path / "a.wav")
    for name in ("one.zip", "two.zip"):
        write_clips([result], tmp_path / name)
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    monkeypatch.setattr(export_audio, "MAX_ARCHIVE_BYTES", 1000)
    with pytest.raises(AudioError, match=r"3 moments hold at least .* choose fewer or shorter"):
        write_clips([result], tmp_path / "three.zip")
    monkeypatch.undo()
    Path(result.audio).unlink()
    with pytest.raises(AudioError, match="no longer there"):
        write_clips([result], tmp_path / "four.zip")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.zip", "two.zip"]


def test_windows_beyond_the_end_give_what_there_is(tmp_path):
    result = replace(write_recording(tmp_path / "a.wav"), moments=(moment(3.9, 4.0004, 0.5), moment(3.99999, 4.0, 0.4)))
    write_clips([result], tmp_path / "out.zip")
    sounds, _ = read_archive(tmp_path / "out.zip")
    assert [len(samples) for samples, _ in sounds.values()] == [800, 1]
