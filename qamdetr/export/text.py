"""Answers as text: a table for people, JSON for programs, and label files for editors. Pure functions: answers in, one string out."""

from __future__ import annotations

import csv
import html
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qamdetr.errors import QamDetrError
from qamdetr.export.safe_text import cell, one_line, tab_cell, word

if TYPE_CHECKING:
    from qamdetr.types import Moment, Result, Window  # only named here: `--help` must not wait for torch

_SECONDS_DECIMALS = 3
_SCORE_DECIMALS = 6
_SUBTITLE_MARKS = str.maketrans("<>{}", "[]()")  # SRT has tags and braces, and no way to escape them


@dataclass(frozen=True)
class Answer:
    """A result as it is written to a file.

    Attributes:
        result: What the model said, its moments as ranked.
        ranks: Ranks (from 1) of the moments that a person chose, also where the sound was not found; None: all moments, if it was found.
        name: What tells the answer from another one to the same query, such as "Without 3-way fusion"; may be empty.
        how: With a name: what kind of model answered, such as "bypassed in the full model: 3-way fusion".
        truth: True windows in seconds where they are known.
    """

    result: Result
    ranks: tuple[int, ...] | None = None
    name: str = ""
    how: str = ""
    truth: Sequence[Window] | None = None

    def moments(self) -> list[tuple[int, Moment]]:
        """Rank and moment of everything that is written, best first.

        A moment of a sound that was not found is a guess: a label would claim what the recording does not have, unless a person says so.
        """
        ranked = enumerate(self.result.moments, start=1)
        return [(rank, moment) for rank, moment in ranked if (self.result.found if self.ranks is None else rank in self.ranks)]

    @property
    def title(self) -> str:
        """The query, and the name where there is one; one line."""
        query, name = one_line(self.result.query), one_line(self.name)
        return f"{query}, {name}" if name else query


def as_answers(results: Sequence[Result | Answer]) -> list[Answer]:
    """Take results as answers of which everything found is written."""
    return [result if isinstance(result, Answer) else Answer(result) for result in results]


def export(results: Sequence[Result | Answer], file_format: str) -> str:
    """Write results in one of `FORMATS`, ending with a newline.

    `table` and `json` show every result; the label formats hold what `Answer.moments` gives. Where several recordings share a file, labels
    begin with the recording's name. Whatever stands in a query or a name, it stays in its field, is no markup in captions, and no formula
    in `csv`, `audacity` and `raven`, which spreadsheets open; only `json` keeps it letter by letter.

    Raises:
        QamDetrError: Unknown format.
    """
    try:
        writer = _WRITERS[file_format]
    except KeyError:
        raise QamDetrError(f"Unknown format {file_format!r}; choose one of {', '.join(FORMATS)}.") from None
    return writer(as_answers(results))


def to_json_object(result: Result) -> dict[str, Any]:
    """Turn a result into the object that the command line, the HTTP endpoint and the MCP tool share.

    The keys of DESIGN section 6 and one more, `notes`: what the user should know, such as a verifier that failed; mostly an empty list.
    """
    return {
        "audio": result.audio,
        "duration": round(result.duration_seconds, _SECONDS_DECIMALS),
        "query": result.query,
        "found": result.found,
        "encoder": result.encoder,
        "verifier": result.verifier,
        "beta": result.beta,
        "moments": [
            {
                "start": round(moment.start_seconds, _SECONDS_DECIMALS),
                "end": round(moment.end_seconds, _SECONDS_DECIMALS),
                "score": round(moment.score, _SCORE_DECIMALS),
                "decoder_score": round(moment.decoder_score, _SCORE_DECIMALS),
                "foreground": round(moment.foreground, _SCORE_DECIMALS),
                "quality": round(moment.quality, _SCORE_DECIMALS),
                "verifier_score": None if moment.verifier_score is None else round(moment.verifier_score, _SCORE_DECIMALS),
            }
            for moment in result.moments
        ],
        "saliency": [round(value, _SCORE_DECIMALS) for value in result.saliency],
        "notes": list(result.notes),
    }


def clock(seconds: float, *, fraction: str = ".", hours: bool = False) -> str:
    """Show seconds as `m:ss.mmm`, or `hh:mm:ss.mmm` with `hours`; `fraction` separates the milliseconds."""
    total_ms = round(seconds * 1000)
    rest, ms = divmod(total_ms, 1000)
    if hours:
        return f"{rest // 3600:02d}:{rest % 3600 // 60:02d}:{rest % 60:02d}{fraction}{ms:03d}"
    return f"{rest // 60}:{rest % 60:02d}{fraction}{ms:03d}"


def _table(answers: Sequence[Answer]) -> str:
    blocks = []
    for answer in answers:
        result = answer.result
        duration = clock(result.duration_seconds)
        lines = [f"{one_line(result.audio)} ({duration}), {answer.title!r}, encoder {result.encoder}, verifier {result.verifier}"]
        lines += [f"  {one_line(text)}" for text in result.notes]
        if not result.found:
            lines.append("  not in this recording" + ("; the nearest guesses are:" if result.moments else ""))
        if result.moments:
            lines.append("  rank       start         end   score")
        lines += [
            f"  {rank:4d}  {clock(moment.start_seconds):>10}  {clock(moment.end_seconds):>10}  {moment.score:6.3f}"
            for rank, moment in enumerate(result.moments, start=1)
            if answer.ranks is None or rank in answer.ranks
        ]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def _json(answers: Sequence[Answer]) -> str:
    return json.dumps([_json_answer(answer) for answer in answers], ensure_ascii=False, indent=1) + "\n"


