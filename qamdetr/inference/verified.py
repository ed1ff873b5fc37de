"""Answers to a manifest that keep both scores of each candidate, for the choice of the verifier's weight.

`cli.calibrate` and `benchmarks.submissions` rank such answers anew with each weight of a grid; decoder and verifier are asked once for all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qamdetr.data.manifest import PredictionEntry, QueryEntry
from qamdetr.errors import AudioError
from qamdetr.inference.protocol import Retriever
from qamdetr.inference.rerank import rerank
from qamdetr.types import Candidate, Result
from qamdetr.verifiers.base import Verifier


@dataclass(frozen=True)
class VerifiedAnswer:
    """What decoder and verifier think of the candidates of one query.

    Attributes:
        entry: The query with its true windows.
        candidates: In decoder order.
        verifier_scores: One per candidate, or None where the verifier failed.
        problem: Why it failed; empty where it did not.
    """

    entry: QueryEntry
    candidates: tuple[Candidate, ...]
    verifier_scores: tuple[float, ...] | None
    problem: str = ""

    def ranked(self, beta: float) -> PredictionEntry:
        """Rank the candidates with this weight of the verifier; where it failed, the decoder alone ranks.

        Raises:
            QamDetrError: `beta` outside [0, 1].
        """
        moments = rerank(self.candidates, self.verifier_scores, beta)
        windows = tuple((moment.start_seconds, moment.end_seconds, moment.score) for moment in moments)
        return PredictionEntry(self.entry.qid, self.entry.query, self.entry.vid, windows, self.entry.numeric_qid)


def verify_manifest(
    retriever: Retriever,
    recordings: Mapping[str, str | Path],
    entries: Sequence[QueryEntry],
    verifier: Verifier | str,
    *,
    top_k: int,
) -> Iterator[list[VerifiedAnswer] | AudioError]:
    """Go through a manifest; each recording is encoded once, and decoder and verifier are asked each query once.

    Args:
        retriever: Finds the candidates and asks the verifier.
        recordings: `vid` -> what `retriever.encode` takes.
        entries: The queries.
        verifier: The second opinion, or its name.
        top_k: Candidates to keep, as many as the verifier looks at: with another weight the last may come first.

    Yields:
        Per recording the answers in the order of its queries, or the error of one that cannot be read: the others go on.
    """
    by_vid: dict[str, list[QueryEntry]] = {}
    for entry in entries:
        by_vid.setdefault(entry.vid, []).append(entry)
    for vid, asked in by_vid.items():
        try:
            recording = retriever.encode(recordings[vid])
        except AudioError as error:
            yield error
            continue
        results = retriever.retrieve_many(recording, [entry.query for entry in asked], top_k=top_k, verifier=verifier, beta=0.0)
        yield [_answer(entry, result) for entry, result in zip(asked, results, strict=True)]


def _answer(entry: QueryEntry, result: Result) -> VerifiedAnswer:
    scores = tuple(moment.verifier_score for moment in result.moments if moment.verifier_score is not None)
    if len(scores) == len(result.moments) and not result.notes:
        return VerifiedAnswer(entry, result.moments, scores)
    return VerifiedAnswer(entry, result.moments, None, " ".join(result.notes))
