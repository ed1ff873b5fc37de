"""One process or many: how a batch is shared out so that any number of processes takes the optimiser steps of one.

`train.batch_size` is the size of the batch that one optimiser step sees, over all processes together, so a configuration means the
same on one GPU and on eight. Three things make the gradients equal:

- each process takes every n-th item of the batch (`ProcessShare`); the items are sorted by length, so the shares are equally long;
- each mean of the objective is over the pairs, items or clips of all processes, though one may hold more of them (`make_normaliser`);
- what is drawn (crops, noise, order) is a function of seed, epoch and item.

Two things differ from one process, by nature: dropout, and the negative pairs, which are drawn among the items of a process.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import DataLoaderConfiguration
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from qamdetr.config import TrainConfig
from qamdetr.errors import QamDetrError
from qamdetr.model.losses import Normaliser, own_count
from qamdetr.training.precision import choose_precision
from qamdetr.training.tracking import check_tracker


class ProcessShare(Sampler[list[int]]):
    """The part of each batch that one process computes.

    A batch with fewer items than processes is first repeated as a whole, which leaves every mean over it as it was and every process
    with something to do.
    """

    def __init__(self, batches: Iterable[list[int]], process_index: int, num_processes: int) -> None:
        """Take every `num_processes`-th item of each batch, from `process_index` on."""
        self._batches = batches
        self._process_index = process_index
        self._num_processes = num_processes

    def __len__(self) -> int:
        return len(self._batches)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self._batches:
            repeats = -(-self._num_processes // len(batch))
            yield (batch * repeats)[self._process_index :: self._num_processes]


def make_accelerator(config: TrainConfig, directory: Path) -> Accelerator:
    """Find the devices and processes to run on, and choose precision and tracker.

    Raises:
        ConfigError: A tracker that is not known or not installed, or a precision that the device lacks.
    """
    check_tracker(config.tracker)
    return Accelerator(
        mixed_precision=choose_precision(config),
        gradient_accumulation_steps=config.accumulate_batches,
        log_with=config.tracker or None,
        project_dir=str(directory) if config.tracker else None,
        # The shares are cut here (`share_loader`): one step of the schedule per optimiser step, whatever the number of processes.
        dataloader_config=DataLoaderConfiguration(split_batches=True),
    )


def share_loader(loader: DataLoader[Any], accelerator: Accelerator) -> Any:  # noqa: ANN401 - Accelerate's loaders have no types
    """Return a loader over this process's share of each batch, which puts it on the process's device."""
    own = ProcessShare(loader.batch_sampler, accelerator.process_index, accelerator.num_processes)  # type: ignore[arg-type]
    # Accelerate's own sharding takes all batches to be of one size, but the smaller one may come anywhere in an epoch here.
    return prepare_data_loader(
        DataLoader(loader.dataset, batch_sampler=own, collate_fn=loader.collate_fn, num_workers=loader.num_workers),
        accelerator.device,
        num_processes=1,
        process_index=0,
        put_on_device=True,
    )


def batches_after(loader: Any, num_done: int) -> Iterator[Any]:  # noqa: ANN401 - Accelerate's loaders have no types
    """Give the batches of the epoch after the first `num_done`, which are not read.

    Raises:
        QamDetrError: Features that cannot be read; one line also when a worker process found them.
    """
    try:
        if not num_done:
            yield from loader
            return
        # A loader draws a seed for its workers when it starts; the run had drawn it before its state was saved.
        with torch.random.fork_rng(devices=[]):
            rest = iter(skip_first_batches(loader, num_done))
            first = next(rest, None)
        if first is not None:
            yield first
        yield from rest
    except QamDetrError as error:
        # A worker hands over its whole traceback as the message, of which the last line is the error.
        lines = str(error).strip().splitlines()
        if len(lines) < 2:
            raise
        raise type(error)(lines[-1].partition(f"{type(error).__name__}: ")[2]) from error


def make_normaliser(accelerator: Accelerator) -> Normaliser:
    """Return what divides the sums of the objective, so that the average over the processes is the mean over all that they hold."""
    num_processes = accelerator.num_processes
    if num_processes == 1:
        return own_count

    def mean_count(count: int) -> Tensor:
        own = torch.tensor(float(count), device=accelerator.device)
        mean: Tensor = accelerator.reduce(own, reduction="mean")
        # At least one value in all processes together, as `own_count` has it.
        return mean.clamp(min=1 / num_processes)

    return mean_count
