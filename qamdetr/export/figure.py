"""A figure of a recording and its answers for papers and slides: waveform, spectrogram, and a lane for each query."""

from __future__ import annotations

import functools
import io
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from qamdetr.audio import BANDS, Overview, Sound, hz_to_mel
from qamdetr.errors import AudioError, QamDetrError
from qamdetr.export.text import Answer, as_answers, one_line
from qamdetr.files import write_whole

if TYPE_CHECKING:
    from qamdetr.types import Moment, Result

FigureFormat = Literal["png", "svg"]

MAX_LANES = 16
"""Answers that fit on a page."""

COLUMNS = 1200
_DPI = 200
_WIDTH_INCHES, _SOUND_INCHES, _LANE_INCHES, _MARGIN_INCHES = 10.0, 2.6, 1.0, 0.75
_MAX_TITLE_LETTERS = 90
_RANGE_DB = (30.0, 80.0)  # least and most that lie between black and white
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")  # told apart also by readers who see no red or green
_FAINTEST = 0.15
_TRUTH_COLOUR = "#444444"
_MAX_ROWS = 3
_TICK_STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600)
_TICK_HZ = (250, 500, 1000, 2000, 4000, 8000, 16000, 32000, 64000)

# The first that is installed for each: DejaVu Sans comes with matplotlib and has no Chinese, Japanese or Korean.
_FAMILIES = (
    ("DejaVu Sans",),
    ("Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans JP", "Hiragino Sans", "Yu Gothic", "WenQuanYi Zen Hei", "Arial Unicode MS"),
    ("Noto Sans CJK KR", "Noto Sans KR", "Malgun Gothic", "Apple SD Gothic Neo"),
    ("Noto Sans Devanagari", "Nirmala UI", "Mangal"),
)


def write_figure(results: Sequence[Result | Answer], path: Path, image_format: FigureFormat) -> None:
    """Draw and write a file; it appears whole or not at all."""
    write_whole(path, draw_figure(results, image_format))


def draw_figure(results: Sequence[Result | Answer], image_format: FigureFormat) -> bytes:
    """Draw one recording with its answers; the same answers give the same bytes.

    A long recording is drawn from columns of its samples and spectra, so that an hour costs no more memory than a minute. Nothing global
    is used or changed: figures may be drawn in several threads.

    Args:
        results: Answers about one recording, whose path is `audio`; `Answer.moments` says which moments are drawn. Where nothing was
            found and nothing chosen, the best guess is drawn as an outline.
        image_format: `png` (200 dots per inch) or `svg`.

    Raises:
        QamDetrError: Nothing to draw, several recordings, or more answers than `MAX_LANES`.
        AudioError: The recording is gone or cannot be read.
    """
    answers = as_answers(results)
    names = {answer.result.audio for answer in answers}
    if len(names) != 1:
        raise QamDetrError(f"A figure shows one recording with its answers; {len(names)} were given; draw each on its own.")
    if len(answers) > MAX_LANES:
        raise QamDetrError(f"A figure has room for {MAX_LANES} answers; {len(answers)} were given; ask for fewer at once.")
    result = answers[0].result
    if not Path(result.audio).is_file():
        raise AudioError(f"{result.audio} is no longer there", "open the recording again")
    overview = Sound(result.audio, **result.heard).overview(COLUMNS)
    figure = Figure(figsize=(_WIDTH_INCHES, _SOUND_INCHES + _LANE_INCHES * len(answers) + _MARGIN_INCHES), layout="constrained")
    FigureCanvasAgg(figure)
    ratios = [0.4 * _SOUND_INCHES, 0.6 * _SOUND_INCHES, *[_LANE_INCHES] * len(answers)]
    axes = list(figure.subplots(len(ratios), 1, sharex=True, height_ratios=ratios, squeeze=False)[:, 0])
    _draw_waveform(axes[0], overview, result.duration_seconds)
    _draw_spectrogram(axes[1], overview, result.duration_seconds)
    _set_title(axes[0], Path(result.audio).name, weight="bold", size="medium")
    for lane, answer, colour in zip(axes[2:], answers, itertools.cycle(_COLOURS), strict=False):
        _draw_lane(lane, answer, colour)
        for _, moment in answer.moments():
            shade = {"color": colour, "alpha": 0.35 * _strength(moment, answer), "linewidth": 0}
            axes[0].axvspan(moment.start_seconds, moment.end_seconds, zorder=0, **shade)  # behind the waveform
    _set_time_axis(axes[-1], result.duration_seconds)
    _add_legend(figure, answers)
    return _to_bytes(figure, image_format, Path(result.audio).name)


