"""What does it hear, and may one lean on its answers? Prints the numbers of README and model cards, with 95 % intervals.

    python -m benchmarks.hearing --real DIR [--scenes build/scenes] [--checkpoint NAME] [--against CHECKPOINT_OR_REPORT]

All of it on recordings that no training heard (fold 4 of ESC-50 and ESC-10): fifty-way naming of clips by one sentence each; retrieval on
scenes of all fifty kinds (`fifty`) and on the older ones of ten (`test`), in wordings that training never saw; what is said of absent
sounds and of nonsense; whether scores mean what they say; whether silence in front or a lower level changes answers; how long a question
takes. Baselines: a threshold on the similarity curve, chosen on `val`, and an AudioSet tagger (`--teacher`, where `ai-edge-litert` is
installed) whose classes are tied to sentences by the text encoder. `--against` shows another checkpoint, or the report of an earlier run,
beside it.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from tqdm import tqdm

from benchmarks._timing import median_seconds, write_json
from qamdetr.audio import Sound
from qamdetr.data.manifest import PredictionEntry, QueryEntry, read_manifest
from qamdetr.evaluation.calibration import expected_calibration_error
from qamdetr.evaluation.compare import CONFIDENCE, bootstrap
from qamdetr.evaluation.metrics import IOU_THRESHOLDS, LENGTH_EDGES_SECONDS, Matching, evaluate, match, query_scores
from qamdetr.inference.candidates import runs_above
from qamdetr.inference.retriever import MomentRetriever
from qamdetr.types import Recording, Result, Window
from recipes.pocket.sound_bank.build import ESC10_GROUPS, ESC50_GROUPS, RealSound, load_groups, real_sounds, unseen_wordings

Array = NDArray[np.float64]

RESAMPLES = 1000
RIGHT_IOU = 0.5  # with a true window, from which a moment is right
SAME_IOU = 0.7  # of two windows that are one answer
QUIET_DB = -40.0  # parts of a clip this far under its loudest have nothing to name
SILENCE_SECONDS, LOWER_DB = 0.3, -40.0
TEACHER_RATE_HZ, TEACHER_SAMPLES = 16_000, 15_600

ASKED = {
    "naming, forty other kinds": ">= 78", "naming, ten kinds": ">= 93", "fifty, R1@0.5": ">= 75", "fifty, R1@0.7": ">= 62",
    "fifty, mAP": ">= 52", "fifty, R1@0.7 of moments <= 2 s": ">= 50", "fifty, absent recognised": ">= 88", "fifty, present lost": "<= 8",
    "fifty, AUC": ">= 95", "fifty, calibration error": "<= 5", "test, R1@0.7": ">= 80", "test, mAP": ">= 66",
    "nonsense called found": "<= 2", "silence in front, same top window": ">= 95", "silence in front, score moves by (p95)": "<= 5",
    "40 dB lower, found flips": "<= 1.9", "one query on 300 s": "<= 30", "heard() of 300 s": "<= 1000",
}  # fmt: skip
"""Measure -> what issue 14 asked of it."""


@dataclass(frozen=True)
class Measure:
    """One number with its interval (None where there is none) and how many recordings, queries or sentences it stands on."""

    name: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    unit: str = "%"

    def __str__(self) -> str:
        """Return the number as the table shows it."""
        interval = "" if self.low is None else f" [{self.low:.1f}, {self.high:.1f}]"
        return "-" if self.value is None else f"{self.value:.1f}{interval} ({self.n})"


def measure(name: str, values: ArrayLike, units: Sequence[str], statistic: Callable[[Array], float] | None = None) -> Measure:
    """Measure the mean of values, or another statistic of them, in percent; the interval draws `units` (recordings) with replacement.

    `values` are `(items,)`, or `(items, columns)` where the statistic wants several numbers of each.
    """
    items, take = np.asarray(values, dtype=np.float64), statistic or (lambda chosen: float(chosen.mean()))
    if not len(items):
        return Measure(name, None, None, None, 0)
    _, members = np.unique(np.array(units), return_inverse=True)
    places = [np.flatnonzero(members == unit) for unit in range(members.max() + 1)]
    low = high = None
    if len(places) > 1:
        found = stats.bootstrap(
            (np.arange(len(places)),),
            lambda drawn: take(items[np.concatenate([places[unit] for unit in drawn])]),
            vectorized=False,
            n_resamples=RESAMPLES,
            confidence_level=CONFIDENCE,
            method="percentile",
            random_state=np.random.default_rng(0),
        ).confidence_interval
        low, high = 100 * float(found.low), 100 * float(found.high)
    return Measure(name, 100 * take(items), low, high, len(items))


@dataclass(frozen=True)
class ClipFeatures:
    """Clips of fold 4 as a checkpoint's encoder hears them: `(clips, dim)` unit vectors."""

    clips: Sequence[RealSound]
    vectors: torch.Tensor

    @property
    def sources(self) -> list[str]:
        """The recording that each clip was cut from: takes of one are not independent."""
        return [re.sub(r"-[A-Z]$", "", clip.path.stem) for clip in self.clips]


