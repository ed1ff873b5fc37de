"""The training loop: read `train` from top to bottom."""

from __future__ import annotations

import copy
import math
import time
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, set_seed
from torch import Tensor
from tqdm import tqdm

from qamdetr.config import Config, TrainConfig
from qamdetr.data.collate import LabelledBatch
from qamdetr.errors import ConfigError, QamDetrError
from qamdetr.model.losses import Normaliser, compute_losses
from qamdetr.model.qam_detr import QamDetr
from qamdetr.training.data import TrainingData, load_data
from qamdetr.training.model_card import model_card
from qamdetr.training.optimisation import initialise, make_optimizer, make_schedule, update_average
from qamdetr.training.parallel import batches_after, make_accelerator, make_normaliser, share_loader
from qamdetr.training.precision import in_float32
from qamdetr.training.run import Progress, Run, saving
from qamdetr.training.tracking import end_tracker, epoch_line, start_tracker, track
from qamdetr.training.validation import Validation, validate

_BAR_EVERY_STEPS = 10
"""How often the loss is read back for the progress bar; each time a GPU must wait."""


@dataclass
class _Training:
    """A run in memory: what it was told, and all that changes while it goes on."""

    config: Config
    run: Run
    data: TrainingData
    accelerator: Accelerator
    normaliser: Normaliser
    model: Any  # Accelerate's wrappers have no types
    average: QamDetr | None
    optimizer: Any
    schedule: Any
    train_loader: Any
    val_loader: Any
    progress: Progress

    @property
    def evaluated(self) -> QamDetr:
        """The weights that are validated and shipped: the averaged ones where there are any."""
        model: QamDetr = self.accelerator.unwrap_model(self.model) if self.average is None else self.average
        return model


def train(config: Config, directory: Path, *, resume: bool = False, command: str = "") -> Run:
    """Train QAM-DETR as `config` says, in a new folder `directory`, or continue the run there.

    Runs on whatever Accelerate finds: the CPU, one GPU, or many processes under `accelerate launch`. Every random choice follows
    from the seed, so a run that was killed and resumed ends with the weights of one that never stopped (bitwise, on a CPU).

    Args:
        config: The experiment; when resuming, the configuration of the run (`Run.config`).
        directory: The run's folder.
        resume: Continue from the last saved step; a run that is finished is left as it is.
        command: How the run was started, for its model card.

    Raises:
        QamDetrError: The user's mistakes: configuration, data, missing features, a folder that is taken, a full disk, a run that
            cannot be continued because its configuration, its data or the number of processes changed.
    """
    if resume and Run(directory).finished:
        return Run.open(directory)
    with ExitStack() as held:
        return _run(_prepare(config, directory, held, resume=resume, command=command))


def _run(training: _Training) -> Run:
    """Train what is left of a run, epoch by epoch."""
    config, run, progress = training.config, training.run, training.progress
    start_tracker(training.accelerator, config.train, progress.epoch)
    while not _is_over(config.train, progress):
        started = time.perf_counter() - progress.seconds
        losses = _train_epoch(training, started)
        validation = validate(training.evaluated, training.val_loader, training.data.val.entries, config.inference, training.accelerator)
        progress.finish_epoch()
        is_best = validation.rank > progress.best_rank
        if is_best:
            progress.best, progress.best_rank, progress.best_epoch = validation.metrics, validation.rank, progress.epoch
        if training.accelerator.is_main_process:
            if is_best:
                _save_best(training, validation)
            row = _metrics_row(training, losses, validation, time.perf_counter() - started)
            run.log_metrics(row)
            training.accelerator.print(epoch_line(row, config.train.epochs, is_best=is_best))
            with saving(run.directory / config.train.tracker):
                track(training.accelerator, row)
        run.save_state(training.accelerator, progress)
    end_tracker(training.accelerator)
    if training.accelerator.is_main_process:
        run.finish(progress)
    return run


def _prepare(config: Config, directory: Path, held: ExitStack, *, resume: bool, command: str) -> _Training:
    """Check everything that can be wrong, make or find the folder, build all parts and bring them to where the run had come.

    The folder is claimed until `held` is closed.
    """
    accelerator = make_accelerator(config.train, directory)
    set_seed(config.train.seed)
    data = load_data(config)
    model = QamDetr(config.model)
    if config.train.init_from and not (resume and Run(directory).has_state):
        initialise(model, config.train.init_from)
    run = _enter_run(accelerator, config, data, directory, held, resume=resume, command=command)
    if accelerator.process_index:
        # From here on the seed is that of dropout, which should not be the same in every process.
        torch.manual_seed(config.train.seed + accelerator.process_index)

    optimizer = make_optimizer(model, config.train)
    steps_per_epoch = math.ceil(len(data.train_loader) / config.train.accumulate_batches)
    schedule = make_schedule(optimizer, config.train, steps_per_epoch * config.train.epochs)
    average = copy.deepcopy(model).to(accelerator.device).requires_grad_(False) if config.train.ema_decay else None
    model, optimizer, schedule = accelerator.prepare(model, optimizer, schedule)
    progress = Progress()
    accelerator.register_for_checkpointing(progress, *([average] if average is not None else []))
    if resume:
        run.load_state(accelerator)
        if accelerator.is_main_process:
            run.forget_metrics_after(progress.epoch)
    return _Training(
        config=config,
        run=run,
        data=data,
        accelerator=accelerator,
        normaliser=make_normaliser(accelerator),
        model=model,
        average=average,
        optimizer=optimizer,
        schedule=schedule,
        train_loader=share_loader(data.train_loader, accelerator),
        val_loader=share_loader(data.val_loader, accelerator),
        progress=progress,
    )


