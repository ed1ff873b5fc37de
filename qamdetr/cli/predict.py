"""`predict`: find moments in recordings, or answer a manifest."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qamdetr.cli.common import find_audio, note, raise_failures, write_whole
from qamdetr.errors import AudioError, DataError, QamDetrError
from qamdetr.export import FORMATS, export

if TYPE_CHECKING:
    from qamdetr.cli.common import Commands
    from qamdetr.data.manifest import QueryEntry
    from qamdetr.inference.retriever import MomentRetriever
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
    parser.add_argument("--from-features", action="store_true", help="read the manifest's features (public files or cache), not its audio")
    parser.add_argument(
        "--set", metavar="a.b=c", dest="overrides", action="append", default=[], help="with --from-features: change a setting; repeatable"
    )
    parser.add_argument("--top-k", type=int, default=10, metavar="N", help="most moments per query (default: %(default)s)")
    parser.add_argument("--checkpoint", metavar="NAME_OR_DIR", help="a shipped checkpoint or a folder (default: qam-detr-pocket)")
    parser.add_argument("--verifier", default="none", metavar="NAME", help="none or pocket (default: %(default)s)")
    parser.add_argument("--beta", type=float, metavar="B", help="weight of the verifier, 0 to 1 (default: the checkpoint's)")
    parser.add_argument("--protocol", choices=("exact", "official"), default="exact", help="official: whole seconds, as the field rounds")
    parser.add_argument("--format", choices=FORMATS, metavar="NAME", help=f"{', '.join(FORMATS)} (default: table)")
    parser.add_argument("--output", metavar="PATH", help="write there and not to stdout; needed with --manifest")
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
    if args.output is not None and Path(args.output).is_dir():
        raise QamDetrError(f"--output {args.output} is a folder; give the path of a file.")
    _check_features(args)
    _check_settings(args)
    if args.manifest is None:
        _predict_files(args)
    else:
        _predict_manifest(args)


def _check_features(args: argparse.Namespace) -> None:
    """Refuse options that go only with stored features, or not with them."""
    if args.from_features and args.manifest is None:
        raise QamDetrError("--from-features goes with --manifest; AUDIO files are encoded as they come.")
    if args.from_features and args.verifier != "none":
        raise QamDetrError(f"--verifier {args.verifier} listens to the audio, which --from-features does without; leave one of them out.")
    if args.overrides and not args.from_features:
        raise QamDetrError("--set goes with --from-features; otherwise the checkpoint's own settings apply.")


def _check_settings(args: argparse.Namespace) -> None:
    """Refuse now what the retriever would refuse after minutes of encoding."""
    from qamdetr.inference.rerank import check_beta
    from qamdetr.inference.retriever import check_query
    from qamdetr.inference.verifiers.registry import get_verifier

    if args.top_k < 1:
        raise QamDetrError(f"--top-k is {args.top_k}; it must be at least 1.")
    if args.beta is not None:
        check_beta(args.beta)
    get_verifier(args.verifier)
    for query in args.query:
        check_query(query)


def _predict_files(args: argparse.Namespace) -> None:
    """Every recording with every query; a recording that cannot be read is told at the end, after the results of the others."""
    retriever = _load_retriever(args)
    results: list[Result] = []
    failures: list[str] = []
    paths = list(dict.fromkeys(args.audio))
    for path in paths:
        results += _retrieve(retriever, path, args.query, args, failures)
    for result in results:
        if not result.found and (args.format or "table") not in ("table", "json"):
            note(f"{result.audio}: {result.query!r} is not in this recording; nothing is written for it.")
    if results:
        text = export(results, args.format or "table")
        if args.output is None:
            sys.stdout.write(text)
            sys.stdout.flush()
        else:
            write_whole(Path(args.output), text)
    raise_failures(failures, len(paths))


def _predict_manifest(args: argparse.Namespace) -> None:
    """Answer a manifest; predictions keep its order, and recordings that cannot be read are left out and told at the end."""
    from tqdm import tqdm

    from qamdetr.data.manifest import PredictionEntry, read_manifest, write_predictions

    entries = read_manifest(args.manifest, clamp=False)
    retriever: MomentRetriever
    recordings: Mapping[str, Path | str]
    if args.from_features:
        from qamdetr.inference.from_features import open_stored
        from qamdetr.inference.pretrained import DEFAULT_CHECKPOINT

        audio_dir = Path(args.manifest).parent / "audio" if args.audio_dir is None else Path(args.audio_dir)
        retriever = open_stored(args.checkpoint or DEFAULT_CHECKPOINT, entries, args.overrides, audio_dir=audio_dir)
        recordings = {entry.vid: entry.vid for entry in entries}
    else:
        recordings = find_audio(entries, args.manifest, args.audio_dir)
        retriever = _load_retriever(args)
    for entry in entries:
        _check_manifest_query(retriever, entry, args.manifest)
    by_vid: dict[str, list[QueryEntry]] = {}
    for entry in entries:
        by_vid.setdefault(entry.vid, []).append(entry)
    answers: dict[str, Result] = {}
    failures: list[str] = []
    for vid, asked in tqdm(by_vid.items(), desc="recordings", unit="recording", file=sys.stderr, disable=None):
        results = _retrieve(retriever, str(recordings[vid]), [entry.query for entry in asked], args, failures)
        answers.update(zip((entry.qid for entry in asked), results, strict=bool(results)))
    predictions = [
        PredictionEntry(
            entry.qid,
            entry.query,
            entry.vid,
            tuple((round(m.start_seconds, 3), round(m.end_seconds, 3), round(m.score, 4)) for m in answers[entry.qid].moments),
            entry.numeric_qid,
        )
        for entry in entries
        if entry.qid in answers
    ]
    if predictions:
        write_predictions(args.output, predictions)
    raise_failures(failures, len(by_vid))


def _check_manifest_query(retriever: MomentRetriever, entry: QueryEntry, manifest: str) -> None:
    """Refuse a query that cannot be read before minutes of encoding, and name it."""
    from qamdetr.inference.retriever import check_query

    try:
        retriever.encoder.encode_query(check_query(entry.query))
    except QamDetrError as error:
        raise DataError(f"{manifest}: query {entry.qid!r}: {error}") from error


def _load_retriever(args: argparse.Namespace) -> MomentRetriever:
    from qamdetr.inference.retriever import MomentRetriever

    return MomentRetriever.from_pretrained() if args.checkpoint is None else MomentRetriever.from_pretrained(args.checkpoint)


def _retrieve(retriever: MomentRetriever, path: str, queries: Sequence[str], args: argparse.Namespace, failures: list[str]) -> list[Result]:
    """Encode a recording once and answer all queries; one that cannot be read gives no results and adds to `failures`."""
    try:
        recording = retriever.encode(path)
    except AudioError as error:
        failures.append(str(error))
        return []
    results = retriever.retrieve_many(recording, queries, top_k=args.top_k, verifier=args.verifier, beta=args.beta, protocol=args.protocol)
    for text in dict.fromkeys(text for result in results for text in result.notes):
        note(f"{path}: {text}")
    return [dataclasses.replace(result, audio=path) for result in results]
