"""How long does a user wait, and how much memory does it take? Encodes a five-minute recording, asks it questions, prints medians.

    python -m benchmarks.serving [--threads 2]

The shipped model with its encoders; and networks of the field's size with random weights, of the official baseline and of the full model,
each on random features of 300 clips. Run it alone in its process: the peak memory is the process's own, imports included.
"""

from __future__ import annotations

import argparse
import platform
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import torch

from benchmarks._timing import Target, median_seconds, print_targets, write_json
from qamdetr.audio import Sound
from qamdetr.config import ModelConfig, load_config
from qamdetr.features.pipeline import prepare
from qamdetr.inference.retriever import MomentRetriever
from qamdetr.kernels import speed_up
from qamdetr.model.qam_detr import QamDetr
from qamdetr.types import Batch, TextFeatures

ASSETS = Path(__file__).resolve().parents[1] / "assets"
SECONDS = 300
TOKENS = 10
QUERIES = [
    "a dog barks", "rain falls", "someone plays the piano", "a man speaks", "a siren wails", "birdsong", "a car honks",
    "the phone rings", "thunder", "a clock ticks",
]  # fmt: skip

FIELD_SIZES = {"official baseline, d = 256": "castella_baseline", "full model, combo A, d = 256": "table1_6_multi_feature"}
QUERY_LIMIT_SECONDS = 0.040
MANY_LIMIT = 3.0
ENCODE, FORWARD, ONE, MANY = f"encode {SECONDS} s", "network alone, one query", "one query", "ten queries"


def five_minutes(folder: Path) -> Path:
    """Cut and join the example recordings to a stereo WAV of 300 s at 44.1 kHz, the kind that users upload."""
    samples = np.concatenate([Sound(path).samples() for path in sorted(ASSETS.glob("*.ogg"))])
    rate = 44_100
    stretched = np.interp(np.arange(SECONDS * rate) * 24_000 / rate, np.arange(len(samples)), samples)
    path = folder / "five-minutes.wav"
    soundfile.write(path, np.stack([stretched, stretched], axis=1).astype(np.float32), rate)
    return path


def random_batch(config: ModelConfig, num_queries: int) -> Batch:
    """Make the network's input of one recording and some queries, of random features."""
    generator = torch.Generator().manual_seed(0)

    def features(rows: int, width: int) -> torch.Tensor:
        return torch.randn(rows, width, generator=generator)

    audio = {name: features(SECONDS, width) for name, width in config.audio_streams.items()}
    text = [
        {name: TextFeatures(features(TOKENS, width), (), features(1, width)[0]) for name, width in config.text_streams.items()}
        for _ in range(num_queries)
    ]
    return prepare([audio], text)


def forward(model: QamDetr, batch: Batch) -> Callable[[], object]:
    """Return a run of the network."""

    def run() -> object:
        with torch.inference_mode():
            return model(batch)

    return run


def network_runs(models: dict[str, QamDetr]) -> dict[str, Callable[[], object]]:
    """Return runs of networks on one query and on ten."""
    runs: dict[str, Callable[[], object]] = {}
    for name, model in models.items():
        runs[f"{name}: {FORWARD}"] = forward(model, random_batch(model.config, 1))
        runs[f"{name}: network alone, {MANY}"] = forward(model, random_batch(model.config, len(QUERIES)))
    return runs


def targets_of(medians: dict[str, float], networks: list[str]) -> list[Target]:
    """Put what was asked beside what was measured; ratios are of ten queries to one."""
    asked = [Target(ONE, 1000 * medians[ONE], 1000 * QUERY_LIMIT_SECONDS, "ms")]
    asked += [Target(f"{name}, one query", 1000 * medians[f"{name}: {FORWARD}"], 1000 * QUERY_LIMIT_SECONDS, "ms") for name in networks]
    asked.append(Target("ten queries / one", medians[MANY] / medians[ONE], MANY_LIMIT, "x"))
    for name in networks:
        ratio = medians[f"{name}: network alone, {MANY}"] / medians[f"{name}: {FORWARD}"]
        asked.append(Target(f"{name}, ten queries / one", ratio, MANY_LIMIT, "x"))
    return asked


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
        path = five_minutes(Path(folder))
        started = time.perf_counter()
        recording = retriever.encode(path)
        first_encoding = time.perf_counter() - started
        started = time.perf_counter()
        retriever.retrieve(recording, QUERIES[0])
        first_query = time.perf_counter() - started
        networks = {"shipped model": retriever.members[0].model}
        runs: dict[str, Callable[[], object]] = {
            ENCODE: lambda: retriever.encode(path),
            ONE: lambda: retriever.retrieve(recording, QUERIES[0]),
            "one query with the pocket verifier": lambda: retriever.retrieve(recording, QUERIES[0], verifier="pocket"),
            MANY: lambda: retriever.retrieve_many(recording, QUERIES),
        }
        medians = median_seconds(runs | network_runs(networks), repeats=arguments.repeats)
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # before the networks of the field's size are made
    networks = {name: speed_up(QamDetr(load_config(config).model)).eval() for name, config in FIELD_SIZES.items()}
    medians |= median_seconds(network_runs(networks), repeats=arguments.repeats)
    rows = {"load the models": loading, "first encoding": first_encoding, "first query": first_query, **medians}
    print(f"{arguments.threads} threads, medians of {arguments.repeats} runs (the first three rows happen once)")
    for name, seconds in rows.items():
        print(f"  {name:<60}{1000 * seconds:9.1f} ms")
    print(f"  {'peak memory of the process':<60}{peak_mib:9.0f} MiB")
    print(f"  encoding runs at {SECONDS / medians[ENCODE]:.0f} times real time")
    targets = print_targets(targets_of(medians, list(networks)))
    machine = {"torch": torch.__version__, "machine": platform.processor() or platform.machine()}
    setting = {"threads": arguments.threads, "repeats": arguments.repeats, "recording_seconds": SECONDS}
    write_json(arguments.output, {"setting": setting, **machine, "seconds": rows, "peak_mib": peak_mib, "targets": targets})


if __name__ == "__main__":
    main()
