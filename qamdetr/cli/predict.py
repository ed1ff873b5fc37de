"""`predict`: find moments in recordings, or answer a manifest."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from qamdetr.cli.common import note, raise_failures
from qamdetr.cli.retrieval import add_options, check_options, open_retriever, open_verifier, retrieve
from qamdetr.errors import QamDetrError
from qamdetr.export import EXPORTS
from qamdetr.export.text import as_answers, as_text

if TYPE_CHECKING:
    from qamdetr.cli.common import Commands
    from qamdetr.types import Result


def add(commands: Commands) -> None:
    """Add the command's options."""
    parser = commands.add_parser("predict", help="find moments in recordings", description="Find the moments that match each query.")
    parser.add_argument("audio", nargs="*", metavar="AUDIO", help="recordings; each is searched for every query")
    parser.add_argument("--query", action="append", default=[], metavar="TEXT", help="what to find; may be given several times")
    parser.add_argument("--manifest", metavar="JSONL", help="field JSONL with queries, in the place of AUDIO and --query")
    parser.add_argument(
        "--audio-dir", metavar="DIR", help="recordings of the manifest, `{vid}.wav` or the like (default: audio/ beside it)"
    )
    parser.add_argument(
        "--from-features", action="store_true", help="read the manifest's features (public files or cache) and run no encoder"
    )
    add_options(parser)
    parser.add_argument("--top-k", type=int, default=10, metavar="N", help="most moments per query (default: %(default)s)")
    parser.add_argument("--beta", type=float, metavar="B", help="weight of the verifier, 0 to 1 (default: the checkpoint's or system's)")
    parser.add_argument("--protocol", choices=("exact", "official"), default="exact", help="official: whole seconds, as the field rounds")
    texts = ", ".join(name for name, info in EXPORTS.items() if not info.to_file)
    files = ", ".join(name for name, info in EXPORTS.items() if info.to_file)
    parser.add_argument(
        "--format",
        choices=tuple(EXPORTS),
        metavar="NAME",
        help=f"{texts}; with --output also {files} (default: table)",
    )
    parser.add_argument(
        "--output",
        metavar="PATH",
        help="write there and not to stdout; needed with --manifest, where a name such as Last_Inst_task6_1.output.jsonl gives the "
        "challenge's format",
    )
    parser.set_defaults(command=run)


def run(args: argparse.Namespace) -> None:
    """Check the options, then work."""
    if args.manifest is not None and (args.audio or args.query or args.format):
        raise QamDetrError("--manifest brings its own recordings, queries and format; leave out AUDIO, --query and --format.")
    if args.manifest is not None and args.output is None:
        raise QamDetrError("--manifest needs --output PATH for the predictions.")
    if args.manifest is None and (not args.audio or not args.query):
        raise QamDetrError("Give at least one AUDIO file and one --query TEXT, or --manifest with --output; see `predict --help`.")
    if args.manifest is None and args.audio_dir is not None:
        raise QamDetrError("--audio-dir goes with --manifest; name the AUDIO files themselves.")
    if args.manifest is None and args.from_features:
        raise QamDetrError("--from-features goes with --manifest; AUDIO files are encoded as they come.")
    if args.from_features and args.encoders:
        raise QamDetrError("--encoder goes with audio; --from-features runs no encoder.")
    if args.output is not None and Path(args.output).is_dir():
        raise QamDetrError(f"--output {args.output} is a folder; give the path of a file.")
    _check_file_format(args)
    _check_settings(args)
    if args.manifest is None:
        _predict_files(args)
    else:
        from qamdetr.cli.predict_manifest import predict_manifest

        predict_manifest(args)


def _check_file_format(args: argparse.Namespace) -> None:
    if args.format is None or not EXPORTS[args.format].to_file:
        return
    if args.output is None:
        raise QamDetrError(f"--format {args.format} is no text for a terminal; say with --output PATH where the file goes.")
    if args.format in ("png", "svg"):
        from qamdetr.export.figure import MAX_LANES

        recordings = len(set(args.audio))
        if recordings > 1:
            raise QamDetrError(f"A figure shows one recording; {recordings} were given; draw each with a command of its own.")
        if len(args.query) > MAX_LANES:
            raise QamDetrError(f"A figure has room for {MAX_LANES} queries; {len(args.query)} were given; ask for fewer at once.")


def _check_settings(args: argparse.Namespace) -> None:
    """Refuse now what the retriever would refuse after minutes of encoding."""
    from qamdetr.inference.rerank import check_beta
    from qamdetr.inference.retriever import check_query

    if args.top_k < 1:
        raise QamDetrError(f"--top-k is {args.top_k}; it must be at least 1.")
    if args.beta is not None:
        check_beta(args.beta)
    check_options(args)
    for query in args.query:
        check_query(query)


def _predict_files(args: argparse.Namespace) -> None:
    """Every recording with every query; a recording that cannot be read is told at the end, after the results of the others."""
    retriever = open_retriever(args)
    verifier = open_verifier(args, retriever)
    results: list[Result] = []
    failures: list[str] = []
    paths = list(dict.fromkeys(args.audio))
    for path in paths:
        found = retrieve(retriever, path, args.query, verifier, args, failures)
        for text in dict.fromkeys(text for result in found for text in result.notes):
            note(f"{path}: {text}")
        results += [dataclasses.replace(result, audio=path) for result in found]
    for result in results:
        if not result.found and (args.format or "table") not in ("table", "json", "png", "svg"):
            note(f"{result.audio}: {result.query!r} is not in this recording; nothing is written for it.")
    if results:
        _write(results, args.format or "table", args.output)
    raise_failures(failures, len(paths))


def _write(results: list[Result], file_format: str, output: str | None) -> None:
    if output is None:
        sys.stdout.write(as_text(results, file_format))
        sys.stdout.flush()
    else:
        EXPORTS[file_format].write(as_answers(results), Path(output))
