"""What manifests hold: counts, widths of windows, and defects, as a table. Windows are counted as they stand in the file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from qamdetr.data.manifest import clamp_windows, read_manifest

WIDTH_LIMITS_SECONDS = (1, 3, 10)  # the three that tell how short a data set's moments are
CROWDED_WINDOWS = 5  # the official baseline trains on a random five of the windows of a query


def data_report(paths: Sequence[str | Path]) -> str:
    """Describe manifests in a plain text table, one column per file, with a line for each file that has windows past the end."""
    columns, notes = [], []
    for path in map(Path, paths):
        column, note = describe_manifest(path)
        columns.append(column)
        notes += [note] if note else []
    label_width, widths = max(map(len, columns[0])), [max(map(len, column.values())) for column in columns]
    rows = [
        "  ".join([label.ljust(label_width), *(column[label].rjust(width) for column, width in zip(columns, widths, strict=True))])
        for label in columns[0]
    ]
    return "\n".join([*rows, *(["", *notes] if notes else [])])


def describe_manifest(path: Path) -> tuple[dict[str, str], str]:
    """Read a manifest and count: label -> text of each row of the table; and a line on the window furthest past the end, or nothing."""
    entries = read_manifest(path, clamp=False)
    clamped, past_end = clamp_windows(entries)
    windows = [(window, entry) for entry in entries for window in entry.relevant_windows or ()]
    widths = [end - start for (start, end), _ in windows]
    counts = [len(entry.relevant_windows or ()) for entry in entries]
    durations = [entry.duration_seconds for entry in entries]
    title = "/".join(path.parts[-2:])  # the field's files are all called train, val and test

    def share(limit_seconds: float) -> str:  # 22.1 - 21.1 is not quite 1
        return f"{100 * sum(width <= limit_seconds + 1e-6 for width in widths) / len(widths):.1f} %" if widths else "-"

    cells = {
        "": title,
        "queries": f"{len(entries)}",
        "recordings": f"{len({entry.vid for entry in entries})}",
        "windows": f"{len(widths)}",
        **{f"  of at most {limit:g} s": share(limit) for limit in WIDTH_LIMITS_SECONDS},
        "  median width": f"{round(median(widths), 3):g} s" if widths else "-",
        "  past the end": f"{past_end}",  # reading for training clamps them
        "  wholly past the end": f"{len(widths) - sum(len(entry.relevant_windows or ()) for entry in clamped)}",  # and leaves these out
        f"queries with more than {CROWDED_WINDOWS} windows": f"{sum(count > CROWDED_WINDOWS for count in counts)}",
        "most windows of a query": f"{max(counts)}",
        "queries of absent sounds": f"{sum(entry.relevant_windows == () for entry in entries)}",
        "queries with unknown windows": f"{sum(entry.relevant_windows is None for entry in entries)}",
        "shortest recording": f"{min(durations):g} s",
        "longest recording": f"{max(durations):g} s",
    }
    late = [(end - entry.duration_seconds, start, end, entry) for (start, end), entry in windows if end > entry.duration_seconds]
    if not late:
        return cells, ""
    _, start, end, entry = max(late, key=lambda item: item[0])
    return cells, (
        f"{title}: {past_end} windows end after their recording, furthest [{start:g}, {end:g}] of query {entry.qid} in "
        f"{entry.duration_seconds:g} s; training clamps them and leaves out those that lie there wholly."
    )
