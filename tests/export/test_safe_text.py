"""Text from outside in lines, cells, words and file names."""

from __future__ import annotations

import pytest

from qamdetr.export.safe_text import cell, file_name_part, one_line, tab_cell, word


@pytest.mark.parametrize(
    "text",
    [
        "=1+1",
        "+1",
        "-1",
        "@SUM(A1)",
        "\t=1",
        "\r=1",
        "\n=1",
        "  =1",
        "\uff1d1",
        "\uff0b1",
        "\uff0d1",
        "\uff201",
        "\ufe621",
        "\u22121",
        "\u200b=1",
        "\ufeff=1",
        "\xa0=1",
        "\x00=1",
    ],
)
def test_nothing_begins_a_formula(text):
    assert cell(text).startswith("'")
    assert cell(text).endswith("1") or "SUM" in cell(text)


@pytest.mark.parametrize("text", ["a dog barks", "犬が吠える", "2 + 2 = 4", "'quoted'", "é", "😀 laughs", ""])
def test_harmless_text_stays(text):
    assert cell(text) == one_line(text) == text


def test_lines_fields_and_directions_cannot_be_forged():
    assert one_line("a\r\nb\tc\x0bd\x85e\u2028f\x1b[31mg\x00h") == "a b c d e f [31mg h"
    assert one_line("a\u202egnp.exe\u2066") == "agnp.exe"
    assert tab_cell('"a" b') == "'a' b"
    assert word("a  dog\tbarks") == "a_dog_barks"
    assert word("\n") == "_"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a dog barks", "a-dog-barks"),
        ("../../etc/passwd", "etc-passwd"),
        ("C:\\Windows\\x", "C-Windows-x"),
        ("..", "moment"),
        ("", "moment"),
        ("-rf *", "rf"),
        ("=cmd|'/c calc'!A1", "cmd-c-calc-A1"),
        ("犬が 吠える", "犬が-吠える"),
        ("a\x00b\nc\u202ed\ud800e", "a-b-c-d-e"),
        ("x" * 500, "x" * 40),
        ("a\u0301", "\xe1"),
    ],
)
def test_file_names_hold_letters_digits_and_hyphens(text, name):
    assert file_name_part(text, fallback="moment") == name


def test_file_names_are_short_in_bytes_too():
    part = file_name_part("\U00020000" * 200, fallback="moment", max_letters=100)
    assert 0 < len(part.encode("utf-8")) <= 120
