"""What `/retrieve` takes: every argument of a program is checked before anything is done with it."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from qamdetr.errors import AudioError, ConfigError
from qamdetr.export.text import one_line
from qamdetr.ui.queries import checked_query

NAMES = ("audio", "query", "top_k", "verifier", "beta", "checkpoint")
MAX_TOP_K = 100
FILE_MARK = {"_type": "gradio.FileData"}

_SERVED = re.compile(r"https?://[^/]+/(?:.*/)?gradio_api/file=(.+)")
_MAX_SHOWN = 60
_HOW_TO_UPLOAD = (
    'upload the file (gradio_client does so for handle_file("walk.wav")), then pass {"path": what the upload returned, '
    '"meta": {"_type": "gradio.FileData"}}.'
)


def checked_number(name: str, value: Any, least: float, most: float, otherwise: str, *, whole: bool = False) -> float:  # noqa: ANN401
    """Return a number as it came.

    Args:
        name: The argument's.
        value: Whatever a program passed.
        least: Smallest that is taken.
        most: Largest that is taken.
        otherwise: What leaving the argument out stands for.
        whole: Refuse fractions.

    Raises:
        ConfigError: Not a number (text and booleans are none), out of range, or a fraction.
    """
    number = value if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
    if not least <= number <= most or (whole and number != int(number)):
        kind = "a whole number" if whole else "a number"
        raise ConfigError(f"{name} is {shown(value)}; it must be {kind} from {least:g} to {most:g}; leave it out for {otherwise}.")
    return number


def checked_top_k(value: Any) -> int:  # noqa: ANN401
    """Check how many moments to return.

    Raises:
        ConfigError: As `checked_number`.
    """
    return int(checked_number("top_k", value, 1, MAX_TOP_K, "10", whole=True))


def checked_beta(value: Any) -> float | None:  # noqa: ANN401
    """Check the verifier's weight; None = the checkpoint's own.

    Raises:
        ConfigError: As `checked_number`.
    """
    return None if value is None else checked_number("beta", value, 0, 1, "the checkpoint's own")


def check_words(arguments: Sequence[Any], verifiers: Collection[str]) -> None:
    """Check every argument but the recording.

    Args:
        arguments: Values in the order of `NAMES`, without the first.
        verifiers: The names that are offered.

    Raises:
        ConfigError: Something of the wrong type or out of range.
    """
    query, top_k, verifier, beta, checkpoint = arguments
    if query is not None and not isinstance(query, str):
        raise ConfigError(f"query is {shown(query)}; it must be text, one query a call, such as “a dog barks twice”.")
    checked_query(query or "")
    checked_top_k(top_k)
    checked_beta(beta)
    if not isinstance(verifier, str) or verifier not in verifiers:
        raise ConfigError(f"Verifier {shown(verifier)} is not offered here; choose one of {', '.join(verifiers)}.")
    if checkpoint is not None and not isinstance(checkpoint, str):
        raise ConfigError(
            f"checkpoint is {shown(checkpoint)}; it must be a model's name; leave it out for the one that the page starts with."
        )


def check_raw(arguments: Sequence[Any], verifiers: Collection[str]) -> None:
    """Check what a program sent, before gradio makes text of what is none and takes the file.

    Args:
        arguments: Values in the order of `NAMES`; the first is a reference to an uploaded file.
        verifiers: The names that are offered.

    Raises:
        ConfigError: Too few or too many values, or one that cannot be used.
        AudioError: No reference to a file.
    """
    if len(arguments) != len(NAMES):
        raise ConfigError(
            f"{len(arguments)} values came; /retrieve takes {len(NAMES)}, in this order: {', '.join(NAMES)}; "
            'the defaults are 10, "none", null and null.'
        )
    audio, *words = arguments
    if not audio:
        raise AudioError(f"No recording was given; {_HOW_TO_UPLOAD}")
    if not (isinstance(audio, dict) and isinstance(audio.get("path"), str) and audio["path"] and audio.get("meta") == FILE_MARK):
        raise AudioError(f"audio is {shown(audio)}, which is no uploaded file; {_HOW_TO_UPLOAD}")
    check_words(words, verifiers)


def kept_upload(audio: Any, uploads: Path) -> Any:  # noqa: ANN401
    """Take the address under which gradio serves an upload of this page for the upload itself: this is how MCP clients name their files.

    Args:
        audio: A reference to a file.
        uploads: Folder of the page's uploads.

    Returns:
        The reference with the path of the file where it is one of the folder, and as it came otherwise.
    """
    served = _SERVED.fullmatch(audio["path"])
    path = Path(unquote(served[1])).resolve() if served else None
    inside = path is not None and path.is_relative_to(uploads.resolve()) and path.is_file()
    return {**audio, "path": str(path)} if inside else audio


def file_error(audio: Any) -> AudioError:  # noqa: ANN401
    """Say why gradio did not take a file whose reference was in order; where it lies is not told to the caller."""
    if addresses(audio):
        return AudioError(
            f"The recording could not be fetched from {shown(audio['path'])}; it must be a public address that gives the file itself, "
            "and none of this machine or its network; or upload the file."
        )
    return AudioError(f"The recording was not uploaded to this page, or is no longer kept; {_HOW_TO_UPLOAD}")


def addresses(value: Any) -> list[str]:  # noqa: ANN401
    """List the web addresses that gradio would fetch if it was given a value, wherever in it they stand."""
    return [path for path in paths(value) if path.lower().startswith(("http:", "https:"))]


def paths(value: Any) -> list[str]:  # noqa: ANN401
    """List what gradio would take for files if it was given a value, wherever in it they stand."""
    if isinstance(value, dict):
        path = value.get("path")
        here = [path] if isinstance(path, str) else []
        return here + [found for inner in value.values() for found in paths(inner)]
    if isinstance(value, list):
        return [found for inner in value for found in paths(inner)]
    return []


def shown(value: Any) -> str:  # noqa: ANN401
    """Show a value in a message: one line, and not all of a long one."""
    text = one_line(repr(value))
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"
