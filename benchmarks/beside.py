"""Is this checkout faster than another one? Runs both in turn on one machine, since a ratio across machines is none.

    git worktree add ../before f584b19
    python -m benchmarks.beside ../before [--only step] [--repeats 5] [--threads 2]

Each checkout works in a process of its own, with this one's interpreter, and both wait for their turn: old, new, old, new. So a busy
moment of the machine falls on both alike. What is run is what the other benchmarks run, by names that revision f584b19 has too.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from benchmarks._timing import Target, print_targets, write_json

ROOT = Path(__file__).resolve().parents[1]

WORKER = """
import json, sys, tempfile, time
from pathlib import Path

import numpy
import torch

torch.set_num_threads(int(sys.argv[1]))
told = sys.stdout
sys.stdout = sys.stderr  # what is printed on the way is no answer
temporary = tempfile.TemporaryDirectory()
folder = Path(temporary.name)

def step(name):
    from benchmarks import train_step
    train_step.keep_freed_memory()
    return train_step.training_step(train_step.load_config(name), 300, torch.device("cpu"))

def query(name):
    from benchmarks import serving
    model = serving.QamDetr(serving.load_config(name).model).eval()
    try:
        from qamdetr.kernels import speed_up
        speed_up(model)
    except ImportError:
        pass  # before there were kernels to switch on
    return serving.forward(model, serving.random_batch(model.config, 1))

kept = {}
def shipped(name):
    from benchmarks import serving
    if not kept:
        kept["model"] = serving.MomentRetriever.from_pretrained()
        kept["path"] = serving.five_minutes(folder)
        kept["recording"] = kept["model"].encode(kept["path"])
    model, path, recording = kept["model"], kept["path"], kept["recording"]
    return (lambda: model.encode(path)) if name == "encode" else lambda: model.retrieve(recording, serving.QUERIES[0])

def train(name):
    # One epoch of a run as users start it, files and validation included, on random features.
    from benchmarks import train_step
    from qamdetr.training.loop import train as run
    train_step.keep_freed_memory()
    # Ten queries to a recording, as in the scenes that the shipped model learned from.
    random, lines = numpy.random.default_rng(0), []
    def save(part, name, key, rows, width):
        (folder / part).mkdir(exist_ok=True)
        numpy.savez(folder / part / f"{name}.npz", **{key: random.standard_normal((rows, width), dtype=numpy.float32)})
    lengths = random.integers(30, 290, 64).tolist()
    for number, clips in enumerate(lengths):
        for part, width in (("pocket", 256), ("mel_stats", 24)):
            save(part, f"v{number}", "features", clips, width)
    for number in range(640):
        save("text", f"qid{number}", "last_hidden_state", 6, 256)
        start, vid = int(random.integers(0, 20)), number % 64
        line = {"qid": number, "query": f"sound {number}", "vid": f"v{vid}", "duration": lengths[vid]}
        lines.append({**line, "relevant_windows": [[start, start + 6]]})
    for name, some in (("train", lines), ("val", lines[:32])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in some))
    files = {"audio_features": "{pocket: %s/pocket, mel_stats: %s/mel_stats}", "text_features": "{pocket: %s/text}"}
    settings = [f"data.{part}={folders.replace('%s', str(folder))}" for part, folders in files.items()]
    settings += [f"data.{name}_manifest={folder}/{name}.jsonl" for name in ("train", "val")]
    # The work that both checkouts know: later ones ship a dense decoder on clips of half a second.
    first, own = {"decoder": "detr", "clip_seconds": 1}, train_step.load_config("pocket").model
    settings += [f"model.{key}={value}" for key, value in first.items() if hasattr(own, key)]
    config = train_step.load_config("pocket", [*settings, "model.similarity=false", "train.epochs=1", "train.tracker="])
    return lambda: run(config, folder / f"run-{len(list(folder.iterdir()))}")

