"""Answers as text: a table for people, JSON for programs, label files for editors; and texts from outside made fit for them."""

from __future__ import annotations

import csv
import html
import io
import itertools
import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qamdetr.export import export

if TYPE_CHECKING:
    from qamdetr.types import Moment, Result, Window  # only named here: `--help` must not wait for torch

_SCORES = ("score", "decoder_score", "foreground", "quality", "verifier_score")
_SUBTITLE_MARKS = str.maketrans("<>{}", "[]()")  # SRT has tags and braces, and no way to escape them


def one_line(text: str) -> str:
    """Make single blanks of line breaks, tabs and other control characters, which separate records and fields."""
    shown = re.sub("[\u202a-\u202e\u2066-\u2069]", "", text)  # would hide what is written by turning it round
    return re.sub(r"[\s\x00-\x1f\x7f-\x9f]+", " ", shown).strip()


def cell(text: str) -> str:
    """Return one line that no spreadsheet takes for a formula: where one would, it begins with an apostrophe."""
    text = one_line(text)
    # Blanks and invisible characters before the sign do not hide it, nor do its full-width and small forms.
    first = next((letter for letter in text if unicodedata.category(letter) not in {"Cf", "Zs"}), "")
    return f"'{text}" if unicodedata.normalize("NFKC", first)[:1] in {*"=+-@\u2212"} and first else text


def tab_cell(text: str) -> str:
    """Return a cell for files that separate fields by tabs and quote nothing: a double quote would swallow the lines after it."""
    return cell(text).replace('"', "'")


