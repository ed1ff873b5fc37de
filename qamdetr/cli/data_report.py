"""`data-report`: what manifests hold, as a table."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qamdetr.cli.common import Commands


def add(commands: Commands) -> None:
    """Add the command's options."""
    parser = commands.add_parser(
        "data-report", help="count what manifests hold", description="Print queries, recordings, window lengths and defects of manifests."
    )
    parser.add_argument("manifests", nargs="+", metavar="JSONL", help="field JSONL files")
    parser.set_defaults(command=run)


def run(args: argparse.Namespace) -> None:
    """Print the table."""
    from qamdetr.evaluation.data_report import data_report

    print(data_report([Path(path) for path in args.manifests]))