def sentence_vectors(retriever: MomentRetriever, sentences: Sequence[str]) -> torch.Tensor:
    """Return `(sentences, dim)` unit vectors in the joint space."""
    rows = [next(iter(retriever.encoder.encode_query(sentence).values())).pooled for sentence in sentences]
    return torch.stack([row for row in rows if row is not None])


def hear_clips(retriever: MomentRetriever, clips: Sequence[RealSound]) -> ClipFeatures:
    """Encode clips, each as the mean over its parts that are not nearly silent."""
    vectors = []
    for clip in tqdm(clips, desc="clips", disable=None):
        recording, samples = retriever.encode(clip.path), Sound(clip.path).samples()
        steps = next(iter(recording.streams.values()))
        levels = np.array([np.square(part).mean() + 1e-12 for part in np.array_split(samples, len(steps))])
        vectors.append(steps[torch.from_numpy(10 * np.log10(levels / levels.max()) > QUIET_DB)].mean(dim=0))
    return ClipFeatures(clips, torch.nn.functional.normalize(torch.stack(vectors), dim=1))


def naming(scores: Callable[[list[str]], Array], clips: Sequence[RealSound], wordings: Mapping[str, Sequence[str]]) -> Array:
    """Name each clip among all kinds by one sentence each; per clip the share of turns, with other sentences each, in which that is right.

    `scores` gives `(clips, sentences)`.
    """
    kinds = list(wordings)
    truth = np.array([kinds.index(clip.group) for clip in clips])
    turns = range(min(len(sentences) for sentences in wordings.values()))
    right: Array = np.mean([scores([wordings[kind][turn] for kind in kinds]).argmax(axis=1) == truth for turn in turns], axis=0)
    return right


@dataclass(frozen=True)
class Asked:
    """A set of scenes, and a checkpoint's answers to its queries."""

    name: str
    folder: Path
    entries: Sequence[QueryEntry]
    recordings: Mapping[str, Recording]
    results: Sequence[Result]

    @property
    def vids(self) -> list[str]:
        """Recording of each query."""
        return [entry.vid for entry in self.entries]

    @property
    def present(self) -> NDArray[np.bool_]:
        """Which queries have moments."""
        return np.array([bool(entry.relevant_windows) for entry in self.entries])

    @cached_property
    def found(self) -> NDArray[np.bool_]:
        """Which queries are answered by "found"."""
        return np.array([result.found for result in self.results])

    @cached_property
    def best(self) -> Array:
        """Score of the first moment of each query, 0 where there is none."""
        return np.array([result.moments[0].score if result.moments else 0.0 for result in self.results])

    @cached_property
    def matching(self) -> Matching:
        """What the moments hit."""
        answers = zip(self.entries, self.results, strict=True)
        windows = [(e, tuple((m.start_seconds, m.end_seconds, m.score) for m in r.moments)) for e, r in answers]
        return match([PredictionEntry(e.qid, e.query, e.vid, moments) for e, moments in windows], self.entries)


