"""What is exported is read back as the programs of its users do: spreadsheets, players, scoring tools, Raven; texts stay harmless."""

from __future__ import annotations

import csv
import html
import importlib
import io
import json
import re
from dataclasses import replace

import pytest

from qamdetr.export import EXPORTS
from qamdetr.export.text import Answer, as_answers, as_text, cell, clock, file_name_part, one_line, tab_cell, to_json_object, word
from qamdetr.types import Moment, Result

LABELS = ["audacity", "csv", "vtt", "srt", "rttm", "raven"]
"""Formats that hold moments alone."""


def moment(start, end, score, verifier_score=None, *, likely=True):
    return Moment(start, end, 0.9, 0.8, 0.72, verifier_score, score=score, likely=likely)


RESULT = Result(
    audio="rec/walk é.wav",
    duration_seconds=3725.5,
    query="a dog barks",
    found=True,
    encoder="pocket",
    verifier="pocket",
    beta=0.35,
    moments=(moment(3661.25, 3665.5, 0.9, 0.95), moment(2.5, 2.5004, 0.6), moment(0.25, 0.75, 0.4, 0.1)),
    saliency=(0.5, 0.25),
)
ABSENT = replace(RESULT, query="a whale", found=False)
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


# Readers: text -> (start, end, label, score) of each moment, independent of what wrote it.


def seconds(text):
    hours, minutes, whole, thousandths = map(int, re.fullmatch(r"(\d{2,}):([0-5]\d):([0-5]\d)[.,](\d{3})", text).groups())
    return hours * 3600 + minutes * 60 + whole + thousandths / 1000


def scored(label):
    text, score = re.fullmatch(r"(?:(.*) )?\((\d\.\d\d)\)", label).groups()
    return text or "", float(score)


def read_cues(text):
    """SRT and the body of WebVTT: blocks between empty lines; an optional first line, the times, one line of text."""
    rows = []
    for block in re.split(r"\n{2,}", text.strip("\n")):
        lines = block.split("\n")
        lines = lines if "-->" in lines[0] else lines[1:]
        start, end = map(seconds, lines[0].split(" --> "))
        assert len(lines) == 2
        assert "<" not in lines[1]
        rows.append((start, end, *scored(lines[1])))
    return rows


def read_vtt(text):
    header, _, rest = text.partition("\n\n")
    assert header == "WEBVTT"
    return [(start, end, html.unescape(label), score) for start, end, label, score in read_cues(rest)]


def read_srt(text):
    assert re.findall(r"(?m)^\d+$", text) == [str(number) for number in range(1, text.count("-->") + 1)]
    return read_cues(text)


def read_audacity(text):
    rows = list(csv.reader(io.StringIO(text), delimiter="\t"))
    assert len(rows) == len(text.splitlines())
    return [(float(start), float(end), *scored(label)) for start, end, label in rows]


def read_csv(text):
    rows = list(csv.DictReader(io.StringIO(text)))
    assert not any("\n" in value or "\t" in value for row in rows for value in row.values())
    return [(float(row["start"]), float(row["end"]), row["query"], float(row["score"])) for row in rows]


def read_rttm(text):
    rows = [line.split(" ") for line in text.splitlines()]
    assert all(len(row) == 10 and row[0] == "SPEAKER" and row[2] == "1" and float(row[4]) > 0 for row in rows)
    return [(float(row[3]), round(float(row[3]) + float(row[4]), 3), row[7], float(row[8])) for row in rows]


def read_raven(text):
    rows = list(csv.DictReader(io.StringIO(text), delimiter="\t"))
    assert [int(row["Selection"]) for row in rows] == list(range(1, len(rows) + 1))
    assert all(None not in row and float(row["High Freq (Hz)"]) > float(row["Low Freq (Hz)"]) for row in rows)
    return [(float(row["Begin Time (s)"]), float(row["End Time (s)"]), row["Query"], float(row["Score"])) for row in rows]


READERS = {
    "audacity": read_audacity, "csv": read_csv, "vtt": read_vtt, "srt": read_srt, "rttm": read_rttm, "raven": read_raven,
}  # fmt: skip


@pytest.mark.parametrize("name", LABELS)
def test_moments_come_back(name):
    rows = READERS[name](as_text([RESULT], name))
    assert [start for start, *_ in rows] == [3661.25, 2.5, 0.25] if name == "csv" else [0.25, 2.5, 3661.25]
    by_start = {start: (end, score) for start, end, _, score in rows}
    assert by_start[3661.25] == (3665.5, 0.9)
    assert by_start[2.5][0] == pytest.approx(2.5004, abs=0.001)
    if name in ("vtt", "srt", "rttm"):
        assert by_start[2.5][0] == 2.501, "players and scoring tools drop what has no length"
    assert {label for _, _, label, _ in rows} == {"a_dog_barks" if name == "rttm" else "a dog barks"}