def _draw_waveform(axes: Axes, overview: Overview, duration_seconds: float) -> None:
    seconds = _column_seconds(overview.peaks.shape[1], duration_seconds)
    axes.fill_between(seconds, overview.peaks[0], overview.peaks[1], color="0.25", linewidth=0.4)
    loudest = max(float(np.abs(overview.peaks).max()), 1e-4)
    axes.set(ylim=(-1.08 * loudest, 1.08 * loudest), yticks=[], ylabel="wave")


def _draw_spectrogram(axes: Axes, overview: Overview, duration_seconds: float) -> None:
    loudest = float(np.percentile(overview.levels_db, 99.9))
    quiet = float(np.percentile(overview.levels_db, 10))
    darkest = loudest - min(max(loudest - quiet, _RANGE_DB[0]), _RANGE_DB[1])
    axes.imshow(
        overview.levels_db,
        cmap="Greys",  # survives a black and white printer
        vmin=darkest,
        vmax=loudest,
        origin="lower",
        aspect="auto",
        extent=(0.0, duration_seconds, 0.0, BANDS),
        interpolation="antialiased",
    )
    top_mel = float(hz_to_mel(overview.top_hz))
    ticks = [hz for hz in _TICK_HZ if float(hz_to_mel(hz)) <= 0.97 * top_mel][-4:]
    axes.set_yticks([float(hz_to_mel(hz)) / top_mel * BANDS for hz in ticks], [f"{hz / 1000:g}" for hz in ticks], size="x-small")
    axes.set_ylabel("kHz")


def _draw_lane(axes: Axes, answer: Answer, colour: str) -> None:
    """Relevance from 0 to 1, above it the moments with their ranks, below it what is true."""
    result = answer.result
    seconds, relevance = _thinned(result.saliency, result.duration_seconds)
    axes.fill_between(seconds, relevance, color=colour, alpha=0.2, linewidth=0)
    axes.plot(seconds, relevance, color=colour, linewidth=0.9)
    moments = answer.moments()
    guess = not moments and answer.ranks is None and bool(result.moments)
    drawn = [(1, result.moments[0])] if guess else moments
    rows = _rows([moment.window for _, moment in drawn])
    for (rank, moment), row in zip(drawn, rows, strict=True):
        bottom = 1.08 + 0.4 * row
        box = Rectangle((moment.start_seconds, bottom), moment.end_seconds - moment.start_seconds, 0.34, linewidth=1.0, edgecolor=colour)
        face = "none" if guess or not result.found else to_rgba(colour, _strength(moment, answer))
        box.set(facecolor=face, linestyle="--" if guess or not result.found else "-")
        axes.add_patch(box)
        # Beside the box, where it can be read however short the moment is; before it at the very end of the recording.
        late = moment.end_seconds > 0.97 * result.duration_seconds
        where, side = (moment.start_seconds, "right") if late else (moment.end_seconds, "left")
        style: dict[str, Any] = {"size": "x-small", "va": "center", "ha": side}
        axes.annotate(f"{rank}", (where, bottom + 0.17), (-2 if late else 2, 0), textcoords="offset points", **style)
    for start, end in answer.truth or ():
        axes.add_patch(Rectangle((start, -0.34), end - start, 0.24, facecolor=_TRUTH_COLOUR, edgecolor=_TRUTH_COLOUR, linewidth=1.0))
    axes.axhline(0.0, color="0.7", linewidth=0.5)
    axes.set(ylim=(-0.42 if answer.truth else -0.05, 1.12 + 0.4 * (max(rows, default=0) + 1)))
    axes.set_yticks([0, 1], ["0", "1"], size="x-small")
    note = "" if result.found else "not in this recording" + ("; best guess dashed" if drawn else "")
    _set_title(axes, answer.title, size="small")
    axes.set_title(note, loc="right", size="small", style="italic")


def _strength(moment: Moment, answer: Answer) -> float:
    """How strong a moment's colour is, in [`_FAINTEST`, 1]: its score over the best one's of the answer; guesses are faint."""
    if not answer.result.found:
        return _FAINTEST
    best = max(other.score for other in answer.result.moments)
    return max(_FAINTEST, min(1.0, moment.score / best)) if best > 0 else 1.0


def _column_seconds(columns: int, duration_seconds: float) -> np.ndarray:
    return (np.arange(columns) + 0.5) * duration_seconds / columns


