"""`predict`: find moments in recordings, or answer a manifest; and what the commands share: options, retriever, verifier, notes."""

from __future__ import annotations

import functools
import inspect
import json
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer

from qamdetr.errors import AudioError, ConfigError, DataError, QamDetrError
from qamdetr.export import EXPORTS
from qamdetr.files import write_whole

if TYPE_CHECKING:
    from qamdetr.data.manifest import QueryEntry
    from qamdetr.inference.retriever import MomentRetriever
    from qamdetr.types import Result
    from qamdetr.verifiers.base import Verifier

MAX_NOTES_SHOWN = 5


def option(default: Any, metavar: str, help_text: str, *names: str, argument: bool = False) -> Any:  # noqa: ANN401 - a field of any type
    """Make a field of a dataclass an option, or a word of the command without a name; `...` as its default where it must be given."""
    shown: dict[str, Any] = {"help": help_text, "metavar": metavar or None, "show_default": default not in (..., None, False)}
    told = typer.Argument(**shown) if argument else typer.Option(*names, **shown)
    return field(default=MISSING if default is ... else default, metadata={"typer": told})


def command(run: Callable[..., None]) -> Callable[..., None]:
    """Make a command of a function that takes objects of dataclasses, whose fields are its options; others tell their `help` alone."""
    kinds = [kind for kind in get_type_hints(run).values() if kind is not type(None)]

    @functools.wraps(run)
    def call(**values: Any) -> None:  # noqa: ANN401 - whatever the fields hold
        run(*(kind(**{item.name: values[item.name] for item in fields(kind)}) for kind in kinds))

    hints = {
        item.name: Annotated[get_type_hints(kind)[item.name], item.metadata.get("typer") or typer.Option(help=item.metadata["help"])]
        for kind in kinds
        for item in fields(kind)
    }
    parameters = [one.replace(annotation=hints[one.name]) for kind in kinds for one in inspect.signature(kind).parameters.values()]
    call.__annotations__, call.__signature__ = hints, inspect.Signature(parameters)  # type: ignore[attr-defined]
    return call


@dataclass(frozen=True, kw_only=True)
class EncoderOptions:
    """What encodes."""

    encoders: list[str] | None = option(
        None, "STREAM=ID_OR_FOLDER", "hub id or folder of a stream's encoder, in the place of its default; repeatable", "--encoder"
    )
    device: str | None = option(None, "NAME", "where the models run, such as cpu or cuda:0 (default: a GPU for big encoders)")

    def models(self) -> dict[str, str]:
        """Read `encoders`: stream -> hub id or folder."""
        return read_models(self.encoders or ())


def read_models(items: Sequence[str]) -> dict[str, str]:
    """Read what `--encoder` says: stream -> hub id or folder."""
    models = {}
    for item in items:
        stream, _, model = item.partition("=")
        if not stream or not model:
            raise ConfigError(f"--encoder {item!r} is not of the form STREAM=ID_OR_FOLDER, such as wavlm_base=microsoft/wavlm-base.")
        models[stream] = model
    return models


@dataclass(frozen=True, kw_only=True)
class RetrieverOptions(EncoderOptions):
    """What is to answer: a checkpoint or a system, its settings, and a verifier."""

    checkpoint: str | None = option(None, "NAME_OR_DIR", "a shipped checkpoint or a folder (default: qam-detr-pocket)")
    encoders: list[str] | None = option(
        None,
        "NAME_OR_STREAM=ID",
        "NAME: hear with that encoder, by the model qam-detr-open; STREAM=ID_OR_FOLDER: a stream's model",
        "--encoder",
    )
    system: str | None = option(None, "NAME_OR_FILE", "several checkpoints as one: submit1 to submit4 of the report, or a YAML file")
    members: list[str] | None = option(None, "NAME_OR_DIR", "with --system: a checkpoint in the place of its own; repeatable")
    overrides: list[str] | None = option(None, "a.b=c", "change a setting of the checkpoint or system; repeatable", "--set")
    verifier: str | None = option(None, "NAME", "none, pocket, qwen2.5-omni or server (default: none, or the system's own)")
    verifier_model: str | None = option(None, "ID_OR_FOLDER", "the verifier's model: hub id or folder, or the server's name of it")
    verifier_url: str | None = option(None, "URL", "of the server, such as http://localhost:8000/v1")
    audio_dir: str | None = option(None, "DIR", "recordings of the manifest, `{vid}.wav` or the like (default: audio/ beside it)")
    from_features: bool = option(False, "", "read the manifest's stored features and run no encoder", "--from-features")

    def models(self) -> dict[str, str]:
        """Read of `encoders` those that name a model: stream -> hub id or folder."""
        return read_models([item for item in self.encoders or () if "=" in item])

    @property
    def joint(self) -> str:
        """Of `encoders` the one in whose joint space recordings are heard; empty where none is named."""
        named = [item for item in self.encoders or () if "=" not in item]
        refuse(len(named) > 1, f"--encoder names {' and '.join(named)}", "one of them can hear a recording at a time")
        return named[0] if named else ""


