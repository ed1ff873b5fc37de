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
from pathlib import Path

from benchmarks._timing import write_json

ROOT = Path(__file__).resolve().parents[1]

WORKER = """
import sys, tempfile, time
from pathlib import Path

import torch

torch.set_num_threads(int(sys.argv[1]))
told = sys.stdout
sys.stdout = sys.stderr  # what is printed on the way is no answer

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
        kept["path"] = serving.five_minutes(Path(tempfile.mkdtemp()))
        kept["recording"] = kept["model"].encode(kept["path"])
    model, path, recording = kept["model"], kept["path"], kept["recording"]
    return (lambda: model.encode(path)) if name == "encode" else lambda: model.retrieve(recording, serving.QUERIES[0])

makers, runs = {"step": step, "query": query, "shipped": shipped}, {}
for line in sys.stdin:
    kind, name = line.split()
    run = runs.get(line) or runs.setdefault(line, makers[kind](name))
    started = time.perf_counter()
    run()
    print(time.perf_counter() - started, file=told, flush=True)
"""

RUNS = {
    "shipped model: encode 300 s": "shipped encode",
    "shipped model: one query": "shipped query",
    "network of the baseline's sizes: one query": "query castella_baseline",
    "full model, combo A: one query": "query table1_6_multi_feature",
    "training step, baseline's sizes, 32 x 300": "step castella_baseline",
    "training step, full model, 32 x 300": "step table1_6_multi_feature",
}
QUICK = 8  # times as many repeats of what takes milliseconds


class Checkout:
    """A checkout at work."""

    def __init__(self, root: Path, threads: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(root)!r})\n{WORKER}", str(threads)],
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
    parser.add_argument("--repeats", type=int, default=5, help=f"timed runs of the slow rows, {QUICK} times as many of the others")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("build/benchmarks/beside.json"))
    arguments = parser.parse_args()
    checkouts = [Checkout(root.resolve(), arguments.threads) for root in (arguments.before, ROOT)]
    rows = {}
    print(f"  {'medians, ' + str(arguments.threads) + ' threads':<48}{'before':>12}{'now':>12}{'ratio':>8}   (range of the pairs' ratios)")
    for name, run in RUNS.items():
        if arguments.only not in f"{name} {run}":
            continue
        for checkout in checkouts:
            checkout.seconds(run)  # makes what it needs, and compiles
        repeats = arguments.repeats * (1 if run.startswith("step") else QUICK)
        pairs = [tuple(checkout.seconds(run) for checkout in checkouts) for _ in range(repeats)]
        before, now = (statistics.median(side) for side in zip(*pairs, strict=True))
        ratios = [new / old for old, new in pairs]
        print(
            f"  {name:<48}{1000 * before:9.1f} ms{1000 * now:9.1f} ms{now / before:8.2f}   ({min(ratios):.2f} to {max(ratios):.2f})",
            flush=True,
        )
        rows[name] = {"before_seconds": before, "now_seconds": now, "pairs": pairs}
    write_json(arguments.output, {"threads": arguments.threads, "machine": platform.processor() or platform.machine(), "rows": rows})


if __name__ == "__main__":
    main()
