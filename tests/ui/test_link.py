from __future__ import annotations

from dataclasses import replace
from urllib.parse import urlencode

import pytest

from qamdetr.ui import ablations
from qamdetr.ui.link import MAX_LINK_CHARACTERS, Offers, PageSettings, read_link, writing_script

MODELS = {"first": "first", "run: second": "/srv/runs/second/best", **{row.checkpoint: row.checkpoint for row in ablations.TABLE_ROWS[:3]}}
OFFERS = Offers(MODELS, ["none", "pocket"], ["street"])

pytestmark = pytest.mark.usefixtures("ladder")


def read(*parameters):
    return read_link("?" + urlencode(parameters), OFFERS)


def test_everything_comes_back_and_blanks_ask_for_nothing():
    link = read(
        ("q", "a dog barks"), ("q", "rain"), ("model", "run: second"), ("verifier", "pocket"), ("beta", "0.55"), ("off", "three_way"),
        ("off", "verifier"), ("row", "2"), ("row", "1"), ("example", "street"), ("__theme", "dark"),
    )  # fmt: skip
    assert link == PageSettings("a dog barks\nrain", "run: second", "pocket", 0.55, ("three_way", "verifier"), (1, 2), "street")
    for plain in ("", "?", "?__theme=dark", "?q=+&q=&model=&beta="):
        assert read_link(plain, OFFERS) == PageSettings()


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ([("model", "/srv/runs/second/best")], "model “/srv/runs/second/best” (first is used)"),
        ([("verifier", "server")], "verifier “server” (none is used)"),
        ([("beta", "1.01")], "weight “1.01”, which is no number from 0 to 1 (the model's own is used)"),
        ([("off", "<img src=x>")], "leaving out “<img src=x>” (the model in use has no such part)"),
        ([("row", "²")], "row “²” of Table 1"),
        ([("example", "../street"), ("example", "street")], "example “../street” (no recording is open)"),
        ([("q", "x" * 501)], "its queries (The query has 501 characters; the limit is 500"),
        ([("q", f"sound {number}") for number in range(9)], "its queries (There are 9 lines"),
        ([("q", "x" * 499)] * 3 + [("q", "y" * (MAX_LINK_CHARACTERS + 1))], "its queries (they have 5501 characters; a link holds 4000)"),
        ([("__theme", "x" * 70_000)], "what comes after 65536 characters"),
        ([("q", "a")] * 300, "more than 200 settings (none of them is used)"),
    ],
)
def test_what_cannot_be_used_is_passed_over_and_said(parameters, told):
    link = read(*parameters)
    assert replace(link, passed_over=()) == PageSettings()
    (line,) = link.passed_over
    assert line.startswith(told)
    assert line in link.warning


def test_queries_stay_one_line_each_and_hostile_words_stay_words():
    hostile = "<img src=x onerror=alert(1)> ${7*7} {{value}}"
    assert read(("q", f"{hostile}\r\n\tand more")).queries == f"{hostile} and more"
    assert read_link("?q=%ff%fe&q=rain", OFFERS).queries.endswith("rain")
    assert '"first \\"quoted\\" </script>"' in writing_script('first "quoted" </script>')
