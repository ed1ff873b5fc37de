"""`extract`: encode recordings ahead of training."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from qamdetr.cli.common import add_encoder_option, note, print_error, read_encoders
from qamdetr.cli.processes import Processes, joined_processes
from qamdetr.config import DataConfig
from qamdetr.errors import ConfigError, DataError, IncompleteError, QamDetrError

if TYPE_CHECKING:
    from qamdetr.cli.common import Commands
    from qamdetr.features.extract import ExtractionReport

_DESCRIPTION = """Run a combo's encoders over the recordings and queries of a manifest, or over a folder of recordings, and fill the feature
cache for training. It can be stopped at any moment and started again with the same command. Several processes or machines share the
work: accelerate launch --num_processes 4 -m qamdetr extract ... (without GPUs: torchrun --nproc_per_node 4 -m qamdetr extract ...); each
takes a GPU of its own where there is one. Exit status 1 when some recordings were skipped because they cannot be read."""


@dataclass(frozen=True)
class _Work:
    """What is to be encoded: recordings by vid, their lengths as a manifest states them, queries, and recordings that are not there."""

    recordings: Mapping[str, Path]
    seconds: Mapping[str, float] = field(default_factory=dict)
    queries: tuple[str, ...] = ()
    absent: tuple[tuple[str, str], ...] = ()


def add(commands: Commands) -> None:
    """Add the command's options."""
    data = DataConfig()
    parser = commands.add_parser("extract", help="encode recordings ahead of training", description=_DESCRIPTION)
    parser.add_argument("--manifest", metavar="JSONL", help="field JSONL whose queries and recordings are encoded")
    parser.add_argument("--audio-dir", metavar="DIR", help="its recordings (default: audio/ beside it); alone: every recording in DIR")
    parser.add_argument("--queries", metavar="FILE", help="text file with more queries, one on each line")
    parser.add_argument("--combo", default=data.combo, metavar="NAME", help="encoders to run (default: %(default)s)")
    add_encoder_option(parser)
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default=data.encoder_dtype, help="of the encoders (default: %(default)s)"
    )
    parser.add_argument("--device", metavar="DEVICE", help="where they run, such as cpu or cuda:1 (default: a GPU where there is one)")
    parser.add_argument("--feature-dir", default=data.feature_dir, metavar="DIR", help="the cache (default: %(default)s)")
    parser.set_defaults(command=run)


def run(args: argparse.Namespace) -> None:
    """Fill the cache; say what was new, what was there and what was skipped."""
    models = _models(args)
    work = _find_work(args)
    with joined_processes() as processes:
        outcome: ExtractionReport | QamDetrError
        try:
            outcome = _extract(args, work, models, processes)
        except QamDetrError as error:
            outcome = error
            if processes.count > 1:
                note(f"process {processes.index + 1} of {processes.count} stops: {error}")
        outcomes = processes.gather(outcome)
        try:
            _conclude(outcomes, work, args.feature_dir, quiet=processes.index > 0)
        except QamDetrError as error:
            if processes.count == 1:
                raise
            if processes.index == 0:
                print_error(str(error))
            # A launcher ends all processes when the first one fails, so nobody leaves before the result is told.
            processes.gather(None)
            raise SystemExit(error.exit_status) from None


def _extract(args: argparse.Namespace, work: _Work, models: Mapping[str, str], processes: Processes) -> ExtractionReport:
    """Encode this process's share."""
    from tqdm import tqdm

    from qamdetr.features.base import get_combo, open_streams
    from qamdetr.features.extract import Share, extract

    def tell(reason: str) -> None:
        tqdm.write(f"qamdetr: skipped: {reason}", file=sys.stderr)

    combo = open_streams(*get_combo(args.combo), name=args.combo, models=models, dtype=args.dtype, device=processes.device(args.device))
    if processes.index == 0:
        for _, reason in work.absent:
            tell(reason)
    return extract(
        work.recordings.items(),
        work.queries,
        Path(args.feature_dir),
        combo,
        share=Share(processes.index, processes.count),
        seconds=work.seconds,
        on_skip=tell,
    )