@pytest.mark.parametrize("name", LABELS)
@pytest.mark.parametrize("query", HOSTILE_QUERIES)
def test_hostile_queries_stay_in_their_field(query, name):
    result = replace(RESULT, query=query, audio=f"{query.replace('/', '_')}.wav")
    text = as_text([result], name)
    rows = READERS[name](text)
    assert len(rows) == 3
    if name in ("audacity", "csv", "raven"):
        assert not any(label.strip()[:1] in {*"=+-@\uff1d"} for _, _, label, _ in rows)
        assert not any(value.strip()[:1] in {*"=+-@\uff1d"} for value in re.split(r"[\t\n]", text) if ".wav" in value)
    assert json.loads(as_text([result], "json"))[0]["query"] == query


@pytest.mark.parametrize(
    ("query", "vtt", "srt", "rttm", "table"),
    [
        ("=1+1", "=1+1", "=1+1", "=1+1", "'=1+1"),
        ("\uff1d1", "\uff1d1", "\uff1d1", "\uff1d1", "'\uff1d1"),
        ("-5 dB, a bell", "-5 dB, a bell", "-5 dB, a bell", "-5_dB,_a_bell", "'-5 dB, a bell"),
        ("one --> two", "one --> two", "one --] two", "one_-->_two", "one --> two"),
        ("<b>loud</b> & {clear}", "<b>loud</b> & {clear}", "[b]loud[/b] & (clear)", "<b>loud</b>_&_{clear}", "<b>loud</b> & {clear}"),
        ("first\n\nsecond", "first second", "first second", "first_second", "first second"),
        ("\x00", "", "", "_", ""),
    ],
)
def test_each_program_shows_what_was_asked(query, vtt, srt, rttm, table):
    expected = {"vtt": vtt, "srt": srt, "rttm": rttm, "csv": table, "raven": table, "audacity": table}
    for name, label in expected.items():
        assert {row[2] for row in READERS[name](as_text([replace(RESULT, query=query)], name))} == {label}, name


def test_json_is_the_contract():
    (one,) = json.loads(as_text([RESULT], "json"))
    assert one == to_json_object(RESULT)
    assert list(one) == ["audio", "duration", "query", "found", "encoder", "verifier", "beta", "moments", "saliency", "notes"]
    scores = {"score": 0.9, "decoder_score": 0.72, "foreground": 0.9, "quality": 0.8, "verifier_score": 0.95}
    assert one["moments"][0] == {"start": 3661.25, "end": 3665.5, **scores, "likely": True}
    assert list(one["moments"][0]) == ["start", "end", *scores, "likely"]
    assert one["moments"][1]["verifier_score"] is None
    assert (one["saliency"], one["notes"], one["audio"]) == ([0.5, 0.25], [], "rec/walk é.wav")
    assert json.loads(as_text([RESULT, ABSENT], "json"))[1]["found"] is False


def test_table_shows_rank_time_score_and_notes():
    assert [clock(value) for value in (0, 59.9996, 3600.5)] == ["0:00.000", "1:00.000", "60:00.500"]
    told = ("Verifier server failed (no\nanswer); the moments are ranked by the decoder alone.", "another note")
    lines = as_text([replace(RESULT, notes=told)], "table").splitlines()
    assert lines[0] == "rec/walk é.wav (62:05.500), 'a dog barks', encoder pocket, verifier pocket"
    assert lines[1:3] == ["  Verifier server failed (no answer); the moments are ranked by the decoder alone.", "  another note"]
    assert [line.split() for line in lines[4:6]] == [["1", "61:01.250", "61:05.500", "0.900"], ["2", "0:02.500", "0:02.500", "0.600"]]
    assert "not in this recording; the nearest guesses are:" in as_text([ABSENT], "table")
    assert "guesses" not in as_text([replace(ABSENT, moments=())], "table")


# Fault B1: nine moments for one siren, eight with score 0.00.
SIREN = replace(RESULT, moments=(moment(13.27, 17.64, 0.93), *(moment(start, start + 1.0, 0.001, likely=False) for start in range(30, 38))))


@pytest.mark.parametrize("name", [*LABELS, "table"])
def test_what_is_written_are_the_likely_moments_unless_everything_is_asked_for(name):
    def starts(results, **choice):
        if name == "table":
            return [line.split()[1] for line in as_text(results, name, **choice).splitlines() if line.split()[0].isdigit()]
        return [row[0] for row in READERS[name](as_text(results, name, **choice))]

    assert len(starts([SIREN])) == 1
    assert len(starts([SIREN], everything=True)) == 9
    if name not in ("table", "vtt", "srt"):
        assert starts([ABSENT]) == [], "a label would claim what the recording does not have"
    assert len(starts([ABSENT], everything=True)) == 3


