"""Each output format, and names and queries that try to break it."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import pytest

from qamdetr.errors import QamDetrError
from qamdetr.export.text import FORMATS, clock, export, to_json_object
from qamdetr.types import Moment, Result


def moment(start, end, score, verifier_score=None):
    return Moment(start, end, 0.9, 0.8, 0.72, verifier_score, score)


RESULT = Result(
    audio="rec/walk é.wav",
    duration_seconds=3725.5,
    query="a dog barks",
    found=True,
    encoder="pocket",
    verifier="pocket",
    beta=0.35,
    moments=(moment(3661.25, 3665.5, 0.9, 0.95), moment(4.0, 5.0004, 0.4, 0.1)),
    saliency=(0.5, 0.25),
)
HOSTILE = replace(RESULT, audio="=cmd().wav", query='=1+1\n\n2\n00:00:00.000 --> 00:00:01.000 <b>"x"</b>\t,;')
ABSENT = replace(RESULT, query="a whale", found=False)


def test_json_is_the_contract():
    (one,) = json.loads(export([RESULT], "json"))
    assert one == to_json_object(RESULT)
    assert list(one) == ["audio", "duration", "query", "found", "encoder", "verifier", "beta", "moments", "saliency", "notes"]
    assert one["moments"][0] == {
        "start": 3661.25,
        "end": 3665.5,
        "score": 0.9,
        "decoder_score": 0.72,
        "foreground": 0.9,
        "quality": 0.8,
        "verifier_score": 0.95,
    }
    assert one["saliency"] == [0.5, 0.25]
    assert one["audio"] == "rec/walk é.wav"
    assert "é" in export([RESULT], "json")
    without = replace(RESULT, moments=(moment(1, 2, 0.5),))
    assert to_json_object(without)["moments"][0]["verifier_score"] is None
    assert json.loads(export([RESULT, ABSENT], "json"))[1]["found"] is False


def test_a_verifier_that_failed_is_told_in_table_and_json():
    told = ("Verifier server failed (no\nanswer); the moments are ranked by the decoder alone.", "another note")
    failed = replace(RESULT, verifier="none", beta=0.0, notes=told)
    assert to_json_object(failed)["notes"] == list(told)
    assert to_json_object(RESULT)["notes"] == []
    lines, plain = export([failed], "table").splitlines(), export([RESULT], "table").splitlines()
    assert lines[1:3] == ["  Verifier server failed (no answer); the moments are ranked by the decoder alone.", "  another note"]
    assert lines[3:] == plain[1:]


def test_table_shows_rank_time_and_score():
    lines = export([RESULT], "table").splitlines()
    assert lines[0] == "rec/walk é.wav (62:05.500), 'a dog barks', encoder pocket, verifier pocket"
    assert lines[2].split() == ["1", "61:01.250", "61:05.500", "0.900"]
    assert lines[3].split() == ["2", "0:04.000", "0:05.000", "0.400"]
    assert "not in this recording; the nearest guesses are:" in export([ABSENT], "table")
    assert "guesses" not in export([replace(ABSENT, moments=())], "table")


def test_audacity_labels_are_in_order_of_time():
    assert export([RESULT], "audacity") == "4.000000\t5.000400\ta dog barks (0.40)\n3661.250000\t3665.500000\ta dog barks (0.90)\n"


def test_vtt_and_srt():
    assert export([RESULT], "vtt") == (
        "WEBVTT\n\n00:00:04.000 --> 00:00:05.000\na dog barks (0.40)\n\n01:01:01.250 --> 01:01:05.500\na dog barks (0.90)\n"
    )
    assert export([RESULT], "srt") == (
        "1\n00:00:04,000 --> 00:00:05,000\na dog barks (0.40)\n\n2\n01:01:01,250 --> 01:01:05,500\na dog barks (0.90)\n"
    )


def test_rttm_and_raven():
    assert export([RESULT], "rttm").splitlines()[0] == "SPEAKER walk_é 1 4.000 1.000 <NA> <NA> a_dog_barks 0.4000 <NA>"
    header, first, _ = export([RESULT], "raven").splitlines()
    row = dict(zip(header.split("\t"), first.split("\t"), strict=True))
    assert (row["Selection"], row["Begin Time (s)"], row["End Time (s)"], row["Begin File"]) == ("1", "4.000", "5.000", "walk é.wav")
    assert row["Query"] == "a dog barks"


def test_csv_keeps_rank_order():
    rows = list(csv.DictReader(io.StringIO(export([RESULT], "csv"))))
    assert [row["rank"] for row in rows] == ["1", "2"]
    assert (rows[0]["audio"], rows[0]["start"], rows[0]["verifier_score"]) == ("rec/walk é.wav", "3661.2500", "0.9500")


def test_line_breaks_markup_and_formulas_stay_harmless():
    rows = list(csv.DictReader(io.StringIO(export([HOSTILE], "csv"))))
    assert len(rows) == 2
    assert rows[0]["audio"].startswith("'=")
    assert rows[0]["query"].startswith("'=1+1 2 ")
    assert all(len(line.split("\t")) == 3 for line in export([HOSTILE], "audacity").splitlines())
    assert all(len(line.split()) == 10 for line in export([HOSTILE], "rttm").splitlines())
    assert len({line.count("\t") for line in export([HOSTILE], "raven").splitlines()}) == 1
    for name in ("vtt", "srt"):
        assert export([HOSTILE], name).count("-->") == 2
    assert "<b>" not in export([HOSTILE], "vtt")
    assert len(export([HOSTILE], "table").splitlines()) == 4
    assert json.loads(export([HOSTILE], "json"))[0]["query"] == HOSTILE.query


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in {"table", "json"}])
def test_labels_hold_only_what_was_found(name):
    assert "dog" in export([RESULT, ABSENT], name)
    assert "whale" not in export([RESULT, ABSENT], name)
    assert "4.0" in export([RESULT], name) or "04" in export([RESULT], name)


def test_labels_of_several_recordings_carry_their_names():
    other = replace(RESULT, audio="b/street.wav")
    lines = export([other, RESULT], "audacity").splitlines()
    assert [line.split("\t")[2].split(":")[0] for line in lines] == ["street.wav"] * 2 + ["walk é.wav"] * 2


def test_no_results_and_unknown_formats():
    assert json.loads(export([], "json")) == []
    assert export([], "vtt").strip() == "WEBVTT"
    with pytest.raises(QamDetrError, match="Unknown format 'xml'; choose one of table, json, audacity, csv, vtt, srt, rttm, raven"):
        export([RESULT], "xml")


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00.000"), (59.9996, "1:00.000"), (3600.5, "60:00.500")])
def test_clock_carries_over(seconds, text):
    assert clock(seconds) == text