def _json_answer(answer: Answer) -> dict[str, Any]:
    written = to_json_object(answer.result)
    if answer.ranks is not None:
        written["moments"] = [{"rank": rank, **written["moments"][rank - 1]} for rank, _ in answer.moments()]
    return {"lane": answer.name, "how": answer.how, **written} if answer.name else written


def _audacity(answers: Sequence[Answer]) -> str:
    # Spreadsheets open tables of tabs too, and labels may not become formulas there. Captions and RTTM go elsewhere and keep their signs.
    return "".join(f"{m.start_seconds:.6f}\t{m.end_seconds:.6f}\t{_scored(tab_cell(label), m)}\n" for _, m, label in _by_time(answers))


def _csv(answers: Sequence[Answer]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    named = any(answer.name for answer in answers)
    columns = ["audio", "query", "rank", "start", "end", "score", "decoder_score", "verifier_score", "foreground", "quality"]
    writer.writerow([*columns, *(["lane", "how"] if named else [])])
    for answer in answers:
        for rank, m in answer.moments():
            numbers = (m.start_seconds, m.end_seconds, m.score, m.decoder_score, m.verifier_score, m.foreground, m.quality)
            cells = ["" if number is None else f"{number:.4f}" for number in numbers]
            row = [cell(answer.result.audio), cell(answer.result.query), rank, *cells]
            writer.writerow([*row, *([cell(answer.name), cell(answer.how)] if named else [])])
    return text.getvalue()


def _vtt(answers: Sequence[Answer]) -> str:
    cues = (
        f"{' --> '.join(_cue_times(m, '.'))}\n{_scored(html.escape(label, quote=False), m)}\n"
        for _, m, label in _by_time(answers, one_timeline=True)
    )
    return "\n".join(["WEBVTT\n", *cues])


def _srt(answers: Sequence[Answer]) -> str:
    cues = (
        f"{number}\n{' --> '.join(_cue_times(m, ','))}\n{_scored(label.translate(_SUBTITLE_MARKS), m)}\n"
        for number, (_, m, label) in enumerate(_by_time(answers, one_timeline=True), start=1)
    )
    return "\n".join(cues)


def _cue_times(moment: Moment, fraction: str) -> tuple[str, str]:
    """Return start and end; players drop a cue that ends in the millisecond in which it starts."""
    start = round(moment.start_seconds, _SECONDS_DECIMALS)
    end = max(moment.end_seconds, start + 0.001)
    return clock(start, fraction=fraction, hours=True), clock(end, fraction=fraction, hours=True)


def _rttm(answers: Sequence[Answer]) -> str:
    """Rich Transcription Time Marked; fields are separated by blanks, so blanks inside names become `_`."""
    return "".join(
        f"SPEAKER {word(Path(a.result.audio).stem)} 1 {m.start_seconds:.3f} {_length(m):.3f} <NA> <NA> {word(a.title)} {m.score:.4f} <NA>\n"
        for a, m, _ in _by_time(answers)
    )


def _length(moment: Moment) -> float:
    """Length that leads from the rounded start to the rounded end; scoring tools refuse 0."""
    return max(round(moment.end_seconds, _SECONDS_DECIMALS) - round(moment.start_seconds, _SECONDS_DECIMALS), 0.001)


def _raven(answers: Sequence[Answer]) -> str:
    """Raven selection table; moments have no frequency limits, so every box spans the band that files of any rate have.

    Raven opens several recordings as one sequence: `Begin Time` counts from its start, `File Offset` from that of the recording.
    """
    box = ("Selection", "View", "Channel", "Begin Time (s)", "End Time (s)", "Low Freq (Hz)", "High Freq (Hz)")
    columns = (*box, "Begin File", "File Offset (s)", "Query", "Score")
    begins: dict[str, float] = {}
    total = 0.0
    for result in (answer.result for answer in answers):
        if result.audio not in begins:
            begins[result.audio] = total
            total += result.duration_seconds
    rows = []
    for number, (answer, m, _) in enumerate(_by_time(answers), start=1):
        name, begin = answer.result.audio, begins[answer.result.audio]
        where = (f"{begin + m.start_seconds:.3f}", f"{begin + m.end_seconds:.3f}", "0", "4000")
        what = (tab_cell(Path(name).name), f"{m.start_seconds:.3f}", tab_cell(answer.title), f"{m.score:.4f}")
        rows.append((str(number), "Spectrogram 1", "1", *where, *what))
    return "".join("\t".join(row) + "\n" for row in (columns, *rows))


_WRITERS: dict[str, Callable[[Sequence[Answer]], str]] = {
    "table": _table,
    "json": _json,
    "audacity": _audacity,
    "csv": _csv,
    "vtt": _vtt,
    "srt": _srt,
    "rttm": _rttm,
    "raven": _raven,
}

FORMATS = tuple(_WRITERS)


def _by_time(answers: Sequence[Answer], *, one_timeline: bool = False) -> list[tuple[Answer, Moment, str]]:
    """Moments in order of time with their labels, recording by recording in the given order, or all together: cues may not go back."""
    names = list(dict.fromkeys(answer.result.audio for answer in answers))
    rows = [(answer, moment, _label(answer, several=len(names) > 1)) for answer in answers for _, moment in answer.moments()]

    def place(row: tuple[Answer, Moment, str]) -> tuple[int, float, float]:
        return (0 if one_timeline else names.index(row[0].result.audio), row[1].start_seconds, row[1].end_seconds)

    return sorted(rows, key=place)


def _scored(label: str, moment: Moment) -> str:
    return f"{label} ({moment.score:.2f})".lstrip()  # a query may hold nothing that can be shown


def _label(answer: Answer, *, several: bool) -> str:
    return f"{one_line(Path(answer.result.audio).name)}: {answer.title}" if several else answer.title
