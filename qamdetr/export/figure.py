"""A figure of a recording and its answers for papers and slides: waveform, spectrogram, and a lane for each query."""

from __future__ import annotations

import functools
import io
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from qamdetr.audio import Overview, Sound, hz_to_mel
from qamdetr.errors import AudioError, QamDetrError
from qamdetr.export.text import Answer, clock, one_line, verdict
from qamdetr.files import write_whole

if TYPE_CHECKING:
    from qamdetr.types import Moment

MAX_LANES = 16
"""Answers that fit on a page."""

_COLUMNS, _DPI, _MAX_TITLE_LETTERS = 1200, 200, 90
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")  # told apart also by readers who see no red or green
_FAINTEST, _MAX_ROWS = 0.15, 3
_TICK_SECONDS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200)
# DejaVu Sans comes with matplotlib, and has no letters of China, Japan, Korea and India.
_FAMILIES = ["DejaVu Sans", *(f"Noto Sans {script}" for script in ("CJK JP", "CJK SC", "CJK KR", "JP", "KR", "Devanagari"))]
_FAMILIES += ["Hiragino Sans", "Yu Gothic", "Malgun Gothic", "Apple SD Gothic Neo", "WenQuanYi Zen Hei", "Arial Unicode MS"]
_FAMILIES += ["Nirmala UI", "Mangal"]


def check_figure(recordings: int, answers: int) -> None:
    """Refuse numbers of recordings and answers that one figure cannot show."""
    if recordings != 1:
        raise QamDetrError(f"A figure shows one recording; {recordings} were given", "draw each in a figure of its own")
    if answers > MAX_LANES:
        raise QamDetrError(f"A figure has room for {MAX_LANES} queries; {answers} were given", "ask for fewer at once")


def write_figure(answers: Sequence[Answer], path: Path, image_format: str) -> None:
    """Draw and write a file; it appears whole or not at all."""
    write_whole(path, draw_figure(answers, image_format))


def draw_figure(answers: Sequence[Answer], image_format: str) -> bytes:
    """Draw one recording, whose path is `audio`, with its answers as `png` or `svg`; the same answers give the same bytes, in any thread.

    `Answer.moments` says which moments are drawn; where nothing was found and nothing chosen, the best guess is drawn as an outline.

    Raises:
        QamDetrError: As `check_figure`.
        AudioError: The recording is gone or cannot be read.
    """
    check_figure(len({answer.result.audio for answer in answers}), len(answers))
    result = answers[0].result
    if not Path(result.audio).is_file():
        raise AudioError("is no longer there", "open the recording again", result.audio)
    figure = Figure(figsize=(10, 3.35 + len(answers)), layout="constrained")
    wave, spectrum, *lanes = figure.subplots(2 + len(answers), sharex=True, height_ratios=[1.04, 1.56, *[1] * len(answers)])
    _draw_sound(wave, spectrum, Sound(result.audio, **result.heard).overview(_COLUMNS), result.duration_seconds)
    _set_title(wave, Path(result.audio).name, weight="bold", size="medium")
    for lane, answer, colour in zip(lanes, answers, itertools.cycle(_COLOURS), strict=False):
        _draw_lane(lane, answer, colour)
        for _, moment in answer.moments():
            shade = {"color": colour, "alpha": 0.35 * _strength(moment, answer), "linewidth": 0}
            wave.axvspan(moment.start_seconds, moment.end_seconds, zorder=0, **shade)  # behind the waveform
    _set_time_axis(lanes[-1], result.duration_seconds)
    named = {label: handle for lane in lanes for handle, label in zip(*lane.get_legend_handles_labels(), strict=True)}
    ranked = f"verifier {result.verifier}, β {result.beta:g}" if result.verifier != "none" else "ranked by the decoder alone"
    told = {"title": f"encoder {result.encoder}; {ranked}", "title_fontsize": "x-small", "fontsize": "x-small"}
    figure.legend(list(named.values()), list(named), loc="outside lower center", ncols=3, frameon=False, **told)
    content = io.BytesIO()
    figure.savefig(content, format=image_format, dpi=_DPI, metadata={"Software": None} if image_format == "png" else {"Date": None})
    # matplotlib names the parts of an SVG at random, or by a seed and by last bits that hang on the thread: by their order instead.
    names: dict[bytes, bytes] = {}
    part = re.compile(rb'(\bid="|[("]#)([a-zA-Z]+[0-9a-f]{10})\b')
    return part.sub(lambda found: found[1] + names.setdefault(found[2], b"q%d" % len(names)), content.getvalue())


def _draw_sound(wave: Axes, spectrum: Axes, overview: Overview, duration_seconds: float) -> None:
    low, high = overview.peaks
    wave.fill_between(np.linspace(0, duration_seconds, len(low)), low, high, color="0.25", linewidth=0.4)
    loudest = 1.08 * max(float(np.abs(overview.peaks).max()), 1e-4)
    wave.set(ylim=(-loudest, loudest), yticks=[], ylabel="wave")
    quiet, loud = np.percentile(overview.levels_db, (10, 99.9))
    shades = {"cmap": "Greys", "vmin": loud - np.clip(loud - quiet, 30, 80), "vmax": loud}  # survives a black and white printer
    top = float(hz_to_mel(overview.top_hz))
    spectrum.imshow(overview.levels_db, **shades, origin="lower", aspect="auto", extent=(0, duration_seconds, 0, top))
    octaves = {hz: float(hz_to_mel(hz)) for hz in (250.0 * 2**octave for octave in range(9))}
    ticks = [hz for hz, mel in octaves.items() if mel < 0.97 * top][-4:]
    spectrum.set_yticks([octaves[hz] for hz in ticks], [f"{hz / 1000:g}" for hz in ticks], size="x-small")
    spectrum.set_ylabel("kHz")


