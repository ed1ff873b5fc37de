"""How long does an hour of audio take to encode, and how much memory? One hour of stereo at 44.1 kHz, as WAV and as OGG.

    python -m benchmarks.hour [--threads 2] [--repeats 3] [--formats wav ogg flac mp3]

The hour is joined from the example recordings. Each run is a process of its own: its seconds are those from the file to the features, with
the models open; its peak memory is all that the process ever held, imports and models included. On a shared machine, the seconds of
processor time say more than those on the clock.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

from benchmarks._timing import write_json

ASSETS = Path(__file__).resolve().parents[1] / "assets"
RATE_HZ = 44_100
SECONDS = 3600
TARGET_SECONDS, TARGET_MIB, TARGET_TIMES_REAL_TIME = 40.0, 1.5e9 / 2**20, 100.0
_PIECE_FRAMES = 1 << 14  # libsndfile's Vorbis encoder overflows its stack on large ones
_SUBTYPES = {"wav": "PCM_16", "flac": "PCM_16", "ogg": "VORBIS", "mp3": "MPEG_LAYER_III"}


def write_hour(path: Path, seconds: int) -> None:
    """Write that many seconds of the example recordings, over and over, in two channels that differ."""
    from qamdetr.audio import Sound

    mono = np.concatenate([Sound(asset).samples(RATE_HZ) for asset in sorted(ASSETS.glob("*.ogg"))])
    stereo = np.stack([mono, 0.8 * np.roll(mono, 500)], axis=1).astype(np.float32)
    left = seconds * RATE_HZ
    with soundfile.SoundFile(path, "w", RATE_HZ, 2, _SUBTYPES[path.suffix[1:]]) as file:
        while left:
            for begin in range(0, len(stereo), _PIECE_FRAMES):
                piece = stereo[begin : begin + min(_PIECE_FRAMES, left)]
                file.write(piece)
                left -= len(piece)


def measure(path: Path, threads: int) -> None:
    """Encode a file in this process and print what it took as JSON."""
    import torch

    from qamdetr.inference.retriever import MomentRetriever

    torch.set_num_threads(threads)
    retriever = MomentRetriever.from_pretrained()
    retriever.encode(min(ASSETS.glob("*.ogg"), key=lambda asset: asset.stat().st_size))  # the first use loads more
    before_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    stages: dict[str, float] = {}
    moments = [time.perf_counter()]
    begin, begin_cpu = moments[0], time.process_time()
    steps = retriever.encoding(path)
    while True:
        try:
            step = next(steps)
        except StopIteration as done:
            recording = done.value
            break
        moments.append(time.perf_counter())
        stages.setdefault(step.stage, moments[-1])
    end = time.perf_counter()
    result = {
        "audio_seconds": recording.duration_seconds,
        "seconds": end - begin,
        "cpu_seconds": time.process_time() - begin_cpu,
        "reading_seconds": [*stages.values(), end][1] - begin,
        "longest_silence_seconds": float(np.diff([*moments, end]).max()),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "before_mib": before_mib,
    }
    print(json.dumps(result))


def main() -> None:
    """Print the table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=SECONDS, help="length of the recording")
    parser.add_argument("--formats", nargs="+", choices=list(_SUBTYPES), default=["wav", "ogg"])
    parser.add_argument("--output", type=Path, default=Path("build/benchmarks/hour.json"))
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure, arguments.threads)
        return
    rows: dict[str, dict[str, float]] = {}
    for kind in arguments.formats:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"hour.{kind}"
            write_hour(path, arguments.seconds)
            command = [sys.executable, "-m", "benchmarks.hour", "--measure", str(path), "--threads", str(arguments.threads)]
            runs = [
                json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout) for _ in range(arguments.repeats)
            ]
        rows[kind] = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    print(f"{arguments.seconds} s of stereo at {RATE_HZ} Hz, {arguments.threads} threads, medians of {arguments.repeats} processes")
    print(f"  {'':<6}{'seconds':>9}{'processor':>11}{'reading':>9}{'x real time':>13}{'peak MiB':>10}{'before':>8}{'longest silence':>17}")
    for kind, row in rows.items():
        pace = row["audio_seconds"] / row["seconds"]
        print(
            f"  {kind:<6}{row['seconds']:9.1f}{row['cpu_seconds']:11.1f}{row['reading_seconds']:9.1f}{pace:13.0f}{row['peak_mib']:10.0f}"
            f"{row['before_mib']:8.0f}{row['longest_silence_seconds']:15.2f} s"
        )
    print(f"  {'asked':<6}{f'<= {TARGET_SECONDS:.0f}':>9}{'':20}{f'>= {TARGET_TIMES_REAL_TIME:.0f}':>13}{f'<= {TARGET_MIB:.0f}':>10}")
    write_json(arguments.output, {"rows": rows, "threads": arguments.threads})


if __name__ == "__main__":
    main()
