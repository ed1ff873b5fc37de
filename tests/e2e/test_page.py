"""What a visitor does, in a real browser; what was downloaded is read back."""

from __future__ import annotations

import csv
import io
import shutil
import zipfile
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
import soundfile
from gradio_client import Client, handle_file
from visitor import HOSTILE, answered, ask, opened, press_example, settled, upload

pytestmark = pytest.mark.slow


def windows_of(locator):
    """`(start, end)` of buttons of moments, in their order."""
    return [tuple(float(button.get_attribute(f"data-{name}")) for name in ("start", "end")) for button in locator.all()]


def table_windows(page):
    more = page.locator(".qd-more")
    if more.count() and more.get_attribute("aria-expanded") == "false":
        more.click()
    return windows_of(page.locator(".qd-play"))


def heard_to_its_end(page, end):
    """Wait until playing stops at `end`; long moments need not be heard out, the last part is enough to see that it stops."""
    page.evaluate("(second) => { const a = document.querySelector('audio'); a.currentTime = Math.max(a.currentTime, second); }", end - 0.8)
    page.wait_for_function("document.querySelector('audio').paused && !document.querySelector('.qd-play[aria-pressed=true]')")
    assert page.evaluate("document.querySelector('audio').currentTime") == pytest.approx(end, abs=0.05)


def test_an_example_is_shown_heard_and_ranked_as_the_server_ranks(open_page, examples, app_url):
    page = open_page()
    query = next(iter(examples[0].truth))
    press_example(page, query)
    assert page.locator(".qd-wave path").count() == page.locator(".qd-relevance polyline").count() == 1
    assert page.locator(".qd-truth .qd-moment").count() == len(examples[0].truth[query])

    page.locator(".qd-play").first.focus()
    page.keyboard.press("Enter")
    # The button follows the sound by an event, a moment after `paused` has changed: wait for both.
    page.wait_for_function("!document.querySelector('audio').paused && document.querySelector('.qd-play[aria-pressed=true]')")
    windows = table_windows(page)
    heard_to_its_end(page, windows[0][1])

    page.locator(".qd-wave").focus()
    for key, place in (("j", 0), ("j", 1), ("k", 0)):
        page.keyboard.press(key)
        focused = page.evaluate("[Number(document.activeElement.dataset.start), Number(document.activeElement.dataset.end)]")
        assert tuple(focused) == windows[place]
    for paused in (False, True):
        page.keyboard.press("Space")
        page.wait_for_function("paused => document.querySelector('audio').paused === paused", arg=paused)
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    page.wait_for_function(
        "start => { const a = document.querySelector('audio'); return !a.paused && a.currentTime >= start; }", arg=windows[1][0]
    )
    heard_to_its_end(page, windows[1][1])

    page.get_by_role("button", name="Model and ranking").click()
    page.get_by_role("radio", name="Pocket").click()
    page.locator(".qd-caption", has_text="Verifier: pocket").wait_for()
    client, asked = Client(app_url, verbose=False), []
    page.on("request", lambda request: asked.append(request.url) if "/queue/" in request.url else None)
    for beta in (0.0, 0.5, 1.0):
        page.locator("#qamdetr-beta input[type=range]").fill(str(beta))
        page.locator(".qd-caption", has_text=f"{beta:.2f} · verifier").wait_for()
        answer = client.predict(handle_file(examples[0].path), query, verifier="pocket", beta=beta, api_name="/retrieve")
        assert table_windows(page) == [(moment["start"], moment["end"]) for moment in answer["moments"]]
    assert asked == [], "the slider asks nobody"


def download(page, kind):
    """Choose a kind of file and press Download; returns its name and bytes."""
    page.get_by_label("Export the chosen moments as").click()
    page.get_by_role("option", name=kind).click()
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Download", exact=True).click()
    return waiting.value.suggested_filename, waiting.value.path().read_bytes()


def test_from_upload_to_export(open_page, examples, tmp_path):
    recording = shutil.copy(examples[0].path, tmp_path / "my walk é.ogg")
    query = next(iter(examples[0].truth))
    page = open_page()
    upload(page, recording)
    opened(page, "my walk é.ogg")
    ask(page, query)
    answered(page, query)

    # Nothing, then two of the candidates, one of them less likely than what the page would choose by itself.
    page.locator(".qd-pick", has_text="all").click()
    page.locator(".qd-pick", has_text="none").click()
    for place in (0, 2):
        page.locator(".qd-choose").nth(place).check()
    page.locator(".qd-tally", has_text="Export 2 of").wait_for()
    chosen = [windows_of(page.locator(".qd-play"))[place] for place in (0, 2)]

    name, content = download(page, "Spreadsheet")
    assert name == "my-walk-é-moments.csv"
    rows = list(csv.DictReader(io.StringIO(content.decode("utf-8-sig"))))
    assert [(float(row["start"]), float(row["end"])) for row in rows] == [pytest.approx(window, abs=1e-3) for window in chosen]
    assert {row["query"] for row in rows} == {query}
    name, content = download(page, "Sounds (.zip of WAV)")
    assert name == "my-walk-é-moments.zip"
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        clips = [io.BytesIO(archive.read(entry)) for entry in archive.namelist() if entry.endswith(".wav")]
    lengths = sorted(soundfile.info(clip).duration for clip in clips)
    assert lengths == pytest.approx(sorted(end - start for start, end in chosen), abs=0.01)


