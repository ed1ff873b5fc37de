"""What manifests hold: counts, widths of windows, and defects, as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import NamedTuple

from qamdetr.data.manifest import clamp_windows, read_manifest
from qamdetr.types import Window

WIDTH_LIMITS_SECONDS = (1, 3, 10)
"""Windows of at most these widths are counted: the three that tell how short a data set's moments are."""

CROWDED_WINDOWS = 5
"""Queries with more windows than this are counted; the official baseline trains on a random five of them."""

_FILES_PER_TABLE = 4  # side by side; more would not fit a terminal


class PastEnd(NamedTuple):
    """A window that ends after its recording, `window` and `duration_seconds` as the file has them."""

    qid: str
    window: Window
    duration_seconds: float


@dataclass(frozen=True)
class ManifestSummary:
    """What one manifest holds; windows are counted as they stand in the file, before clamping.

    Attributes:
        width_shares: Limit in seconds -> share of windows that are at most so wide, in [0, 1]; empty without windows.
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

    @property
    def title(self) -> str:
        """Folder and name: the field's files are all called train, val and test."""
        return "/".join(self.path.parts[-2:])

    def cells(self) -> dict[str, str]:
        """Label -> text of each row of the table; a dash where there is nothing to say."""
        middle, shares = self.median_width_seconds, self.width_shares
        return {
            "": self.title,
            "queries": f"{self.queries}",
            "recordings": f"{self.recordings}",
            "windows": f"{self.windows}",
            **{f"  of at most {limit:g} s": f"{100 * shares[limit]:.1f} %" if shares else "-" for limit in WIDTH_LIMITS_SECONDS},
            "  median width": "-" if middle is None else f"{round(middle, 3):g} s",
            "  past the end": f"{self.past_end}",
            "  wholly past the end": f"{self.outside}",
            f"queries with more than {CROWDED_WINDOWS} windows": f"{self.crowded_queries}",
            "most windows of a query": f"{self.most_windows}",
            "queries of absent sounds": f"{self.absent_queries}",
            "queries with unknown windows": f"{self.unknown_queries}",
            "shortest recording": f"{self.shortest_seconds:g} s",
            "longest recording": f"{self.longest_seconds:g} s",
        }


def summarise_manifest(path: Path) -> ManifestSummary:
    """Read a manifest and count; errors as `read_manifest`."""
    entries = read_manifest(path, clamp=False)
    clamped, past_end = clamp_windows(entries)
    counts = [len(entry.relevant_windows or ()) for entry in entries]
    windows = [PastEnd(entry.qid, window, entry.duration_seconds) for entry in entries for window in entry.relevant_windows or ()]
    widths = [end - start for _, (start, end), _ in windows]
    late = [item for item in windows if item.window[1] > item.duration_seconds]
    durations = [entry.duration_seconds for entry in entries]
    return ManifestSummary(
        path=path,
        queries=len(entries),
        recordings=len({entry.vid for entry in entries}),
        windows=len(widths),
        # 22.1 - 21.1 is not quite 1
        width_shares={limit: sum(width <= limit + 1e-6 for width in widths) / len(widths) for limit in WIDTH_LIMITS_SECONDS if widths},
        median_width_seconds=median(widths) if widths else None,
        crowded_queries=sum(count > CROWDED_WINDOWS for count in counts),
        most_windows=max(counts),
        past_end=past_end,
        outside=len(widths) - sum(len(entry.relevant_windows or ()) for entry in clamped),
        furthest=max(late, key=lambda item: item.window[1] - item.duration_seconds, default=None),
        absent_queries=sum(entry.relevant_windows == () for entry in entries),
        unknown_queries=sum(entry.relevant_windows is None for entry in entries),
        shortest_seconds=min(durations),
        longest_seconds=max(durations),
    )


def data_report(paths: Sequence[str | Path]) -> str:
    """Describe manifests in a plain text table, one column per file, with a line for each file that has windows past the end."""
    summaries = [summarise_manifest(Path(path)) for path in paths]
    blocks = [_table(summaries[begin : begin + _FILES_PER_TABLE]) for begin in range(0, len(summaries), _FILES_PER_TABLE)]
    notes = [
        f"{summary.title}: {summary.past_end} windows end after their recording, furthest [{past.window[0]:g}, {past.window[1]:g}] "
        f"of query {past.qid} in {past.duration_seconds:g} s; training clamps them and leaves out those that lie there wholly."
        for summary in summaries
        if (past := summary.furthest) is not None
    ]
    return "\n\n".join([*blocks, *(["\n".join(notes)] if notes else [])])


def _table(summaries: Sequence[ManifestSummary]) -> str:
    columns = [summary.cells() for summary in summaries]
    label_width = max(map(len, columns[0]))
    widths = [max(map(len, column.values())) for column in columns]
    return "\n".join(
        "  ".join([label.ljust(label_width), *(column[label].rjust(width) for column, width in zip(columns, widths, strict=True))])
        for label in columns[0]
    )