def read_scenes(folder: Path, limit: int) -> list[QueryEntry]:
    """Read the queries of a folder of scenes, of its first `limit` recordings."""
    entries = read_manifest(folder / "manifest.jsonl")
    kept = set(list(dict.fromkeys(entry.vid for entry in entries))[:limit])
    return [entry for entry in entries if entry.vid in kept]


def encode_scenes(retriever: MomentRetriever, folder: Path, entries: Sequence[QueryEntry]) -> dict[str, Recording]:
    """Encode the recordings of a set of scenes."""
    vids = dict.fromkeys(entry.vid for entry in entries)
    return {vid: retriever.encode(folder / "audio" / f"{vid}.flac") for vid in tqdm(vids, desc=folder.name, disable=None)}


def ask(retriever: MomentRetriever, folder: Path, limit: int) -> Asked:
    """Ask all queries of a set of scenes."""
    entries = read_scenes(folder, limit)
    recordings = encode_scenes(retriever, folder, entries)
    results = [retriever.retrieve(recordings[e.vid], e.query) for e in tqdm(entries, desc=f"{folder.name}, queries", disable=None)]
    return Asked(folder.name, folder, entries, recordings, results)


def retrieval(asked: Asked) -> list[Measure]:
    """Score the moments; those of at most two seconds also apart, as `evaluation.metrics.score_by_length` does."""
    matching, threshold = asked.matching, 0.7
    scores = query_scores(matching)
    found = bootstrap(scores, ("R1@0.5", "R1@0.7", "mAP"), resamples=RESAMPLES)
    rows = [Measure(f"{asked.name}, {name}", **asdict(interval), n=scores.num_queries) for name, interval in found.items()]
    short = np.append(matching.true_seconds.round(3) <= LENGTH_EDGES_SECONDS[0], False)
    reached = matching.first_iou >= threshold
    right = reached & short[matching.first_truth]
    asks = np.isin(np.arange(scores.num_queries), matching.true_query[short[:-1]])
    counts = asks & (right | ~reached)
    vids = [vid for vid, counted in zip(matching.vids, counts, strict=True) if counted]
    return [*rows, measure(f"{asked.name}, R1@{threshold} of moments <= {LENGTH_EDGES_SECONDS[0]:g} s", right[counts], vids)]


def trust(asked: Asked) -> list[Measure]:
    """Say how well present sounds are told from absent ones, and what scores mean."""
    vids, present = np.array(asked.vids), asked.present
    right = np.zeros(len(present))
    right[present] = asked.matching.first_iou >= RIGHT_IOU
    perhaps = np.array([result.perhaps for result in asked.results])
    return [
        measure(f"{asked.name}, absent recognised", ~asked.found[~present], vids[~present].tolist()),
        measure(f"{asked.name}, absent called perhaps", perhaps[~present], vids[~present].tolist()),
        measure(f"{asked.name}, present lost", ~asked.found[present], vids[present].tolist()),
        measure(f"{asked.name}, present called perhaps", perhaps[present], vids[present].tolist()),
        measure(f"{asked.name}, AUC", np.stack([asked.best, present], axis=1), asked.vids, _area_under_curve),
        measure(
            f"{asked.name}, calibration error",
            np.stack([asked.best, right], axis=1),
            asked.vids,
            lambda drawn: expected_calibration_error(*drawn.T),
        ),
    ]


def _area_under_curve(items: Array) -> float:
    """Chance that a present sound outscores an absent one, of `(queries, 2)` scores and presence."""
    present, absent = items[items[:, 1] == 1, 0], items[items[:, 1] == 0, 0]
    if not len(present) or not len(absent):
        return 0.5  # a draw of recordings in which no sound is absent
    return float(stats.mannwhitneyu(present, absent).statistic / (len(present) * len(absent)))


