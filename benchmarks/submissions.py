"""Do ensemble and verifier help? The report's four submissions with pocket models as members, on the ladder's synthesised scenes.

    python -m benchmarks.submissions [--runs runs/ladder] [--scenes build/ladder] [--features build/ladder/features]

Combos A, B and C become three kinds of pocket models, three seeds each: rows 6, 5 and 4 of the ablation ladder (docs/ladder.md). The
verifier is `pocket`. Everything is chosen on validation (how to merge; beta, where it is calibrated) and reported for validation and test.
Each system is also run with the report's own beta. `+/-` compares R1@0.7 on test with the line that the system builds on, over recordings.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from benchmarks._timing import write_json
from qamdetr.data.manifest import PredictionEntry, QueryEntry, read_manifest
from qamdetr.errors import AudioError
from qamdetr.evaluation.calibration import VerifiedAnswer, calibrate_beta, verify_manifest
from qamdetr.evaluation.compare import compare
from qamdetr.evaluation.metrics import QueryScores, match, query_scores
from qamdetr.inference.pools import MergeMethod
from qamdetr.inference.retriever import MomentRetriever, SystemConfig, load_system
from qamdetr.verifiers import make_verifier

STANDS_FOR = {"A": "6_multi_feature", "B": "5_three_way", "C": "4_multiscale"}
"""Combo of the report -> row of the ladder whose models take its place."""

SEEDS = (0, 1, 2)
MERGES: tuple[MergeMethod, ...] = ("pool", "nms", "fusion")
SPLITS = ("val", "test")
METRICS = ("R1@0.5", "R1@0.7", "mAP")

Answers = Mapping[str, list[VerifiedAnswer]]
"""Per split, what decoder and verifier say of each query with true windows."""


@dataclass(frozen=True, eq=False)
class Line:
    """One line of the table: a system, the weight of its verifier, and the line that it is compared with."""

    name: str
    beta: float
    scores: Mapping[str, QueryScores]
    against: Line | None = None

    def metrics(self, split: str) -> dict[str, float]:
        """Percent, two decimals."""
        means = self.scores[split].columns(METRICS).mean(axis=0)
        return {name: round(float(value), 2) for name, value in zip(METRICS, means, strict=True)}

    def gain(self) -> str:
        """R1@0.7 on test less that of `against`, with its interval and verdict."""
        if self.against is None:
            return ""
        difference = compare(self.scores["test"], self.against.scores["test"], ("R1@0.7",))["R1@0.7"]
        low, high = difference.difference.low, difference.difference.high
        return f"{difference.difference.value:+.2f} [{low:+.2f}, {high:+.2f}] {difference.verdict}"


class Bench:
    """Asks systems of stored features, and remembers nothing but their answers."""

    def __init__(self, runs: Path, scenes: Path, features: Path) -> None:
        self._runs = runs
        self._features = features
        self._entries = {split: _present(scenes / split / "manifest.jsonl") for split in SPLITS}
        self._audio = {split: scenes / split / "audio" for split in SPLITS}

    def members(self, combos: Sequence[str]) -> list[str]:
        """Checkpoints that stand for combos."""
        return [str(self._runs / f"{STANDS_FOR[combo]}-s{seed}" / "best") for combo in combos for seed in SEEDS]

    def ask(self, system: SystemConfig, label: str) -> Answers:
        """Ask a system every query of both splits."""
        return {split: self._ask(system, split, label) for split in SPLITS}

    def system(self, name: str, members: Sequence[str], merge: MergeMethod) -> SystemConfig:
        """Read a recipe of the report, with other members."""
        return load_system(name, [f"merge={merge}", f"data.feature_dir={self._features}", "verify_with=pocket"], members=members)

    def _ask(self, system: SystemConfig, split: str, label: str) -> list[VerifiedAnswer]:
        entries = self._entries[split]
        retriever = MomentRetriever.from_features(system, entries, audio_dir=self._audio[split])
        verifier = make_verifier("pocket")
        assert verifier is not None
        answers: list[VerifiedAnswer] = []
        vids = {entry.vid: entry.vid for entry in entries}
        for answered in tqdm(
            verify_manifest(retriever, vids, entries, verifier, top_k=system.top_k), desc=f"{label}, {split}", total=len(vids), disable=None
        ):
            if isinstance(answered, AudioError):
                raise answered
            answers += answered
        return answers


def _present(manifest: Path) -> list[QueryEntry]:
    return [entry for entry in read_manifest(manifest) if entry.relevant_windows]


def scored(answers: Answers, beta: float) -> dict[str, QueryScores]:
    """Score both splits with this weight of the verifier."""

    def one(split: str) -> QueryScores:
        ranked: list[PredictionEntry] = [answer.ranked(beta) for answer in answers[split]]
        return query_scores(match(ranked, [answer.entry for answer in answers[split]]))

    return {split: one(split) for split in SPLITS}


def lines_of(bench: Bench) -> tuple[list[Line], MergeMethod]:
    """Ask everything; returns the table's lines and the way of merging that validation chose for Submit 1."""
    singles = {member: bench.ask(bench.system("submit1", [member], "pool"), Path(member).parent.name) for member in bench.members("ABC")}
    alone = {member: Line(f"alone: {Path(member).parent.name}", 0.0, scored(answers, 0.0)) for member, answers in singles.items()}
    best = max(alone, key=lambda member: alone[member].metrics("val")["R1@0.7"])
    lines = [*alone.values()]
    beta = calibrate_beta(singles[best]["val"]).chosen.beta
    lines.append(Line("best alone on val + verifier, calibrated", beta, scored(singles[best], beta), alone[best]))

    everyone = bench.members("ABC")
    merged = {how: bench.ask(bench.system("submit1", everyone, how), f"all, {how}") for how in MERGES}
    ensembles = {how: Line(f"submit1, {how}", 0.0, scored(answers, 0.0), alone[best]) for how, answers in merged.items()}
    how = max(MERGES, key=lambda name: ensembles[name].metrics("val")["R1@0.7"])
    lines += ensembles.values()
    for name, combos in (("submit2", "ABC"), ("submit3", "A"), ("submit4", "B")):
        for merge in MERGES:
            system = bench.system(name, bench.members(combos), merge)
            answers = merged[merge] if combos == "ABC" else bench.ask(system, f"{name}, {merge}")
            without = ensembles[merge] if combos == "ABC" else Line(f"{name} without verifier, {merge}", 0.0, scored(answers, 0.0))
            if without not in lines:
                lines.append(without)
            lines.append(Line(f"{name}, {merge}", system.beta, scored(answers, system.beta), without))
            beta = calibrate_beta(answers["val"]).chosen.beta
            lines.append(Line(f"{name}, {merge}, calibrated", beta, scored(answers, beta), without))
    return lines, how


