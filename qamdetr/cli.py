"""The command line: `python -m qamdetr predict | evaluate | synthesize | extract`.

Results go to stdout, everything else to stderr. Exit status 0 on success; 2 on a user's mistake, with one line that says what is wrong.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO, get_type_hints

from qamdetr import __version__
from qamdetr.config import DataConfig
from qamdetr.data.scene_recipe import SceneRecipe
from qamdetr.errors import AudioError, DataError, QamDetrError
from qamdetr.export import FORMATS, export

if TYPE_CHECKING:
    from qamdetr.data.manifest import QueryEntry
    from qamdetr.inference.retriever import MomentRetriever
    from qamdetr.types import Result

_MISTAKE = 2
_NAMES_SHOWN = 20


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status."""
    for stream in (sys.stdout, sys.stderr):
        _write_unicode(stream)
    try:
        args = _parse(argv)
        command: _Command = args.command
        command(args)
    except QamDetrError as error:
        return _fail(str(error))
    except BrokenPipeError:
        # The reader of our output is gone (`| head`); nothing may be written to it at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _fail(f"{error}; check the path, its permissions and the free space.")
    except KeyboardInterrupt:
        return 130
    return 0


class _Parser(argparse.ArgumentParser):
    """Reports a mistake as one line, like every other error of the program."""

    def error(self, message: str) -> NoReturn:
        raise QamDetrError(f"{message}; see `{self.prog} --help`.")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _build_parser()
    args, rest = parser.parse_known_args(argv)
    # argparse takes AUDIO files from one place only; people also write them after an option.
    if rest and hasattr(args, "audio") and not any(item.startswith("-") for item in rest):
        args.audio += rest
    elif rest:
        parser.error(f"unknown arguments: {' '.join(rest)}")
    return args