@dataclass(frozen=True, kw_only=True)
class ChoiceOptions:
    """What of a recording is heard."""

    start_seconds: float | None = option(None, "SECONDS", "hear from here on", "--from")
    end_seconds: float | None = option(None, "SECONDS", "hear up to here", "--to")
    channel: int | None = option(None, "N", "the channel that is heard, from 1 (default: the mean of all)")
    track: int | None = option(None, "N", "of several audio tracks the one that is heard, from 1")

    def choice(self) -> dict[str, Any]:
        """Return what was said, as `retriever.encode` takes it."""
        names = ("channel", "track", "start_seconds", "end_seconds")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


@dataclass(frozen=True, kw_only=True)
class PredictOptions(RetrieverOptions, ChoiceOptions):
    """What `predict` can be told."""

    audio: list[str] | None = option(None, "[AUDIO]...", "recordings, - for stdin; each is searched for every query", argument=True)
    query: list[str] | None = option(None, "TEXT", "what to find; may be given several times")
    manifest: str | None = option(None, "JSONL", "field JSONL with queries, in the place of AUDIO and --query")
    top_k: int = option(10, "N", "most moments per query")
    everything: bool = option(False, "", "write all moments, and not only the likely ones", "--all")
    min_score: float | None = option(None, "S", "write the moments of this score or more, in the place of the likely ones")
    beta: float | None = option(None, "B", "weight of the verifier, 0 to 1 (default: the checkpoint's or system's)")
    protocol: Literal["exact", "official"] = option("exact", "", "official: whole seconds, as the field rounds")
    format: str | None = option(None, "NAME", f"{', '.join(EXPORTS)}; with --output where it is no text (default: table)")
    output: str | None = option(None, "PATH", "write there; a name such as Last_Inst_task6_1.output.jsonl gives the challenge's format")


def predict(options: PredictOptions) -> None:
    """Find the moments that match each query."""
    _check(options)
    if options.manifest is None:
        _predict_files(options)
    else:
        _predict_manifest(options, options.manifest, options.output or "")


def _check(options: PredictOptions) -> None:
    """Refuse now what would be refused after minutes of encoding."""
    from qamdetr.inference.rerank import check_beta
    from qamdetr.inference.retriever import check_query

    manifest, of_files = options.manifest is not None, options.choice() or options.everything or options.min_score is not None
    if manifest:
        taken = options.audio or options.query or options.format
        refuse(taken, "--manifest brings its own recordings, queries and format", "leave out AUDIO, --query and --format")
        refuse(options.output is None, "--manifest needs --output PATH for the predictions.")
        refuse(of_files, "--from, --to, --channel, --track, --all and --min-score go with AUDIO", "leave them out with --manifest")
    else:
        lacking = "Give at least one AUDIO file and one --query TEXT, or --manifest with --output; see `predict --help`."
        refuse(not options.audio or not options.query, lacking)
        refuse(options.audio_dir is not None, "--audio-dir goes with --manifest", "name the AUDIO files themselves")
        refuse(options.from_features, "--from-features goes with --manifest", "AUDIO files are encoded as they come")
    is_folder = options.output is not None and Path(options.output).is_dir()
    refuse(is_folder, f"--output {options.output} is a folder", "give the path of a file")
    refuse(options.top_k < 1, f"--top-k is {options.top_k}", "it must be at least 1")
    refuse(not 0 <= (options.min_score or 0) <= 1, f"--min-score is {options.min_score}", "it must be from 0 to 1")
    name = options.format or "table"
    refuse(name not in EXPORTS, f"Unknown format {name!r}", f"choose one of {', '.join(EXPORTS)}")
    to_nowhere = EXPORTS[name].to_file and options.output is None
    refuse(to_nowhere, f"--format {name} is no text for a terminal", "say with --output PATH where the file goes")
    if name in ("png", "svg"):
        from qamdetr.export.figure import check_figure

        check_figure(len(set(options.audio or ())), len(options.query or ()))
    check_options(options)
    if options.beta is not None:
        check_beta(options.beta)
    for query in options.query or ():
        check_query(query)


