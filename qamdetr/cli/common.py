"""What the commands share: notes and files, the recordings of a manifest, the list of what could not be used."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from qamdetr.errors import AudioError, DataError, QamDetrError

if TYPE_CHECKING:
    from qamdetr.data.manifest import QueryEntry

_NAMES_SHOWN = 20

Command = Callable[[argparse.Namespace], None]


class Parser(argparse.ArgumentParser):
    """Reports a mistake as one line, like every other error of the program."""

    def error(self, message: str) -> NoReturn:
        """Raise the mistake; `main` prints it."""
        raise QamDetrError(f"{message}; see `{self.prog} --help`.")


def find_audio(entries: Sequence[QueryEntry], manifest: str, audio_dir: str | None) -> dict[str, Path]:
    """Map each vid of the manifest to its file; all missing ones are told at once, before any work."""
    from qamdetr.audio import find_recordings

    folder = Path(manifest).parent / "audio" if audio_dir is None else Path(audio_dir)
    found = find_recordings(folder)
    vids = list(dict.fromkeys(entry.vid for entry in entries))
    missing = [vid for vid in vids if vid not in found]
    if missing:
        shown = ", ".join(missing[:_NAMES_SHOWN]) + (", …" if len(missing) > _NAMES_SHOWN else "")
        raise DataError(f"{len(missing)} of {len(vids)} recordings of {manifest} are not in {folder}: {shown}; give their folder.")
    return {vid: found[vid] for vid in vids}


def raise_failures(failures: Sequence[str], total: int) -> None:
    """Tell the recordings that could not be used, if there are any, as one error."""
    if not failures:
        return
    if total == 1:
        raise AudioError(failures[0])
    raise AudioError(f"{len(failures)} of {total} recordings could not be used: {' | '.join(failures)}")


def print_error(error: str) -> None:
    """Tell a mistake, in one line."""
    print(f"qamdetr: error: {' '.join(error.split())}", file=sys.stderr, flush=True)


def note(text: str) -> None:
    """Tell the user something beside the results."""
    print(f"qamdetr: {text}", file=sys.stderr)


if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[Parser]
