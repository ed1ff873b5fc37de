from __future__ import annotations

from urllib.parse import urlencode

import pytest

from qamdetr.config import Config
from qamdetr.ui import ablations
from qamdetr.ui.page_link import MAX_LINK_CHARACTERS, Offers, PageSettings, read_link, writing_script

OFFERS = Offers(["first", "second"], ["none", "pocket"], ["street"])


@pytest.fixture(autouse=True)
def _checkpoints_need_not_be_here(monkeypatch):
    monkeypatch.setattr(ablations, "read_config", lambda _: Config())


def read(*parameters):
    return read_link("?" + urlencode(parameters), OFFERS)


def test_everything_comes_back():
    link = read(
        ("q", "a dog barks"), ("q", "rain"), ("model", "second"), ("verifier", "pocket"), ("beta", "0.55"), ("off", "three_way"),
        ("off", "verifier"), ("row", "2"), ("row", "1"), ("example", "street"), ("__theme", "dark"),
    )  # fmt: skip
    assert link == PageSettings("a dog barks\nrain", "second", "pocket", 0.55, ("three_way", "verifier"), (1, 2), "street")


def test_a_plain_address_says_nothing():
    assert read_link("", OFFERS) == read_link("?", OFFERS) == read_link("?__theme=dark", OFFERS) == PageSettings()


@pytest.mark.parametrize(
    "parameters",
    [
        [("model", "/etc")],
        [("model", "../second")],
        [("verifier", "server")],
        [("beta", "nan")],
        [("beta", "1.01")],
        [("beta", "-inf")],
        [("beta", "half")],
        [("off", "<img src=x>"), ("off", "decoder"), ("off", "verifier")],
        [("row", "0"), ("row", "7"), ("row", "1.0"), ("row", "²")],
        [("example", "../street"), ("example", "street")],
        [("q", "x" * 501)],
        [("q", f"sound {number}") for number in range(9)],
        [("q", " "), ("q", "")],
        [("q", "x" * 499)] * 3 + [("q", "y" * (MAX_LINK_CHARACTERS + 1))],
        [("q", "a")] * 300,
    ],
)
def test_what_the_page_could_not_have_written_is_passed_over(parameters):
    assert read(*parameters) == PageSettings()


def test_queries_stay_one_line_each_and_hostile_words_stay_words():
    hostile = "<img src=x onerror=alert(1)> ${7*7} {{value}}"
    assert read(("q", f"{hostile}\r\n\tand more")).queries == f"{hostile} and more"
    assert read_link("?q=%ff%fe&q=rain", OFFERS).queries.endswith("rain")


def test_the_browser_is_told_names_that_are_read():
    script = writing_script('first "quoted" </script>')
    for name in ("q", "model", "verifier", "beta", "off", "row", "example"):
        assert f'"{name}"' in script
    assert '"first \\"quoted\\" </script>"' in script
    assert not any(word in script for word in ("NAMES;", "LONGEST", "FIRST"))
