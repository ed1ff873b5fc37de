"""`evaluate`, `calibrate`, `submit`, `data-report` and `synthesize`: what is done with files of the field's formats."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qamdetr.cli.predict import RetrieverOptions, check_options, note, note_left_out, open_for_manifest, option, raise_failures, refuse
from qamdetr.config import SYSTEM_DIR, load_config
from qamdetr.errors import AudioError, QamDetrError
from qamdetr.files import write_whole
from qamdetr.synthesis import SceneRecipe

if TYPE_CHECKING:
    from qamdetr.data.manifest import QueryEntry
    from qamdetr.evaluation.calibration import BetaCurve
    from qamdetr.evaluation.compare import Difference
    from qamdetr.evaluation.figures import FigureSystem

HARMLESS = ("data.", *(f"verifier.{key}=" for key in ("batch_size", "cache_dir", "retries", "timeout_seconds", "url")))
"""What `--set` may say where a weight is written: beginnings of overrides that change no answer."""


@dataclass(frozen=True)
class EvaluateOptions:
    """What `evaluate` can be told."""

    predictions: str = option(..., "PREDICTIONS", "field JSONL with pred_relevant_windows, or a submission's", argument=True)
    truth: str = option(..., "GROUND_TRUTH", "field JSONL with relevant_windows", argument=True)
    as_json: bool = option(False, "", "print one JSON object", "--json")
    thresholds: bool = option(False, "", "also print R1 and mAP at each IoU from 0.50 to 0.95", "--thresholds")
    by_length: bool = option(False, "", "also score true windows of <= 2, 2-5, 5-10, 10-30 and > 30 s apart", "--by-length")
    bootstrap: int | None = option(None, "N", "95 % confidence intervals from N draws of recordings (10000 is usual)")
    against: str | None = option(None, "OTHER", "a second predictions file: differences, their intervals, and a paired test")
    figure: str | None = option(None, "PATH", "draw R1 and AP by IoU and by window length: .png, .svg or .pdf")
    seed: int = option(0, "S", "of the draws")


def evaluate(options: EvaluateOptions) -> None:
    """Score predictions as the official evaluator does."""
    from qamdetr.data.manifest import read_manifest
    from qamdetr.evaluation.compare import DEFAULT_RESAMPLES, MAX_RESAMPLES, compare
    from qamdetr.evaluation.figures import check_figure_path, save_figure
    from qamdetr.evaluation.metrics import METRICS, summarise

    drawn = 1 if options.bootstrap is None else options.bootstrap
    refuse(not 1 <= drawn <= MAX_RESAMPLES, f"--bootstrap is {drawn}; it must be from 1 to {MAX_RESAMPLES} (10000 is usual).")
    refuse(options.seed < 0, f"--seed is {options.seed}; it must be at least 0.")
    if options.figure is not None:
        check_figure_path(options.figure)
    # Unclamped, as the official evaluator reads it.
    truth = read_manifest(options.truth, clamp=False)
    system = _read_system(options.predictions, truth, options)
    summary = summarise(system.scores)
    answer = summary.table()
    text = [_table(answer, system)]
    if options.thresholds:
        named = {"R1": summary.recall_at_1, "mAP": summary.average_precision}
        answer["thresholds"] = {name: {f"{iou:g}": round(value, 2) for iou, value in values.items()} for name, values in named.items()}
        rows = [[f"{iou:.2f}", *(f"{values[iou]:.2f}" for values in named.values())] for iou in summary.recall_at_1]
        text.append(_columns([["IoU", *named], *rows], 10, 10))
    if options.by_length:
        tables = answer["by_length"] = {bucket.name: bucket.table() for bucket in system.lengths}
        head = ["length", *(name.removeprefix("num_") for name in system.lengths[0].table())]
        text.append(_columns([head, *([bucket, *map(_cell, table.values())] for bucket, table in tables.items())], 10, 10))
    if options.bootstrap is not None:
        intervals = {name: [round(system.intervals[name].low, 2), round(system.intervals[name].high, 2)] for name in METRICS}
        answer["bootstrap"] = {"resamples": options.bootstrap, "seed": options.seed, "confidence": 0.95, "intervals": intervals}
    systems = {options.predictions: system}
    if options.against is not None:
        other = systems[options.against] = _read_system(options.against, truth, options)
        differences = compare(system.scores, other.scores, resamples=options.bootstrap or DEFAULT_RESAMPLES, seed=options.seed)
        answer["against"] = {
            "predictions": options.against,
            "scores": summarise(other.scores).table(),
            "differences": {name: _difference_object(difference) for name, difference in differences.items()},
        }
        text.append(_difference_table(options, system, other, differences))
    if options.figure is not None:
        save_figure(list(systems.values()), options.figure)
        note(f"the figure is in {options.figure}.")
    print(json.dumps(answer, ensure_ascii=False) if options.as_json else "\n\n".join(text))
    left_out = sum(not entry.relevant_windows for entry in truth)
    if left_out:
        note(f"{left_out} of {len(truth)} queries have no true windows and were left out of the scores.")


def _read_system(path: str, truth: Sequence[QueryEntry], options: EvaluateOptions) -> FigureSystem:
    from qamdetr.data.manifest import read_predictions
    from qamdetr.evaluation.compare import bootstrap
    from qamdetr.evaluation.figures import FigureSystem, curve_names
    from qamdetr.evaluation.metrics import METRICS, match, query_scores, score_by_length

    predictions = read_predictions(path, allow_pairs=True)
    try:
        matching = match(predictions, truth)
    except QamDetrError as error:
        raise type(error)(f"{path}: {error}") from error
    scores, names = query_scores(matching), list(METRICS)
    if options.figure is not None:
        names = list(dict.fromkeys([*METRICS, *curve_names()]))
    intervals = {} if options.bootstrap is None else bootstrap(scores, names, resamples=options.bootstrap, seed=options.seed)
    extra = len({entry.qid for entry in predictions} - {entry.qid for entry in truth})
    if extra:
        note(f"{path}: {extra} predictions belong to no query of the ground truth and were not read.")
    if matching.num_other_recordings:
        note(f"{path}: {matching.num_other_recordings} predictions name another recording (`vid`) than the ground truth; were files mixed?")
    letter = "" if options.against is None else "A: " if path == options.predictions else "B: "
    return FigureSystem(letter + Path(path).stem, scores, score_by_length(matching), intervals)


def _columns(rows: Sequence[Sequence[str]], first: int, width: int) -> str:
    """Lay out a table: the first column to the left in `first` letters, the others to the right in `width`."""
    return "\n".join(f"{row[0]:<{first}}" + "".join(f"{value:>{width}}" for value in row[1:]) for row in rows)


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)


def _table(scores: Mapping[str, float], system: FigureSystem) -> str:
    intervals = {name: f"   95 % {interval.low:6.2f} to {interval.high:6.2f}" for name, interval in system.intervals.items()}
    return "\n".join(f"{name:<12}{_cell(value):>8}{intervals.get(name, '')}" for name, value in scores.items())


def _difference_object(difference: Difference) -> dict[str, Any]:
    """Write a difference as JSON has it."""
    interval = difference.difference
    rounded = {"difference": round(interval.value, 2), "low": round(interval.low, 2), "high": round(interval.high, 2)}
    return {**rounded, "p_value": round(difference.p_value, 6), "verdict": difference.verdict}


def _difference_table(options: EvaluateOptions, system: FigureSystem, other: FigureSystem, differences: Mapping[str, Difference]) -> str:
    lines = [f"A = {options.predictions}", f"B = {options.against}"]
    lines.append(f"{'':<12}{'A':>8}{'B':>8}{'A - B':>9}   {'95 % interval':<18}{'p':>8}")
    means = zip(system.scores.columns().mean(axis=0), other.scores.columns().mean(axis=0), strict=True)
    for (name, difference), (one, two) in zip(differences.items(), means, strict=True):
        interval = difference.difference
        span = f"{interval.low:+.2f} to {interval.high:+.2f}"
        lines.append(f"{name:<12}{one:>8.2f}{two:>8.2f}{interval.value:>+9.2f}   {span:<18}{difference.p_value:>8.4f}")
    first = sorted(differences, key=lambda name: name != "R1@0.7")  # which ranks the challenge
    return "\n".join([*lines, "", *(_sentence(name, differences[name]) for name in first)])


def _sentence(name: str, difference: Difference) -> str:
    value, p = difference.difference.value, f"p = {difference.p_value:.4f}"
    if difference.verdict == "undecided":
        return f"{name}: no difference shown at the 5 % level (A - B = {value:+.2f}, {p})."
    first, second = ("A", "B") if difference.verdict == "better" else ("B", "A")
    return f"{name}: {first} is better than {second} by {abs(value):.2f} points ({p})."


@dataclass(frozen=True, kw_only=True)
class CalibrateOptions(RetrieverOptions):
    """What `calibrate` can be told."""

    manifest: str = option(..., "JSONL", "field JSONL with relevant_windows, of no training recordings")
    grid: list[float] | None = option(None, "B", "a weight to try; repeatable (default: 0.00, 0.05, … 1.00)")
    dry_run: bool = option(False, "", "write nothing but the figure", "--dry-run")
    figure: str | None = option(None, "PATH", "draw the curve: .png, .svg or .pdf")
    as_json: bool = option(False, "", "print one JSON object", "--json")


def calibrate(options: CalibrateOptions) -> None:
    """Fit to validation, and write into the checkpoint or system: with --verifier its weight beta, by R1@0.7, then mAP.

    Without, what scores mean and from where a sound is found, or perhaps there.
    """
    from tqdm import tqdm

    from qamdetr.data.manifest import read_manifest
    from qamdetr.evaluation.calibration import FINE_GRID, calibrate_beta, verify_manifest
    from qamdetr.evaluation.figures import check_figure_path, save_beta_figure
    from qamdetr.evaluation.metrics import MAX_PREDICTIONS
    from qamdetr.inference.rerank import check_beta

    check_options(options)
    for beta in options.grid or ():
        check_beta(beta)
    if options.figure is not None:
        check_figure_path(options.figure)
    path, name, top_k, fits = _open_target(options)
    if name == "none":
        given = options.grid or options.figure
        refuse(given, "--grid and --figure are about the weight of a verifier", "give --verifier, or leave them out")
        _calibrate_answers(options, path)
        return
    # Unclamped, as the official evaluator reads it.
    entries = read_manifest(options.manifest, clamp=False)
    counted = [entry for entry in entries if entry.relevant_windows]
    untrue = f"{options.manifest}: none of the {len(entries)} queries has `relevant_windows`"
    refuse(not counted, untrue, "give a validation manifest")
    retriever, recordings, verifier = open_for_manifest(options, options.manifest, counted, must_verify=True)
    found = verify_manifest(retriever, recordings, counted, verifier, top_k=max(MAX_PREDICTIONS, top_k))
    parts = list(tqdm(found, desc="recordings", unit="recording", total=len(recordings), file=sys.stderr, disable=None))
    failures = [str(part) for part in parts if isinstance(part, AudioError)]
    answers = [answer for part in parts if not isinstance(part, AudioError) for answer in part]
    problems = [answer.problem for answer in answers if answer.verifier_scores is None]
    if answers and len(problems) == len(answers):
        raise QamDetrError(f"No query of {len(answers)} was verified, so nothing was written: {problems[0]}")
    if answers:
        curve = calibrate_beta(answers, options.grid or FINE_GRID)
        told = _curve_object(curve, name, len(problems))
        print(json.dumps(told, ensure_ascii=False) if options.as_json else _curve_text(curve, name))
        if len(counted) < len(entries):
            note(f"{len(entries) - len(counted)} of {len(entries)} queries have no true windows and were left out.")
        if problems:
            note(f"{len(problems)} of {len(answers)} queries are ranked by the decoder alone at every beta. {problems[0]}")
        if options.figure is not None:
            title = f"{path.parent.name if options.system is None else path.stem}, verifier {name}, {len(answers)} queries"
            save_beta_figure(curve, title, options.figure)
            note(f"the figure is in {options.figure}.")
        if failures:
            note("nothing was written, as the weight would be chosen on a part of the recordings.")
        elif curve.is_worse:
            note(f"nothing was written, as {curve.chosen.beta:g}, the best of the grid, is worse than the decoder alone; try a finer grid.")
        elif not options.dry_run:
            note(_store(options, path, name, curve.chosen.beta, fits=fits))
    raise_failures(failures, len({entry.vid for entry in counted}))


def _curve_text(curve: BetaCurve, verifier: str) -> str:
    from qamdetr.evaluation.calibration import CURVE_METRICS

    rows = [["beta", *CURVE_METRICS]]
    for point in curve.shown:
        beta = f"{point.beta:.2f}" if point.beta == round(point.beta, 2) else f"{point.beta:g}"
        rows.append([beta, *(f"{point.metrics[name]:.2f}" for name in CURVE_METRICS)])
    marks = ["", *(", ".join(curve.marks(point)) for point in curve.shown)]
    lines = [f"{line}   {mark}".rstrip() for line, mark in zip(_columns(rows, 6, 9).splitlines(), marks, strict=True)]
    return "\n".join([*lines, "", _verdict(curve, verifier)])


def _verdict(curve: BetaCurve, verifier: str) -> str:
    """Say whether the verifier helps, and how sure that is."""
    if curve.chosen.beta == 0:
        return f"Chosen: 0, the decoder alone; no weight of {verifier} scores better on these queries."
    chosen = f"Chosen: {curve.chosen.beta:g}."
    if curve.is_worse:
        tried, alone = curve.chosen.metrics, curve.decoder_alone.metrics
        compared = ", ".join(f"{name} {tried[name]:.2f} against {alone[name]:.2f}" for name in ("R1@0.7", "mAP"))
        return f"{chosen} It is the best of the grid, but worse than the decoder alone: {compared}."
    if not curve.gain:
        return f"{chosen} All queries belong to one recording, so whether it beats the decoder alone by more than chance cannot be said."
    gain = curve.gain["R1@0.7"]
    interval = gain.difference
    counted = f", the choice among {len(curve.points)} counted in" if len(curve.points) > 1 else ""
    numbers = f"95 % {interval.low:+.2f} to {interval.high:+.2f}; p = {gain.p_value:.4f}{counted}"
    if gain.verdict == "undecided":
        return f"{chosen} No difference from the decoder alone is shown: R1@0.7 {interval.value:+.2f} points ({numbers})."
    return f"{chosen} R1@0.7 is {gain.verdict} than the decoder alone's by {abs(interval.value):.2f} points ({numbers})."


def _curve_object(curve: BetaCurve, verifier: str, num_unverified: int) -> dict[str, Any]:
    return {
        "verifier": verifier,
        "beta": curve.chosen.beta,
        "num_queries": curve.chosen.scores.num_queries,
        "num_unverified": num_unverified,
        "worse_than_decoder": curve.is_worse,
        "curve": [
            {"beta": point.beta, **{name: round(value, 2) for name, value in point.metrics.items()}, "marks": curve.marks(point)}
            for point in curve.shown
        ],
        "gain": {name: _difference_object(difference) for name, difference in curve.gain.items()},
    }


def _open_target(options: CalibrateOptions) -> tuple[Path, str, int, bool]:
    """Find the file that keeps the weight: a checkpoint's, one for each verifier, or a system of the user's own, that of its own verifier.

    Returns it with the verifier, the number of candidates that are verified, and whether it is a file for such a weight.
    """
    from qamdetr.inference.checkpoint import CONFIG_FILE, find_checkpoint
    from qamdetr.inference.retriever import load_system
    from qamdetr.verifiers import verifier_names

    none, *others = verifier_names()
    if options.system is not None:
        system, path = load_system(options.system, options.overrides or (), members=options.members or ()), Path(options.system)
        verifier, top_k = options.verifier or system.verify_with, system.top_k
        # With other members it is another system; those that come with the program stay as they are.
        is_own = path.is_file() and SYSTEM_DIR.resolve() not in path.resolve().parents and not options.members
        fits = is_own and verifier == system.verify_with
    elif options.checkpoint is not None:
        path, verifier, fits = find_checkpoint(options.checkpoint) / CONFIG_FILE, options.verifier or none, True
        top_k = load_config(path, options.overrides or ()).inference.top_k
    else:
        raise QamDetrError("The weight is written into a checkpoint or system", "name it with --checkpoint or --system")
    lacking = f"The verifier is {verifier}, which has no weight to choose"
    refuse(verifier == none and options.system is not None, lacking, f"give --verifier with one of {', '.join(others)}")
    return path, verifier, top_k, fits


def _store(options: CalibrateOptions, path: Path, verifier: str, beta: float, *, fits: bool) -> str:
    """Write the weight where it `fits` and no option makes other answers than the file alone would; tell where, or what to write where."""
    from qamdetr.inference.checkpoint import beta_line, store_in_checkpoint, store_in_system

    is_system = options.system is not None
    line = f"`{beta_line(beta)}`" if is_system else f"inference.beta_by_verifier.{verifier}: {beta:g}"
    changes = _changes(options)
    changes += [] if options.verifier_model is None else [f"--verifier-model {options.verifier_model}"]
    if fits and not changes:
        if is_system:
            store_in_system(path, beta)
        else:
            store_in_checkpoint(path.parent, lambda own: replace(own, beta_by_verifier={**own.beta_by_verifier, verifier: beta}))
        return f"{line} is now in {path}."
    reason = f", as the weight goes with {' '.join(changes)}; put that and" if changes else "; put"
    if is_system:
        return f"nothing was written{reason} `verify_with: {verifier}` and {line} into a system file of your own."
    return f"nothing was written{reason} `{line}` into the config.yaml of a copy."


def _changes(options: CalibrateOptions) -> list[str]:
    """Return the overrides with which it is not the checkpoint or system alone that is calibrated."""
    return [f"--set {override}" for override in options.overrides or () if not override.startswith(HARMLESS)]


def _calibrate_answers(options: CalibrateOptions, path: Path) -> None:
    """Fit what scores mean, and from where a sound is found or perhaps there, to the decoder's answers; write it into the checkpoint."""
    from tqdm import tqdm

    from qamdetr.data.manifest import read_manifest
    from qamdetr.evaluation.calibration import BestMoment, calibrate_answers, verify_manifest
    from qamdetr.inference.checkpoint import store_in_checkpoint

    entries = [entry for entry in read_manifest(options.manifest, clamp=False) if entry.relevant_windows is not None]
    refuse(not entries, f"{options.manifest}: no query has `relevant_windows`", "give a validation manifest")
    one_sided = f"{options.manifest} has no queries of both kinds, about sounds that are there and about sounds that are not"
    refuse(len({bool(entry.relevant_windows) for entry in entries}) < 2, one_sided, "give such ones, with empty `relevant_windows`")
    retriever, recordings, verifier = open_for_manifest(options, options.manifest, entries)
    found = verify_manifest(retriever, recordings, entries, verifier, top_k=1)
    parts = list(tqdm(found, desc="recordings", unit="recording", total=len(recordings), file=sys.stderr, disable=None))
    answers = [answer for part in parts if not isinstance(part, AudioError) for answer in part]
    best = [
        BestMoment.of([(*each.window, each.decoder_score) for each in answer.candidates], answer.entry.relevant_windows or ())
        for answer in answers
    ]
    fitted = calibrate_answers(best, retriever.config.inference)
    names = ("found_threshold", "perhaps_threshold", "score_calibration")
    values = {name: getattr(fitted.inference, name) for name in names}
    told = {"num_queries": len(best), **fitted.metrics, **values}
    print(
        json.dumps(told, ensure_ascii=False) if options.as_json else _columns([[name, f"  {value}"] for name, value in told.items()], 20, 1)
    )
    failures, changes = [str(part) for part in parts if isinstance(part, AudioError)], _changes(options)
    if failures or changes:
        note(f"nothing was written, as this is fitted {'to a part of the recordings' if failures else 'with ' + ' '.join(changes)}.")
    elif not options.dry_run:
        note(f"inference.{', '.join(names)} are now in {store_in_checkpoint(path.parent, lambda own: replace(own, **values))}.")
    raise_failures(failures, len(recordings))