def test_zooming_in_brings_finer_columns_and_tells_no_file(open_page, recordings):
    page = open_page()
    upload(page, recordings["walk.wav"])
    opened(page, "walk.wav")
    assert page.locator(".qd-fine").count() == 0
    page.locator(".qd-wave").focus()
    with page.expect_request("**/component_server/") as asked:
        for _ in range(4):
            page.keyboard.press("+")
    page.locator(".qd-fine").wait_for(state="attached")
    plot, fine = page.locator(".qd-wave").bounding_box(), page.locator(".qd-fine").bounding_box()
    assert fine["x"] <= plot["x"] + 1
    assert fine["x"] + fine["width"] >= plot["x"] + plot["width"] - 1
    assert set(asked.value.post_data_json["data"]) == {"token", "from", "to", "columns"}


def test_hostile_words_are_shown_as_words(open_page, recordings):
    page = open_page()
    upload(page, recordings["walk.wav"])
    opened(page, "walk.wav")
    ask(page, "\n".join(HOSTILE.split(" ")))
    page.wait_for_function("count => document.querySelectorAll('.qd-section h3').length === count", arg=len(HOSTILE.split(" ")))
    assert page.locator(".qd-section h3").all_inner_texts() == HOSTILE.split(" ")
    assert page.locator(".qd-player :is(img, script)").count() == 0

    page.get_by_role("tab", name="Train").click()
    page.get_by_label("Folder of clips").fill(f"/not/here/{HOSTILE}")
    page.get_by_role("button", name="Make scenes", exact=True).click()
    toast = page.locator(".toast-body", has_text="/not/here/")
    toast.wait_for()
    assert HOSTILE in toast.inner_text()
    assert toast.locator(".toast-text :is(img, script, svg)").count() == 0


def settings_in(page):
    return parse_qs(urlsplit(page.url).query)


def test_comparisons_stand_side_by_side_and_a_link_brings_all_settings_back(open_page, examples):
    page = open_page()
    query = next(iter(examples[0].truth))
    press_example(page, query)
    page.get_by_role("button", name="Look inside").click()
    page.get_by_label("3-way fusion", exact=True).check()
    page.locator(".qd-section", has_text="bypassed in the full model: 3-way fusion").wait_for()
    page.get_by_role("button", name="Transformer against BiMamba").click()
    page.locator(".qd-section", has_text="Row 2").wait_for()
    assert page.locator(".qd-section").count() == 4
    assert page.locator(".qd-section", has_text="trained this way: ").count() == 3

    written = [("q", query), ("q", "thunder"), ("verifier", "pocket"), ("beta", "0.55"), ("off", "quality"),
               ("example", examples[0].path.stem)]  # fmt: skip
    page = open_page(search=f"/?{urlencode([('__theme', 'light'), *written])}")
    page.locator(".qd-section", has_text="thunder").first.wait_for()
    assert page.get_by_label("Describe the sound").input_value() == f"{query}\nthunder"
    assert page.locator(".qd-section").count() == 4
    assert "0.55" in page.locator(".qd-caption").first.inner_text()
    page.get_by_role("button", name="Copy link").click()
    page.get_by_role("button", name="Link copied").or_(page.get_by_role("button", name="Copy it from the address bar")).wait_for()
    assert settings_in(page) == parse_qs(urlencode(written)) | {"__theme": ["light"]}


def test_hostile_links_are_passed_over(open_page):
    wrong = [("model", "/etc"), ("verifier", "oracle"), ("beta", "nan"), ("off", "<img src=x>"), ("row", "99"), ("example", "../etc")]
    page = open_page(search=f"/?{urlencode([('q', HOSTILE), *wrong])}")
    page.wait_for_function("document.querySelector('#qamdetr-query textarea').value !== ''")
    assert page.get_by_label("Describe the sound").input_value() == HOSTILE
    assert page.locator("img[src=x]").count() == 0
    page.locator(".toast-body").first.wait_for()
    (told,) = page.locator(".toast-body").all_inner_texts()
    assert all(f"“{value}”" in told for _, value in wrong)
    page.wait_for_function("new URLSearchParams(location.search).size === 1")
    assert settings_in(page) == {"q": [HOSTILE]}
    assert page.locator(".qd-empty").is_visible()


def test_a_recording_of_the_microphone_is_opened_and_asked(open_page):
    page = open_page()
    page.get_by_role("tab", name="Record").click()
    microphone = page.locator("#qamdetr-microphone")
    microphone.get_by_role("button", name="Record", exact=True).click()
    microphone.get_by_text("0:01").first.wait_for()  # the clock of the recording
    microphone.get_by_role("button", name="Stop").click(delay=50)
    opened(page, "Your recording")
    settled(page)
    page.wait_for_function("document.querySelector('.qd-player audio').readyState >= 1")
    seconds = page.evaluate("document.querySelector('.qd-player audio').duration")
    assert 1 <= seconds < 30
    assert page.evaluate("document.querySelector('.qd-wave path').getBBox().height") > 50, "the beeps are drawn"
    ask(page, "a beep")
    answered(page, "a beep")
    assert page.locator(".qd-title").inner_text() == "Your recording"
    windows = table_windows(page)
    assert windows
    assert all(0 <= start < end <= seconds + 0.1 for start, end in windows)
