"""The example recordings that come with the project, and their true moments."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from qamdetr.config import SHIPPED_DIR
from qamdetr.errors import DataError
from qamdetr.types import Window

ASSETS_DIR = SHIPPED_DIR / "assets"


@dataclass(frozen=True)
class Example:
    """One example recording.

    Attributes:
        path: The audio file.
        title: Name to show; what follows its first comma describes it.
        truth: Query -> its true windows in seconds; empty when the sound is absent.
    """

    path: Path
    title: str
    truth: dict[str, tuple[Window, ...]]

    @property
    def name(self) -> str:
        """The title up to its first comma."""
        return self.title.partition(",")[0].strip()

    @property
    def description(self) -> str:
        """What follows, as a sentence; empty when there is no comma."""
        rest = self.title.partition(",")[2].strip()
        return f"{rest[:1].upper()}{rest[1:]}." if rest else ""

    def windows_of(self, query: str) -> tuple[Window, ...] | None:
        """Look up the true windows of a query (case and outer spaces do not count), or None when they are not known."""
        wanted = query.strip().casefold()
        return next((windows for known, windows in self.truth.items() if known.casefold() == wanted), None)


def load_examples(directory: Path = ASSETS_DIR) -> list[Example]:
    """Read `examples.json`: a list of `{file, title, queries: [{query, windows}]}`; no file means no examples.

    Raises:
        DataError: The file is not of this form, or names audio that is missing.
    """
    listing = directory / "examples.json"
    if not listing.is_file():
        return []
    try:
        entries = json.loads(listing.read_text(encoding="utf-8"))
        examples = [
            Example(
                path=directory / entry["file"],
                title=entry["title"],
                truth={q["query"].strip(): tuple((float(start), float(end)) for start, end in q["windows"]) for q in entry["queries"]},
            )
            for entry in entries
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{listing} must list {{file, title, queries: [{{query, windows}}]}}; found {error!r}.") from error
    for example in examples:
        if not example.path.is_file():
            raise DataError(f"{listing} names {example.path.name}, which is not in {directory}; add the file or remove its entry.")
    return examples