def test_chosen_moments_keep_their_ranks_and_may_be_guesses():
    absent = Answer(replace(SIREN, found=False), ranks=(2, 3))
    assert [row["rank"] for row in csv.DictReader(io.StringIO(as_text([absent], "csv")))] == ["2", "3"]
    (read,) = json.loads(as_text([absent], "json"))
    assert ([item["rank"] for item in read["moments"]], read["found"]) == ([2, 3], False)


def test_several_recordings_and_lanes_are_told_apart():
    other = replace(RESULT, audio="b/street.wav")
    assert [row[2].split(":")[0] for row in read_audacity(as_text([other, RESULT], "audacity"))] == ["street.wav"] * 3 + ["walk é.wav"] * 3
    starts = [row[0] for row in read_vtt(as_text([RESULT, other], "vtt"))]
    assert starts == sorted(starts), "cues may not go back in time"
    raven = list(csv.DictReader(io.StringIO(as_text([RESULT, other], "raven")), delimiter="\t"))
    assert (raven[3]["Begin File"], raven[3]["Begin Time (s)"], raven[3]["File Offset (s)"]) == ("street.wav", "3725.750", "0.250")
    lane = Answer(RESULT, (1,), "Without 3-way fusion", "bypassed in the full model: 3-way fusion")
    rows = list(csv.DictReader(io.StringIO(as_text([RESULT, lane], "csv"))))
    assert [row["lane"] for row in rows] == ["", "", "", "Without 3-way fusion"]
    assert json.loads(as_text([lane], "json"))[0]["how"] == "bypassed in the full model: 3-way fusion"
    assert "a dog barks, Without 3-way fusion (0.90)" in as_text([lane], "audacity")


def test_files_are_written_as_their_readers_want_them(tmp_path):
    EXPORTS["csv"].write(as_answers([RESULT]), tmp_path / "m.csv")
    assert (tmp_path / "m.csv").read_text(encoding="utf-8-sig") == as_text([RESULT], "csv")
    assert (tmp_path / "m.csv").read_bytes().startswith(b"\xef\xbb\xbf"), "Excel takes it for UTF-8 only so"
    EXPORTS["srt"].write(as_answers([replace(RESULT, query="\ud800")]), tmp_path / "m.srt")
    assert b"\\ud800" in (tmp_path / "m.srt").read_bytes()
    assert json.loads(as_text([], "json")) == []


def test_a_format_of_a_stranger_is_one_file_that_is_imported(tmp_path, monkeypatch):
    lines = [
        "from qamdetr.export import export",
        "@export('count', label='Count: how many', ending='.count')",
        "def count(answers): return f'{sum(len(a.moments()) for a in answers)}\\n'",
    ]
    (tmp_path / "my_format.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(EXPORTS, "count", None)  # taken away again at the end
    importlib.import_module("my_format")
    assert EXPORTS["count"].label == "Count: how many"
    assert as_text([SIREN], "count") == "1\n"
    assert as_text([SIREN], "count", everything=True) == "9\n"


FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "  =1", "\uff1d1", "\uff0b1", "\uff0d1", "\uff201", "\ufe621"]
FORMULAS += ["\u22121", "\u200b=1", "\ufeff=1", "\xa0=1", "\x00=1"]


def test_nothing_begins_a_formula_and_lines_fields_and_directions_cannot_be_forged():
    assert [text for text in FORMULAS if not (cell(text).startswith("'") and cell(text).endswith(("1", ")")))] == []
    for text in ("a dog barks", "犬が吠える", "2 + 2 = 4", "'quoted'", "é", "😀 laughs", ""):
        assert cell(text) == one_line(text) == text
    assert one_line("a\r\nb\tc\x0bd\x85e\u2028f\x1b[31mg\x00h") == "a b c d e f [31mg h"
    assert one_line("a\u202egnp.exe\u2066") == "agnp.exe"
    assert (tab_cell('"a" b'), word("a  dog\tbarks"), word("\n")) == ("'a' b", "a_dog_barks", "_")


FILE_NAMES = {
    "a dog barks": "a-dog-barks",
    "../../etc/passwd": "etc-passwd",
    "C:\\Windows\\x": "C-Windows-x",
    "..": "moment",
    "-rf *": "rf",
    "=cmd|'/c calc'!A1": "cmd-c-calc-A1",
    "犬が 吠える": "犬が-吠える",
    "a\x00b\nc\u202ed\ud800e": "a-b-c-d-e",
    "x" * 500: "x" * 40,
    "a\u0301": "\xe1",
    "\U00020000" * 200: "\U00020000" * 30,
}


def test_file_names_hold_letters_digits_and_hyphens():
    assert {text: file_name_part(text, fallback="moment") for text in FILE_NAMES} == FILE_NAMES
