"""How long does a verifier take per candidate? Asks it about windows of an example recording, without its cache, and prints medians.

    python -m benchmarks.verifier [--verifier pocket] [--model FOLDER] [--url URL] [--candidates 10]

`qwen2.5-omni` needs the model on this machine, `server` a server; `pocket` runs anywhere. Run it alone in its process: the peak memory is
the process's own, imports included.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from pathlib import Path

import torch

from benchmarks._timing import median_seconds, write_json
from qamdetr.audio import Sound
from qamdetr.config import VerifierConfig
from qamdetr.errors import QamDetrError
from qamdetr.features.base import COMBOS, open_streams
from qamdetr.types import Candidate, Recording
from qamdetr.verifiers.base import CachedVerifier, Verifier, crop_bounds, make_verifier, read_crops, verifier_names

EXAMPLE = Path(__file__).resolve().parents[1] / "assets" / "street.ogg"
QUERY = "a dog barks"
WINDOW_SECONDS = 5.0


def windows(recording: Recording, count: int) -> list[Candidate]:
    """Spread `count` windows of 5 s, or of the whole recording if that is shorter, over it."""
    length = min(WINDOW_SECONDS, recording.duration_seconds)
    step = (recording.duration_seconds - length) / max(count - 1, 1)
    return [Candidate(index * step, index * step + length, 0.5, 0.5, 0.25) for index in range(count)]


def open_verifier(arguments: argparse.Namespace) -> Verifier:
    """Make the verifier, without its cache: here nothing may be remembered."""
    settings = VerifierConfig(
        model=arguments.model, url=arguments.url, batch_size=arguments.batch_size, dtype=arguments.dtype, four_bit=arguments.four_bit
    )
    verifier = make_verifier(arguments.verifier, settings)
    if verifier is None:
        raise QamDetrError("Verifier 'none' does nothing that could be timed; choose another with --verifier.")
    return verifier.inner if isinstance(verifier, CachedVerifier) else verifier


def measure(arguments: argparse.Namespace) -> None:
    """Print the table and write JSON."""
    verifier = open_verifier(arguments)
    encoder = open_streams(*COMBOS["pocket"], name="pocket")
    recording, text = encoder.encode(Sound(arguments.audio)), encoder.encode_query(QUERY)
    candidates = windows(recording, arguments.candidates)
    started = time.perf_counter()
    scores = verifier.verify(recording, QUERY, text, candidates)
    first = time.perf_counter() - started
    runs = {"verify": lambda: verifier.verify(recording, QUERY, text, candidates)}
    if verifier.needs_audio:
        runs["cut the crops"] = lambda: [float(len(crop.samples)) for crop in read_crops(recording, candidates)]
    medians = median_seconds(runs, repeats=arguments.repeats, warm_ups=1)
    crops = [crop_bounds(candidate.window, recording.duration_seconds) for candidate in candidates]
    rows = {
        "first question (loads the model)": first,
        f"{len(candidates)} candidates": medians["verify"],
        "per candidate": medians["verify"] / len(candidates),
        **({"of which cutting the crop": medians["cut the crops"] / len(candidates)} if verifier.needs_audio else {}),
    }
    peaks_mib = {"peak memory of the process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    if torch.cuda.is_available():
        peaks_mib["peak memory of the GPU"] = torch.cuda.max_memory_allocated() / 1024**2
    heard = sum(end - start for start, end in crops) / len(crops)
    print(f"{verifier.identity}: crops of {heard:.1f} s, {arguments.threads} threads, medians of {arguments.repeats} runs")
    for name, seconds in rows.items():
        print(f"  {name:<38}{1000 * seconds:11.2f} ms")
    for name, mib in peaks_mib.items():
        print(f"  {name:<38}{mib:11.0f} MiB")
    print(f"  scores from {min(scores):.3f} to {max(scores):.3f}")
    result = {"verifier": verifier.identity, "seconds": rows, "peak_mib": peaks_mib, "crop_seconds": heard, "threads": arguments.threads}
    write_json(arguments.output, result)


def main() -> int:
    """Read the arguments and measure; a user's mistake is one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--verifier", default="pocket", choices=verifier_names())
    parser.add_argument("--model", default="", help="folder or hub id (qwen2.5-omni), or the server's name of its model")
    parser.add_argument("--url", default="", help="of the server")
    parser.add_argument("--audio", type=Path, default=EXAMPLE)
    parser.add_argument("--candidates", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=VerifierConfig.batch_size)
    parser.add_argument("--dtype", default=VerifierConfig.dtype)
    parser.add_argument("--four-bit", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--output", type=Path, default=Path("build/benchmarks/verifier.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    try:
        measure(arguments)
    except QamDetrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
