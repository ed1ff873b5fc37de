"""The command line: `python -m qamdetr COMMAND`; one module per command.

Results go to stdout, everything else to stderr. Exit status 0 on success; 2 on a user's mistake, with one line that says what is wrong;
1 where `extract` had to skip some of its inputs.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TextIO

from qamdetr import __version__
from qamdetr.cli import calibrate, data_report, evaluate, extract, predict, submit, synthesize
from qamdetr.cli.common import Command, Parser, print_error
from qamdetr.errors import QamDetrError

_COMMANDS = (predict, evaluate, calibrate, submit, synthesize, extract, data_report)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status."""
    for stream in (sys.stdout, sys.stderr):
        _write_unicode(stream)
    try:
        args = _parse(argv)
        command: Command = args.command
        command(args)
    except QamDetrError as error:
        return _fail(str(error), error.exit_status)
    except BrokenPipeError:
        # The reader of our output is gone (`| head`); nothing may be written to it at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _fail(f"{error}; check the path, its permissions and the free space.", QamDetrError.exit_status)
    except KeyboardInterrupt:
        return 130
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _build_parser()
    args, rest = parser.parse_known_args(argv)
    # argparse takes AUDIO files from one place only; people also write them after an option.
    if rest and hasattr(args, "audio") and not any(item.startswith("-") for item in rest):
        args.audio += rest
    elif rest:
        parser.error(f"unknown arguments: {' '.join(rest)}")
    return args


def _build_parser() -> Parser:
    parser = Parser(prog="python -m qamdetr", description="Find the moments of a recording that match a sentence.")
    parser.add_argument("--version", action="version", version=f"qamdetr {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in _COMMANDS:
        command.add(commands)
    return parser


def _write_unicode(stream: TextIO) -> None:
    """Let a stream take any name or query, whatever the terminal's encoding; undecodable bytes of names appear as escapes."""
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(encoding="utf-8", errors="backslashreplace")


def _fail(message: str, status: int) -> int:
    print_error(message)
    return status
