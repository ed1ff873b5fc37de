"""The training loop: read `train` from top to bottom."""

from __future__ import annotations

import copy
import math
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import LoggerType, broadcast_object_list, set_seed
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from qamdetr.config import Config, TrainConfig
from qamdetr.data.collate import LabelledBatch
from qamdetr.errors import CheckpointError, ConfigError, DataError
from qamdetr.inference.pretrained import load_pretrained
from qamdetr.losses import compute_losses
from qamdetr.models.qam_detr import QamDetr
from qamdetr.training.checkpoint import Progress, Run
from qamdetr.training.data import TrainingData, load_data
from qamdetr.training.model_card import model_card
from qamdetr.training.validation import Validation, validate

_BAR_EVERY_STEPS = 10
"""How often the loss is read back for the progress bar; each time a GPU must wait."""


def train(config: Config, directory: Path, *, resume: bool = False, command: str = "") -> Run:
    """Train QAM-DETR as `config` says, in a new folder `directory`, or continue the run there.

    Runs on whatever Accelerate finds: the CPU, one GPU, or many processes under `accelerate launch`. Every random choice follows
    from the seed, so a run that was killed and resumed ends with the weights of one that never stopped (bitwise, on a CPU).

    Args:
        config: The experiment; when resuming, the configuration of the run (`Run.config`).
        directory: The run's folder.
        resume: Continue from the last saved epoch.
        command: How the run was started, for its model card.

    Raises:
        QamDetrError: The user's mistakes: configuration, data, missing features, a folder that is taken, a full disk.
    """
    accelerator = _make_accelerator(config.train, directory)
    set_seed(config.train.seed)
    data = load_data(config)
    model = QamDetr(config.model)
    if config.train.init_from:
        initialise(model, config.train.init_from)
    run = _enter_run(accelerator, config, directory, resume=resume, command=command)

    optimizer = make_optimizer(model, config.train)
    steps_per_epoch = math.ceil(len(data.train_loader) / config.train.accumulate_batches)
    schedule = make_schedule(optimizer, config.train, steps_per_epoch * config.train.epochs)
    average = copy.deepcopy(model).to(accelerator.device).requires_grad_(False) if config.train.ema_decay else None
    model, optimizer, schedule, train_loader, val_loader = accelerator.prepare(
        model, optimizer, schedule, data.train_loader, data.val_loader
    )
    progress = Progress()
    accelerator.register_for_checkpointing(progress, *([average] if average is not None else []))
    if resume:
        run.load_state(accelerator)
        run.forget_metrics_after(progress.epoch)
    _start_tracker(accelerator, config.train, progress)

    for epoch in range(progress.epoch, config.train.epochs):
        started = time.perf_counter()
        for part in (train_loader, data.sampler, data.train):
            part.set_epoch(epoch)
        losses = train_epoch(accelerator, model, average, optimizer, schedule, train_loader, progress, config)
        evaluated = accelerator.unwrap_model(model) if average is None else average
        validation = validate(evaluated, val_loader, data.val.entries, config.inference, accelerator)
        progress.epoch = epoch + 1
        is_best = validation.rank > progress.best_rank
        if is_best:
            progress.best, progress.best_rank = validation.metrics, validation.rank
        if accelerator.is_main_process:
            if is_best:
                _save_best(run, evaluated, config, validation, progress, data)
            row: dict[str, Any] = {"epoch": progress.epoch, "step": progress.step, "seconds": round(time.perf_counter() - started, 1)}
            gates = {name: round(gate, 4) for name, gate in {**evaluated.audio.gates(), **evaluated.text.gates()}.items()}
            row |= {"learning_rate": schedule.get_last_lr()[0], "loss": losses, "val": validation.metrics, "gates": gates}
            run.log_metrics(row)
            accelerator.print(_epoch_line(config.train.epochs, row, losses, validation.metrics, is_best=is_best))
        accelerator.log(
            {f"train/{key}": value for key, value in losses.items()} | {f"val/{key}": value for key, value in validation.metrics.items()},
            step=progress.epoch,
        )
        run.save_state(accelerator, progress)
    accelerator.end_training()
    return run


def train_epoch(
    accelerator: Accelerator,
    model: nn.Module,
    average: nn.Module | None,
    optimizer: Any,  # noqa: ANN401 - Accelerate's wrappers have no types
    schedule: Any,  # noqa: ANN401
    loader: Any,  # noqa: ANN401
    progress: Progress,
    config: Config,
) -> dict[str, float]:
    """Take one pass over the training set; returns the mean of every part of the loss."""
    model.train()
    sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=accelerator.device))
    bar = tqdm(loader, desc=f"epoch {progress.epoch + 1}/{config.train.epochs}", leave=False, disable=not accelerator.is_main_process)
    batch: LabelledBatch
    for batches, batch in enumerate(bar, start=1):
        with accelerator.accumulate(model):
            with accelerator.autocast():
                output = model(batch.batch, batch.targets.negative_index)
            losses = compute_losses(output, batch.batch, batch.targets, config.loss)
            accelerator.backward(losses["total"])
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), config.train.clip_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            progress.step += 1
            if average is not None:
                update_average(average, accelerator.unwrap_model(model), config.train.ema_decay, progress.step)
        for name, value in losses.items():
            sums[name] += value.detach()
        if batches % _BAR_EVERY_STEPS == 0:
            bar.set_postfix(loss=f"{_finite(sums['total'].item(), config.train, progress) / batches:.3f}")
    _finite(sums["total"].item(), config.train, progress)
    means = {name: accelerator.reduce(value / len(loader), reduction="mean") for name, value in sums.items()}
    return {name: round(value.item(), 5) for name, value in means.items()}


