"""What a visitor does and sees on the page."""

from __future__ import annotations

HOSTILE = "<img src=x onerror=alert(1)> ${7*7} {{value}} </script><svg onload=alert(1)>"


def upload(page, path):
    page.locator("#qamdetr-upload input[type=file]").set_input_files(path)


def ask(page, words):
    page.get_by_label("Describe the sound").fill(words)
    page.get_by_role("button", name="Find", exact=True).click()


def answered(page, words):
    page.locator(".qd-message", has_text=words).wait_for()
    settled(page)


def opened(page, name):
    page.locator(".qd-title", has_text=name).wait_for()


def settled(page):
    page.locator(".qd-player[aria-busy='false']").wait_for()


def strip(page, words):
    """What is being done, while it is done."""
    return page.locator(".qd-player[aria-busy='true'] .qd-busy-text", has_text=words)


def press_example(page, query):
    page.locator(".qamdetr-example").first.get_by_text(query, exact=True).click()
    answered(page, query)
