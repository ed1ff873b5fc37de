"""Does it find sounds it never heard, asked for in words it never read? Prints the numbers of the model cards.

    python -m benchmarks.first_light --esc10 DIR [--scenes build/scenes/test] [--val build/scenes/val]

Three questions: zero-shot naming of ESC-10's fold 4 by text prompt; retrieval on the test scenes by the shipped model; and the same by the
plain baseline, a threshold on the similarity curve of the pocket encoders, and by a stronger one whose threshold follows each curve's
median and maximum (both thresholds are the best of a grid on the validation scenes, by R1@0.7).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks._timing import write_json
from qamdetr.audio import Sound
from qamdetr.data.manifest import PredictionEntry, QueryEntry, read_manifest
from qamdetr.evaluation.metrics import evaluate
from qamdetr.features.base import COMBOS, open_streams
from qamdetr.inference.candidates import runs_above
from qamdetr.inference.retriever import MomentRetriever
from qamdetr.types import Recording, Result
from recipes.pocket.sound_bank.build import ESC10_GROUPS, load_groups

Curve = NDArray[np.float64]
Segments = Callable[[Curve, float], list[tuple[float, float, float]]]

SILENT_DB = -60.0
"""Windows quieter than this (dB full scale) hold no sound to name."""


def zero_shot(esc10: Path) -> dict[str, float]:
    """Name the clips and the audible one-second windows of fold 4 among ten prompts; percent right.

    Three wordings: the first training caption of each class; the mean over all its training captions; and, one by one, wordings that
    training never saw.
    """
    combo = open_streams(*COMBOS["pocket"], name="pocket")
    audio, text = combo.audio["pocket"], combo.text["pocket"]
    training, unseen = load_groups(), load_groups("test_wordings.yaml")

    def pooled(captions: Sequence[str]) -> torch.Tensor:
        vectors = [text.encode_text(caption).pooled for caption in captions]
        return torch.stack([vector for vector in vectors if vector is not None])

    groups = list(ESC10_GROUPS.values())
    prompts = {
        "one caption": torch.stack([pooled(training[group]["captions"][:1])[0] for group in groups]),
        "all training captions": torch.stack([pooled(training[group]["captions"]).mean(dim=0) for group in groups]),
    }
    right: dict[str, list[bool]] = {f"{unit}, {name}": [] for name in (*prompts, "unseen wordings") for unit in ("clips", "windows")}
    for truth, name in enumerate(ESC10_GROUPS):
        for path in sorted((esc10 / name).glob("4-*.ogg")):
            recording, audible = _encode_with_loudness(lambda path: combo.encode(Sound(path)), path, audio.rate_hz)
            vectors = recording.streams["pocket"][audible]
            for label, table in prompts.items():
                cosine = vectors @ table.T
                right[f"clips, {label}"].append(int(cosine.mean(dim=0).argmax()) == truth)
                right[f"windows, {label}"] += (cosine.argmax(dim=1) == truth).tolist()
            # An unseen wording is right when its own class's other prompts do not come into it: it replaces the class's prompt.
            for wording in pooled(unseen[groups[truth]]):
                table = prompts["one caption"].clone()
                table[truth] = wording
                cosine = vectors @ table.T
                right["clips, unseen wordings"].append(int(cosine.mean(dim=0).argmax()) == truth)
                right["windows, unseen wordings"] += (cosine.argmax(dim=1) == truth).tolist()
    return {name: round(100 * float(np.mean(values)), 2) for name, values in right.items()}


def segments_above(curve: Curve, threshold: float, duration_seconds: float) -> list[tuple[float, float, float]]:
    """Return the runs of clips whose value reaches `threshold` as `(start, end, mean value)` in seconds, best mean first."""
    runs = [(float(a), min(float(b), duration_seconds), float(curve[a:b].mean())) for a, b in runs_above(curve, threshold)]
    return sorted(runs, key=lambda run: -run[2])


def _encode_with_loudness(encode: Callable[[Path], Recording], path: Path, sample_rate_hz: int) -> tuple[Recording, torch.Tensor]:
    """Encode a file and tell which of its one-second windows are audible."""
    recording = encode(path)
    samples = Sound(path).samples(sample_rate_hz)
    padded = np.zeros(recording.num_clips * sample_rate_hz)
    padded[: len(samples)] = samples[: len(padded)]
    rms = np.sqrt(np.square(padded.reshape(recording.num_clips, -1)).mean(axis=1))
    audible = torch.from_numpy(rms > 10 ** (SILENT_DB / 20))
    return recording, audible if bool(audible.any()) else torch.ones_like(audible)


def similarity_curves(retriever: MomentRetriever, folder: Path) -> tuple[list[QueryEntry], list[Curve], dict[str, Recording]]:
    """Encode all recordings of a scene folder; return its queries with their similarity curves."""
    entries = read_manifest(folder / "manifest.jsonl")
    recordings: dict[str, Recording] = {}
    curves = []
    for entry in tqdm(entries, desc=str(folder)):
        if entry.vid not in recordings:
            recordings[entry.vid] = retriever.encode(folder / "audio" / f"{entry.vid}.flac")
        pooled = retriever.encoder.encode_query(entry.query)["pocket"].pooled
        assert pooled is not None
        curves.append((recordings[entry.vid].streams["pocket"] @ pooled).double().numpy())
    return entries, curves, recordings


def baseline_predictions(
    entries: Sequence[QueryEntry], curves: Sequence[Curve], threshold: float, *, relative: bool
) -> list[PredictionEntry]:
    """Threshold each curve: at a cosine, or at a share of the way from its median to its maximum."""
    predictions = []
    for entry, curve in zip(entries, curves, strict=True):
        level = float(np.median(curve) + threshold * (curve.max() - np.median(curve))) if relative else threshold
        segments = segments_above(curve, level, entry.duration_seconds)[:10]
        predictions.append(PredictionEntry(entry.qid, entry.query, entry.vid, tuple(segments)))
    return predictions


def best_threshold(entries: Sequence[QueryEntry], curves: Sequence[Curve], *, relative: bool) -> float:
    """Return the threshold of a grid with the best R1@0.7."""
    grid = np.arange(0.2, 0.95, 0.05) if relative else np.arange(0.0, 0.9, 0.05)
    scored = [(evaluate(baseline_predictions(entries, curves, float(t), relative=relative), entries)["R1@0.7"], float(t)) for t in grid]
    return max(scored)[1]


def model_predictions(retriever: MomentRetriever, entries: Sequence[QueryEntry], recordings: dict[str, Recording]) -> list[Result]:
    """Ask the model every query."""
    return [retriever.retrieve(recordings[entry.vid], entry.query) for entry in tqdm(entries, desc="queries")]


def main() -> None:
    """Print the table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--esc10", type=Path, help="folder of ESC-10 classes; without it the zero-shot part is left out")
    parser.add_argument("--scenes", type=Path, default=Path("build/scenes/test"))
    parser.add_argument("--val", type=Path, default=Path("build/scenes/val"))
    parser.add_argument("--checkpoint", default="qam-detr-pocket")
    parser.add_argument("--output", type=Path, default=Path("build/benchmarks/first_light.json"))
    arguments = parser.parse_args()
    report: dict[str, object] = {}
    if arguments.esc10:
        report["zero_shot"] = zero_shot(arguments.esc10)
        print("ESC-10 fold 4, ten-way by text prompt (percent right)")
        for name, value in report["zero_shot"].items():  # type: ignore[attr-defined]
            print(f"  {name:<32}{value:6.2f}")
    retriever = MomentRetriever.from_pretrained(arguments.checkpoint)
    val_entries, val_curves, _ = similarity_curves(retriever, arguments.val)
    entries, curves, recordings = similarity_curves(retriever, arguments.scenes)
    results = model_predictions(retriever, entries, recordings)
    predictions = [
        PredictionEntry(e.qid, e.query, e.vid, tuple((m.start_seconds, m.end_seconds, m.score) for m in r.moments))
        for e, r in zip(entries, results, strict=True)
    ]
    rows: dict[str, dict[str, float]] = {}
    for relative, label in ((False, "plain baseline, cosine above {:.2f}"), (True, "its threshold at {:.2f} of median..max")):
        threshold = best_threshold(val_entries, val_curves, relative=relative)
        rows[label.format(threshold)] = evaluate(baseline_predictions(entries, curves, threshold, relative=relative), entries)
    model = rows["QAM-DETR"] = evaluate(predictions, entries)
    said_absent = [not result.found for result in results]
    absent = [not entry.relevant_windows for entry in entries]
    said, true = np.array(said_absent), np.array(absent)
    answered = {
        "absent queries called absent": round(100 * float(said[true].mean()), 2) if true.any() else None,
        "present queries called absent": round(100 * float(said[~true].mean()), 2),
    }
    print(f"\nTest scenes: {len(recordings)} recordings, {model['num_queries']:.0f} queries with moments, {sum(absent)} without")
    print(f"{'':<42}" + "".join(f"{name:>9}" for name in ("R1@0.5", "R1@0.7", "mAP", "mAP@0.5", "mAP@0.75")))
    for name, scores in rows.items():
        print(f"{name:<42}" + "".join(f"{scores[key]:>9.2f}" for key in ("R1@0.5", "R1@0.7", "mAP", "mAP@0.5", "mAP@0.75")))
    print("  ".join(f"{name}: {value} %" for name, value in answered.items()))
    write_json(arguments.output, {**report, "scenes": rows, "absence": answered})


if __name__ == "__main__":
    main()
