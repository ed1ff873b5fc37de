"""A joint space on trial: the best threshold on its cosines beside the open-vocabulary model, which never saw it.

    python -m benchmarks.open_vocabulary --encoder laion_clap [pe_a_frame ...] [--manifest JSONL --audio-dir DIR]

On the shipped example recordings, or on a manifest with true windows. The threshold is tuned on the very answers, so it flatters; the model
is as it is. Also how long encoding and a question take. What is not on this machine yet is downloaded first.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn.functional import normalize
from tqdm import tqdm

from benchmarks._timing import write_json
from benchmarks.hearing import Asked, Curves, best_threshold, retrieval, thresholded, trust
from qamdetr.audio import Sound, find_recordings
from qamdetr.cli.predict import read_models
from qamdetr.data.manifest import QueryEntry, read_manifest
from qamdetr.evaluation.metrics import evaluate
from qamdetr.features.base import OPEN, get_combo
from qamdetr.inference.checkpoint import OPEN_CHECKPOINT
from qamdetr.inference.retriever import MomentRetriever
from qamdetr.ui.examples import ASSETS_DIR

METRICS = ("R1@0.5", "R1@0.7", "mAP")


def examples() -> tuple[Path, list[QueryEntry]]:
    """Return the folder of the shipped recordings, and their questions."""
    entries: list[QueryEntry] = []
    for row in json.loads((ASSETS_DIR / "examples.json").read_text(encoding="utf-8")):
        seconds = Sound(ASSETS_DIR / row["file"]).duration_seconds
        for asked in row["queries"]:
            windows = tuple((start, end) for start, end in asked["windows"])
            entries.append(QueryEntry(str(len(entries)), asked["query"], Path(row["file"]).stem, seconds, windows))
    return ASSETS_DIR, entries


def try_space(encoder: str, folder: Path, entries: Sequence[QueryEntry], models: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return what the threshold and the model score in the joint space of an encoder, and what that costs."""
    retriever = MomentRetriever.from_pretrained(f"{OPEN_CHECKPOINT}:{encoder}", encoder_models=read_models(models))
    files, begun = find_recordings(folder), time.perf_counter()
    recordings = {
        vid: retriever.encode(files[vid]) for vid in tqdm(dict.fromkeys(entry.vid for entry in entries), desc=encoder, disable=None)
    }
    encoding_seconds, begun = time.perf_counter() - begun, time.perf_counter()
    results = [retriever.retrieve(recordings[entry.vid], entry.query) for entry in entries]
    asking_seconds = time.perf_counter() - begun
    clips = {vid: normalize(recording.streams[OPEN].float(), dim=-1) for vid, recording in recordings.items()}
    pooled = [next(iter(retriever.encoder.encode_query(entry.query).values())).pooled for entry in entries]
    curves: Curves = {
        e.qid: (clips[e.vid] @ vector).double().numpy() for e, vector in zip(entries, pooled, strict=True) if vector is not None
    }
    tuned = [(relative, best_threshold(entries, curves, relative=relative)) for relative in (False, True)]
    scores = [evaluate(thresholded(entries, curves, threshold, relative=relative), entries) for relative, threshold in tuned]
    asked = Asked(encoder, folder, entries, recordings, results)
    head = {row.name.rpartition(", ")[2]: row.value for row in (*retrieval(asked), *trust(asked)) if row.value is not None}
    minutes = sum(recording.duration_seconds for recording in recordings.values()) / 60
    return {
        "threshold, tuned here": {key: float(max(scores, key=lambda row: row["R1@0.7"])[key]) for key in METRICS},
        "qam-detr-open, as it is": {key: head[key] for key in (*METRICS, "absent recognised", "present lost")},
        "cost": {"seconds per minute of audio": encoding_seconds / minutes, "ms per question": 1000 * asking_seconds / len(entries)},
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Try the open-vocabulary model in a joint space.")
    parser.add_argument(
        "--encoder", nargs="+", default=["pocket"], help="such as laion_clap, ms_clap, pe_a_frame; or STREAM=ID_OR_FOLDER beside one"
    )
    parser.add_argument("--manifest", type=Path, help="true windows of other recordings than the examples")
    parser.add_argument("--audio-dir", type=Path, help="its recordings (default: audio/ beside it)")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    folder, entries = examples()
    if arguments.manifest:
        folder = arguments.audio_dir or arguments.manifest.parent / "audio"
        entries = [entry for entry in read_manifest(arguments.manifest) if entry.relevant_windows is not None]
    models = [item for item in arguments.encoder if "=" in item]
    rows = []
    for encoder in arguments.encoder:
        if encoder not in models:
            own = [item for item in models if item.partition("=")[0] in get_combo(f"open:{encoder}").audio_streams]
            for way, values in try_space(encoder, folder, entries, own).items():
                rows.append({"encoder": encoder, "by": way, **{key: round(value, 2) for key, value in values.items()}})
                print(encoder, way, ", ".join(f"{key} {value:.1f}" for key, value in values.items()), sep=" | ", flush=True)
    write_json(Path("build/benchmarks/open_vocabulary.json"), {"rows": rows})


if __name__ == "__main__":
    main()
