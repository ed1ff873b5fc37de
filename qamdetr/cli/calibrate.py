"""`calibrate`: choose the weight of the verifier on validation, show the curve, and write the weight to where retrievers look for it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from qamdetr.cli.common import note, raise_failures
from qamdetr.cli.evaluate import difference_object
from qamdetr.cli.retrieval import add_options, check_options, open_for_manifest
from qamdetr.errors import AudioError, DataError, QamDetrError

if TYPE_CHECKING:
    from qamdetr.cli.beta_target import BetaTarget
    from qamdetr.cli.common import Commands
    from qamdetr.data.manifest import QueryEntry
    from qamdetr.evaluation.calibration import BetaCurve
    from qamdetr.inference.retriever import VerifiedAnswer


def add(commands: Commands) -> None:
    """Add the command's options."""
    parser = commands.add_parser(
        "calibrate",
        help="choose the weight of the verifier",
        description="Choose beta, the weight of the verifier, on validation by R1@0.7, then mAP; write it into the checkpoint or system.",
    )
    parser.add_argument("--manifest", required=True, metavar="JSONL", help="field JSONL with relevant_windows, of no training recordings")
    parser.add_argument("--audio-dir", metavar="DIR", help="its recordings (default: audio/ beside it)")
    parser.add_argument(
        "--from-features", action="store_true", help="read the manifest's features (public files or cache) and run no encoder"
    )
    add_options(parser, checkpoint_default="; its config.yaml gets the weight")
    parser.add_argument("--grid", type=float, nargs="+", metavar="B", help="weights to try (default: 0.00, 0.05, … 1.00)")
    parser.add_argument("--dry-run", action="store_true", help="write nothing but the figure")
    parser.add_argument("--figure", metavar="PATH", help="draw the curve: .png, .svg or .pdf")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(command=run)


def run(args: argparse.Namespace) -> None:
    """Ask decoder and verifier, choose, show and write."""
    from qamdetr.cli.beta_target import open_target
    from qamdetr.data.manifest import read_manifest
    from qamdetr.evaluation.calibration import FINE_GRID, calibrate_beta

    _check(args)
    target = open_target(args)
    verifier = args.verifier or target.verifier
    _check_verifier(verifier)
    if not args.dry_run:
        target.check_writable(verifier)
    # Unclamped, as the official evaluator reads it.
    entries = read_manifest(args.manifest, clamp=False)
    counted = [entry for entry in entries if entry.relevant_windows]
    if not counted:
        raise DataError(f"{args.manifest}: none of the {len(entries)} queries has `relevant_windows`; give a validation manifest.")
    answers, failures = _ask(target, counted, args)
    problems = [answer.problem for answer in answers if answer.verifier_scores is None]
    if answers and len(problems) == len(answers):
        raise QamDetrError(f"No query of {len(answers)} was verified, so nothing was written: {problems[0]}")
    if answers:
        curve = calibrate_beta(answers, args.grid or FINE_GRID)
        print(json.dumps(_object(curve, verifier, len(problems)), ensure_ascii=False) if args.json else _text(curve, verifier))
        _tell(len(entries) - len(counted), len(entries), problems, len(answers))
        if args.figure is not None:
            _draw(curve, f"{target.name}, verifier {verifier}", args.figure)
        if failures:
            note("nothing was written, as the weight would be chosen on a part of the recordings.")
        elif curve.is_worse:
            note(f"nothing was written, as {curve.chosen.beta:g}, the best of the grid, is worse than the decoder alone; try a finer grid.")
        elif not args.dry_run:
            note(target.store(verifier, curve.chosen.beta))
    raise_failures(failures, len({entry.vid for entry in counted}))


def _check(args: argparse.Namespace) -> None:
    """Refuse now what would fail after the work."""
    from qamdetr.inference.rerank import check_beta

    check_options(args)
    if args.from_features and args.encoders:
        raise QamDetrError("--encoder goes with audio; --from-features runs no encoder.")
    for beta in args.grid or ():
        check_beta(beta)
    if args.figure is not None:
        from qamdetr.evaluation.figures import check_figure_path

        check_figure_path(args.figure)


def _check_verifier(name: str) -> None:
    from qamdetr.verifiers import verifier_names
    from qamdetr.verifiers.base import DEFAULT_VERIFIER

    if name == DEFAULT_VERIFIER:
        others = ", ".join(other for other in verifier_names() if other != DEFAULT_VERIFIER)
        raise QamDetrError(f"The verifier is {name}, which has no weight to choose; give --verifier with one of {others}.")


def _ask(target: BetaTarget, entries: Sequence[QueryEntry], args: argparse.Namespace) -> tuple[list[VerifiedAnswer], list[str]]:
    """Return the answers, and why recordings could not be read."""
    from tqdm import tqdm

    from qamdetr.evaluation.metrics import MAX_PREDICTIONS
    from qamdetr.inference.retriever import verify_manifest

    retriever, recordings, verifier = open_for_manifest(args, entries, must_verify=True)
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

    lines = [f"{'beta':<6}" + "".join(f"{name:>9}" for name in CURVE_METRICS)]
    for point in curve.shown:
        cells = "".join(f"{point.metrics[name]:>9.2f}" for name in CURVE_METRICS)
        beta = f"{point.beta:.2f}" if point.beta == round(point.beta, 2) else f"{point.beta:g}"
        lines.append(f"{beta:<6}{cells}   {', '.join(curve.marks(point))}".rstrip())
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