def _predict_files(options: PredictOptions) -> None:
    """Every recording with every query; a recording that cannot be read is told at the end, after the results of the others."""
    from qamdetr.export.text import Answer, verdict

    retriever = open_retriever(options)
    verifier = open_verifier(options, retriever)
    everything = options.everything or options.min_score is not None
    name = options.format or "table"
    results: list[Result] = []
    failures: list[str] = []
    paths = list(dict.fromkeys(options.audio or ()))
    for path in paths:
        found = _answer(retriever, path, options.query or (), verifier, options, failures)
        for text, queries in _noted(found).items() if options.output or name != "table" else ():  # a table has them itself
            note(f"{path}: {', '.join(map(repr, queries))}: {text}" if len(queries) < len(found) else f"{path}: {text}")
        for result in found:
            wanted = tuple(moment for moment in result.moments if moment.score >= (options.min_score or 0))
            results.append(replace(result, audio=path, moments=wanted))
    for result in results:
        if not result.found and not everything and name not in ("table", "json", "png", "svg"):
            note(f"{result.audio}: {result.query!r}: {verdict(result)}; nothing is written for it.")
    answers = [Answer(result, everything=everything) for result in results]
    if results and options.output is not None:
        EXPORTS[name].write(answers, Path(options.output))
    elif results:
        sys.stdout.write(EXPORTS[name].make(answers))
        sys.stdout.flush()
    raise_failures(failures, len(paths))


def _noted(results: Sequence[Result]) -> dict[str, list[str]]:
    """Return which queries each note is about."""
    about: dict[str, list[str]] = {}
    for result in results:
        for text in result.notes:
            about.setdefault(text, []).append(result.query)
    return about


def _answer(
    retriever: MomentRetriever, path: str, queries: Sequence[str], verifier: Verifier | str, options: PredictOptions, failures: list[str]
) -> list[Result]:
    """Encode a recording once and answer all queries; one that cannot be read gives no results and adds to `failures`."""
    try:
        recording = retriever.encode(path, **options.choice())
    except AudioError as error:
        failures.append(str(error))
        return []
    beta, protocol = options.beta, options.protocol
    return retriever.retrieve_many(recording, queries, top_k=options.top_k, verifier=verifier, beta=beta, protocol=protocol)


@dataclass(frozen=True, kw_only=True)
class HeardOptions(EncoderOptions, ChoiceOptions):
    """What `heard` can be told."""

    audio: list[str] = option(..., "AUDIO...", "recordings", argument=True)
    checkpoint: str | None = option(None, "NAME_OR_DIR", "a shipped checkpoint or a folder (default: qam-detr-pocket)")
    as_json: bool = option(False, "", "print one JSON list", "--json")


def heard(options: HeardOptions) -> None:
    """List the known kinds of sound that recordings hold, the surest first."""
    retriever = open_retriever(RetrieverOptions(encoders=options.encoders, device=options.device, checkpoint=options.checkpoint))
    told, failures = [], []
    for path in dict.fromkeys(options.audio):
        try:
            told.append((path, retriever.heard(retriever.encode(path, **options.choice()))))
        except AudioError as error:  # noqa: PERF203 - encoding takes far longer
            failures.append(str(error))
    if options.as_json:
        print(json.dumps([{"audio": path, "heard": [vars(row) for row in rows]} for path, rows in told], ensure_ascii=False, indent=1))
    for path, rows in () if options.as_json else told:
        lines = [f"{row.score:5.3f} {row.count:4d} x  {row.tier:8}{row.wording} ({row.kind})" for row in rows]
        print("\n  ".join([path, *(lines or ["none of the known sounds"])]))
    raise_failures(failures, len(set(options.audio)))


