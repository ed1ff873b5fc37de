"""Several queries, comparisons and links, in a real browser."""

from __future__ import annotations

from urllib.parse import parse_qs, urlencode, urlsplit

import pytest

pytestmark = pytest.mark.slow


def settings_in(page):
    return parse_qs(urlsplit(page.url).query)


def go(page, app_url, *parameters):
    page.goto(f"{app_url}/?{urlencode(parameters)}")
    page.wait_for_selector(".qd-player")


def ask_first_example(page, examples):
    query = next(iter(examples[0].truth))
    page.locator(".qamdetr-example").first.get_by_text(query, exact=True).click()
    page.locator(".qd-message", has_text=query).wait_for()
    page.locator(".qd-player[aria-busy='false']").wait_for()
    return query


def lanes(page):
    return page.locator(".qd-section")


def test_full_and_ablated_answers_stand_side_by_side(open_page, examples, shoot):
    page = open_page()
    ask_first_example(page, examples)
    page.get_by_role("button", name="Look inside").click()
    page.get_by_label("3-way fusion", exact=True).check()
    page.locator(".qd-section", has_text="bypassed in the full model: 3-way fusion").wait_for()
    assert lanes(page).count() == 2
    page.get_by_role("button", name="Transformer against BiMamba").click()
    page.locator(".qd-section", has_text="Row 2").wait_for()
    assert lanes(page).count() == 4
    assert page.locator(".qd-section", has_text="trained this way: ").count() == 3
    shoot(page, "ablation-desktop")


def test_a_weight_out_of_range_is_cut_and_an_empty_box_keeps_the_last(open_page, app_url, examples):
    page = open_page()
    go(page, app_url, ("verifier", "pocket"), ("q", "thunder"), ("beta", "0.35"), ("example", examples[0].path.stem))
    page.locator(".qd-message", has_text="thunder").wait_for()
    page.get_by_role("button", name="Model and ranking").click()
    box = page.locator("#qamdetr-beta input[type=number]")
    for typed, weight, shown in (("5", "1.00", "1"), ("", "1.00", "1"), ("-2", "0.00", "0"), ("0.6", "0.60", "0.6"), ("", "0.60", "0.6")):
        box.fill(typed)
        page.locator(".qd-caption", has_text=f"decoder + {weight} · verifier").wait_for()
        page.wait_for_function("beta => new URLSearchParams(location.search).get('beta') === beta", arg=weight)
        box.blur()
        page.wait_for_function("shown => document.querySelector('#qamdetr-beta input[type=number]').value === shown", arg=shown)
        assert settings_in(page)["beta"] == [weight]
        assert f"{weight} · verifier" in page.locator(".qd-caption").inner_text()


def test_a_link_brings_the_settings_back(open_page, app_url, examples):
    page = open_page()
    query = next(iter(examples[0].truth))
    written = [
        ("q", query),
        ("q", "thunder"),
        ("verifier", "pocket"),
        ("beta", "0.55"),
        ("off", "quality"),
        ("example", examples[0].path.stem),
    ]
    go(page, app_url, ("__theme", "light"), *written)
    page.locator(".qd-section", has_text="thunder").first.wait_for()
    assert page.get_by_label("Describe the sound").input_value() == f"{query}\nthunder"
    assert lanes(page).count() == 4
    assert "0.55" in page.locator(".qd-caption").first.inner_text()
    page.get_by_role("button", name="Copy link").click()
    page.get_by_role("button", name="Link copied").or_(page.get_by_role("button", name="Copy it from the address bar")).wait_for()
    expected = parse_qs(urlencode(written)) | {"__theme": ["light"]}
    assert settings_in(page) == expected


def test_hostile_links_are_passed_over(open_page, app_url):
    page = open_page()
    hostile = "<img src=x onerror=alert(1)> ${7*7} {{value}}"
    go(page, app_url, ("q", hostile), ("model", "/etc"), ("verifier", "oracle"), ("beta", "nan"), ("off", hostile), ("row", "99"),
       ("example", "../../etc/passwd"))  # fmt: skip
    field = page.get_by_label("Describe the sound")
    page.wait_for_function("document.querySelector('#qamdetr-query textarea').value !== ''")
    assert field.input_value() == hostile
    assert page.locator("img[src=x]").count() == 0
    page.locator(".toast-body").first.wait_for()
    assert page.locator(".toast-body").count() == 1
    told = page.locator(".toast-body").inner_text()
    for name in ("/etc", "oracle", "nan", hostile, "99", "../../etc/passwd"):
        assert f"“{name}”" in told
    page.wait_for_function("new URLSearchParams(location.search).size === 1")
    assert settings_in(page) == {"q": [hostile]}
    assert page.locator(".qd-empty").is_visible()


def test_a_recording_of_the_microphone_is_opened_and_asked(open_page):
    page = open_page()
    page.get_by_role("tab", name="Record").click()
    microphone = page.locator("#qamdetr-microphone")
    microphone.get_by_role("button", name="Record", exact=True).click()
    microphone.get_by_role("button", name="Stop").wait_for()
    page.wait_for_timeout(1500)  # a second of sound, and some more for a busy machine
    microphone.get_by_role("button", name="Stop").click(delay=50)
    page.locator(".qd-title", has_text="Your recording").wait_for()
    page.locator(".qd-player[aria-busy='false']").wait_for()
    page.get_by_label("Describe the sound").fill("a beep")
    page.get_by_role("button", name="Find", exact=True).click()
    page.locator(".qd-message", has_text="a beep").wait_for()
