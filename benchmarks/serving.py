"""How long does a user wait, and how much memory does it take? Encodes a three-minute recording, asks it questions, prints medians.

    python -m benchmarks.serving [--threads 2]

Run it alone in its process: the peak memory is the process's own, imports included.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import torch

from benchmarks._timing import median_seconds, write_json
from qamdetr.audio import decode
from qamdetr.inference.retriever import MomentRetriever

ASSETS = Path(__file__).resolve().parents[1] / "assets"
SECONDS = 180
QUERIES = [
    "a dog barks", "rain falls", "someone plays the piano", "a man speaks", "a siren wails", "birdsong", "a car honks",
    "the phone rings", "thunder", "a clock ticks",
]  # fmt: skip


def three_minutes(folder: Path) -> Path:
    """Cut and join the example recordings to a stereo WAV of 180 s at 44.1 kHz, the kind that users upload."""
    samples = np.concatenate([decode(path).samples for path in sorted(ASSETS.glob("*.ogg"))])
    rate = 44_100
    stretched = np.interp(np.arange(SECONDS * rate) * 24_000 / rate, np.arange(len(samples)), samples)
    path = folder / "three-minutes.wav"
    soundfile.write(path, np.stack([stretched, stretched], axis=1).astype(np.float32), rate)
    return path


def main() -> None:
    """Print the table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--output", type=Path, default=Path("build/benchmarks/serving.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    started = time.perf_counter()
    retriever = MomentRetriever.from_pretrained()
    loading = time.perf_counter() - started
    with tempfile.TemporaryDirectory() as folder:
        path = three_minutes(Path(folder))
        started = time.perf_counter()
        recording = retriever.encode(path)
        first_encoding = time.perf_counter() - started
        started = time.perf_counter()
        retriever.retrieve(recording, QUERIES[0])
        first_query = time.perf_counter() - started
        medians = median_seconds(
            {
                "encode 180 s": lambda: retriever.encode(path),
                "one query": lambda: retriever.retrieve(recording, QUERIES[0]),
                "one query with the pocket verifier": lambda: retriever.retrieve(recording, QUERIES[0], verifier="pocket"),
                "ten queries": lambda: retriever.retrieve_many(recording, QUERIES),
            },
            repeats=arguments.repeats,
        )
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rows = {"load the models": loading, "first encoding": first_encoding, "first query": first_query, **medians}
    print(f"{arguments.threads} threads, medians of {arguments.repeats} runs (the first three rows happen once)")
    for name, seconds in rows.items():
        print(f"  {name:<38}{1000 * seconds:9.1f} ms")
    print(f"  {'peak memory of the process':<38}{peak_mib:9.0f} MiB")
    print(f"  encoding runs at {SECONDS / medians['encode 180 s']:.0f} times real time")
    write_json(arguments.output, {"seconds": rows, "peak_mib": peak_mib, "threads": arguments.threads})


if __name__ == "__main__":
    main()