@dataclass(frozen=True)
class SubmitOptions:
    """What `submit` can be told."""

    files: list[str] = option(..., "FILE...", "the predictions file; with --check each system's .jsonl and .yaml", argument=True)
    manifest: str = option(..., "JSONL", "the evaluation set")
    check: bool = option(False, "", "check files and write nothing", "--check")
    label: str | None = option(None, "LABEL", "Last_Inst_task6_N, N from 1 to 4")
    output: str | None = option(None, "DIR", "where the two files go")
    metadata: str | None = option(None, "YAML", "what only you know: name, abbreviation, authors, data, ensemble")
    checkpoint: str | None = option(None, "NAME_OR_DIR", "fills in streams, parameters and loss")
    dev_scores: tuple[str, str] | None = option(None, "PREDICTIONS GROUND_TRUTH", "fills in the development results")


def submit(options: SubmitOptions) -> None:
    """Write {label}.output.jsonl and {label}.meta.yaml for DCASE 2026 Task 6, or check such files and list every problem."""
    from qamdetr.data.manifest import read_manifest

    (_check_submission if options.check else _write_submission)(options, read_manifest(options.manifest, clamp=False))


def _check_submission(options: SubmitOptions, manifest: Sequence[QueryEntry]) -> None:
    from qamdetr.evaluation.submission import check_submission

    for name in ("label", "output", "metadata", "checkpoint", "dev_scores"):
        refuse(getattr(options, name) is not None, f"--{name.replace('_', '-')} is for writing", "leave it out with --check")
    outputs = sorted(path for path in options.files if Path(path).suffix == ".jsonl")
    metadata = sorted(path for path in options.files if Path(path).suffix in (".yaml", ".yml"))
    strange = [path for path in options.files if path not in (*outputs, *metadata)]
    if strange:
        raise QamDetrError(f"{strange[0]} is neither .jsonl nor .yaml", "give each system's output and metadata files")
    problems = check_submission(outputs, metadata, manifest)
    if problems:
        print("\n".join(" ".join(problem.split()) for problem in problems))
        raise QamDetrError(f"the submission has {len(problems)} problem{'s' * (len(problems) > 1)}, listed above; mend and check again.")
    print(f"OK: {len(outputs)} system{'s' * (len(outputs) > 1)}, {len(manifest)} queries.")