def _build_parser() -> _Parser:
    parser = _Parser(prog="python -m qamdetr", description="Find the moments of a recording that match a sentence.")
    parser.add_argument("--version", action="version", version=f"qamdetr {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_predict(commands)
    _add_evaluate(commands)
    _add_synthesize(commands)
    _add_extract(commands)
    return parser


def _add_predict(commands: _Commands) -> None:
    parser = commands.add_parser("predict", help="find moments in recordings", description="Find the moments that match each query.")
    parser.add_argument("audio", nargs="*", metavar="AUDIO", help="recordings; each is searched for every query")
    parser.add_argument("--query", action="append", default=[], metavar="TEXT", help="what to find; may be given several times")
    parser.add_argument("--manifest", metavar="JSONL", help="field JSONL with queries, in the place of AUDIO and --query")
    parser.add_argument(
        "--audio-dir", metavar="DIR", help="recordings of the manifest, `{vid}.wav` or the like (default: audio/ beside it)"
    )
    parser.add_argument("--top-k", type=int, default=10, metavar="N", help="most moments per query (default: %(default)s)")
    parser.add_argument("--checkpoint", metavar="NAME_OR_DIR", help="a shipped checkpoint or a folder (default: qam-detr-pocket)")
    parser.add_argument("--verifier", default="none", metavar="NAME", help="none or pocket (default: %(default)s)")
    parser.add_argument("--beta", type=float, metavar="B", help="weight of the verifier, 0 to 1 (default: the checkpoint's)")
    parser.add_argument("--protocol", choices=("exact", "official"), default="exact", help="official: whole seconds, as the field rounds")
    parser.add_argument("--format", choices=FORMATS, metavar="NAME", help=f"{', '.join(FORMATS)} (default: table)")
    parser.add_argument("--output", metavar="PATH", help="write there and not to stdout; needed with --manifest")
    parser.set_defaults(command=_predict)


def _add_evaluate(commands: _Commands) -> None:
    parser = commands.add_parser("evaluate", help="score predictions", description="Score predictions as the official evaluator does.")
    parser.add_argument("predictions", metavar="PREDICTIONS", help="field JSONL with pred_relevant_windows")
    parser.add_argument("truth", metavar="GROUND_TRUTH", help="field JSONL with relevant_windows")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(command=_evaluate)


def _add_synthesize(commands: _Commands) -> None:
    parser = commands.add_parser(
        "synthesize",
        help="make recordings with known moments",
        description="Overlay captioned clips on backgrounds: long recordings with queries and true windows.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--clips", required=True, metavar="DIR", help="captioned clips: audio files and clips.csv")
    parser.add_argument("--backgrounds", metavar="DIR", help="long background recordings (none: quiet pink noise)")
    parser.add_argument("--output", required=True, metavar="DIR", help="where audio/, manifest.jsonl and the data card go")
    hints = get_type_hints(SceneRecipe)
    for field in dataclasses.fields(SceneRecipe):
        option = "--" + field.name.replace("_", "-")
        parser.add_argument(option, type=hints[field.name], default=field.default, metavar="X", help=field.metadata["help"])
    parser.set_defaults(command=_synthesize)


def _add_extract(commands: _Commands) -> None:
    data = DataConfig()
    parser = commands.add_parser("extract", help="encode recordings ahead of training", description="Fill the feature cache for training.")
    parser.add_argument("--manifest", required=True, metavar="JSONL", help="field JSONL whose queries and recordings are encoded")
    parser.add_argument("--audio-dir", metavar="DIR", help="its recordings (default: audio/ beside it)")
    parser.add_argument("--combo", default=data.combo, metavar="NAME", help="encoders to run (default: %(default)s)")
    parser.add_argument("--feature-dir", default=data.feature_dir, metavar="DIR", help="the cache (default: %(default)s)")
    parser.set_defaults(command=_extract)


def _predict(args: argparse.Namespace) -> None:
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
    _check_settings(args)
    if args.manifest is None:
        _predict_files(args)
    else:
        _predict_manifest(args)


def _check_settings(args: argparse.Namespace) -> None:
    """Refuse now what the retriever would refuse after minutes of encoding."""
    from qamdetr.inference.rerank import check_beta
    from qamdetr.inference.retriever import check_query
    from qamdetr.inference.verifier import get_verifier

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
            _note(f"{result.audio}: {result.query!r} is not in this recording; nothing is written for it.")
    if results:
        text = export(results, args.format or "table")
        if args.output is None:
            sys.stdout.write(text)
            sys.stdout.flush()
        else:
            _write_whole(Path(args.output), text)
    _raise_failures(failures, len(paths))


def _predict_manifest(args: argparse.Namespace) -> None:
    """Answer a manifest; predictions keep its order, and recordings that cannot be read are left out and told at the end."""
    from tqdm import tqdm

    from qamdetr.data.manifest import PredictionEntry, read_manifest, write_predictions

    entries = read_manifest(args.manifest, clamp=False)
    recordings = _find_audio(entries, args.manifest, args.audio_dir)
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
    _raise_failures(failures, len(by_vid))


def _check_manifest_query(retriever: MomentRetriever, entry: QueryEntry, manifest: str) -> None:
    """Refuse a query that cannot be read before minutes of encoding, and name it."""
    from qamdetr.inference.retriever import check_query

    try:
        retriever.encoder.encode_query(check_query(entry.query))
    except QamDetrError as error:
        raise DataError(f"{manifest}: query {entry.qid!r}: {error}") from error


def _evaluate(args: argparse.Namespace) -> None:
    from qamdetr.data.manifest import read_manifest, read_predictions
    from qamdetr.evaluation.metrics import evaluate

    # Unclamped, as the official evaluator reads it.
    truth = read_manifest(args.truth, clamp=False)
    predictions = read_predictions(args.predictions)
    scores = evaluate(predictions, truth)
    if args.json:
        print(json.dumps(scores))
    else:
        print(
            "\n".join(f"{name:<12}{value:>8.2f}" if name != "num_queries" else f"{name:<12}{value:>8d}" for name, value in scores.items())
        )
    skipped = sum(not entry.relevant_windows for entry in truth)
    extra = len({entry.qid for entry in predictions} - {entry.qid for entry in truth})
    if skipped:
        _note(f"{skipped} of {len(truth)} queries have no true windows and were left out of the scores.")
    if extra:
        _note(f"{extra} predictions belong to no query of the ground truth and were not read.")


def _synthesize(args: argparse.Namespace) -> None:
    from qamdetr.data.synthesis import synthesize

    recipe = SceneRecipe(**{field.name: getattr(args, field.name) for field in dataclasses.fields(SceneRecipe)})
    print(synthesize(args.clips, args.backgrounds, args.output, recipe))


def _extract(args: argparse.Namespace) -> None:
    from qamdetr.data.manifest import read_manifest
    from qamdetr.features.encoders import load_combo
    from qamdetr.features.extract import extract

    entries = read_manifest(args.manifest, clamp=False)
    recordings = _find_audio(entries, args.manifest, args.audio_dir)
    report = extract(recordings.items(), [entry.query for entry in entries], Path(args.feature_dir), load_combo(args.combo))
    _note(f"encoded {report.recordings} recordings and {report.queries} queries into {args.feature_dir}.")
    _raise_failures([reason for _, reason in report.unreadable], len(recordings))


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
    for note in dict.fromkeys(note for result in results for note in result.notes):
        _note(f"{path}: {note}")
    return [dataclasses.replace(result, audio=path) for result in results]


def _find_audio(entries: Sequence[QueryEntry], manifest: str, audio_dir: str | None) -> dict[str, Path]:
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


def _raise_failures(failures: Sequence[str], total: int) -> None:
    if not failures:
        return
    if total == 1:
        raise AudioError(failures[0])
    raise AudioError(f"{len(failures)} of {total} recordings could not be used: {' | '.join(failures)}")


def _write_whole(path: Path, text: str) -> None:
    """Write a file that appears whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _write_unicode(stream: TextIO) -> None:
    """Let a stream take any name or query, whatever the terminal's encoding; undecodable bytes of names appear as escapes."""
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(encoding="utf-8", errors="backslashreplace")


def _note(text: str) -> None:
    print(f"qamdetr: {text}", file=sys.stderr)


def _fail(message: str) -> int:
    print(f"qamdetr: error: {' '.join(message.split())}", file=sys.stderr)
    return _MISTAKE


if TYPE_CHECKING:
    from collections.abc import Callable

    _Command = Callable[[argparse.Namespace], None]
    _Commands = argparse._SubParsersAction[_Parser]
