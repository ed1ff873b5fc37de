"""Train QAM-DETR: `python train.py --config NAME [--set a.b=c …]`, or `accelerate launch train.py …` for several processes."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import logging
import os
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import psutil
import torch
from accelerate import PartialState

from qamdetr.config import Config, load_config
from qamdetr.errors import ConfigError, QamDetrError
from qamdetr.evaluation.data_report import data_report
from qamdetr.training.data import check_manifests
from qamdetr.training.loop import train
from qamdetr.training.run import CONFIG_FILE, Run, replace_text


class _Parser(argparse.ArgumentParser):
    """Reports a mistake in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = _Parser(prog="train.py", description="Train QAM-DETR on features: public files, or those of `python -m qamdetr extract`.")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", metavar="NAME", help="a name in qamdetr/configs or a YAML file")
    source.add_argument("--resume", metavar="RUN_DIR", type=Path, help="continue a run that was stopped")
    parser.add_argument("--set", metavar="a.b=c", dest="overrides", action="append", default=[], help="change one setting; repeatable")
    parser.add_argument("--init-from", metavar="NAME_OR_DIR", help="begin with the weights of a checkpoint (pretrain, then fine-tune)")
    parser.add_argument("--name", metavar="RUN_NAME", help="name of the run's folder (default: config, seed and time)")
    seeds = "train with each, one after the other; the same command continues after a stop"
    parser.add_argument("--seeds", metavar="SEED", type=int, nargs="+", help=seeds)
    parser.add_argument("--data-report", action="store_true", help="print what the training and validation manifests hold, and stop")
    parser.add_argument("--threads", metavar="N", type=int, help="CPU threads (default: what PyTorch or OMP_NUM_THREADS says)")
    found = parser.parse_args(argv)
    if found.resume and any((found.overrides, found.name, found.init_from, found.seeds, found.data_report)):
        parser.error("--resume continues a run as it was configured; give it alone (or with --threads), or start a new run with --config.")
    if found.name is not None and Path(found.name).name != (found.name or "."):
        parser.error(f"--name is {found.name!r}; it becomes one folder in train.output_dir: use letters, digits, - and _.")
    if found.threads is not None and found.threads < 1:
        parser.error(f"--threads is {found.threads}; it must be at least 1.")
    return found


def train_seeds(config: Config, name: str, seeds: Sequence[int], *, command: str = "") -> dict[str, Any]:
    """Train `config` with each seed in `train.output_dir`/`name`-s<seed>, and write the summary `name`-seeds.json beside these folders.

    The same call continues after a stop: a finished run is left as it is, an unfinished one is resumed with its own configuration.
    The summary is `{"name", "seeds", "runs": {seed: metrics of the best epoch}, "mean": {metric: …}, "std": {metric: …}}`; the deviation
    is the sample's (n - 1), None with one seed.
    """
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"--seeds are {' '.join(map(str, seeds))}; name each seed once.")
    parent = Path(config.train.output_dir)
    plan = [(replace(config, train=replace(config.train, seed=seed)), parent / f"{name}-s{seed}") for seed in seeds]
    # All folders are looked at before any process makes one, so that several processes come to the same plan.
    begun = [(directory / CONFIG_FILE).is_file() for _, directory in plan]
    for (wanted, directory), is_begun in zip(plan, begun, strict=True):
        if is_begun and Run(directory).config() != wanted:
            raise ConfigError(f"{directory} holds a run with another configuration; choose another --name.")
    runs = [train(wanted, directory, resume=resume, command=command) for (wanted, directory), resume in zip(plan, begun, strict=True)]
    PartialState().wait_for_everyone()
    best = {seed: run.facts()["finished"]["best"] for seed, run in zip(seeds, runs, strict=True)}
    rows = list(best.values())
    values = {metric: [row[metric] for row in rows] for metric in rows[0]}
    mean = {metric: round(statistics.mean(found), 4) for metric, found in values.items()}
    std = {metric: round(statistics.stdev(found), 4) if len(rows) > 1 else None for metric, found in values.items()}
    summary = {"name": name, "seeds": list(seeds), "runs": best, "mean": mean, "std": std}
    if PartialState().is_main_process:
        replace_text(parent / f"{name}-seeds.json", json.dumps(summary, indent=2) + "\n")
    return summary


def seeds_table(summary: dict[str, Any]) -> str:
    """Put what `train_seeds` returned into a table: one line per seed, then mean and standard deviation."""
    lines = [("seed", *summary["mean"])]
    lines += [(str(seed), *(f"{value:.2f}" for value in values.values())) for seed, values in summary["runs"].items()]
    spread = zip(summary["mean"].values(), summary["std"].values(), strict=True)
    lines.append(("mean", *(f"{mean:.2f}" if std is None else f"{mean:.2f} ± {std:.2f}" for mean, std in spread)))
    return "\n".join(line[0].rjust(6) + "".join(cell.rjust(16) for cell in line[1:]) for line in lines)


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next tensors (mallopt: M_MMAP_MAX, M_TRIM_THRESHOLD): a tenth of a step (docs/performance.md)."""
    with contextlib.suppress(OSError, AttributeError):  # another system or C library
        _ = [ctypes.CDLL(None).mallopt(*option) for option in ((-4, 0), (-1, 2**31 - 1)) if sys.platform.startswith("linux")]


def end_launcher() -> None:
    """End an `accelerate launch` of one process, which would add a traceback of its own to the one line that says what is wrong.

    It does so for every exit status but 0, unless the user gave it `--quiet`.
    """
    parent = psutil.Process().parent()
    words = parent.cmdline() if parent is not None else []
    if os.environ.get("WORLD_SIZE", "1") == "1" and "launch" in words and any(Path(word).stem.startswith("accelerate") for word in words):
        parent.terminate()


def main(argv: list[str]) -> int:
    """Run one training, or one per seed; returns the exit status."""
    arguments = parse_arguments(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    try:
        run(arguments, shlex.join(["python", "train.py", *argv]))
        PartialState().destroy_process_group()
    except QamDetrError as error:
        sys.stderr.write(f"error: {error}\n")
        end_launcher()
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("\nstopped: continue with --resume RUN_DIR; with --seeds, give the same command again.\n")
        return 130
    return 0


def run(arguments: argparse.Namespace, command: str) -> None:
    """Do what the command line asks."""
    if arguments.resume:
        config, directory = Run.open(arguments.resume).config(), arguments.resume
    else:
        config = load_config(arguments.config, arguments.overrides)
        if arguments.init_from:
            config = replace(config, train=replace(config.train, init_from=arguments.init_from))
        stem = Path(arguments.config).stem
        if arguments.data_report:
            check_manifests(config)
            sys.stdout.write(data_report(list(dict.fromkeys((config.data.train_manifest, config.data.val_manifest)))) + "\n")
            return
        if arguments.seeds:
            summary = train_seeds(config, arguments.name or stem, arguments.seeds, command=command)
            if PartialState().is_main_process:
                sys.stdout.write(seeds_table(summary) + "\n")
            return
        name = arguments.name or f"{stem}-s{config.train.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
        directory = Path(config.train.output_dir) / name
    trained = train(config, directory, resume=bool(arguments.resume), command=command)
    sys.stderr.write(f"best checkpoint: {trained.best_dir}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
