"""The figure: readable files, the same each time, whatever the query says and however many threads draw."""

from __future__ import annotations

import io
import re
import threading
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pytest
import soundfile
from PIL import Image

from qamdetr.errors import AudioError, QamDetrError
from qamdetr.export.figure import MAX_LANES, draw_figure
from qamdetr.export.text import Answer
from qamdetr.types import Moment, Result

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def result(tmp_path):
    path = tmp_path / "walk é.wav"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.3, 0.3, 12 * 8000), 8000)
    moments = (Moment(2.0, 4.5, 0.9, 0.8, 0.72, 0.9, 0.8), Moment(4.0, 6.0, 0.5, 0.5, 0.25, 0.2, 0.3))
    return Result(str(path), 12.0, "a dog barks", True, "pocket", "pocket", 0.35, moments, tuple(np.linspace(0, 1, 12)))


def test_png_is_a_picture_for_print(result):
    with Image.open(io.BytesIO(draw_figure([result], "png"))) as image:
        image.verify()
        assert image.format == "PNG"
        assert image.width == 2000
        assert image.info["dpi"][0] == pytest.approx(200, abs=0.1)


def test_each_answer_has_a_lane_and_truth_changes_the_picture(result):
    heights = [Image.open(io.BytesIO(draw_figure([result] * number, "png"))).height for number in (1, 2, 3)]
    # Rounded to whole pixels, not alike in every version of matplotlib.
    assert heights[1] - heights[0] == pytest.approx(heights[2] - heights[1], abs=1)
    assert heights[0] < heights[1]
    plain = draw_figure([Answer(result)], "svg")
    variants = [
        draw_figure([Answer(result, truth=((2.0, 4.0),))], "svg"),
        draw_figure([Answer(result, ranks=(2,))], "svg"),
        draw_figure([Answer(replace(result, found=False))], "svg"),
        draw_figure([Answer(result, name="Without 3-way fusion")], "svg"),
    ]
    assert len({plain, *variants}) == 5


def test_the_chosen_channel_is_what_is_drawn(result):
    samples, rate = soundfile.read(result.audio)
    soundfile.write(result.audio, np.stack([samples, 0 * samples], axis=1), rate)
    assert len({draw_figure([replace(result, heard=heard)], "svg") for heard in ({"channel": 1}, {"channel": 2})}) == 2


def test_a_moment_is_as_strong_as_its_score_and_lies_behind_the_waveform(result):
    def drawn(score):
        moments = (result.moments[0], replace(result.moments[1], score=score))
        return draw_figure([replace(result, moments=moments)], "svg").decode()

    weak, strong = drawn(0.2), drawn(0.8)
    paler = set(re.findall(r"opacity: ([0-9.]+)", weak)) - set(re.findall(r"opacity: ([0-9.]+)", strong))
    assert {"0.25", "0.0875"} <= paler  # of the box in its lane, and of the part of the waveform
    assert weak.index("opacity: 0.0875") < weak.index("PolyCollection_")


@pytest.mark.parametrize("image_format", ["svg"])
def test_same_answers_give_same_bytes_in_any_thread_and_nothing_global_changes(result, image_format):
    before = dict(mpl.rcParams)
    expected = draw_figure([result], image_format)
    start = threading.Barrier(3)

    def draw(_):
        start.wait()
        return draw_figure([result], image_format)

    with ThreadPoolExecutor(3) as pool:
        assert set(pool.map(draw, range(3))) == {expected}
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize(
    "query", ["$\\frac{", "_hidden", "<script>alert(1)</script> & ]]> -- >", "犬が吠える\n🦊\x00\ud800", "x" * 500, "مرحبا"]
)
def test_queries_are_text_and_the_svg_stays_one_document(result, query, recwarn):
    svg = draw_figure([replace(result, query=query)], "svg")
    root = ET.fromstring(svg)
    assert not list(root.iter(f"{SVG}script"))
    names = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(names) == len(set(names))
    used = {
        value.removeprefix("#") for element in root.iter() for key, value in element.items() if key.endswith("href") and value[:1] == "#"
    }
    assert used <= set(names)
    assert [str(warning.message) for warning in recwarn if "lyph" in str(warning.message)] == []


def test_odd_recordings(result, tmp_path):
    for name, rate_hz, seconds in (("tiny.wav", 1000, 0.1), ("long.flac", 1000, 1000.0), ("bat.wav", 192000, 1.0)):
        samples = np.zeros(int(rate_hz * seconds)) if name != "bat.wav" else np.random.default_rng(0).uniform(-1, 1, int(rate_hz * seconds))
        soundfile.write(tmp_path / name, samples, rate_hz)
        clips = int(np.ceil(seconds))
        moments = tuple(replace(moment, start_seconds=0.0, end_seconds=seconds) for moment in result.moments) * 3
        answer = replace(result, audio=str(tmp_path / name), duration_seconds=seconds, saliency=(0.5,) * clips, moments=moments)
        assert draw_figure([answer], "png").startswith(b"\x89PNG")
    assert draw_figure([replace(result, saliency=(), moments=())], "svg")


def test_what_cannot_be_drawn_is_told(result):
    with pytest.raises(QamDetrError, match="shows one recording with its answers; 2 were given"):
        draw_figure([result, replace(result, audio="b.wav")], "png")
    with pytest.raises(QamDetrError, match=f"room for {MAX_LANES} answers; {MAX_LANES + 1} were given"):
        draw_figure([result] * (MAX_LANES + 1), "png")
    with pytest.raises(AudioError, match="no longer there"):
        draw_figure([replace(result, audio="gone.wav")], "png")