def _predict_manifest(options: PredictOptions, manifest: str, output: str) -> None:
    """Answer a manifest; predictions keep its order, and recordings that cannot be read are left out and told at the end."""
    from tqdm import tqdm

    from qamdetr.data.manifest import PredictionEntry, read_manifest, write_predictions
    from qamdetr.evaluation.submission import LABEL_FORM, OUTPUT_SUFFIX, is_label, output_text

    path, label = Path(output), Path(output).name.removesuffix(OUTPUT_SUFFIX)
    for_challenge = label != path.name
    misnamed = (
        f"--output {output} ends in {OUTPUT_SUFFIX}, as the challenge's files do; before that it must say {LABEL_FORM}, with a number"
    )
    refuse(for_challenge and not is_label(label), f"{misnamed} from 1 to 4. For ordinary predictions choose another ending.")
    entries = read_manifest(manifest, clamp=False)
    retriever, recordings, verifier = open_for_manifest(options, manifest, entries)
    if not isinstance(verifier, str):
        try:
            verifier.check()
        except QamDetrError as error:  # the decoder's ranking is still worth having
            note(f"verifier {verifier.name} cannot answer, so the decoder alone will rank. {error} Stop now if that is not what you want.")
    by_vid: dict[str, list[QueryEntry]] = {}
    for entry in entries:
        by_vid.setdefault(entry.vid, []).append(entry)
    answers: dict[str, Result] = {}
    failures: list[str] = []
    for vid, asked in tqdm(by_vid.items(), desc="recordings", unit="recording", file=sys.stderr, disable=None):
        results = _answer(retriever, str(recordings[vid]), [entry.query for entry in asked], verifier, options, failures)
        answers.update(zip((entry.qid for entry in asked), results, strict=bool(results)))
    counts = Counter(text for result in answers.values() for text in result.notes)
    for text, count in counts.most_common(MAX_NOTES_SHOWN):
        note(f"{count} of {len(answers)} queries: {text}")
    predictions = []
    for entry in entries:
        if entry.qid in answers:
            windows = [(round(m.start_seconds, 3), round(m.end_seconds, 3), round(m.score, 4)) for m in answers[entry.qid].moments]
            predictions.append(PredictionEntry(entry.qid, entry.query, entry.vid, tuple(windows), entry.numeric_qid))
    if for_challenge and failures:
        for_challenge, path = False, path.with_name(f"{label}.predictions.jsonl")
        note(f"{output} is not written, as the challenge wants an answer to every query; what was found is in {path}.")
    if predictions and for_challenge:
        text, left_out = output_text(predictions, entries)
        write_whole(path, text)
        note_left_out(left_out)
    elif predictions:
        write_predictions(path, predictions)
    raise_failures(failures, len(by_vid))


# What the commands that find moments share.


def check_options(options: RetrieverOptions) -> None:
    """Refuse options that do not go together, and values that nothing can be done with, before models are loaded."""
    from qamdetr.verifiers import check_verifier

    two_ways = "--checkpoint and --system are two ways to answer; give one of them (--members changes a system's checkpoints)."
    refuse(options.system is not None and options.checkpoint is not None, two_ways)
    refuse(options.members and options.system is None, "--members goes with --system", "give one checkpoint with --checkpoint")
    refuse(options.from_features and options.models(), "--encoder STREAM=ID goes with audio; --from-features runs no encoder.")
    refuse(options.joint and options.system, "--encoder NAME goes with one checkpoint, and --system has several", "leave one of both out")
    if options.verifier is not None:
        check_verifier(options.verifier)
    options.models()


def refuse(wrong: object, what: str, remedy: str = "") -> None:
    """Stop with a mistake where something is wrong."""
    if wrong:
        raise QamDetrError(what, remedy)


def open_retriever(options: RetrieverOptions, manifest: str = "", entries: Sequence[QueryEntry] = ()) -> MomentRetriever:
    """Open the checkpoint or system: for recordings, or, with `--from-features`, for the stored features of a manifest."""
    from qamdetr.inference.checkpoint import DEFAULT_CHECKPOINT, OPEN_CHECKPOINT
    from qamdetr.inference.retriever import MomentRetriever, load_system

    name = f"{options.checkpoint or OPEN_CHECKPOINT}:{options.joint}" if options.joint else options.checkpoint or DEFAULT_CHECKPOINT
    overrides, models = options.overrides or (), options.models()
    system = None if options.system is None else load_system(options.system, overrides, members=options.members or ())
    if options.from_features:
        source, overrides = (name, overrides) if system is None else (system, ())
        audio_dir = audio_folder(manifest, options.audio_dir)
        return MomentRetriever.from_features(source, entries, overrides=overrides, audio_dir=audio_dir, device=options.device)
    if system is not None:
        return MomentRetriever.from_system(system, device=options.device, encoder_models=models)
    return MomentRetriever.from_pretrained(name, overrides=overrides, device=options.device, encoder_models=models)