def _thinned(saliency: Sequence[float], duration_seconds: float) -> tuple[np.ndarray, np.ndarray]:
    """Middle of each clip and its relevance; of more clips than columns, the highest of neighbours."""
    values = np.asarray(saliency if len(saliency) else [0.0], dtype=np.float64)
    clips = len(values)
    starts = np.arange(min(clips, COLUMNS)) * clips // min(clips, COLUMNS)
    values = np.maximum.reduceat(values, starts)
    return np.minimum((starts + np.append(starts[1:], clips)) / 2, duration_seconds), values


def _rows(windows: Sequence[tuple[float, float]]) -> list[int]:
    """Row of each window, so that windows that overlap stand above each other; those that find no free row share the last."""
    rows = [0] * len(windows)
    ends = [-np.inf] * _MAX_ROWS
    for index in sorted(range(len(windows)), key=lambda index: windows[index]):
        start, end = windows[index]
        rows[index] = next((row for row in range(_MAX_ROWS) if ends[row] <= start), _MAX_ROWS - 1)
        ends[rows[index]] = max(ends[rows[index]], end)
    return rows


def _set_time_axis(axes: Axes, duration_seconds: float) -> None:
    step = next((step for step in _TICK_STEPS if duration_seconds / step <= 11), _TICK_STEPS[-1])
    ticks = np.arange(0, duration_seconds + step / 1000, step)
    axes.set_xlim(0, duration_seconds)
    axes.set_xticks(ticks, [_clock(tick, step) for tick in ticks], size="small")
    axes.set_xlabel("time (h:mm:ss)" if duration_seconds >= 3600 else "time (m:ss)")


def _clock(seconds: float, step: float) -> str:
    whole = int(seconds + 1e-6)
    text = f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}" if whole >= 3600 else f"{whole // 60}:{whole % 60:02d}"
    return f"{text}.{round((seconds - whole) * 10) % 10}" if step < 1 else text


def _add_legend(figure: Figure, answers: Sequence[Answer]) -> None:
    result = answers[0].result
    handles: list[Patch | Line2D] = [Patch(facecolor="0.75", edgecolor="0.3", label="moment with its rank (paler: lower score)")]
    handles.append(Line2D([], [], color="0.3", linewidth=0.9, label="relevance of each second"))
    if any(answer.truth for answer in answers):
        handles.append(Patch(facecolor=_TRUTH_COLOUR, label="true window"))
    ranked = f"verifier {result.verifier}, β {result.beta:g}" if result.verifier != "none" else "ranked by the decoder alone"
    handles.append(Line2D([], [], linestyle="", label=f"(encoder {result.encoder}; {ranked})"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize="x-small", handlelength=1.5)


def _set_title(axes: Axes, text: str, **style: Any) -> None:  # noqa: ANN401 - matplotlib's own arguments
    """Write outside text as it is: neither formulas nor line breaks have a meaning."""
    shown = one_line(text)
    if len(shown) > _MAX_TITLE_LETTERS:
        shown = shown[: _MAX_TITLE_LETTERS - 1] + "…"
    families, known = _fonts()
    visible = "".join(letter if ord(letter) in known else "□" for letter in shown)
    axes.set_title(visible, loc="left", parse_math=False, family=list(families), **style)


@functools.lru_cache(maxsize=1)
def _fonts() -> tuple[tuple[str, ...], frozenset[int]]:
    """Families for text from outside, and the characters that they have; looking them up once is enough."""
    paths = {entry.name: entry.fname for entry in font_manager.fontManager.ttflist}
    families = [name for names in _FAMILIES if (name := next((name for name in names if name in paths), None)) is not None]
    return tuple(families), frozenset().union(*(font_manager.get_font(paths[name]).get_charmap() for name in families))


def _to_bytes(figure: Figure, image_format: FigureFormat, title: str) -> bytes:
    content = io.BytesIO()
    if image_format == "png":
        figure.savefig(content, format="png", dpi=_DPI, metadata={"Software": None})
        return content.getvalue()
    figure.savefig(content, format="svg", dpi=_DPI, metadata={"Date": None, "Creator": None, "Title": one_line(title)})
    return _with_stable_names(content.getvalue())


def _with_stable_names(svg: bytes) -> bytes:
    """Give elements numbers: matplotlib names them at random, and a fixed seed for it would be a setting of the whole process."""
    names = list(dict.fromkeys(re.findall(rb'\bid="([a-zA-Z]+[0-9a-f]{10})"', svg)))
    numbers = {name: b"q%d" % number for number, name in enumerate(names)}
    return re.sub(rb'((?:id="|url\(#|href="#))([a-zA-Z]+[0-9a-f]{10})\b', lambda found: found[1] + numbers.get(found[2], found[2]), svg)
