"""What is exported is read back as the programs of its users do: spreadsheets, players, scoring tools, Raven; texts stay harmless."""

from __future__ import annotations

import csv
import html
import io
import json
import re
from dataclasses import replace

import pytest

from qamdetr.export import EXPORTS
from qamdetr.export.text import Answer, cell, clock, file_name_part, one_line, tab_cell, to_json_object, word
from qamdetr.types import Moment, Result

LABELS = ["audacity", "csv", "vtt", "srt", "rttm", "raven"]
"""Formats that hold moments alone."""


def moment(start, end, score, verifier_score=None, *, likely=True):
    return Moment(start, end, 0.9, 0.8, 0.72, verifier_score, score=score, likely=likely)


MOMENTS = (moment(3661.25, 3665.5, 0.9, 0.95), moment(2.5, 2.5004, 0.6), moment(0.25, 0.75, 0.4, 0.1))
RESULT = Result("rec/walk é.wav", 3725.5, "a dog barks", True, "pocket", "pocket", 0.35, MOMENTS, (0.5, 0.25))
ABSENT = replace(RESULT, query="a whale", found=False)
HOSTILE_QUERIES = ['=HYPERLINK("http://x","y")', "\t\r\n \uff1d1+1", "<script>alert(1)</script> & {\\an8}", "NOTE\n\nWEBVTT"]
HOSTILE_QUERIES += ["-1 --> 00:00:09.000\n\n9\n00:00:01,000 --> 00:00:02,000\nforged", 'a "quoted\tquery', "<NA> ;; comment"]
HOSTILE_QUERIES += ["../../etc/passwd\x00\u202e"]


def as_text(results, name, *, everything=False):
    answers = [result if isinstance(result, Answer) else Answer(result, everything=everything) for result in results]
    return EXPORTS[name].make(answers)


# What each format looks like, independent of what writes it: before the moments, and each one's start, end, label and score.
TIME, SCORED = r"\d\d:[0-5]\d:[0-5]\d[.,]\d{3}", r"(.*?) ?\((\d\.\d\d)\)\n"
RAVEN = "Selection,View,Channel,Begin Time (s),End Time (s),Low Freq (Hz),High Freq (Hz),Begin File,File Offset (s),Query,Score\n"
FORMATS = {
    "audacity": ("", rf"([\d.]+)\t([\d.]+)\t{SCORED}"),
    "vtt": ("WEBVTT\n\n", rf"({TIME}) --> ({TIME})\n{SCORED}(?:\n(?=.)|\Z)"),
    "srt": ("", rf"\d+\n({TIME}) --> ({TIME})\n{SCORED}(?:\n(?=.)|\Z)"),
    "rttm": ("", r"SPEAKER \S+ 1 (\S+) (\S+) <NA> <NA> (\S+) (\S+) <NA>\n"),
    "raven": (RAVEN.replace(",", "\t"), r"\d+\tSpectrogram 1\t1\t(\S+)\t(\S+)\t0\t4000\t[^\t\n]+\t[^\t\n]+\t([^\t\n]*)\t(\S+)\n"),
}


def seconds(text):
    return sum(float(part) * 60**place for place, part in enumerate(reversed(text.replace(",", ".").split(":"))))


def read(name, text):
    """Return (start, end, label, score) of each moment."""
    if name == "csv":
        rows = list(csv.DictReader(io.StringIO(text)))
        assert not any("\n" in value or "\t" in value for row in rows for value in row.values())
        return [(float(row["start"]), float(row["end"]), row["query"], float(row["score"])) for row in rows]
    header, moment = FORMATS[name]
    assert re.fullmatch(f"{re.escape(header)}(?:{moment})*", text), text
    assert not (name in ("audacity", "raven") and '"' in text), "a quote would swallow the fields after it"
    assert not (name in ("vtt", "srt") and "<" in text), "a tag"
    numbers = list(map(int, re.findall(r"(?m)^(\d+)(?:\t|$)", text)))
    assert name not in ("srt", "raven") or numbers == list(range(1, len(numbers) + 1))
    rows = [(seconds(start), seconds(end), html.unescape(label), float(score)) for start, end, label, score in re.findall(moment, text)]
    return [(start, round(start + end, 3), *rest) if name == "rttm" else (start, end, *rest) for start, end, *rest in rows]