def _write_submission(options: SubmitOptions, manifest: Sequence[QueryEntry]) -> None:
    from qamdetr.data.manifest import read_manifest, read_predictions
    from qamdetr.evaluation import submission
    from qamdetr.evaluation.metrics import score

    if options.label is None or options.output is None:
        raise QamDetrError("A submission needs --label and --output DIR; to check files, give --check.")
    several = f"{len(options.files)} files were given; a submission is written from one predictions file."
    refuse(len(options.files) > 1, several)
    misnamed = f"--label {options.label!r} does not have the form {submission.LABEL_FORM}, with a number from 1 to 4."
    refuse(not submission.is_label(options.label), misnamed)
    paths = [Path(options.output) / f"{options.label}{suffix}" for suffix in (submission.OUTPUT_SUFFIX, submission.METADATA_SUFFIX)]
    for path in paths:
        refuse(path.exists(), f"{path} is there already", "choose another --label or --output, or remove it")
    text, left_out = submission.output_text(read_predictions(options.files[0]), manifest)
    # The most certain last: a person's word is above what was read or measured.
    given = {} if options.metadata is None else submission.read_metadata(options.metadata)
    measured = described = {}
    if options.dev_scores is not None:
        predictions, truth = options.dev_scores
        scores = score(read_predictions(predictions, allow_pairs=True), read_manifest(truth, clamp=False)).table()
        measured = {"results": {"development_testing": {f"Recall1@{iou}": scores[f"R1@{iou}"] for iou in (0.7, 0.5)}}}
    if options.checkpoint is not None:
        described = submission.describe_checkpoint(options.checkpoint)
    metadata = submission.fill_metadata(measured, described, given, {"submission": {"label": options.label}})
    for path, content in zip(paths, (text, submission.metadata_text(metadata)), strict=True):
        write_whole(path, content)
        print(path)
    note_left_out(left_out)
    for problem in submission.check_submission(paths[:1], paths[1:], manifest):
        note(f"not ready yet: {problem}")


def data_report(manifests: Annotated[list[Path], typer.Argument(metavar="JSONL...", help="field JSONL files")]) -> None:
    """Print queries, recordings, window lengths and defects of manifests."""
    from qamdetr.evaluation.data_report import data_report as report

    print(report(manifests))


@dataclass(frozen=True)
class SynthesizeOptions:
    """Where `synthesize` reads and writes; the recipe's own fields are its other options."""

    clips: str = option(..., "DIR", "captioned clips: audio files and clips.csv, or a folder per sound")
    output: str = option(..., "DIR", "where audio/, manifest.jsonl and the data card go")
    backgrounds: str | None = option(None, "DIR", "long background recordings (none: quiet pink noise)")


def synthesize(options: SynthesizeOptions, recipe: SceneRecipe) -> None:
    """Overlay captioned clips on backgrounds: long recordings with queries and true windows."""
    from qamdetr.synthesis.synthesize import synthesize as make

    print(make(options.clips, options.backgrounds, options.output, recipe))
