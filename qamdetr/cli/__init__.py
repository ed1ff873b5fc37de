"""The command line: `qamdetr COMMAND`, also `python -m qamdetr COMMAND`.

Results go to stdout, everything else to stderr. Exit status 0 on success; 2 on a user's mistake, with one line that says what is wrong;
1 where `extract` had to skip some of its inputs.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from qamdetr import __version__
from qamdetr.cli.evaluate import calibrate, data_report, evaluate, submit, synthesize
from qamdetr.cli.extract import extract
from qamdetr.cli.predict import command, heard, predict, print_error
from qamdetr.errors import QamDetrError

# What every version of typer calls a mistake in the words of a command; it keeps the class in a different place now and then.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]

app = typer.Typer(
    help="Find the moments of a recording that match a sentence.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _run in (predict, heard, evaluate, calibrate, submit, synthesize, extract, data_report):
    app.command()(_run if _run is data_report else command(_run))


def _print_version(asked: bool) -> None:
    if asked:
        print(f"qamdetr {__version__}")
        raise typer.Exit


@app.callback()
def _begin(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Run before each command."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status."""
    for stream in (sys.stdout, sys.stderr):
        # Any name or query can be written, whatever the terminal's encoding; undecodable bytes of names appear as escapes.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        return typer.main.get_command(app).main(args=None if argv is None else list(argv), prog_name="qamdetr", standalone_mode=False) or 0
    except UsageError as error:
        print_error(_said(error, sys.argv[1:] if argv is None else argv))
        return 2
    except QamDetrError as error:
        print_error(str(error))
        return error.exit_status
    except BrokenPipeError:
        # The reader of our output is gone (`| head`); nothing may be written to it at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print_error(f"{error}; check the path, its permissions and the free space.")
        return 2
    except (KeyboardInterrupt, typer.Abort):
        return 130


def _said(error: Any, words: Sequence[str]) -> str:  # noqa: ANN401 - typer's own class
    """Say in one line which word of the command is wrong, with its value, and where help is."""
    names: Sequence[str] = getattr(getattr(error, "param", None), "opts", ())
    value = next((value for name, value in itertools.pairwise(words) if name in names), None)
    said = error.format_message() if value is None else f"{names[0]} is {value!r}: {error.message}"
    context = getattr(error, "ctx", None)
    return f"{said.rstrip('.')}; see `{context.command_path if context else 'qamdetr'} --help`."