@pytest.mark.parametrize("name", LABELS)
def test_moments_come_back(name):
    rows = read(name, as_text([RESULT], name))
    assert [start for start, *_ in rows] == [3661.25, 2.5, 0.25] if name == "csv" else [0.25, 2.5, 3661.25]
    by_start = {start: (end, score) for start, end, _, score in rows}
    assert by_start[3661.25] == (3665.5, 0.9)
    assert by_start[2.5][0] == pytest.approx(2.5004, abs=0.001)
    assert name not in ("vtt", "srt", "rttm") or by_start[2.5][0] == 2.501, "players and scoring tools drop what has no length"
    assert {label for _, _, label, _ in rows} == {"a_dog_barks" if name == "rttm" else "a dog barks"}


@pytest.mark.parametrize("name", LABELS)
@pytest.mark.parametrize("query", HOSTILE_QUERIES)
def test_hostile_queries_stay_in_their_field(query, name):
    text = as_text([replace(RESULT, query=query, audio=f"{query.replace('/', '_')}.wav")], name)
    labels = [label for _, _, label, _ in read(name, text)]
    assert len(labels) == 3
    if name in ("audacity", "csv", "raven"):
        names = [value for value in re.split(r"[\t\n]", text) if ".wav" in value]
        assert not any(value.strip()[:1] in {*"=+-@\uff1d"} for value in (*labels, *names))


SHOWN = [
    ("-5 dB, a bell", "-5 dB, a bell", "-5 dB, a bell", "-5_dB,_a_bell", "'-5 dB, a bell"),
    ("<b>loud</b> & {clear}", "<b>loud</b> & {clear}", "[b]loud[/b] & (clear)", "<b>loud</b>_&_{clear}", "<b>loud</b> & {clear}"),
    ("first\n\nsecond", "first second", "first second", "first_second", "first second"),
    ("\x00", "", "", "_", ""),
]


@pytest.mark.parametrize(("query", "vtt", "srt", "rttm", "table"), SHOWN)
def test_each_program_shows_what_was_asked(query, vtt, srt, rttm, table):
    expected = {"vtt": vtt, "srt": srt, "rttm": rttm, "csv": table, "raven": table, "audacity": table}
    for name, label in expected.items():
        assert {row[2] for row in read(name, as_text([replace(RESULT, query=query)], name))} == {label}, name


def test_json_is_the_contract():
    (one,) = json.loads(as_text([RESULT], "json"))
    assert one == to_json_object(RESULT)
    assert " ".join(one) == "audio duration query found tier encoder verifier beta moments saliency clip_seconds notes"
    scores = {"score": 0.9, "decoder_score": 0.72, "foreground": 0.9, "quality": 0.8, "verifier_score": 0.95}
    assert list(one["moments"][0].items()) == [("start", 3661.25), ("end", 3665.5), *scores.items(), ("likely", True)]
    hostile = json.loads(as_text([replace(ABSENT, query=query) for query in HOSTILE_QUERIES], "json"))
    assert [(item["query"], item["found"]) for item in hostile] == [(query, False) for query in HOSTILE_QUERIES]


def test_table_shows_rank_time_score_and_notes():
    assert [clock(value) for value in (0, 59.9996, 3600.5)] == ["0:00.000", "1:00.000", "60:00.500"]
    lines = as_text([replace(RESULT, notes=("no\nanswer", "another note"))], "table").splitlines()
    first = "rec/walk é.wav (62:05.500), 'a dog barks', encoder pocket, verifier pocket"
    assert [*lines[:3], lines[4].split()] == [first, "  no answer", "  another note", ["1", "61:01.250", "61:05.500", "0.900"]]
    for changes, said in (({}, "nothing found"), ({"perhaps": True}, "perhaps in"), ({"understood": False}, "words are not known")):
        assert f"{said}; the nearest guesses are:".replace("in;", "in this recording;") in as_text([replace(ABSENT, **changes)], "table")
    assert [to_json_object(replace(ABSENT, perhaps=perhaps))["tier"] for perhaps in (True, False)] == ["perhaps", "nothing found"]


