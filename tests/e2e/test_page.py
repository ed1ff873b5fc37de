"""What a visitor does, in a real browser."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.slow

HOSTILE = ["<img src=x onerror=alert(1)>", "${7*7} ${alert(1)}", "{{value}} {{7*7}}", "</script><svg onload=alert(1)>"]


def upload(page, path):
    page.locator("#qamdetr-upload input[type=file]").set_input_files(path)
    page.locator(".qd-title", has_text=path.name).wait_for()


def ask(page, query):
    page.get_by_label("Describe the sound").fill(query)
    page.get_by_label("Describe the sound").press("Enter")
    page.locator(".qd-message", has_text=query).wait_for()


def press_example(page, examples, number=0):
    query = next(iter(examples[0].truth)) if number == 0 else list(examples[0].truth)[number]
    page.locator(".qamdetr-example").first.get_by_text(query, exact=True).click()
    page.locator(".qd-message", has_text=query).wait_for()
    return query


def show_all(page):
    more = page.locator(".qd-more")
    if more.count() and more.get_attribute("aria-expanded") == "false":
        more.click()


def table_windows(page):
    """`(start, end)` as shown, in the order of the table."""
    show_all(page)
    return [
        (float(button.get_attribute("data-start")), float(button.get_attribute("data-end")))
        for button in page.locator(".qd-play").element_handles()
    ]


def sound(page):
    return page.evaluate(
        "(() => { const a = document.querySelector('audio'); return { now: a.currentTime, paused: a.paused, url: a.src }; })()"
    )


def test_example_shows_moments_scores_and_truth(open_page, examples, shoot):
    page = open_page()
    press_example(page, examples)
    assert page.locator(".qd-wave path").count() == 1
    assert page.locator(".qd-relevance polyline").count() == 1
    windows = next(iter(examples[0].truth.values()))
    assert page.locator(".qd-truth .qd-moment").count() == len(windows)
    headers = page.locator(".qd-table th").all_inner_texts()
    assert headers == ["Play", "Export", "#", "Start", "End", "Score", "IoU", "Decoder", "Foreground", "Quality"]
    assert page.locator(".qd-table tbody tr").count() >= 1
    ticks = page.locator(".qd-axis span").all_inner_texts()
    assert ticks[0] == "0:00"
    assert len(ticks) >= 3
    shoot(page, "example-desktop")


def test_a_moment_plays_and_stops_at_its_end(open_page, examples):
    page = open_page()
    press_example(page, examples)
    button = page.locator(".qd-play").first
    start, end = (float(button.get_attribute(f"data-{name}")) for name in ("start", "end"))
    button.focus()
    page.keyboard.press("Enter")
    # The button follows the sound by an event, a moment after `paused` has changed: wait for both.
    page.wait_for_function(
        "() => !document.querySelector('audio').paused && document.querySelector('.qd-play').getAttribute('aria-pressed') === 'true'"
    )
    # Long moments need not be heard out: the last part is enough to see that playing stops.
    page.evaluate(
        "(second) => { const a = document.querySelector('audio'); a.currentTime = Math.max(a.currentTime, second); }", max(start, end - 1.0)
    )
    page.wait_for_function(
        "() => document.querySelector('audio').paused && document.querySelector('.qd-play').getAttribute('aria-pressed') === 'false'"
    )
    assert sound(page)["now"] == pytest.approx(end, abs=0.05)


def test_keys_walk_through_the_moments_and_play_them(open_page, examples):
    page = open_page()
    press_example(page, examples)
    show_all(page)
    windows = table_windows(page)
    page.locator(".qd-wave").focus()
    for key, place in (("j", 0), ("j", 1), ("k", 0)):
        page.keyboard.press(key)
        assert focused_window(page) == windows[place]
    start, end = windows[0]
    page.keyboard.press("Space")
    page.wait_for_function("!document.querySelector('audio').paused")
    assert start <= sound(page)["now"] < end
    page.keyboard.press("Space")
    page.wait_for_function("document.querySelector('audio').paused")
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    start, end = windows[1]
    page.wait_for_function("start => { const a = document.querySelector('audio'); return !a.paused && a.currentTime >= start; }", arg=start)
    page.evaluate("(second) => { const a = document.querySelector('audio'); a.currentTime = Math.max(a.currentTime, second); }", end - 0.8)
    page.wait_for_function("document.querySelector('audio').paused")
    assert sound(page)["now"] == pytest.approx(end, abs=0.05)


def focused_window(page):
    return tuple(page.evaluate("[Number(document.activeElement.dataset.start), Number(document.activeElement.dataset.end)]"))


def zoom_in(page, times):
    page.locator(".qd-wave").focus()
    for _ in range(times):
        page.keyboard.press("+")


def test_zooming_in_brings_finer_columns_of_the_part_in_view(open_page, recordings):
    page = open_page()
    upload(page, recordings["walk.wav"])
    assert page.locator(".qd-fine").count() == 0
    with page.expect_request("**/component_server/") as asked:
        zoom_in(page, 4)
    page.locator(".qd-fine").wait_for(state="attached")
    plot, fine = page.locator(".qd-wave").bounding_box(), page.locator(".qd-fine").bounding_box()
    assert fine["x"] <= plot["x"] + 1
    assert fine["x"] + fine["width"] >= plot["x"] + plot["width"] - 1
    assert fine["width"] / int(page.locator(".qd-fine").get_attribute("data-columns")) <= 1.5
    sent = asked.value.post_data_json
    assert set(sent["data"]) == {"token", "from", "to", "columns"}
    assert "walk" not in json.dumps(sent["data"])
    # Whoever does not hold the token gets nothing, nor does its holder beyond the recording.
    for other in ({"token": "made-up"}, {"token": str(recordings["walk.wav"])}, {"to": 4000.0}):
        answer = page.request.post(asked.value.url, data={**sent, "data": {**sent["data"], **other}})
        assert (answer.status, answer.json()) == (200, None)
    assert page.request.post(asked.value.url, data=sent).json()["peaks"]
    page.keyboard.press("0")
    page.wait_for_function("document.querySelector('.qd-overview').hidden")


def test_hostile_words_are_shown_as_words(open_page, recordings):
    page = open_page()
    upload(page, recordings["walk.wav"])
    ask(page, " ".join(HOSTILE))
    assert " ".join(HOSTILE) in page.locator(".qd-message").inner_text()
    page.get_by_label("Describe the sound").fill("\n".join(HOSTILE))
    page.get_by_role("button", name="Find").click()
    page.wait_for_function("count => document.querySelectorAll('.qd-section h3').length === count", arg=len(HOSTILE))
    assert page.locator(".qd-section h3").all_inner_texts() == HOSTILE
    assert page.locator(".qd-player :is(img, script)").count() == 0


def test_hostile_words_in_a_message_are_shown_as_words(open_page):
    page = open_page()
    page.get_by_role("tab", name="Train").click()
    folder = f"/not/here/{' '.join(HOSTILE)}"
    page.get_by_label("Folder of clips").fill(folder)
    page.get_by_role("button", name="Make scenes", exact=True).click()
    toast = page.locator(".toast-body", has_text="/not/here/")
    toast.wait_for()
    for words in HOSTILE:
        assert words in toast.inner_text()
    assert toast.locator(".toast-text :is(img, script, svg)").count() == 0


def test_slider_ranks_like_the_server_without_asking_it(open_page, examples, app_url):
    gradio_client = pytest.importorskip("gradio_client")
    page = open_page()
    query = press_example(page, examples)
    page.get_by_role("button", name="Model and ranking").click()
    page.get_by_role("radio", name="Pocket").click()
    page.locator(".qd-caption", has_text="Verifier: pocket").wait_for()
    client = gradio_client.Client(app_url, verbose=False)
    asked = []
    page.on("request", lambda request: asked.append(request.url) if "/queue/" in request.url else None)
    slider = page.locator("#qamdetr-beta input[type=range]")
    for beta in (0.0, 0.5, 1.0):
        slider.fill(str(beta))
        page.locator(".qd-caption", has_text=f"{beta:.2f} · verifier").wait_for()
        answer = client.predict(
            audio=gradio_client.handle_file(examples[0].path), query=query, verifier="pocket", beta=beta, api_name="/retrieve"
        )
        expected = [(moment["start"], moment["end"]) for moment in answer["moments"]]
        assert table_windows(page) == expected
    assert asked == []


def test_two_visitors_at_once_hear_only_their_own_recording(open_page, recordings):
    one, two = open_page(), open_page()
    mine = {one: (recordings["walk.wav"], "a bell rings", 40), two: (recordings["street.flac"], "somebody whistles", 60)}
    for page, (path, _, _) in mine.items():
        page.locator("#qamdetr-upload input[type=file]").set_input_files(path)
    for page, (path, _, _) in mine.items():
        page.locator(".qd-title", has_text=path.name).wait_for()
    for page, (_, query, _) in mine.items():
        page.get_by_label("Describe the sound").fill(query)
        page.get_by_label("Describe the sound").press("Enter")
    for page, (path, query, seconds) in mine.items():
        page.locator(".qd-message", has_text=query).wait_for()
        assert page.locator(".qd-title").inner_text() == path.name
        page.wait_for_function("document.querySelector('audio').readyState >= 1")
        assert page.evaluate("document.querySelector('audio').duration") == pytest.approx(seconds, abs=0.1)
    assert "whistles" not in one.locator(".qd-player").inner_text()
    assert "bell" not in two.locator(".qd-player").inner_text()
    assert sound(one)["url"] != sound(two)["url"]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_phone_has_room_for_everything(open_page, examples, shoot, dark):
    page = open_page(width=390, height=844, dark=dark)
    shoot(page, f"empty-phone-{'dark' if dark else 'light'}")
    press_example(page, examples)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    targets = page.locator("#qamdetr-player button:visible, #qamdetr-player label:visible")
    assert [
        target.get_attribute("class") for target in targets.all() if min(target.bounding_box()[side] for side in ("width", "height")) < 24
    ] == []
    for button in page.locator(".qd-moment").element_handles():
        box = button.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
    page.wait_for_timeout(600)
    shoot(page, f"example-phone-{'dark' if dark else 'light'}")
    assert page.locator(".qd-message").bounding_box()["y"] < 844


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_text_twice_as_large_has_room(open_page, examples, shoot, width, height):
    page = open_page(width=width, height=height)
    page.add_style_tag(content="html { font-size: 200% }")
    press_example(page, examples)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    sizes = page.evaluate(
        "['.qd-title', '#qamdetr-find', '.qd-table td'].map(one => parseFloat(getComputedStyle(document.querySelector(one)).fontSize))"
    )
    assert min(sizes) >= 28
    for title in page.locator(".label-wrap:visible").all():
        arrow, frame = title.locator(".icon").bounding_box(), title.locator("..").bounding_box()  # which cuts what lies outside
        assert arrow["x"] + arrow["width"] <= frame["x"] + frame["width"]
    shoot(page, f"large-text-{width}")