def main() -> None:
    """Print the table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/ladder"))
    parser.add_argument("--scenes", type=Path, default=Path("build/ladder"))
    parser.add_argument("--features", type=Path, default=Path("build/ladder/features"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("build/benchmarks/submissions.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    lines, how = lines_of(Bench(arguments.runs, arguments.scenes, arguments.features))
    print(f"{'':<44}{'beta':>6}" + "".join(f"{split + ' ' + name:>13}" for split in SPLITS for name in METRICS) + "   R1@0.7 +/- on test")
    for line in lines:
        numbers = "".join(f"{line.metrics(split)[name]:>13.2f}" for split in SPLITS for name in METRICS)
        print(f"{line.name:<44}{line.beta:>6.2f}{numbers}   {line.gain()}")
    alone = [line for line in lines if line.name.startswith("alone")]
    mean = {split: round(float(np.mean([line.metrics(split)["R1@0.7"] for line in alone])), 2) for split in SPLITS}
    print(f"Mean R1@0.7 of a model alone: {mean}. Merging that validation chose for Submit 1: {how}.")
    rows = [{"name": line.name, "beta": line.beta, "gain": line.gain(), **{s: line.metrics(s) for s in SPLITS}} for line in lines]
    write_json(arguments.output, {"lines": rows, "merge": how, "mean_alone": mean})


if __name__ == "__main__":
    main()
