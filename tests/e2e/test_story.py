"""The whole story in a real browser: upload, ask, listen, choose, download; what was downloaded is read back."""

from __future__ import annotations

import csv
import io
import json
import shutil
import zipfile

import pytest
import soundfile
from PIL import Image

pytestmark = pytest.mark.slow

RECORDING = "my walk é.ogg"


@pytest.fixture(scope="module")
def recording(examples, tmp_path_factory):
    """An example under another name, as a visitor's own file."""
    path = tmp_path_factory.mktemp("own") / RECORDING
    shutil.copy(examples[0].path, path)
    return path


def download(page, kind):
    """Choose a kind of file and press Download; returns its name and bytes."""
    page.get_by_label("Export the chosen moments as").click()
    page.get_by_role("option", name=kind).click()
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Download", exact=True).click()
    return waiting.value.suggested_filename, waiting.value.path().read_bytes()


def numbers(button):
    return float(button.get_attribute("data-start")), float(button.get_attribute("data-end"))


def test_from_upload_to_export(open_page, examples, recording, shoot):
    query = next(iter(examples[0].truth))
    page = open_page()
    shoot(page, "empty-desktop")
    page.locator("#qamdetr-upload input[type=file]").set_input_files(recording)
    page.locator(".qd-title", has_text="my walk").wait_for()
    page.get_by_label("Describe the sound").fill(query)
    page.get_by_role("button", name="Find").click()
    page.locator(".qd-message", has_text=query).wait_for()

    page.locator(".qd-play").first.click()
    page.wait_for_function("!document.querySelector('audio').paused")
    page.locator(".qd-play").first.click()

    # Nothing, then two of the candidates, one of them less likely than what the page would choose by itself.
    page.locator(".qd-pick", has_text="all").click()
    page.locator(".qd-pick", has_text="none").click()
    for place in (0, 2):
        page.locator(".qd-choose").nth(place).check()
    page.locator(".qd-tally", has_text="Export 2 of").wait_for()
    plays = page.locator(".qd-play")
    chosen = [numbers(plays.nth(place)) for place in (0, 2)]
    shoot(page, "export-desktop")

    name, content = download(page, "Spreadsheet")
    assert name == "my-walk-é-moments.csv"
    rows = list(csv.DictReader(io.StringIO(content.decode("utf-8-sig"))))
    found = [(float(row["start"]), float(row["end"])) for row in rows]
    assert found == [pytest.approx(window, abs=1e-3) for window in chosen]
    assert {row["query"] for row in rows} == {query}

    name, content = download(page, "Sounds (.zip of WAV)")
    assert name == "my-walk-é-moments.zip"
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        clips = sorted(entry for entry in archive.namelist() if entry.endswith(".wav"))
        lengths = [soundfile.info(io.BytesIO(archive.read(clip))).duration for clip in clips]
    assert sorted(lengths) == pytest.approx(sorted(end - start for start, end in chosen), abs=0.01)

    _, content = download(page, "JSON")
    assert query in json.dumps(json.loads(content), ensure_ascii=False)
    _, content = download(page, "Figure (.png)")
    with Image.open(io.BytesIO(content)) as figure:
        assert figure.width == 2000