def _draw_lane(axes: Axes, answer: Answer, colour: str) -> None:
    """Relevance from 0 to 1, above it the moments with their ranks, below it what is true."""
    result, moments = answer.result, answer.moments()
    step = 1 + len(result.saliency) // (2 * _COLUMNS)  # of hours, the highest of neighbours: an SVG keeps every point
    begins = np.arange(0, len(result.saliency), step)
    seconds = np.minimum((begins + step / 2) * result.clip_seconds, result.duration_seconds)
    relevance = np.maximum.reduceat(result.saliency, begins)
    axes.fill_between(seconds, relevance, color=colour, alpha=0.2, linewidth=0)
    axes.plot(seconds, relevance, color=colour, linewidth=0.9, label="relevance over time")
    sure = result.found and bool(moments)
    if not moments and answer.ranks is None:
        moments = [(1, moment) for moment in result.moments[:1]]  # the best guess
    rows = _rows([moment.window for _, moment in moments])
    for (rank, moment), row in zip(moments, rows, strict=True):
        shade = to_rgba(colour, _strength(moment, answer)) if sure else "none"
        style: dict[str, Any] = {"color": shade, "edgecolor": colour, "linewidth": 1, "linestyle": "-" if sure else "--"}
        length = moment.end_seconds - moment.start_seconds
        label = "moment with its rank (paler: lower score)"
        bar = axes.barh(1.25 + 0.4 * row, length, 0.34, moment.start_seconds, label=label, **style)
        axes.bar_label(bar, [str(rank)], padding=2, size="x-small")  # beside it, where it can be read
    for start, end in answer.truth or ():
        axes.barh(-0.22, end - start, 0.24, start, color="#444444", label="true window")
    axes.axhline(0.0, color="0.7", linewidth=0.5)
    axes.set(ylim=(-0.42 if answer.truth else -0.05, 1.12 + 0.4 * (max(rows, default=0) + 1)))
    axes.set_yticks([0, 1], ["0", "1"], size="x-small")
    _set_title(axes, answer.title, size="small")
    note = verdict(result) + ("; best guess dashed" if moments and not result.found else "")
    axes.set_title(note, loc="right", size="small", style="italic")


def _strength(moment: Moment, answer: Answer) -> float:
    """How strong a moment's colour is, in [`_FAINTEST`, 1]: its score over the best one's of the answer; guesses are faint."""
    best = max(other.score for other in answer.result.moments)
    return float(np.clip(moment.score / best if best > 0 else 1, _FAINTEST, 1)) if answer.result.found else _FAINTEST


def _rows(windows: Sequence[tuple[float, float]]) -> list[int]:
    """Row of each window, so that windows that overlap stand above each other; those that find no free row share the last."""
    rows, ends = [0] * len(windows), [0.0] * _MAX_ROWS
    for index in sorted(range(len(windows)), key=lambda index: windows[index]):
        start, end = windows[index]
        row = rows[index] = next((row for row in range(_MAX_ROWS) if ends[row] <= start), _MAX_ROWS - 1)
        ends[row] = max(ends[row], end)
    return rows


def _set_time_axis(axes: Axes, duration_seconds: float) -> None:
    hours = duration_seconds >= 3600
    step = next((step for step in _TICK_SECONDS if duration_seconds / step <= 12), _TICK_SECONDS[-1])
    ticks = np.arange(0, duration_seconds + step / 1000, step)
    axes.set_xlim(0, duration_seconds)
    axes.set_xticks(ticks, [clock(tick, hours=hours)[: -4 if step >= 1 else -2] for tick in ticks], size="small")
    axes.set_xlabel("time (hh:mm:ss)" if hours else "time (m:ss)")


def _set_title(axes: Axes, text: str, **style: Any) -> None:  # noqa: ANN401 - matplotlib's own arguments
    """Write outside text as it is: neither formulas nor line breaks have a meaning; letters that no font has are empty boxes."""
    shown = one_line(text)
    if len(shown) > _MAX_TITLE_LETTERS:
        shown = shown[: _MAX_TITLE_LETTERS - 1] + "…"
    families, known = _fonts()
    visible = "".join(letter if ord(letter) in known else "□" for letter in shown)
    axes.set_title(visible, loc="left", parse_math=False, family=families, **style)


@functools.cache
def _fonts() -> tuple[list[str], frozenset[int]]:
    """Families that are installed, and the characters that they have."""
    paths = {font.name: font.fname for font in font_manager.fontManager.ttflist if font.name in _FAMILIES}
    return sorted(paths, key=_FAMILIES.index), frozenset().union(*(font_manager.get_font(path).get_charmap() for path in paths.values()))