def open_for_manifest(
    options: RetrieverOptions, manifest: str, entries: Sequence[QueryEntry], *, must_verify: bool = False
) -> tuple[MomentRetriever, Mapping[str, str | Path], Verifier | str]:
    """Open what answers a manifest, from its recordings or, with `--from-features`, from stored features.

    What is missing, and a query that cannot be read, is told before minutes of encoding; so is a verifier that is not there with
    `must_verify`. Returns the retriever, `vid` -> what its `encode` takes, and the verifier.
    """
    from qamdetr.inference.retriever import check_query

    vids = {entry.vid: entry.vid for entry in entries}
    recordings: Mapping[str, str | Path] = vids if options.from_features else find_audio(entries, manifest, options.audio_dir)
    retriever = open_retriever(options, manifest, entries)
    verifier = open_verifier(options, retriever)
    if not isinstance(verifier, str):
        if options.from_features and verifier.needs_audio:
            try:
                find_audio(entries, manifest, options.audio_dir)
            except QamDetrError as error:
                what = f"Verifier {verifier.name} listens to the recordings, and --from-features does not bring them. {error}"
                raise DataError(f"{what} Or take --verifier pocket, which does with the features.") from error
        if must_verify:
            verifier.check()
    entry = entries[0]
    try:
        for entry in entries:
            retriever.encoder.encode_query(check_query(entry.query))
    except QamDetrError as error:
        raise DataError(f"{manifest}: query {entry.qid!r}: {error}") from error
    return retriever, recordings, verifier


def open_verifier(options: RetrieverOptions, retriever: MomentRetriever) -> Verifier | str:
    """Make the verifier that the options ask for, else the system's; `none` where nobody asks for one."""
    from qamdetr.verifiers import make_verifier

    name = options.verifier or retriever.verifier
    given: dict[str, Any] = {"model": options.verifier_model, "url": options.verifier_url}
    for option, value in given.items():
        if value is not None and name in ("none", "pocket"):
            raise QamDetrError(f"--verifier-{option} goes with --verifier qwen2.5-omni or server; verifier {name!r} has none.")
    settings = replace(retriever.verifier_settings, **{option: value for option, value in given.items() if value is not None})
    return make_verifier(name, settings) or name


def audio_folder(manifest: str, audio_dir: str | None) -> Path:
    """Return where the recordings of a manifest are."""
    return Path(manifest).parent / "audio" if audio_dir is None else Path(audio_dir)


def find_audio(entries: Sequence[QueryEntry], manifest: str, audio_dir: str | None) -> dict[str, Path]:
    """Map each vid of the manifest to its file; all missing ones are told at once, before any work."""
    from qamdetr.audio import find_recordings

    folder = audio_folder(manifest, audio_dir)
    found = find_recordings(folder)
    vids = list(dict.fromkeys(entry.vid for entry in entries))
    missing = [vid for vid in vids if vid not in found]
    if missing:
        shown = textwrap.shorten(", ".join(missing), 400, placeholder=" …")
        raise DataError(f"{len(missing)} of {len(vids)} recordings of {manifest} are not in {folder}: {shown}", "give their folder")
    return {vid: found[vid] for vid in vids}


def raise_failures(failures: Sequence[str], total: int) -> None:
    """Tell the recordings that could not be used, if there are any, as one error."""
    if failures:
        several = f"{len(failures)} of {total} recordings could not be used: {' | '.join(failures)}"
        raise AudioError(failures[0] if total == 1 else several)


def print_error(error: str) -> None:
    """Tell a mistake, in one line."""
    print(f"qamdetr: error: {' '.join(error.split())}", file=sys.stderr, flush=True)


def note(text: str) -> None:
    """Tell the user something beside the results."""
    print(f"qamdetr: {text}", file=sys.stderr)


def note_left_out(windows: int) -> None:
    """Tell of windows that the challenge does not take."""
    if windows:
        note(f"{windows} windows were empty or past the end of their recording and were left out.")
