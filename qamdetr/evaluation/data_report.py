"""What manifests hold: counts, widths of windows, and defects, as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from qamdetr.data.manifest import QueryEntry, clamp_windows, read_manifest
from qamdetr.types import Window

WIDTH_LIMITS_SECONDS = (1, 3, 10)
"""Windows of at most these widths are counted: the three that tell how short a data set's moments are."""

CROWDED_WINDOWS = 5
"""Queries with more windows than this are counted; the official baseline trains on a random five of them."""

_WIDTH_SLACK_SECONDS = 1e-6  # 22.1 - 21.1 is not quite 1
_FILES_PER_TABLE = 4  # side by side; more would not fit a terminal


@dataclass(frozen=True)
class PastEnd:
    """A window that ends after its recording, `window` and `duration_seconds` as the file has them."""

    qid: str
    window: Window
    duration_seconds: float


@dataclass(frozen=True)
class ManifestSummary:
    """What one manifest holds; windows are counted as they stand in the file, before clamping.

    Attributes:
        path: The file.
        queries, recordings, windows: Counts.
        width_shares: Limit in seconds -> share of windows that are at most so wide, in [0, 1]; empty without windows.
        median_width_seconds: Median width of windows, None without windows.
        crowded_queries: Queries with more than `CROWDED_WINDOWS` windows.
        most_windows: Windows of the query that has most.
        past_end: Windows that end after their recording's `duration`; reading for training clamps them.
        outside: Those of them that also start there; reading for training leaves them out.
        furthest: The window that ends furthest after its recording, None where none does.
        absent_queries: Queries with an empty list of windows: the sound is not in the recording.
        unknown_queries: Queries without the field `relevant_windows`: an evaluation set.
        shortest_seconds, longest_seconds: Range of `duration`.
    """

    path: Path
    queries: int
    recordings: int
    windows: int
    width_shares: Mapping[int, float]
    median_width_seconds: float | None
    crowded_queries: int
    most_windows: int
    past_end: int
    outside: int
    furthest: PastEnd | None
    absent_queries: int
    unknown_queries: int
    shortest_seconds: float
    longest_seconds: float


def summarise_manifest(path: Path) -> ManifestSummary:
    """Read a manifest and count.

    Raises:
        DataError: As `read_manifest`.
    """
    entries = read_manifest(path, clamp=False)
    clamped, past_end = clamp_windows(entries)
    counts = [len(entry.relevant_windows or ()) for entry in entries]
    widths = [end - start for entry in entries for start, end in entry.relevant_windows or ()]
    durations = [entry.duration_seconds for entry in entries]
    shares = {
        limit: sum(width <= limit + _WIDTH_SLACK_SECONDS for width in widths) / len(widths) for limit in WIDTH_LIMITS_SECONDS if widths
    }
    return ManifestSummary(
        path=path,
        queries=len(entries),
        recordings=len({entry.vid for entry in entries}),
        windows=len(widths),
        width_shares=shares,
        median_width_seconds=median(widths) if widths else None,
        crowded_queries=sum(count > CROWDED_WINDOWS for count in counts),
        most_windows=max(counts),
        past_end=past_end,
        outside=len(widths) - sum(len(entry.relevant_windows or ()) for entry in clamped),
        furthest=_furthest_past_end(entries),
        absent_queries=sum(entry.relevant_windows == () for entry in entries),
        unknown_queries=sum(entry.relevant_windows is None for entry in entries),
        shortest_seconds=min(durations),
        longest_seconds=max(durations),
    )


def data_report(paths: Sequence[str | Path]) -> str:
    """Describe manifests in a plain text table, one column per file, with a line for each file that has windows past the end.

    Raises:
        DataError: As `read_manifest`.
    """
    summaries = [summarise_manifest(Path(path)) for path in paths]
    blocks = [_table(summaries[begin : begin + _FILES_PER_TABLE]) for begin in range(0, len(summaries), _FILES_PER_TABLE)]
    notes = [
        f"{_title(summary.path)}: {summary.past_end} windows end after their recording, furthest [{past.window[0]:g}, {past.window[1]:g}] "
        f"of query {past.qid} in {past.duration_seconds:g} s; training clamps them and leaves out those that lie there wholly."
        for summary in summaries
        if (past := summary.furthest) is not None
    ]
    return "\n\n".join([*blocks, *(["\n".join(notes)] if notes else [])])


def _furthest_past_end(entries: Sequence[QueryEntry]) -> PastEnd | None:
    past = [
        PastEnd(entry.qid, window, entry.duration_seconds)
        for entry in entries
        for window in entry.relevant_windows or ()
        if window[1] > entry.duration_seconds
    ]
    return max(past, key=lambda item: item.window[1] - item.duration_seconds, default=None)


def _table(summaries: Sequence[ManifestSummary]) -> str:
    columns = [{"": _title(summary.path), **_cells(summary)} for summary in summaries]
    labels = list(columns[0])
    label_width = max(map(len, labels))
    widths = [max(map(len, column.values())) for column in columns]
    rows = [
        "  ".join([label.ljust(label_width), *(column[label].rjust(width) for column, width in zip(columns, widths, strict=True))])
        for label in labels
    ]
    return "\n".join(rows)


def _cells(summary: ManifestSummary) -> dict[str, str]:
    """Label -> text of each row of the table; a dash where there is nothing to say."""
    middle = summary.median_width_seconds
    return {
        "queries": f"{summary.queries}",
        "recordings": f"{summary.recordings}",
        "windows": f"{summary.windows}",
        **{
            f"  of at most {limit:g} s": f"{100 * summary.width_shares[limit]:.1f} %" if summary.width_shares else "-"
            for limit in WIDTH_LIMITS_SECONDS
        },
        "  median width": "-" if middle is None else f"{round(middle, 3):g} s",
        "  past the end": f"{summary.past_end}",
        "  wholly past the end": f"{summary.outside}",
        f"queries with more than {CROWDED_WINDOWS} windows": f"{summary.crowded_queries}",
        "most windows of a query": f"{summary.most_windows}",
        "queries of absent sounds": f"{summary.absent_queries}",
        "queries with unknown windows": f"{summary.unknown_queries}",
        "shortest recording": f"{summary.shortest_seconds:g} s",
        "longest recording": f"{summary.longest_seconds:g} s",
    }


def _title(path: Path) -> str:
    """Folder and name: the field's files are all called train, val and test."""
    return "/".join(path.parts[-2:])
