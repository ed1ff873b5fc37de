"""Answers as files. A format is one function with `@export`; importing it is enough for the command line and the page to offer it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from qamdetr.files import write_whole

if TYPE_CHECKING:
    from qamdetr.export.text import Answer

Maker = TypeVar("Maker", bound=Callable[..., Any])


class ExportInfo(NamedTuple):
    """One format: `make(answers)` gives its text, or, with `to_file`, `make(answers, path)` writes what is no text for a terminal.

    `label` says what it is for; `ending` follows the recording's name in that of the file, and is empty for what is only shown.
    """

    name: str
    label: str
    ending: str
    make: Callable[..., Any]
    to_file: bool
    encoding: str

    def write(self, answers: Sequence[Answer], path: Path) -> None:
        """Write a file; it appears whole or not at all, and an `OSError` is the disk's."""
        if self.to_file:
            self.make(answers, path)
        else:
            write_whole(path, self.make(answers).encode(self.encoding, errors="backslashreplace"))


EXPORTS: dict[str, ExportInfo] = {}


def export(name: str, *, label: str, ending: str = "", to_file: bool = False, encoding: str = "utf-8") -> Callable[[Maker], Maker]:
    """Register a format: a function `(answers) -> str`, or `(answers, path)` with `to_file`; `Answer.moments` says what is written."""

    def register(make: Maker) -> Maker:
        EXPORTS[name] = ExportInfo(name, label, ending, make, to_file, encoding)
        return make

    return register


def _later(module: str, kind: str) -> Callable[..., None]:
    """Import what is heavy only when it is asked for."""
    return lambda answers, path: getattr(import_module(f"qamdetr.export.{module}"), f"write_{module}")(answers, path, kind)


import_module("qamdetr.export.text")
for _name, _label, _ending, _make in (
    ("zip", "Sounds (.zip of WAV): each moment as a file of its own", "-moments.zip", _later("clips", "wav")),
    ("zip-flac", "Sounds (.zip of FLAC): the same, about half the size", "-moments-flac.zip", _later("clips", "flac")),
    ("png", "Figure (.png): for slides and documents", "-moments.png", _later("figure", "png")),
    ("svg", "Figure (.svg): for print, sharp at any size", "-moments.svg", _later("figure", "svg")),
):
    export(_name, label=_label, ending=_ending, to_file=True)(_make)
