"""`extract`: encode recordings ahead of training."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from qamdetr.cli.common import find_audio, note, raise_failures
from qamdetr.config import DataConfig

if TYPE_CHECKING:
    from qamdetr.cli.common import Commands


def add(commands: Commands) -> None:
    """Add the command's options."""
    data = DataConfig()
    parser = commands.add_parser("extract", help="encode recordings ahead of training", description="Fill the feature cache for training.")
    parser.add_argument("--manifest", required=True, metavar="JSONL", help="field JSONL whose queries and recordings are encoded")
    parser.add_argument("--audio-dir", metavar="DIR", help="its recordings (default: audio/ beside it)")
    parser.add_argument("--combo", default=data.combo, metavar="NAME", help="encoders to run (default: %(default)s)")
    parser.add_argument("--feature-dir", default=data.feature_dir, metavar="DIR", help="the cache (default: %(default)s)")
    parser.set_defaults(command=run)


def run(args: argparse.Namespace) -> None:
    """Fill the cache and say what was new."""
    from qamdetr.data.manifest import read_manifest
    from qamdetr.features.encoders import load_combo
    from qamdetr.features.extract import extract

    entries = read_manifest(args.manifest, clamp=False)
    recordings = find_audio(entries, args.manifest, args.audio_dir)
    report = extract(recordings.items(), [entry.query for entry in entries], Path(args.feature_dir), load_combo(args.combo))
    note(f"encoded {report.recordings} recordings and {report.queries} queries into {args.feature_dir}.")
    raise_failures([reason for _, reason in report.unreadable], len(recordings))
