"""Train QAM-DETR: `python train.py --config NAME [--set a.b=c …]`, or `accelerate launch train.py …` for several processes."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import torch
from accelerate import PartialState

from qamdetr.config import Config, load_config
from qamdetr.errors import QamDetrError
from qamdetr.evaluation.data_report import data_report
from qamdetr.training.allocator import keep_freed_memory
from qamdetr.training.data import check_manifests
from qamdetr.training.loop import train
from qamdetr.training.run import Run
from qamdetr.training.seeds import seeds_table, train_seeds


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
    parser.add_argument(
        "--seeds", metavar="SEED", type=int, nargs="+", help="train with each, one after the other; the same command continues after a stop"
    )
    parser.add_argument("--data-report", action="store_true", help="print what the training and validation manifests hold, and stop")
    parser.add_argument("--threads", metavar="N", type=int, help="CPU threads (default: what PyTorch or OMP_NUM_THREADS says)")
    arguments = parser.parse_args(argv)
    of_new_runs = (arguments.overrides, arguments.name, arguments.init_from, arguments.seeds, arguments.data_report)
    if arguments.resume and any(of_new_runs):
        parser.error("--resume continues a run as it was configured; give it alone (or with --threads), or start a new run with --config.")
    if arguments.name is not None and (not arguments.name or Path(arguments.name).name != arguments.name):
        parser.error(f"--name is {arguments.name!r}; it becomes one folder in train.output_dir: use letters, digits, - and _.")
    if arguments.threads is not None and arguments.threads < 1:
        parser.error(f"--threads is {arguments.threads}; it must be at least 1.")
    return arguments


def main(argv: list[str]) -> int:
    """Run one training, or one per seed; returns the exit status."""
    arguments = parse_arguments(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    command = shlex.join(["python", "train.py", *argv])
    try:
        if arguments.resume:
            run = Run.open(arguments.resume)
            train(run.config(), run.directory, resume=True, command=command)
            sys.stderr.write(f"best checkpoint: {run.best_dir}\n")
        else:
            config = load_config(arguments.config, arguments.overrides)
            if arguments.init_from:
                config = replace(config, train=replace(config.train, init_from=arguments.init_from))
            _start(arguments, config, command)
        PartialState().destroy_process_group()
    except QamDetrError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("\nstopped: continue with --resume RUN_DIR; with --seeds, give the same command again.\n")
        return 130
    return 0


def _start(arguments: argparse.Namespace, config: Config, command: str) -> None:
    """Do what the command line asks of a configuration."""
    stem = Path(arguments.config).stem
    if arguments.data_report:
        check_manifests(config)
        sys.stdout.write(data_report(list(dict.fromkeys((config.data.train_manifest, config.data.val_manifest)))) + "\n")
    elif arguments.seeds:
        summary = train_seeds(config, arguments.name or stem, arguments.seeds, command=command)
        if PartialState().is_main_process:
            sys.stdout.write(seeds_table(summary) + "\n")
    else:
        name = arguments.name or f"{stem}-s{config.train.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
        run = train(config, Path(config.train.output_dir) / name, command=command)
        sys.stderr.write(f"best checkpoint: {run.best_dir}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
