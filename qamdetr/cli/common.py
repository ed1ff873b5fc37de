"""What the commands share: notes and files, the recordings of a manifest, the list of what could not be used."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from qamdetr.errors import AudioError, ConfigError, DataError, QamDetrError

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


def add_encoder_option(parser: argparse.ArgumentParser) -> None:
    """Add `--encoder`, which `read_encoders` reads."""
    parser.add_argument(
        "--encoder",
        metavar="STREAM=ID_OR_FOLDER",
        dest="encoders",
        action="append",
        default=[],
        help="hub id or folder of a stream's encoder, in the place of its default; repeatable",
    )


def read_encoders(given: Sequence[str]) -> dict[str, str]:
    """Read `--encoder`: stream -> hub id or folder.

    Raises:
        ConfigError: Something else than `STREAM=ID_OR_FOLDER`.
    """
    models = {}
    for item in given:
        stream, _, model = item.partition("=")
        if not stream or not model:
            raise ConfigError(f"--encoder {item!r} is not of the form STREAM=ID_OR_FOLDER, such as wavlm_base=microsoft/wavlm-base.")
        models[stream] = model
    return models


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