makers, runs = {"step": step, "query": query, "shipped": shipped, "train": train}, {}
for line in sys.stdin:
    kind, name = line.split()
    run = runs.get(line) or runs.setdefault(line, makers[kind](name))
    # Of what takes milliseconds, many: the first still share the cores with the other's threads, which spin before they sleep.
    seconds = []
    for _ in range(int(sys.argv[2]) if kind in ("query", "shipped") else 1):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    print(sorted(seconds)[len(seconds) // 2], file=told, flush=True)
"""

RUNS = {
    "shipped model: encode 300 s": "shipped encode",
    "shipped model: one query": "shipped query",
    "network of the baseline's sizes: one query": "query castella_baseline",
    "full model, combo A: one query": "query table1_6_multi_feature",
    "training step, baseline's sizes, 32 x 300": "step castella_baseline",
    "training step, full model, 32 x 300": "step table1_6_multi_feature",
    "pocket training, an epoch of 640 queries": "train pocket",
}
FULL_STEP, BASELINE_STEP, EPOCH, FULL_QUERY = (
    "step table1_6_multi_feature",
    "step castella_baseline",
    "train pocket",
    "query table1_6_multi_feature",
)
OFFICIAL_STEPS = 1.42
"""What a step of the official code took, in steps of the baseline's sizes at f584b19: measured in one run (docs/performance.md)."""
QUICK = 16  # runs of what takes milliseconds, of which a turn's median counts


class Checkout:
    """A checkout at work."""

    def __init__(self, root: Path, threads: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(root)!r})\n{WORKER}", str(threads), str(QUICK)],
            cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def seconds(self, run: str) -> float:
        """Run once; what must be made first is made, and not counted."""
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise RuntimeError("the checkout's process has no pipes")
        stdin.write(f"{run}\n")
        stdin.flush()
        told = stdout.readline()
        if not told:
            raise SystemExit(f"The checkout's process ended with status {self._process.wait()} in {run!r}; its words are above.")
        return float(told)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="root of the other checkout")
    parser.add_argument("--only", default="", metavar="TEXT", help="rows whose name or kind holds this")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each; medians count")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("build/benchmarks/beside.json"))
    arguments = parser.parse_args()
    if not (arguments.before / "benchmarks" / "train_step.py").is_file():
        raise SystemExit(f"{arguments.before} is no checkout of this project: make one with `git worktree add {arguments.before} f584b19`.")
    checkouts = [Checkout(root.resolve(), arguments.threads) for root in (arguments.before, ROOT)]
    rows, medians = {}, {}
    print(f"  {'medians, ' + str(arguments.threads) + ' threads':<48}{'before':>12}{'now':>12}{'ratio':>8}   (range of the pairs' ratios)")
    for name, run in RUNS.items():
        if arguments.only not in f"{name} {run}":
            continue
        for checkout in checkouts:
            checkout.seconds(run)  # makes what it needs, and compiles
        pairs = [tuple(checkout.seconds(run) for checkout in checkouts) for _ in range(arguments.repeats)]
        before, now = medians[run] = tuple(statistics.median(side) for side in zip(*pairs, strict=True))
        ratios = [new / old for old, new in pairs]
        print(
            f"  {name:<48}{1000 * before:9.1f} ms{1000 * now:9.1f} ms{now / before:8.2f}   ({min(ratios):.2f} to {max(ratios):.2f})",
            flush=True,
        )
        rows[name] = {"before_seconds": before, "now_seconds": now, "pairs": pairs}
    targets = print_targets(targets_of(medians))
    machine = {"threads": arguments.threads, "machine": processor(), "torch": torch.__version__}
    write_json(arguments.output, {**machine, "rows": rows, "targets": targets})


def targets_of(medians: Mapping[str, tuple[float, ...]]) -> list[Target]:
    """Put what was asked of this checkout against f584b19 beside what was measured, where it was."""
    asked = []
    if {FULL_STEP, BASELINE_STEP} <= set(medians):
        ratio = medians[FULL_STEP][1] / medians[BASELINE_STEP][0]
        asked += [Target("full model's step now / baseline's before", ratio, 0.55, "x")]
        asked += [Target("full model's step now / official code's", ratio / OFFICIAL_STEPS, 0.39, "x")]
    if EPOCH in medians:
        asked += [Target("pocket training, samples a second", medians[EPOCH][0] / medians[EPOCH][1], 1.8, "x", at_least=True)]
    if FULL_QUERY in medians:
        asked += [Target("full model's query", medians[FULL_QUERY][1] / medians[FULL_QUERY][0], 0.75, "x")]
    return asked


def processor() -> str:
    """Name the processor, and whether it multiplies in bfloat16."""
    abilities = torch.cpu.get_capabilities()
    found = [name for name in ("avx512_bf16", "amx_bf16") if abilities.get(name)]
    return " ".join([str(abilities.get("cpu_name", platform.machine())), *found])


if __name__ == "__main__":
    main()