def _train_epoch(training: _Training, started: float) -> dict[str, float]:
    """Take what is left of one pass over the training set; returns the mean of every part of the loss over the whole pass."""
    config, accelerator, progress, loader = training.config.train, training.accelerator, training.progress, training.train_loader
    for part in (loader, training.data.sampler, training.data.train):
        part.set_epoch(progress.epoch)
    training.model.train()
    sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=accelerator.device))
    sums |= {name: torch.tensor(value, device=accelerator.device) for name, value in progress.sums.items()}
    bar = tqdm(
        batches_after(loader, progress.batches),
        desc=f"epoch {progress.epoch + 1}/{config.epochs}",
        initial=progress.batches,
        total=len(loader),
        leave=False,
        disable=not accelerator.is_main_process,
    )
    for batch in bar:
        for name, value in _take_step(training, batch).items():
            sums[name] += value.detach()
        progress.batches += 1
        if progress.batches % _BAR_EVERY_STEPS == 0:
            bar.set_postfix(loss=f"{_finite(sums['total'].item(), config, progress) / progress.batches:.3f}")
        is_due = accelerator.sync_gradients and config.save_every_steps and progress.step % config.save_every_steps == 0
        # The end of an epoch saves by itself, after validation.
        if is_due and progress.batches < len(loader):
            _finite(sums["total"].item(), config, progress)
            sums |= _joined(accelerator, sums)
            progress.sums = {name: value.item() for name, value in sums.items()}
            progress.seconds = time.perf_counter() - started
            training.run.save_state(accelerator, progress)
    _finite(sums["total"].item(), config, progress)
    return {name: round(value.item() / len(loader), 5) for name, value in _joined(accelerator, sums).items()}


def _take_step(training: _Training, batch: LabelledBatch) -> dict[str, Tensor]:
    """Learn from one batch; every `accumulate_batches` of them the weights move. Returns the parts of the loss."""
    config, accelerator, progress = training.config, training.accelerator, training.progress
    with accelerator.accumulate(training.model):
        with accelerator.autocast():
            output = training.model(batch.batch, batch.targets.negative_index)
        losses = compute_losses(in_float32(output), batch.batch, batch.targets, config.loss, training.normaliser)
        accelerator.backward(losses["total"])
        if accelerator.sync_gradients:
            accelerator.clip_grad_norm_(training.model.parameters(), config.train.clip_norm)
        training.optimizer.step()
        training.schedule.step()
        training.optimizer.zero_grad()
    if accelerator.sync_gradients:
        progress.step += 1
        if training.average is not None:
            update_average(training.average, accelerator.unwrap_model(training.model), config.train.ema_decay, progress.step)
    return losses


def _is_over(config: TrainConfig, progress: Progress) -> bool:
    """Whether all epochs are done, or validation has not risen for `early_stop_epochs`."""
    return progress.epoch >= config.epochs or 0 < config.early_stop_epochs <= progress.epoch - progress.best_epoch


def _enter_run(
    accelerator: Accelerator, config: Config, data: TrainingData, directory: Path, held: ExitStack, *, resume: bool, command: str
) -> Run:
    """Let one process make or check the folder; all processes learn which it is, or why it cannot be."""
    outcome: list[Run | QamDetrError | None] = [None]
    if accelerator.is_main_process:
        try:
            if resume:
                run = Run.open(directory)
                held.enter_context(run.claimed())
                run.check_unchanged(config, data.fingerprint, accelerator.num_processes)
            else:
                run = Run.create(directory, config, command, data_fingerprint=data.fingerprint, num_processes=accelerator.num_processes)
                held.enter_context(run.claimed())
            outcome = [run]
        except QamDetrError as error:
            outcome = [error]
    (found,) = broadcast_object_list(outcome)
    if isinstance(found, QamDetrError):
        raise found
    return found  # type: ignore[no-any-return]


def _metrics_row(training: _Training, losses: dict[str, float], validation: Validation, seconds: float) -> dict[str, Any]:
    progress, evaluated = training.progress, training.evaluated
    return {
        "epoch": progress.epoch,
        "step": progress.step,
        "seconds": round(seconds, 1),
        "learning_rate": training.schedule.get_last_lr()[0],
        "loss": losses,
        "val": validation.metrics,
        "gates": {name: round(gate, 4) for name, gate in {**evaluated.audio.gates(), **evaluated.text.gates()}.items()},
    }


def _save_best(training: _Training, validation: Validation) -> None:
    config, data, run, model = training.config, training.data, training.run, training.evaluated
    calibrated = replace(
        config,
        data=data.section,
        inference=replace(config.inference, found_threshold=round(validation.found_threshold, 4)),
    )
    card = model_card(
        calibrated,
        run.facts(),
        validation.metrics,
        name=run.directory.name,
        epoch=training.progress.epoch,
        parameters=sum(p.numel() for p in model.parameters()),
        num_queries=(len(data.train), len(data.val)),
        encoder=data.encoder,
    )
    run.save_best(model, calibrated, card)


def _joined(accelerator: Accelerator, sums: dict[str, Tensor]) -> dict[str, Tensor]:
    """Mean of the processes' sums; each is weighed already by its share of the batch."""
    return {name: accelerator.reduce(value, reduction="mean") for name, value in sums.items()}


def _finite(total: float, config: TrainConfig, progress: Progress) -> float:
    if not math.isfinite(total):
        raise ConfigError(f"The loss became {total} near step {progress.step} at train.learning_rate {config.learning_rate:g}; lower it.")
    return total
