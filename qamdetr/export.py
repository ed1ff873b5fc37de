"""Results as text: a table for people, JSON for programs, and label files for editors. Pure functions: results in, one string out."""

from __future__ import annotations

import csv
import html
import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qamdetr.errors import QamDetrError

if TYPE_CHECKING:
    from qamdetr.types import Moment, Result  # only named here: `--help` must not wait for torch

_SECONDS_DECIMALS = 3
_SCORE_DECIMALS = 6


def export(results: Sequence[Result], file_format: str) -> str:
    """Write results in one of `FORMATS`, ending with a newline.

    `table` and `json` show every result. The label formats hold only moments of queries that were found: a label in an editor would
    claim a sound that the recording does not have. Where several recordings share a file, labels begin with the recording's name.

    Raises:
        QamDetrError: Unknown format.
    """
    try:
        writer = _WRITERS[file_format]
    except KeyError:
        raise QamDetrError(f"Unknown format {file_format!r}; choose one of {', '.join(FORMATS)}.") from None
    return writer(results)


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


def _table(results: Sequence[Result]) -> str:
    blocks = []
    for result in results:
        duration = clock(result.duration_seconds)
        lines = [
            f"{_one_line(result.audio)} ({duration}), {_one_line(result.query)!r}, encoder {result.encoder}, verifier {result.verifier}"
        ]
        lines += [f"  {_one_line(text)}" for text in result.notes]
        if not result.found:
            lines.append("  not in this recording" + ("; the nearest guesses are:" if result.moments else ""))
        if result.moments:
            lines.append("  rank       start         end   score")
        lines += [
            f"  {rank:4d}  {clock(moment.start_seconds):>10}  {clock(moment.end_seconds):>10}  {moment.score:6.3f}"
            for rank, moment in enumerate(result.moments, start=1)
        ]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def _json(results: Sequence[Result]) -> str:
    return json.dumps([to_json_object(result) for result in results], ensure_ascii=False, indent=1) + "\n"


def _audacity(results: Sequence[Result]) -> str:
    return "".join(f"{m.start_seconds:.6f}\t{m.end_seconds:.6f}\t{label} ({m.score:.2f})\n" for _, m, label in _by_time(results))


def _csv(results: Sequence[Result]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["audio", "query", "rank", "start", "end", "score", "decoder_score", "verifier_score"])
    for result in _found(results):
        for rank, moment in enumerate(result.moments, start=1):
            numbers = (moment.start_seconds, moment.end_seconds, moment.score, moment.decoder_score, moment.verifier_score)
            cells = ["" if number is None else f"{number:.4f}" for number in numbers]
            writer.writerow([_cell(result.audio), _cell(result.query), rank, *cells])
    return text.getvalue()


def _vtt(results: Sequence[Result]) -> str:
    cues = (
        f"{clock(m.start_seconds, hours=True)} --> {clock(m.end_seconds, hours=True)}\n{html.escape(label, quote=False)} ({m.score:.2f})\n"
        for _, m, label in _by_time(results)
    )
    return "\n".join(["WEBVTT\n", *cues])


def _srt(results: Sequence[Result]) -> str:
    cues = (
        f"{number}\n{clock(m.start_seconds, fraction=',', hours=True)} --> {clock(m.end_seconds, fraction=',', hours=True)}\n"
        f"{label.replace('-->', '->')} ({m.score:.2f})\n"
        for number, (_, m, label) in enumerate(_by_time(results), start=1)
    )
    return "\n".join(cues)


def _rttm(results: Sequence[Result]) -> str:
    """Rich Transcription Time Marked; fields are separated by blanks, so blanks inside names become `_`."""
    return "".join(
        f"SPEAKER {_word(Path(r.audio).stem)} 1 {m.start_seconds:.3f} {m.end_seconds - m.start_seconds:.3f} "
        f"<NA> <NA> {_word(r.query)} {m.score:.4f} <NA>\n"
        for r, m, _ in _by_time(results)
    )


def _raven(results: Sequence[Result]) -> str:
    """Raven selection table; moments have no frequency limits, so every box spans the band that files of any rate have."""
    columns = (
        "Selection",
        "View",
        "Channel",
        "Begin Time (s)",
        "End Time (s)",
        "Low Freq (Hz)",
        "High Freq (Hz)",
        "Begin File",
        "Query",
        "Score",
    )
    rows = []
    for number, (r, m, _) in enumerate(_by_time(results), start=1):
        where = (f"{m.start_seconds:.3f}", f"{m.end_seconds:.3f}", "0", "4000")
        rows.append((str(number), "Spectrogram 1", "1", *where, _cell(Path(r.audio).name), _cell(r.query), f"{m.score:.4f}"))
    return "".join("\t".join(row) + "\n" for row in (columns, *rows))


_WRITERS: dict[str, Callable[[Sequence[Result]], str]] = {
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


def _found(results: Sequence[Result]) -> Iterator[Result]:
    return (result for result in results if result.found)


def _by_time(results: Sequence[Result]) -> list[tuple[Result, Moment, str]]:
    """Found moments in order of time, recording by recording in the given order, with their labels."""
    names = list(dict.fromkeys(result.audio for result in results))
    rows = [(result, moment, _label(result, several=len(names) > 1)) for result in _found(results) for moment in result.moments]
    return sorted(rows, key=lambda row: (names.index(row[0].audio), row[1].start_seconds, row[1].end_seconds))


def _label(result: Result, *, several: bool) -> str:
    query = _one_line(result.query)
    return f"{_one_line(Path(result.audio).name)}: {query}" if several else query


def _one_line(text: str) -> str:
    """Collapse line breaks, tabs and repeated blanks, which separate records and fields."""
    return " ".join(text.split())


def _word(text: str) -> str:
    return "_".join(text.split()) or "_"


def _cell(text: str) -> str:
    """One line that no spreadsheet takes for a formula."""
    text = _one_line(text)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