# Fault B1: nine moments for one siren, eight with score 0.00.
SIREN = replace(RESULT, moments=(moment(13.27, 17.64, 0.93), *(moment(start, start + 1.0, 0.001, likely=False) for start in range(30, 38))))


@pytest.mark.parametrize("name", [*LABELS, "table"])
def test_what_is_written_are_the_likely_moments_unless_everything_is_asked_for(name):
    def starts(results, **choice):
        if name == "table":
            return [line.split()[1] for line in as_text(results, name, **choice).splitlines() if line.split()[0].isdigit()]
        return [row[0] for row in read(name, as_text(results, name, **choice))]

    assert len(starts([SIREN])) == 1
    assert len(starts([SIREN], everything=True)) == 9
    if name not in ("table", "vtt", "srt"):
        assert starts([ABSENT]) == [], "a label would claim what the recording does not have"
    assert len(starts([ABSENT], everything=True)) == 3
    assert len(starts([Answer(ABSENT, ranks=(2, 3))])) == 2, "a person may choose guesses"


def test_several_recordings_and_lanes_are_told_apart():
    other = replace(RESULT, audio="b/street.wav")
    names = [row[2].split(":")[0] for row in read("audacity", as_text([other, RESULT], "audacity"))]
    assert names == ["street.wav"] * 3 + ["walk é.wav"] * 3
    starts = [row[0] for row in read("vtt", as_text([RESULT, other], "vtt"))]
    assert starts == sorted(starts), "cues may not go back in time"
    raven = list(csv.DictReader(io.StringIO(as_text([RESULT, other], "raven")), delimiter="\t"))
    assert (raven[3]["Begin File"], raven[3]["Begin Time (s)"], raven[3]["File Offset (s)"]) == ("street.wav", "3725.750", "0.250")
    lane = Answer(RESULT, (1,), "Without 3-way fusion", "bypassed in the full model: 3-way fusion")
    rows = list(csv.DictReader(io.StringIO(as_text([RESULT, lane], "csv"))))
    assert [row["lane"] for row in rows] == ["", "", "", "Without 3-way fusion"]
    assert json.loads(as_text([lane], "json"))[0]["how"] == "bypassed in the full model: 3-way fusion"
    assert "a dog barks, Without 3-way fusion (0.90)" in as_text([lane], "audacity")


def test_files_are_written_as_their_readers_want_them(tmp_path):
    EXPORTS["csv"].write([Answer(RESULT)], tmp_path / "m.csv")
    assert (tmp_path / "m.csv").read_text(encoding="utf-8-sig") == as_text([RESULT], "csv")
    assert (tmp_path / "m.csv").read_bytes().startswith(b"\xef\xbb\xbf"), "Excel takes it for UTF-8 only so"
    EXPORTS["srt"].write([Answer(replace(RESULT, query="\ud800"))], tmp_path / "m.srt")
    assert b"\\ud800" in (tmp_path / "m.srt").read_bytes()


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
}
FILE_NAMES |= {"=cmd|'/c calc'!A1": "cmd-c-calc-A1", "犬が 吠える": "犬が-吠える", "a\x00b\nc\u202ed\ud800e": "a-b-c-d-e"}
FILE_NAMES |= {"x" * 500: "x" * 40, "a\u0301": "\xe1", "\U00020000" * 200: "\U00020000" * 30}


def test_file_names_hold_letters_digits_and_hyphens():
    assert {text: file_name_part(text, fallback="moment") for text in FILE_NAMES} == FILE_NAMES
