"""Train QAM-DETR: `python train.py --config NAME [--set a.b=c …]`, or `accelerate launch train.py …` for several processes."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
import time
from pathlib import Path
from typing import NoReturn

import torch

from qamdetr.config import load_config
from qamdetr.errors import QamDetrError
from qamdetr.training.checkpoint import Run
from qamdetr.training.loop import train


class _Parser(argparse.ArgumentParser):
    """Reports a mistake in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = _Parser(prog="train.py", description="Train QAM-DETR on features in the cache (python -m qamdetr extract).")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", metavar="NAME", help="a name in qamdetr/configs or a YAML file")
    source.add_argument("--resume", metavar="RUN_DIR", type=Path, help="continue a run that was stopped")
    parser.add_argument("--set", metavar="a.b=c", dest="overrides", action="append", default=[], help="change one setting; repeatable")
    parser.add_argument("--name", metavar="RUN_NAME", help="name of the run's folder (default: config, seed and time)")
    parser.add_argument("--threads", metavar="N", type=int, help="CPU threads (default: what PyTorch or OMP_NUM_THREADS says)")
    arguments = parser.parse_args(argv)
    if arguments.resume and (arguments.overrides or arguments.name):
        parser.error("--resume continues a run as it was configured; leave out --set and --name, or start a new run.")
    if arguments.name is not None and (not arguments.name or Path(arguments.name).name != arguments.name):
        parser.error(f"--name is {arguments.name!r}; it becomes one folder in train.output_dir: use letters, digits, - and _.")
    if arguments.threads is not None and arguments.threads < 1:
        parser.error(f"--threads is {arguments.threads}; it must be at least 1.")
    return arguments


def main(argv: list[str]) -> int:
    """Run one training; returns the exit status."""
    arguments = parse_arguments(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    command = shlex.join(["python", "train.py", *argv])
    try:
        if arguments.resume:
            run = Run.open(arguments.resume)
            train(run.config(), run.directory, resume=True, command=command)
        else:
            config = load_config(arguments.config, arguments.overrides)
            name = arguments.name or f"{Path(arguments.config).stem}-s{config.train.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
            run = train(config, Path(config.train.output_dir) / name, command=command)
    except QamDetrError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stderr.write(f"best checkpoint: {run.best_dir}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