def _conclude(outcomes: list[ExtractionReport | QamDetrError], work: _Work, feature_dir: str, *, quiet: bool) -> None:
    """Sum up all processes.

    Raises:
        QamDetrError: What stopped one of them.
        IncompleteError: Something was skipped.
    """
    from qamdetr.features.extract import ExtractionReport

    total = ExtractionReport(skipped=work.absent)
    for outcome in outcomes:
        if isinstance(outcome, QamDetrError):
            raise outcome
        total += outcome
    if not quiet:
        new, known = _counted(total.recordings, total.queries), _counted(total.cached_recordings, total.cached_queries)
        note(f"encoded {new} into {feature_dir}; {known} were there already.")
        for _, reason in sorted(total.skipped):
            note(f"skipped: {reason}")
    if total.skipped:
        asked = len(work.recordings) + len(work.absent) + len(set(work.queries))
        raise IncompleteError(
            f"{len(total.skipped)} of {asked} recordings and queries were skipped (listed above), all others are in the cache; "
            "mend them and run the same command again, or go on without them."
        )


def _find_work(args: argparse.Namespace) -> _Work:
    """Read the manifest or list the folder.

    Raises:
        QamDetrError: Neither is named, or nothing is there.
    """
    from qamdetr.audio import AUDIO_SUFFIXES, find_recordings
    from qamdetr.data.manifest import read_manifest

    more = _read_queries(args.queries)
    if args.manifest is None:
        if args.audio_dir is None:
            raise ConfigError("Give --manifest JSONL for its recordings and queries, or --audio-dir DIR for all recordings of a folder.")
        found = find_recordings(args.audio_dir)
        if not found:
            raise DataError(f"{args.audio_dir} holds no recordings; give a folder of files that end in {', '.join(AUDIO_SUFFIXES)}.")
        return _Work(found, queries=more)
    entries = read_manifest(args.manifest, clamp=False)
    folder = Path(args.manifest).parent / "audio" if args.audio_dir is None else Path(args.audio_dir)
    found = find_recordings(folder)
    seconds = {entry.vid: entry.duration_seconds for entry in entries}
    absent = sorted(set(seconds) - set(found))
    if len(absent) == len(seconds):
        raise DataError(
            f"None of the {len(seconds)} recordings of {args.manifest} is in {folder}, such as {absent[0]!r}; give their folder."
        )
    return _Work(
        {vid: found[vid] for vid in seconds if vid in found},
        seconds,
        (*(entry.query for entry in entries), *more),
        tuple((vid, f"{vid!r} of {args.manifest} is not in {folder}") for vid in absent),
    )


def _read_queries(path: str | None) -> tuple[str, ...]:
    if path is None:
        return ()
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror or error}; give a text file with one query on each line.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}); give a text file with one query on each line.") from error
    queries = tuple(line.strip() for line in lines if line.strip())
    if not queries:
        raise DataError(f"{path} holds no queries; give a text file with one query on each line.")
    return queries


def _models(args: argparse.Namespace) -> dict[str, str]:
    """Read `--encoder`, and check the streams against the combo."""
    streams = _streams(args.combo)
    models = read_encoders(args.encoders)
    for stream in models:
        if stream not in streams:
            raise ConfigError(f"--encoder: combo {args.combo!r} has no stream {stream!r}, only {', '.join(streams)}.")
    return models


def _streams(name: str) -> list[str]:
    from qamdetr.features.base import get_combo

    combo = get_combo(name)
    return list(dict.fromkeys((*combo.audio_streams, *combo.text_streams)))


def _counted(recordings: int, queries: int) -> str:
    return f"{recordings} recording{'s' * (recordings != 1)} and {queries} quer{'y' if queries == 1 else 'ies'}"
