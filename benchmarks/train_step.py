"""How long does one optimiser step take, and a whole training? Times baseline and full model on random features of the field's sizes.

    python -m benchmarks.train_step [--config castella_baseline table1_6_multi_feature] [--threads 2] [--device cpu]

A step is forward, matching, losses, backward, clipping and AdamW on a batch of 32 queries that is already in memory. CASTELLA's recordings
last up to 300 s, so its hours are an upper bound; Clotho-Moment's last 60 s. Reading features and validation come on top. CPU seconds are
of all threads together: what a step costs, also where other programs share the cores.
"""

from __future__ import annotations

import argparse
import math
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks._timing import compile_kernels, median_seconds, write_json
from qamdetr.config import Config, load_config
from qamdetr.data.dataset import Collator, LabelledBatch, MomentItem
from qamdetr.data.manifest import QueryEntry
from qamdetr.kernels import speed_up
from qamdetr.model.losses import compute_losses
from qamdetr.model.qam_detr import QamDetr
from qamdetr.training.loop import choose_precision, in_float32, make_optimizer
from qamdetr.types import TextFeatures
from train import keep_freed_memory

TOKENS = 10
"""Of a query; CASTELLA's have seven words on average."""

FULL_MODEL = "table1_6_multi_feature"

SETS = {"CASTELLA": (2182, 300), "Clotho-Moment": (32_694, 60)}
"""Name -> training queries, clips of the longest recording."""


def random_batch(config: Config, clips: int, generator: torch.Generator) -> LabelledBatch:
    """Make a batch of unrelated queries, three windows each, as the loader would."""

    def item(number: int) -> MomentItem:
        starts = torch.randint(0, clips - 8, (3,), generator=generator).tolist()
        windows = tuple((float(start), float(start + 4)) for start in starts)
        entry = QueryEntry(f"{number}", f"query {number}", f"recording {number}", float(clips), windows)
        audio = {name: torch.randn(clips, width, generator=generator) for name, width in config.model.audio_streams.items()}
        text = {
            name: TextFeatures(torch.randn(TOKENS, width, generator=generator), ()) for name, width in config.model.text_streams.items()
        }
        return MomentItem(entry, audio, text, windows, float(clips), draw=number)

    items = [item(number) for number in range(config.train.batch_size)]
    return Collator((item.entry for item in items), negative_share=config.data.negative_share)(items)


def training_step(config: Config, clips: int, device: torch.device) -> Callable[[], None]:
    """Return one optimiser step of a fresh model on one batch."""
    torch.manual_seed(0)
    model = speed_up(QamDetr(config.model)).to(device).train()
    optimizer, precision = make_optimizer(model, config.train), choose_precision(config.train)
    labelled = random_batch(config, clips, torch.Generator().manual_seed(0)).to(device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            output = model(labelled.batch, labelled.targets.negative_index)
        loss = compute_losses(in_float32(output), labelled.batch, labelled.targets, config.loss)["total"]
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.train.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return step


class Metered:
    """A run that notes the CPU seconds of each call."""

    def __init__(self, run: Callable[[], None]) -> None:
        self._run = run
        self.cpu_seconds: list[float] = []

    def __call__(self) -> None:
        """Run once."""
        begin = time.process_time()
        self._run()
        self.cpu_seconds.append(time.process_time() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", nargs="+", metavar="NAME", default=["castella_baseline", FULL_MODEL])
    parser.add_argument("--repeats", type=int, default=5, help="timed steps of each; the median counts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="any that PyTorch knows; in the precision of the configuration")
    parser.add_argument("--output", type=Path, default=Path("build/benchmarks/train_step.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    compile_kernels()
    keep_freed_memory()

    rows = []
    print(f"{device}, {arguments.threads} threads, median of {arguments.repeats} steps")
    for data, (queries, clips) in SETS.items():
        configs = {name: load_config(name) for name in arguments.config}
        steps = {name: Metered(training_step(config, clips, device)) for name, config in configs.items()}
        for name, seconds in median_seconds(steps, repeats=arguments.repeats, warm_ups=1).items():
            train, cpu_seconds = configs[name].train, statistics.median(steps[name].cpu_seconds[1:])
            num_steps = train.epochs * math.ceil(queries / train.batch_size)
            hours = num_steps * seconds / 3600
            print(
                f"  {name:<28}{train.batch_size} x {clips:<4} clips {seconds:8.3f} s a step ({cpu_seconds:.3f} CPU s), "
                f"{hours:8.1f} h for {train.epochs} epochs of {data} ({num_steps} steps)"
            )
            measured = {"seconds": seconds, "cpu_seconds": cpu_seconds, "steps": num_steps, "hours": hours}
            rows.append({"config": name, "data": data, "batch_size": train.batch_size, "clips": clips, **measured})
    machine = {"torch": torch.__version__, "machine": platform.processor() or platform.machine()}
    write_json(arguments.output, {"device": str(device), "threads": arguments.threads, **machine, "rows": rows})


if __name__ == "__main__":
    main()