def nonsense(retriever: MomentRetriever, asked: Asked, recordings: int) -> list[Measure]:
    """Ask `nonsense.yaml` of recordings full of sounds."""
    groups: dict[str, list[str]] = yaml.safe_load(Path(__file__).with_name("nonsense.yaml").read_text(encoding="utf-8"))
    heard = list(asked.recordings.values())[:recordings]
    found = {name: [[retriever.retrieve(each, text).found for each in heard] for text in texts] for name, texts in groups.items()}
    sentences = [text for texts in groups.values() for text in texts for _ in heard]
    rows = [measure("nonsense called found", [answer for each in found.values() for row in each for answer in row], sentences)]
    rows = [replace(row, n=row.n // len(heard)) for row in rows]
    return rows + [Measure(f"nonsense called found: {name}", 100 * float(np.mean(f)), None, None, len(f)) for name, f in found.items()]


def steadiness(retriever: MomentRetriever, asked: Asked, count: int) -> list[Measure]:
    """Put silence in front of recordings, and lower them: neither is to change the answer. One query with moments each."""
    by_vid = {entry.vid: entry for entry in reversed(asked.entries) if entry.relevant_windows}
    same, moved, flips = [], [], []
    for entry in tqdm(list(by_vid.values())[-count:], desc="silence, level", disable=None):
        sound = Sound(asked.folder / "audio" / f"{entry.vid}.flac")
        samples, rate_hz = sound.samples(), sound.rate_hz
        later = np.concatenate([np.zeros(round(SILENCE_SECONDS * rate_hz), dtype=np.float32), samples])
        lower = samples * np.float32(10 ** (LOWER_DB / 20))
        plain, after, quiet = (retriever.retrieve(retriever.encode((each, rate_hz)), entry.query) for each in (samples, later, lower))
        if plain.moments and after.moments:
            shifted = (after.moments[0].start_seconds - SILENCE_SECONDS, after.moments[0].end_seconds - SILENCE_SECONDS)
            same.append(_overlap(plain.moments[0].window, shifted) >= SAME_IOU)
            moved.append(abs(plain.moments[0].score - after.moments[0].score))
        flips.append(plain.found != quiet.found)
    names = [str(index) for index in range(len(flips))]
    return [
        measure("silence in front, same top window", same, names[: len(same)]),
        measure("silence in front, score moves by (p95)", moved, names[: len(moved)], lambda drawn: float(np.percentile(drawn, 95))),
        measure("40 dB lower, found flips", flips, names),
    ]


def _overlap(one: Window, other: Window) -> float:
    both = min(one[1], other[1]) - max(one[0], other[0])
    return max(both, 0.0) / ((one[1] - one[0]) + (other[1] - other[0]) - max(both, 0.0))


def speed(retriever: MomentRetriever, asked: Asked, repeats: int = 15) -> list[Measure]:
    """Time one query on an encoded recording of 300 s, and all known sounds at once where the retriever can say them."""
    sound = Sound(next((asked.folder / "audio").glob("*.flac")))
    recording = retriever.encode((np.resize(sound.samples(), 300 * sound.rate_hz), sound.rate_hz))
    texts = iter([entry.query for entry in asked.entries] * (1 + repeats))
    runs: dict[str, Callable[[], object]] = {"one query on 300 s": lambda: retriever.retrieve(recording, next(texts))}
    if getattr(getattr(retriever.encoder, "text", {}).get("pocket"), "known_sounds", None):
        runs["heard() of 300 s"] = lambda: retriever.heard(recording)
    seconds = median_seconds(runs, repeats=repeats)
    return [Measure(name, 1000 * value, None, None, repeats, "ms") for name, value in seconds.items()]


def by_kind(features: ClipFeatures, named: Array, asked: Asked) -> dict[str, dict[str, Any]]:
    """Return, per kind, naming, R1@0.7 and absent sounds recognised on scenes of all kinds, each with its n."""
    kind_of = {text: kind for kind, texts in unseen_wordings().items() for text in texts}
    kinds = np.array([kind_of.get(entry.query, "") for entry in asked.entries])
    at = IOU_THRESHOLDS.index(0.7)
    reached = query_scores(asked.matching).recall_at_1[:, at]
    groups = np.array([clip.group for clip in features.clips])
    table = {}
    for name, group in ESC50_GROUPS.items():
        parts = {
            "naming": named[groups == group],
            "R1@0.7": reached[kinds[asked.present] == group],
            "absent recognised": ~asked.found[(kinds == group) & ~asked.present],
        }
        table[name] = {key: {"value": 100 * float(np.mean(part)) if len(part) else None, "n": len(part)} for key, part in parts.items()}
    return table


class Teacher:
    """An AudioSet tagger whose classes are tied to sentences by the cosine of their names; see `../shared/README.md`."""

    def __init__(self, folder: Path, retriever: MomentRetriever) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self._wave, self._spectra = (Interpreter(str(folder / name)) for name in ("yamnet.tflite", "yamnet_spectra_in.tflite"))
        self._retriever = retriever
        with (folder / "yamnet_class_map.csv").open(encoding="utf-8") as file:
            self._classes = sentence_vectors(retriever, [row["display_name"] for row in csv.DictReader(file)])
        for network in (self._wave, self._spectra):
            network.allocate_tensors()
        self.usual = np.zeros(len(self._classes))  # what each class scores as a rule: parents such as "Animal" win the raw top

    def scores(self, path: Path) -> Array:
        """Return `(seconds, 521)` log scores, one window a second."""
        samples = Sound(path).samples(TEACHER_RATE_HZ)
        starts = range(0, max(len(samples) - TEACHER_SAMPLES // 2, 1), TEACHER_RATE_HZ)
        return np.log(np.stack([self._window(samples[start : start + TEACHER_SAMPLES]) for start in starts]) + 1e-3)

    def _window(self, samples: NDArray[np.float32]) -> Array:
        wave = np.pad(samples, (0, TEACHER_SAMPLES - len(samples)))
        entry, out = self._wave.get_input_details()[0], self._wave.get_output_details()
        self._wave.set_tensor(entry["index"], wave.reshape(entry["shape"]))
        self._wave.invoke()
        patch = self._wave.get_tensor(next(each["index"] for each in out if 64 in each["shape"]))
        entry, (answer, *_) = self._spectra.get_input_details()[0], self._spectra.get_output_details()
        self._spectra.set_tensor(entry["index"], patch.reshape(entry["shape"]))
        self._spectra.invoke()
        scores: Array = self._spectra.get_tensor(answer["index"]).ravel().astype(np.float64)
        return scores

    def match(self, scores: Array, sentences: Sequence[str]) -> Array:
        """Return `(windows, sentences)`: scores over what is usual, weighted by how near each class lies to the sentence."""
        near = torch.softmax(sentence_vectors(self._retriever, sentences) @ self._classes.T / 0.05, dim=1).double().numpy()
        matched: Array = (scores - self.usual) @ near.T
        return matched


Curves = Mapping[str, Array]
"""qid -> relevance per clip."""


def thresholded(entries: Sequence[QueryEntry], curves: Curves, threshold: float, *, relative: bool) -> list[PredictionEntry]:
    """Threshold each curve, at a value or at a share of the way from its median to its maximum; runs above it, best mean first."""
    predictions = []
    for entry in entries:
        curve = curves[entry.qid]
        level = float(np.median(curve) + threshold * (curve.max() - np.median(curve))) if relative else threshold
        step = entry.duration_seconds / len(curve) if len(curve) > np.ceil(entry.duration_seconds) else 1.0
        runs = [(a * step, min(b * step, entry.duration_seconds), float(curve[a:b].mean())) for a, b in runs_above(curve, level)]
        best = tuple(sorted(((a, b, mean) for a, b, mean in runs if a < b), key=lambda run: -run[2])[:10])
        predictions.append(PredictionEntry(entry.qid, entry.query, entry.vid, best))
    return predictions


def best_threshold(entries: Sequence[QueryEntry], curves: Curves, *, relative: bool) -> float:
    """Return the threshold of a grid with the best R1@0.7."""
    grid = np.arange(0.2, 0.95, 0.05) if relative else np.arange(0.0, 0.9, 0.05)
    return max((evaluate(thresholded(entries, curves, float(t), relative=relative), entries)["R1@0.7"], float(t)) for t in grid)[1]


def baselines(
    retriever: MomentRetriever, sets: Sequence[Asked], val: Path, teacher: Teacher | None, limit: int
) -> dict[str, list[Measure]]:
    """Score the baselines on sets of scenes: the cosine, above a value and relative to each curve, and the teacher, relative."""
    entries = read_scenes(val, limit)
    tuning = Asked("val", val, entries, encode_scenes(retriever, val, entries), ())

    def cosines(asked: Asked) -> Curves:
        first = {vid: next(iter(recording.streams.values())) for vid, recording in asked.recordings.items()}
        text = sentence_vectors(retriever, [entry.query for entry in asked.entries])
        return {entry.qid: (first[entry.vid] @ row).double().numpy() for entry, row in zip(asked.entries, text, strict=True)}

    def tagged(asked: Asked) -> Curves:
        assert teacher is not None
        paths = {vid: asked.folder / "audio" / f"{vid}.flac" for vid in asked.vids}
        scores = {vid: teacher.scores(path) for vid, path in tqdm(paths.items(), desc=f"teacher, {asked.name}", disable=None)}
        return {entry.qid: teacher.match(scores[entry.vid], [entry.query])[:, 0] for entry in asked.entries}

    rows: dict[str, list[Measure]] = {}
    for label, curves_of in (("cosine", cosines), ("teacher", tagged)) if teacher else (("cosine", cosines),):
        curves = curves_of(tuning), *map(curves_of, sets)
        for relative in (False, True) if curves_of is cosines else (True,):
            threshold = best_threshold(entries, curves[0], relative=relative)
            found = rows.setdefault(f"{label} {f'at {threshold:.2f} of median..max' if relative else f'above {threshold:.2f}'}", [])
            for asked, own in zip(sets, curves[1:], strict=True):
                scores = query_scores(match(thresholded(asked.entries, own, threshold, relative=relative), asked.entries))
                intervals = bootstrap(scores, ("R1@0.5", "R1@0.7", "mAP"), resamples=RESAMPLES)
                found += [Measure(f"{asked.name}, {name}", **asdict(each), n=scores.num_queries) for name, each in intervals.items()]
    return rows


def named_apart(label: str, right: Array, features: ClipFeatures) -> list[Measure]:
    """Divide naming into the ten kinds of ESC-10 and the forty others."""
    ten = np.isin([clip.group for clip in features.clips], list(ESC10_GROUPS.values()))
    sources = np.array(features.sources)
    return [
        measure(f"{label}, {name}", right[which], sources[which].tolist())
        for name, which in (("forty other kinds", ~ten), ("ten kinds", ten))
    ]


def hear(checkpoint: str, real: Path, scenes: Path, teacher: Path | None, limit: int, *, alone: bool) -> dict[str, Any]:
    """Measure a checkpoint; with `alone` the baselines too."""
    retriever = MomentRetriever.from_pretrained(checkpoint)
    clips = [sound for sound in real_sounds(real) if sound.fold == 4][:: max(1, 400 // max(limit, 1))]
    features = hear_clips(retriever, clips)
    wordings = unseen_wordings()
    first = {kind: load_groups()[kind]["captions"][:5] for kind in wordings}

    def cosines(sentences: list[str]) -> Array:
        table: Array = (features.vectors @ sentence_vectors(retriever, sentences).T).double().numpy()
        return table

    named = naming(cosines, clips, wordings)
    rows = named_apart("naming", named, features) + named_apart("naming in trained wordings", naming(cosines, clips, first), features)
    sets = [ask(retriever, scenes / name, limit) for name in ("fifty", "test") if (scenes / name / "manifest.jsonl").is_file()]
    for asked in sets:
        rows += retrieval(asked) + trust(asked)
    rows += nonsense(retriever, sets[0], min(limit, 3)) + steadiness(retriever, sets[-1], min(limit, 60)) + speed(retriever, sets[0])
    report: dict[str, Any] = {
        "checkpoint": checkpoint,
        "measures": [asdict(row) for row in rows],
        "kinds": by_kind(features, named, sets[0]),
    }
    if alone:
        found = {}
        tagger = Teacher(teacher, retriever) if teacher else None
        if tagger:
            heard = np.stack([tagger.scores(clip.path).mean(axis=0) for clip in tqdm(clips, desc="teacher, clips", disable=None)])
            tagger.usual = heard.mean(axis=0)
            found["teacher and sentences"] = named_apart(
                "naming", naming(lambda texts: tagger.match(heard, texts), clips, wordings), features
            )
        found |= baselines(retriever, sets, scenes / "val", tagger, limit)
        report["baselines"] = {name: [asdict(row) for row in rows] for name, rows in found.items()}
    return report


def print_report(report: Mapping[str, Any], other: Mapping[str, Any] | None) -> None:
    """Print what was measured beside what was asked, and beside another report."""
    beside = {row["name"]: str(Measure(**row)) for row in other["measures"]} if other else {}
    print(f"\n{'percent [95 % interval] (n)':<44}{'asked':>9}  {report['checkpoint']:<28}" + (f"  {other['checkpoint']}" if other else ""))
    for row in report["measures"]:
        shown = f"{Measure(**row)!s}{'' if row['unit'] == '%' else ' ' + row['unit']}"
        print(f"{row['name']:<44}{ASKED.get(row['name'], ''):>9}  {shown:<28}  {beside.get(row['name'], '')}".rstrip())
    for label, rows in report.get("baselines", {}).items():
        print(f"\n{label}")
        for row in rows:
            print(f"  {row['name']:<42}{'':>9}  {Measure(**row)}")
    print(f"\n{'kind':<20}" + "".join(f"{name:>22}" for name in ("naming", "R1@0.7", "absent recognised")))
    for kind, parts in report["kinds"].items():
        print(
            f"{kind:<20}"
            + "".join(f"{'-' if part['value'] is None else format(part['value'], '.0f'):>15} ({part['n']:>3}) " for part in parts.values())
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=Path, required=True, help="folder with esc10 and sounds")
    parser.add_argument("--scenes", type=Path, default=Path("build/scenes"), help="folder with fifty, test and val")
    parser.add_argument("--checkpoint", default="qam-detr-pocket")
    parser.add_argument("--against", help="a checkpoint, or the JSON of an earlier run, to show beside it")
    parser.add_argument("--teacher", type=Path, help="folder with yamnet.tflite")
    parser.add_argument("--limit", type=int, default=10_000, help="only so many recordings of each set, for a first look")
    parser.add_argument("--output", type=Path, default=Path("build/benchmarks/hearing.json"))
    arguments = parser.parse_args(argv)
    started = time.perf_counter()
    report = hear(arguments.checkpoint, arguments.real, arguments.scenes, arguments.teacher, arguments.limit, alone=True)
    other = None
    if arguments.against:
        earlier = Path(arguments.against)
        if earlier.suffix == ".json":
            other = json.loads(earlier.read_text(encoding="utf-8"))
        else:
            other = hear(arguments.against, arguments.real, arguments.scenes, None, arguments.limit, alone=False)
    print_report(report, other)
    write_json(arguments.output, {**report, "against": other, "seconds": round(time.perf_counter() - started)})


if __name__ == "__main__":
    main()
