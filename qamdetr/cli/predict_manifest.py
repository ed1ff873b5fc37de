"""`predict --manifest`: answer every query of a manifest, from audio or from stored features, to predictions or the challenge's file."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qamdetr.cli.common import note, raise_failures
from qamdetr.cli.retrieval import open_for_manifest, retrieve
from qamdetr.errors import QamDetrError
from qamdetr.files import write_whole

if TYPE_CHECKING:
    from qamdetr.data.manifest import PredictionEntry, QueryEntry
    from qamdetr.types import Result
    from qamdetr.verifiers.base import Verifier

_NOTES_SHOWN = 5


def predict_manifest(args: argparse.Namespace) -> None:
    """Answer a manifest; predictions keep its order, and recordings that cannot be read are left out and told at the end."""
    from tqdm import tqdm

    from qamdetr.data.manifest import read_manifest

    for_challenge = _is_submission(args.output)
    entries = read_manifest(args.manifest, clamp=False)
    retriever, recordings, verifier = open_for_manifest(args, entries)
    _tell_missing_verifier(verifier)
    by_vid: dict[str, list[QueryEntry]] = {}
    for entry in entries:
        by_vid.setdefault(entry.vid, []).append(entry)
    answers: dict[str, Result] = {}
    failures: list[str] = []
    for vid, asked in tqdm(by_vid.items(), desc="recordings", unit="recording", file=sys.stderr, disable=None):
        results = retrieve(retriever, str(recordings[vid]), [entry.query for entry in asked], verifier, args, failures)
        answers.update(zip((entry.qid for entry in asked), results, strict=bool(results)))
    _tell_notes(answers)
    predictions = _to_predictions(entries, answers)
    if predictions and for_challenge:
        _write_submission(Path(args.output), predictions, entries, failures)
    elif predictions:
        _write_predictions(Path(args.output), predictions)
    raise_failures(failures, len(by_vid))


def _is_submission(output: str) -> bool:
    """Whether the name of the output is one of the challenge's.

    Raises:
        QamDetrError: It nearly is.
    """
    from qamdetr.evaluation.submission import LABEL_FORM, OUTPUT_SUFFIX, is_label

    name = Path(output).name
    if not name.endswith(OUTPUT_SUFFIX):
        return False
    if not is_label(name.removesuffix(OUTPUT_SUFFIX)):
        raise QamDetrError(
            f"--output {output} ends in {OUTPUT_SUFFIX}, as the challenge's files do; before that it must say {LABEL_FORM}, with a number "
            "from 1 to 4. For ordinary predictions choose another ending."
        )
    return True


def _to_predictions(entries: Sequence[QueryEntry], answers: Mapping[str, Result]) -> list[PredictionEntry]:
    from qamdetr.data.manifest import PredictionEntry

    return [
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


def _write_predictions(path: Path, predictions: Sequence[PredictionEntry]) -> None:
    from qamdetr.data.manifest import write_predictions

    write_predictions(path, predictions)


def _write_submission(path: Path, predictions: Sequence[PredictionEntry], entries: Sequence[QueryEntry], failures: Sequence[str]) -> None:
    """Write the challenge's file; where recordings are missing from it, which the challenge refuses, ordinary predictions beside it."""
    from qamdetr.evaluation.submission import OUTPUT_SUFFIX, output_text

    if failures:
        beside = path.with_name(path.name.removesuffix(OUTPUT_SUFFIX) + ".predictions.jsonl")
        _write_predictions(beside, predictions)
        note(f"{path} is not written, as the challenge wants an answer to every query; what was found is in {beside}.")
        return
    text, left_out = output_text(predictions, entries)
    write_whole(path, text)
    if left_out:
        note(f"{left_out} windows were empty or past the end of their recording and were left out.")


def _tell_notes(answers: Mapping[str, Result]) -> None:
    """Tell each note once, with the number of queries that it is about."""
    counts = Counter(text for result in answers.values() for text in result.notes)
    for text, count in counts.most_common(_NOTES_SHOWN):
        note(f"{count} of {len(answers)} queries: {text}")
    if len(counts) > _NOTES_SHOWN:
        note(f"and {len(counts) - _NOTES_SHOWN} more notes.")


def _tell_missing_verifier(verifier: Verifier | str) -> None:
    """Say before hours of work that the verifier's model or server is not there; the decoder's ranking is still worth having."""
    if isinstance(verifier, str):
        return
    try:
        verifier.check()
    except QamDetrError as error:
        note(f"verifier {verifier.name} cannot answer, so the decoder alone will rank. {error} Stop now if that is not what you want.")