def csv_text(rows: Sequence[Sequence[str]]) -> str:
    """Lay out a CSV table."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def score_cells(m: Moment) -> list[str]:
    """Start, end and scores of a moment for a table; empty where there is no such score."""
    numbers = (m.start_seconds, m.end_seconds, m.score, m.decoder_score, m.verifier_score, m.foreground, m.quality)
    return ["" if number is None else f"{number:.4f}" for number in numbers]


def word(text: str) -> str:
    """Return one word for files that separate fields by blanks."""
    return "_".join(one_line(text).split()) or "_"


def file_name_part(text: str, *, fallback: str, max_letters: int = 40) -> str:
    """Return letters, digits and single hyphens only: nothing that a shell, an archive or any file system gives a meaning."""
    kept = "".join(letter if unicodedata.category(letter)[0] in "LMN" else " " for letter in unicodedata.normalize("NFC", text))
    part = "-".join(kept.split())[:max_letters]
    # Letters of some scripts have four bytes, and file systems count bytes.
    return part.encode("utf-8")[:120].decode("utf-8", errors="ignore").strip("-") or fallback


def verdict(result: Result) -> str:
    """Say in a few words that a sound was not, or not surely, found; empty where it was."""
    if not result.understood:
        return "nothing found, for the words are not known"
    return {"found": "", "perhaps": "perhaps in this recording", "nothing found": "nothing found"}[result.tier]


@dataclass(frozen=True)
class Answer:
    """A result as it is written to a file."""

    result: Result
    ranks: tuple[int, ...] | None = None  # of the moments that a person chose, from 1, also where the sound was not found
    name: str = ""  # tells the answer from another one to the same query, such as "Without 3-way fusion"
    how: str = ""  # with a name: what kind of model answered, such as "bypassed in the full model: 3-way fusion"
    truth: Sequence[Window] | None = None  # true windows in seconds where they are known
    everything: bool = False  # where nobody chose: all moments are written and not only the likely ones

    def moments(self) -> list[tuple[int, Moment]]:
        """Rank and moment of everything that is written, best first: no guesses, for a label claims a sound, unless a person says so."""
        ranked = list(enumerate(self.result.moments, start=1))
        if self.ranks is not None:
            return [(rank, moment) for rank, moment in ranked if rank in self.ranks]
        return [(rank, moment) for rank, moment in ranked if self.everything or (self.result.found and moment.likely)]

    @property
    def title(self) -> str:
        """The query, and the name where there is one; one line."""
        query, name = one_line(self.result.query), one_line(self.name)
        return f"{query}, {name}" if name else query


def clock(seconds: float, *, fraction: str = ".", hours: bool = False) -> str:
    """Show seconds as `m:ss.mmm`, or `hh:mm:ss.mmm` with `hours`; `fraction` separates the milliseconds."""
    rest, ms = divmod(round(seconds * 1000), 1000)
    before = f"{rest // 3600:02d}:{rest % 3600 // 60:02d}" if hours else f"{rest // 60}"
    return f"{before}:{rest % 60:02d}{fraction}{ms:03d}"


def to_json_object(result: Result) -> dict[str, Any]:
    """Turn a result into the object that the command line, the HTTP endpoint and the MCP tool share: the keys of DESIGN section 6."""
    moments = [
        {"start": round(moment.start_seconds, 3), "end": round(moment.end_seconds, 3)}
        | {name: None if (value := getattr(moment, name)) is None else round(value, 6) for name in _SCORES}
        | {"likely": moment.likely}
        for moment in result.moments
    ]
    told = {name: getattr(result, name) for name in ("query", "found", "tier", "encoder", "verifier", "beta")}
    saliency = [round(value, 6) for value in result.saliency]
    known = {"audio": result.audio, "duration": round(result.duration_seconds, 3), **told}
    return {**known, "moments": moments, "saliency": saliency, "clip_seconds": result.clip_seconds, "notes": list(result.notes)}


@export("table", label="Table: to read here")
def _table(answers: Sequence[Answer]) -> str:
    blocks = []
    for answer in answers:
        result = answer.result
        duration = clock(result.duration_seconds)
        lines = [f"{one_line(result.audio)} ({duration}), {answer.title!r}, encoder {result.encoder}, verifier {result.verifier}"]
        lines += [f"  {one_line(text)}" for text in result.notes]
        shown = answer.moments() if result.found or answer.ranks is not None else list(enumerate(result.moments, start=1))
        if not result.found:
            lines.append(f"  {verdict(result)}" + ("; the nearest guesses are:" if result.moments else ""))
        if result.moments:
            lines.append("  rank       start         end   score")
        lines += [f"  {rank:4d}  {clock(m.start_seconds):>10}  {clock(m.end_seconds):>10}  {m.score:6.3f}" for rank, m in shown]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


@export("json", label="JSON (.json): for programs, with the relevance over time", ending="-moments.json")
def _json(answers: Sequence[Answer]) -> str:
    objects = []
    for answer in answers:
        written = to_json_object(answer.result)
        if answer.ranks is not None:
            written["moments"] = [{"rank": rank, **written["moments"][rank - 1]} for rank, _ in answer.moments()]
        objects.append({"lane": answer.name, "how": answer.how, **written} if answer.name else written)
    return json.dumps(objects, ensure_ascii=False, indent=1) + "\n"


@export("audacity", label="Audacity labels (.txt): in Audacity, choose File, Import, Labels", ending="-labels.txt")
def _audacity(answers: Sequence[Answer]) -> str:
    # Spreadsheets open tables of tabs too, and labels may not become formulas there. Captions and RTTM go elsewhere and keep their signs.
    return "".join(f"{m.start_seconds:.6f}\t{m.end_seconds:.6f}\t{_scored(tab_cell(label), m)}\n" for _, m, label in _by_time(answers))


# Excel takes a file for UTF-8 only when it begins with the mark of "utf-8-sig"; other readers of CSV skip it.
@export("csv", label="Spreadsheet (.csv): a row per moment with its scores", ending="-moments.csv", encoding="utf-8-sig")
def _csv(answers: Sequence[Answer]) -> str:
    columns = ["audio", "query", "rank", "start", "end", "score", "decoder_score", "verifier_score", "foreground", "quality", "lane", "how"]
    rows = [columns]
    for answer in answers:
        before, after = [cell(answer.result.audio), cell(answer.result.query)], [cell(answer.name), cell(answer.how)]
        rows += [[*before, str(rank), *score_cells(moment), *after] for rank, moment in answer.moments()]
    width = 12 if any(answer.name for answer in answers) else 10  # the last two columns tell lanes apart
    return csv_text([row[:width] for row in rows])


@export("vtt", label="Captions (.vtt): for players on web pages", ending=".vtt")
def _vtt(answers: Sequence[Answer]) -> str:
    cues = _by_time(answers, one_timeline=True)
    return "\n".join(["WEBVTT\n", *(f"{_cue_times(m, '.')}\n{_scored(html.escape(label, quote=False), m)}\n" for _, m, label in cues)])


@export("srt", label="Subtitles (.srt): for VLC and video editors", ending=".srt")
def _srt(answers: Sequence[Answer]) -> str:
    cues = enumerate(_by_time(answers, one_timeline=True), start=1)
    return "\n".join(f"{number}\n{_cue_times(m, ',')}\n{_scored(label.translate(_SUBTITLE_MARKS), m)}\n" for number, (_, m, label) in cues)


@export("rttm", label="RTTM (.rttm): for tools that score detection and diarisation", ending=".rttm")
def _rttm(answers: Sequence[Answer]) -> str:
    lines = []
    for answer, m, _ in _by_time(answers):
        length = max(round(m.end_seconds, 3) - round(m.start_seconds, 3), 0.001)  # scoring tools refuse 0
        name, what = word(Path(answer.result.audio).stem), word(answer.title)
        lines.append(f"SPEAKER {name} 1 {m.start_seconds:.3f} {length:.3f} <NA> <NA> {what} {m.score:.4f} <NA>\n")
    return "".join(lines)


@export("raven", label="Raven selection table (.txt): for Raven Pro and Raven Lite", ending=".selections.txt")
def _raven(answers: Sequence[Answer]) -> str:
    # Moments have no frequency limits: every box spans the band that files of any rate have. Raven opens several recordings as one
    # sequence: `Begin Time` counts from its start, `File Offset` from that of the recording.
    columns = "Selection,View,Channel,Begin Time (s),End Time (s),Low Freq (Hz),High Freq (Hz),Begin File,File Offset (s),Query,Score"
    rows = [columns.replace(",", "\t")]
    lengths = {answer.result.audio: answer.result.duration_seconds for answer in answers}
    begins = dict(zip(lengths, itertools.accumulate(lengths.values(), initial=0.0), strict=False))
    for number, (answer, m, _) in enumerate(_by_time(answers), start=1):
        begin, name = begins[answer.result.audio], tab_cell(Path(answer.result.audio).name)
        box = f"{number}\tSpectrogram 1\t1\t{begin + m.start_seconds:.3f}\t{begin + m.end_seconds:.3f}\t0\t4000"
        rows.append(f"{box}\t{name}\t{m.start_seconds:.3f}\t{tab_cell(answer.title)}\t{m.score:.4f}")
    return "\n".join([*rows, ""])


def _cue_times(moment: Moment, fraction: str) -> str:
    """Start and end; players drop a cue that ends in the millisecond in which it starts."""
    start = round(moment.start_seconds, 3)
    end = max(moment.end_seconds, start + 0.001)
    return f"{clock(start, fraction=fraction, hours=True)} --> {clock(end, fraction=fraction, hours=True)}"


def _by_time(answers: Sequence[Answer], *, one_timeline: bool = False) -> list[tuple[Answer, Moment, str]]:
    """Moments in order of time with their labels, recording by recording in the given order, or all together: cues may not go back."""
    names = list(dict.fromkeys(answer.result.audio for answer in answers))

    def place(row: tuple[Answer, Moment, str]) -> tuple[int, float, float]:
        return (0 if one_timeline else names.index(row[0].result.audio), row[1].start_seconds, row[1].end_seconds)

    befores = [f"{one_line(Path(answer.result.audio).name)}: " if len(names) > 1 else "" for answer in answers]
    named = zip(answers, befores, strict=True)
    return sorted(((answer, moment, before + answer.title) for answer, before in named for _, moment in answer.moments()), key=place)


def _scored(label: str, moment: Moment) -> str:
    return f"{label} ({moment.score:.2f})".lstrip()  # a query may hold nothing that can be shown