def make_optimizer(model: nn.Module, config: TrainConfig) -> AdamW:
    """AdamW; biases, norms, gates and the scan's own `A_log` and `D` are not decayed.

    Source: mamba-ssm spares `A_log` and `D`, because decay would change how long the state remembers; the baseline decays everything.
    """
    spared = {name for name, p in model.named_parameters() if p.ndim < 2 or name.rsplit(".", 1)[-1] in ("A_log", "D")}
    groups = [
        {"params": [p for name, p in model.named_parameters() if name not in spared], "weight_decay": config.weight_decay},
        {"params": [p for name, p in model.named_parameters() if name in spared], "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=config.learning_rate)


def make_schedule(optimizer: AdamW, config: TrainConfig, total_steps: int) -> LambdaLR:
    """Linear warm-up over `warmup_fraction` of all steps, then constant, or half a cosine down to zero."""
    warmup_steps = max(1, round(config.warmup_fraction * total_steps))

    def factor(step: int) -> float:
        warm = min(1.0, (step + 1) / warmup_steps)
        if config.schedule == "constant" or step < warmup_steps:
            return warm
        return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, total_steps - warmup_steps)))

    return LambdaLR(optimizer, factor)


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Move the averaged weights towards the model's by `1 - decay`; faster in the first steps, so that the start is soon forgotten."""
    decay = min(decay, (1 + step) / (10 + step))
    for kept, new in zip(average.parameters(), model.parameters(), strict=True):
        kept.lerp_(new, 1 - decay)
    for kept_buffer, new_buffer in zip(average.buffers(), model.buffers(), strict=True):
        kept_buffer.copy_(new_buffer)


def initialise(model: QamDetr, name_or_dir: str) -> None:
    """Take the weights of another checkpoint (pretrain, then fine-tune).

    Raises:
        CheckpointError: It does not exist or was made for another model.
    """
    source, _ = load_pretrained(name_or_dir)
    try:
        model.load_state_dict(source.state_dict())
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"train.init_from={name_or_dir} was made for another model ({reason}); give both the same model section."
        ) from error


def _make_accelerator(config: TrainConfig, directory: Path) -> Accelerator:
    known = [str(kind) for kind in LoggerType]
    if config.tracker and config.tracker not in known:
        raise ConfigError(f"train.tracker is {config.tracker!r}; choose one of {', '.join(known)}, or leave it empty.")
    return Accelerator(
        gradient_accumulation_steps=config.accumulate_batches,
        log_with=config.tracker or None,
        project_dir=str(directory) if config.tracker else None,
    )


def _enter_run(accelerator: Accelerator, config: Config, directory: Path, *, resume: bool, command: str) -> Run:
    """Let one process make the folder; all processes learn whether that worked."""
    problem: list[Exception | None] = [None]
    if accelerator.is_main_process:
        try:
            if resume:
                Run.open(directory)
            else:
                Run.create(directory, config, command)
        except (ConfigError, CheckpointError, DataError) as error:
            problem = [error]
    broadcast_object_list(problem)
    if problem[0] is not None:
        raise problem[0]
    return Run(directory)


def _start_tracker(accelerator: Accelerator, config: TrainConfig, progress: Progress) -> None:
    if config.tracker:
        # TensorBoard takes the name for its folder, and hides what a killed run wrote after its last saved epoch.
        name = "tensorboard" if config.tracker == "tensorboard" else "qamdetr"
        accelerator.init_trackers(name, init_kwargs={"tensorboard": {"purge_step": progress.epoch + 1}})


def _save_best(run: Run, model: QamDetr, config: Config, validation: Validation, progress: Progress, data: TrainingData) -> None:
    calibrated = replace(
        config,
        data=replace(config.data, encoder=data.encoder),
        inference=replace(config.inference, found_threshold=round(validation.found_threshold, 4)),
    )
    card = model_card(
        calibrated,
        run.facts(),
        validation.metrics,
        name=run.directory.name,
        epoch=progress.epoch,
        parameters=sum(p.numel() for p in model.parameters()),
        num_queries=(len(data.train), len(data.val)),
        encoder=data.encoder,
    )
    run.save_best(model, calibrated, card)


def _epoch_line(epochs: int, row: Mapping[str, Any], losses: Mapping[str, float], metrics: Mapping[str, float], *, is_best: bool) -> str:
    parts = "  ".join(f"{name} {value:.3f}" for name, value in losses.items() if "_aux" not in name)
    scores = "  ".join(f"{name} {value:g}" for name, value in metrics.items())
    return f"epoch {row['epoch']}/{epochs}  {row['seconds']:.0f} s | {parts} | {scores}{'  (best)' if is_best else ''}"


def _finite(total: float, config: TrainConfig, progress: Progress) -> float:
    if not math.isfinite(total):
        raise ConfigError(f"The loss became {total} near step {progress.step} at train.learning_rate {config.learning_rate:g}; lower it.")
    return total
