"""`calibrate`: choose the weight of the verifier on validation, show the curve, and write the weight to where retrievers look for it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qamdetr.cli.evaluate import check_figure, columns, difference_object
from qamdetr.cli.predict import RetrieverOptions, check_options, note, open_for_manifest, option, raise_failures, with_options
from qamdetr.config import SYSTEM_DIR, load_config
from qamdetr.errors import AudioError, CheckpointError, DataError, QamDetrError

if TYPE_CHECKING:
    from qamdetr.data.manifest import QueryEntry
    from qamdetr.evaluation.calibration import BetaCurve, VerifiedAnswer

HARMLESS = ("data.", *(f"verifier.{key}=" for key in ("batch_size", "cache_dir", "retries", "timeout_seconds", "url")))
"""What `--set` may say where a weight is written: beginnings of overrides that change no answer."""


@dataclass(frozen=True, kw_only=True)
class CalibrateOptions(RetrieverOptions):
    """What `calibrate` can be told."""

    manifest: str = option(..., "JSONL", "field JSONL with relevant_windows, of no training recordings")
    grid: list[float] | None = option(None, "B ...", "weights to try (default: 0.00, 0.05, … 1.00)")
    dry_run: bool = option(False, "", "write nothing but the figure", "--dry-run")
    figure: str | None = option(None, "PATH", "draw the curve: .png, .svg or .pdf")
    as_json: bool = option(False, "", "print one JSON object", "--json")


@with_options(CalibrateOptions)
def calibrate(options: CalibrateOptions) -> None:
    """Choose beta, the weight of the verifier, on validation by R1@0.7, then mAP; write it into the checkpoint or system."""
    from qamdetr.data.manifest import read_manifest
    from qamdetr.evaluation.calibration import FINE_GRID, calibrate_beta

    _check(options)
    target = _open_target(options)
    verifier = options.verifier or target.verifier
    _check_verifier(verifier)
    if not options.dry_run:
        target.check_writable(verifier)
    # Unclamped, as the official evaluator reads it.
    entries = read_manifest(options.manifest, clamp=False)
    counted = [entry for entry in entries if entry.relevant_windows]
    if not counted:
        raise DataError(f"{options.manifest}: none of the {len(entries)} queries has `relevant_windows`", "give a validation manifest")
    answers, failures = _ask(target, counted, options)
    problems = [answer.problem for answer in answers if answer.verifier_scores is None]
    if answers and len(problems) == len(answers):
        raise QamDetrError(f"No query of {len(answers)} was verified, so nothing was written: {problems[0]}")
    if answers:
        curve = calibrate_beta(answers, options.grid or FINE_GRID)
        print(json.dumps(_object(curve, verifier, len(problems)), ensure_ascii=False) if options.as_json else _text(curve, verifier))
        _tell(len(entries) - len(counted), len(entries), problems, len(answers))
        if options.figure is not None:
            _draw(curve, f"{target.name}, verifier {verifier}", options.figure)
        if failures:
            note("nothing was written, as the weight would be chosen on a part of the recordings.")
        elif curve.is_worse:
            note(f"nothing was written, as {curve.chosen.beta:g}, the best of the grid, is worse than the decoder alone; try a finer grid.")
        elif not options.dry_run:
            note(target.store(verifier, curve.chosen.beta))
    raise_failures(failures, len({entry.vid for entry in counted}))


def _check(options: CalibrateOptions) -> None:
    """Refuse now what would fail after the work."""
    from qamdetr.inference.rerank import check_beta

    check_options(options)
    for beta in options.grid or ():
        check_beta(beta)
    check_figure(options.figure)


def _check_verifier(name: str) -> None:
    from qamdetr.verifiers import verifier_names
    from qamdetr.verifiers.base import DEFAULT_VERIFIER

    if name == DEFAULT_VERIFIER:
        others = ", ".join(other for other in verifier_names() if other != DEFAULT_VERIFIER)
        raise QamDetrError(f"The verifier is {name}, which has no weight to choose", f"give --verifier with one of {others}")


def _ask(target: _Target, entries: Sequence[QueryEntry], options: CalibrateOptions) -> tuple[list[VerifiedAnswer], list[str]]:
    """Return the answers, and why recordings could not be read."""
    from tqdm import tqdm

    from qamdetr.evaluation.calibration import verify_manifest
    from qamdetr.evaluation.metrics import MAX_PREDICTIONS

    retriever, recordings, verifier = open_for_manifest(options, options.manifest, entries, must_verify=True)
    found = verify_manifest(retriever, recordings, entries, verifier, top_k=max(MAX_PREDICTIONS, target.top_k))
    answers: list[VerifiedAnswer] = []
    failures: list[str] = []
    for part in tqdm(found, desc="recordings", unit="recording", total=len(recordings), file=sys.stderr, disable=None):
        if isinstance(part, AudioError):
            failures.append(str(part))
        else:
            answers += part
    return answers, failures


def _tell(num_left_out: int, num_entries: int, problems: Sequence[str], num_answers: int) -> None:
    if num_left_out:
        note(f"{num_left_out} of {num_entries} queries have no true windows and were left out.")
    if problems:
        note(f"{len(problems)} of {num_answers} queries are ranked by the decoder alone at every beta. {problems[0]}")


def _text(curve: BetaCurve, verifier: str) -> str:
    from qamdetr.evaluation.calibration import CURVE_METRICS

    rows = [["beta", *CURVE_METRICS]]
    for point in curve.shown:
        beta = f"{point.beta:.2f}" if point.beta == round(point.beta, 2) else f"{point.beta:g}"
        rows.append([beta, *(f"{point.metrics[name]:.2f}" for name in CURVE_METRICS)])
    marks = ["", *(", ".join(curve.marks(point)) for point in curve.shown)]
    lines = [f"{line}   {mark}".rstrip() for line, mark in zip(columns(rows, 6, 9).splitlines(), marks, strict=True)]
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


def _object(curve: BetaCurve, verifier: str, num_unverified: int) -> dict[str, Any]:
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
        "gain": {name: difference_object(difference) for name, difference in curve.gain.items()},
    }


def _draw(curve: BetaCurve, title: str, path: str) -> None:
    from qamdetr.evaluation.figures import save_beta_figure

    save_beta_figure(curve, f"{title}, {curve.chosen.scores.num_queries} queries", path)
    note(f"the figure is in {path}.")


@dataclass(frozen=True)
class _Target:
    """What keeps the weight: a checkpoint, one for each verifier, or a system file of the user's own, that of its own verifier.

    `path` is the file; `changes` names the options that make other answers than the file alone would, with which nothing is written.
    """

    path: Path
    is_system: bool
    is_own: bool
    changes: str
    name: str
    verifier: str
    top_k: int

    def place(self, verifier: str) -> Path | None:
        """Return the file that gets the weight of a verifier; None where it would not fit what is in it."""
        return self.path if self.is_own and not self.changes and (not self.is_system or verifier == self.verifier) else None

    def check_writable(self, verifier: str) -> None:
        """Refuse now what `store` could not write after the work."""
        path, kind = self.place(verifier), "it" if self.is_system else "the checkpoint"
        if path is not None and not os.access(path.parent, os.W_OK):
            raise CheckpointError(f"{path} cannot be written", f"calibrate a copy of {kind}, or give --dry-run")

    def store(self, verifier: str, beta: float) -> str:
        """Write the weight, and tell where; or tell what to write where."""
        from qamdetr.inference.checkpoint import beta_line, store_in_checkpoint, store_in_system

        line = f"`{beta_line(beta)}`" if self.is_system else f"inference.beta_by_verifier.{verifier}: {beta:g}"
        path = self.place(verifier)
        if path is not None:
            if self.is_system:
                store_in_system(path, beta)
            else:
                store_in_checkpoint(path.parent, verifier, beta)
            return f"{line} is now in {path}."
        if not self.is_system:
            return f"nothing was written, as the weight goes with {self.changes}; put that and `{line}` into the config.yaml of a copy."
        reason = f", as the weight goes with {self.changes}; put that," if self.changes else "; put"
        return f"nothing was written{reason} `verify_with: {verifier}` and {line} into a system file of your own."


def _open_target(options: RetrieverOptions) -> _Target:
    """Find the checkpoint or system that keeps the weight."""
    from qamdetr.inference.checkpoint import CONFIG_FILE, find_checkpoint
    from qamdetr.inference.retriever import load_system
    from qamdetr.verifiers.base import DEFAULT_VERIFIER

    overrides, changes = options.overrides or (), _changes(options)
    if options.system is not None:
        system, path = load_system(options.system, overrides, members=options.members or ()), Path(options.system)
        # With other members it is another system.
        is_own = path.is_file() and SYSTEM_DIR.resolve() not in path.resolve().parents and not options.members
        return _Target(path, True, is_own, changes, path.stem, system.verify_with, system.top_k)
    if options.checkpoint is None:
        raise QamDetrError("The weight is written into a checkpoint or system", "name it with --checkpoint or --system")
    path = find_checkpoint(options.checkpoint) / CONFIG_FILE
    return _Target(path, False, True, changes, path.parent.name, DEFAULT_VERIFIER, load_config(path, overrides).inference.top_k)


def _changes(options: RetrieverOptions) -> str:
    """Name the options that make other answers than the file alone would; empty without."""
    changes = [f"--set {override}" for override in options.overrides or () if not override.startswith(HARMLESS)]
    if options.verifier_model is not None:
        changes.append(f"--verifier-model {options.verifier_model}")
    return " ".join(changes)
