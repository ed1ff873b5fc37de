"""The figure: readable files, the same each time, whatever the query says and however many threads draw."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pytest
import soundfile
from PIL import Image

from qamdetr.export.figure import draw_figure
from qamdetr.export.text import Answer
from qamdetr.types import Moment, Result


@pytest.fixture
def result(tmp_path):
    path = tmp_path / "walk é.wav"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.3, 0.3, (12 * 8000, 2)), 8000)
    moments = (Moment(2.0, 4.5, 0.9, 0.8, 0.72, 0.9, score=0.8), Moment(4.0, 6.0, 0.5, 0.5, 0.25, 0.2, score=0.3))
    return Result(str(path), 12.0, "a dog barks", True, "pocket", "pocket", 0.35, moments, tuple(np.linspace(0, 1, 12)))


def test_what_an_answer_holds_and_which_channel_is_heard_changes_the_picture(result):
    answers = [Answer(result), Answer(result, truth=((2.0, 4.0),)), Answer(result, ranks=(2,)), Answer(result, name="Without 3-way fusion")]
    answers += [Answer(replace(result, found=False))]
    answers += [Answer(replace(result, heard={"channel": channel})) for channel in (1, 2)]
    assert len({draw_figure([answer], "svg") for answer in answers}) == len(answers)


def test_a_moment_is_as_strong_as_its_score_and_lies_behind_the_waveform(result):
    def drawn(score):
        moments = (result.moments[0], replace(result.moments[1], score=score))
        return draw_figure([Answer(replace(result, moments=moments))], "svg").decode()

    weak, strong = drawn(0.2), drawn(0.8)
    paler = set(re.findall(r"opacity: ([0-9.]+)", weak)) - set(re.findall(r"opacity: ([0-9.]+)", strong))
    assert {"0.25", "0.0875"} <= paler  # of the box in its lane, and of the part of the waveform
    assert weak.index("opacity: 0.0875") < weak.index("PolyCollection_")


def test_same_answers_give_same_bytes_in_any_thread_and_nothing_global_changes(result):
    before = dict(mpl.rcParams)
    with ThreadPoolExecutor(3) as pool:
        assert len(set(pool.map(lambda _: draw_figure([Answer(result)], "svg"), range(4)))) == 1
    assert dict(mpl.rcParams) == before


def test_queries_are_text_and_the_svg_stays_one_document(result, recwarn):
    queries = ["$\\frac{", "_hidden", "<script>alert(1)</script> & ]]> -- >", "犬が吠える\n🦊\x00\ud800", "x" * 500, "مرحبا"]
    root = ET.fromstring(draw_figure([Answer(replace(result, query=query)) for query in queries], "svg"))
    assert not list(root.iter("{http://www.w3.org/2000/svg}script"))
    names = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(names) == len(set(names))
    used = [value[1:] for element in root.iter() for key, value in element.items() if key.endswith("href") and value[:1] == "#"]
    assert set(used) <= set(names)
    assert [str(warning.message) for warning in recwarn if "lyph" in str(warning.message)] == []


@pytest.mark.parametrize(("rate_hz", "seconds", "level"), [(1000, 0.1, 0), (1000, 4000.0, 0), (192000, 1.0, 1)])
def test_odd_recordings(result, tmp_path, rate_hz, seconds, level):
    soundfile.write(tmp_path / "a.flac", np.random.default_rng(0).uniform(-level, level, int(rate_hz * seconds)), rate_hz)
    moments = tuple(replace(moment, start_seconds=0.0, end_seconds=seconds) for moment in result.moments) * 3
    saliency = (0.5,) * int(np.ceil(seconds))
    odd = replace(result, audio=str(tmp_path / "a.flac"), duration_seconds=seconds, saliency=saliency, moments=moments)
    with Image.open(io.BytesIO(draw_figure([Answer(odd)], "png"))) as image:
        image.verify()
    assert draw_figure([Answer(replace(odd, saliency=(), moments=()))], "svg").startswith(b"<?xml")
