"""The training loop: read `train` from top to bottom.

**One process or many.** `train.batch_size` is the size of the batch that one optimiser step sees, over all processes together, so a
configuration means the same on one GPU and on eight. Three things make the gradients equal: each process takes every n-th item of the
batch (`ProcessShare`); each mean of the objective is over the pairs, items or clips of all processes, though one may hold more of them
(`make_normaliser`); and what is drawn (crops, noise, order) is a function of seed, epoch and item. Two things differ from one process,
by nature: dropout, and the negative pairs, which are drawn among the items of a process, their number rounded up there.
"""

from __future__ import annotations

import copy
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState, skip_first_batches
from accelerate.data_loader import prepare_data_loader
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import DataLoaderConfiguration, broadcast_object_list, parse_flag_from_env, set_seed
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Sampler
from tqdm import tqdm

from qamdetr.config import Config, ModelConfig, TrainConfig
from qamdetr.data.dataset import LabelledBatch
from qamdetr.errors import CheckpointError, ConfigError, QamDetrError
from qamdetr.inference.checkpoint import load_checkpoint
from qamdetr.kernels import speed_up
from qamdetr.model.losses import Normaliser, compute_losses, own_count
from qamdetr.model.qam_detr import QamDetr
from qamdetr.training.data import load_data
from qamdetr.training.run import Progress, Run, model_card, saving
from qamdetr.training.validation import Validation, validate

LOOK_EVERY_BATCHES = 10  # how often the losses are read back for the progress bar and `progress.json`; each time a GPU must wait


def train(config: Config, directory: Path, *, resume: bool = False, command: str = "") -> Run:
    """Train QAM-DETR as `config` says, in a new folder `directory`, or continue the run there.

    Runs on whatever Accelerate finds: the CPU, one GPU, or many processes under `accelerate launch`. Every random choice follows
    from the seed, so a run that was killed and resumed ends with the weights of one that never stopped (bitwise, on a CPU).

    To `resume`, give the configuration of the run (`Run.config`); a run that is finished is left as it is. `command` is how the run was
    started, for its model card. Users' mistakes (configuration, data, a folder that is taken, a full disk, changed conditions of a run
    that is resumed) are `QamDetrError`s.
    """
    if resume and Run(directory).finished:
        return Run.open(directory)
    with ExitStack() as held:
        training = Training(config, directory, held, resume=resume, command=command)
        run, progress, accelerator, settings = training.run, training.progress, training.accelerator, config.train
        if settings.tracker:
            # TensorBoard takes the name for its folder, and hides what a killed run wrote after its last saved epoch.
            name = "tensorboard" if settings.tracker == "tensorboard" else "qamdetr"
            accelerator.init_trackers(name, init_kwargs={"tensorboard": {"purge_step": progress.epoch + 1}})
        while progress.epoch < settings.epochs and not 0 < settings.early_stop_epochs <= progress.epoch - progress.best_epoch:
            started = time.perf_counter() - progress.seconds
            losses = training.train_epoch(started)
            training.show("validation", losses, started)
            validation = validate(training.evaluated, training.val_loader, training.data.val.entries, config.inference)
            is_best = progress.finish_epoch(validation.metrics)
            if accelerator.is_main_process:
                if is_best:
                    training.save_best(validation)
                row = training.metrics_row(losses, validation, time.perf_counter() - started)
                run.log_metrics(row)
                parts = "  ".join(f"{name} {value:.3f}" for name, value in losses.items() if "_aux" not in name)
                told = "  ".join([*(f"{name} {value:g}" for name, value in validation.metrics.items()), *(["(best)"] if is_best else [])])
                accelerator.print(f"epoch {progress.epoch}/{settings.epochs}  {row['seconds']:.0f} s | {parts} | {told}")
                with saving(directory / settings.tracker):
                    scores = {f"val/{name}": value for name, value in validation.metrics.items()}
                    accelerator.log({f"train/{name}": value for name, value in losses.items()} | scores, step=progress.epoch)
            run.save_state(accelerator, progress)
        for tracker in accelerator.trackers:
            tracker.finish()  # the processes stay joined, for a run that may follow in them
        if accelerator.is_main_process:
            run.finish(progress)
        return run


class Training:
    """A run in memory: what it was told, and all that changes while it goes on."""

    def __init__(self, config: Config, directory: Path, held: ExitStack, *, resume: bool, command: str) -> None:
        """Check all that can be wrong, make or find the folder (claimed until `held` is closed), build all parts, go where the run was."""
        self.config = config
        self.accelerator = accelerator = make_accelerator(config.train, directory)
        set_seed(config.train.seed)
        self.data = data = load_data(config)
        model = speed_up(QamDetr(config.model))
        if config.train.init_from and not (resume and Run(directory).states):
            initialise(model, config.train.init_from)

        def enter() -> Run:
            run = Run.open(directory) if resume else Run.create(directory, config, command, data.fingerprint, accelerator.num_processes)
            held.enter_context(run.claimed())
            if resume:
                run.check_unchanged(config, data.fingerprint, accelerator.num_processes)
            return run

        self.run = in_main_process(accelerator, enter)
        if accelerator.process_index:
            # From here on the seed is that of dropout, which should not be the same in every process.
            torch.manual_seed(config.train.seed + accelerator.process_index)
        optimizer = make_optimizer(model, config.train)
        steps_per_epoch = math.ceil(len(data.train_loader) / config.train.accumulate_batches)
        schedule = make_schedule(optimizer, config.train, steps_per_epoch * config.train.epochs)
        self.average = copy.deepcopy(model).to(accelerator.device).requires_grad_(False) if config.train.ema_decay else None
        self.model, self.optimizer, self.schedule = accelerator.prepare(model, optimizer, schedule)
        self.progress = Progress()
        accelerator.register_for_checkpointing(self.progress, *([] if self.average is None else [self.average]))
        if resume:
            self.run.load_state(accelerator)
            if accelerator.is_main_process:
                self.run.forget_metrics_after(self.progress.epoch)
        self.normaliser = make_normaliser(accelerator)
        self.train_loader, self.val_loader = share_loader(data.train_loader, accelerator), share_loader(data.val_loader, accelerator)

    @property
    def evaluated(self) -> QamDetr:
        """The weights that are validated and shipped: the averaged ones where there are any."""
        model: QamDetr = self.accelerator.unwrap_model(self.model) if self.average is None else self.average
        return model

    def train_epoch(self, started: float) -> dict[str, float]:
        """Take what is left of one pass over the training set; returns the mean of every part of the loss over the whole pass."""
        settings, accelerator, progress = self.config.train, self.accelerator, self.progress
        for part in (self.train_loader, self.data.sampler, self.data.train):
            part.set_epoch(progress.epoch)
        self.model.train()
        sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=accelerator.device))
        sums |= {name: torch.tensor(value, device=accelerator.device) for name, value in progress.sums.items()}
        self.show("training", {}, started)
        bar = tqdm(
            batches_after(self.train_loader, progress.batches),
            desc=f"epoch {progress.epoch + 1}/{settings.epochs}",
            initial=progress.batches,
            total=len(self.train_loader),
            leave=False,
            disable=not accelerator.is_main_process,
        )
        for batch in bar:
            for name, value in self.take_step(batch).items():
                sums[name] += value.detach()
            progress.batches += 1
            if progress.batches % LOOK_EVERY_BATCHES == 0:
                means = {name: value / progress.batches for name, value in self.check_finite(sums).items()}
                bar.set_postfix(loss=f"{means['total']:.3f}")
                self.show("training", means, started)
            is_due = accelerator.sync_gradients and settings.save_every_steps and progress.step % settings.save_every_steps == 0
            # The end of an epoch saves by itself, after validation.
            if is_due and progress.batches < len(self.train_loader):
                sums |= accelerator.reduce(dict(sums), reduction="mean")  # each is weighed already by its share of the batch
                progress.sums, progress.seconds = self.check_finite(sums), time.perf_counter() - started
                self.run.save_state(accelerator, progress)
        self.check_finite(sums)
        joined = accelerator.reduce(dict(sums), reduction="mean")
        return {name: round(value.item() / len(self.train_loader), 5) for name, value in joined.items()}

    def take_step(self, batch: LabelledBatch) -> dict[str, Tensor]:
        """Learn from one batch; every `accumulate_batches` of them the weights move. Returns the parts of the loss."""
        config, accelerator = self.config, self.accelerator
        with accelerator.accumulate(self.model):
            with accelerator.autocast():
                output = self.model(batch.batch, batch.targets.negative_index)
            losses = compute_losses(in_float32(output), batch.batch, batch.targets, config.loss, self.normaliser)
            accelerator.backward(losses["total"])
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(self.model.parameters(), config.train.clip_norm)
            self.optimizer.step()
            self.schedule.step()
            self.optimizer.zero_grad()
        if accelerator.sync_gradients:
            self.progress.step += 1
            if self.average is not None:
                update_average(self.average, accelerator.unwrap_model(self.model), config.train.ema_decay, self.progress.step)
        return losses

    def check_finite(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Read the sums back, once for all; a loss that is not finite ends the run."""
        values = dict(zip(sums, torch.stack(list(sums.values())).tolist(), strict=True))
        if not math.isfinite(values["total"]):
            rate = f"train.learning_rate {self.config.train.learning_rate:g}"
            raise ConfigError(f"The loss became {values['total']} near step {self.progress.step} at {rate}", "lower it")
        return values

    def show(self, stage: str, losses: Mapping[str, float], started: float) -> None:
        """Tell whoever looks at the run's folder how far it is."""
        if self.accelerator.is_main_process:
            done = self.progress
            row = {"stage": stage, "epoch": done.epoch + 1, "epochs": self.config.train.epochs}
            row |= {"batch": done.batches, "batches": len(self.train_loader), "step": done.step}
            row["losses"] = {name: round(value, 5) for name, value in losses.items()}
            row["seconds_per_batch"] = round((time.perf_counter() - started) / done.batches, 4) if done.batches else None
            self.run.show_progress(row)

    def metrics_row(self, losses: Mapping[str, float], validation: Validation, seconds: float) -> dict[str, Any]:
        """One line of `metrics.jsonl`."""
        row: dict[str, Any] = {"epoch": self.progress.epoch, "step": self.progress.step, "seconds": round(seconds, 1)}
        row |= {"learning_rate": self.schedule.get_last_lr()[0], "loss": losses, "val": validation.metrics}
        parts = (self.evaluated.audio, self.evaluated.text)
        return row | {"gates": {name: round(gate, 4) for part in parts for name, gate in part.gates().items()}}

    def save_best(self, validation: Validation) -> None:
        """Write the checkpoint of this epoch, with what was calibrated and its card."""
        calibrated = replace(self.config, data=self.data.section, inference=validation.inference)
        facts, epoch = self.run.facts(), self.progress.epoch
        card = model_card(self.run.directory.name, self.evaluated, calibrated, facts, validation.metrics, self.data, epoch)
        self.run.save_best(self.evaluated, calibrated, card)


def initialise(model: QamDetr, name_or_dir: str) -> None:
    """Take the weights of another checkpoint (pretrain, then fine-tune); where they do not fit, the error names what differs."""
    source, _ = load_checkpoint(name_or_dir)
    try:
        model.load_state_dict(source.state_dict())
    except RuntimeError as error:
        pairs = {item.name: (getattr(source.config, item.name), getattr(model.config, item.name)) for item in fields(ModelConfig)}
        differing = [f"model.{name} is {there} there, {here} here" for name, (there, here) in pairs.items() if there != here]
        told = "; ".join(differing) or " ".join(str(error).split())[:200]
        what = f"train.init_from={name_or_dir} was made for another model: {told}"
        raise CheckpointError(what, "give both the same model section") from error


def make_optimizer(model: nn.Module, config: TrainConfig) -> AdamW:
    """AdamW; biases, norms, gates and the scan's own `A_log` and `D` are not decayed.

    Source: mamba-ssm spares `A_log` and `D`, because decay would change how long the state remembers; the baseline decays everything.
    """
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (spared if parameter.ndim < 2 or name.rsplit(".", 1)[-1] in ("A_log", "D") else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return AdamW(groups, lr=config.learning_rate, fused=True)  # one pass over all weights rather than ten over each


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


def make_accelerator(config: TrainConfig, directory: Path) -> Accelerator:
    """Find the devices and processes to run on; refuses a tracker that is not known or not installed, and a precision that is not there."""
    available = [str(kind) for kind in get_available_trackers()]
    if config.tracker and config.tracker not in available:  # Accelerate would silently track nothing
        remedy = f"choose one of those whose packages are installed ({', '.join(available) or 'none'}), or leave it empty"
        raise ConfigError(f"train.tracker is {config.tracker!r}", remedy)
    AcceleratorState._reset_state()  # or a process could not train a second time in another precision
    return Accelerator(
        mixed_precision=choose_precision(config),
        gradient_accumulation_steps=config.accumulate_batches,
        log_with=config.tracker or None,
        project_dir=str(directory) if config.tracker else None,
        # The shares are cut here (`share_loader`): one step of the schedule per optimiser step, whatever the number of processes.
        dataloader_config=DataLoaderConfiguration(split_batches=True),
    )


def choose_precision(config: TrainConfig) -> str:
    """Return Accelerate's name of the precision that the configuration names; `auto` is bf16 where the device multiplies in it, else no."""
    # This may be the first to ask for the processes' state, which is made only once: it must hear of `accelerate launch --cpu`.
    device = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU")).device.type
    abilities: Mapping[str, Any] = (
        getattr(torch.cpu, "get_capabilities", dict)() if device == "cpu" else {}
    )  # PyTorch before 2.11 does not tell
    multiplies: bool = abilities.get("avx512_bf16", False) or abilities.get("amx_bf16", False)
    if device == "cuda":
        multiplies = torch.cuda.is_bf16_supported(including_emulation=False)
    precision = config.mixed_precision
    if precision == "auto":
        return "bf16" if multiplies else "no"
    # With fp16 on a CPU, Accelerate would silently compute in float32; bf16 any CPU computes, if slowly.
    if (precision == "fp16" and device == "cpu") or (precision == "bf16" and not (multiplies or device == "cpu")):
        raise ConfigError(f"train.mixed_precision is {precision!r}, which this {device} device lacks; choose auto or no.")
    return precision


def in_float32(value: Any) -> Any:  # noqa: ANN401 - walks over values of any type
    """Return a dataclass or tuple with its floating-point tensors in float32; what is float32 already is not copied."""
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, tuple):
        return tuple(in_float32(item) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{item.name: in_float32(getattr(value, item.name)) for item in fields(value)})
    return value


class ProcessShare(Sampler[list[int]]):
    """Every `num_processes`-th item of each batch, from `process_index` on; the items are sorted by length, so shares are equally long.

    A batch with fewer items than processes is first repeated as a whole, which leaves every mean over it as it was and every process
    with something to do.
    """

    def __init__(self, batches: Iterable[list[int]], process_index: int, num_processes: int) -> None:
        self._batches, self._process_index, self._num_processes = batches, process_index, num_processes

    def __len__(self) -> int:
        return len(self._batches)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self._batches:
            repeats = -(-self._num_processes // len(batch))
            yield (batch * repeats)[self._process_index :: self._num_processes]


def share_loader(loader: DataLoader[Any], accelerator: Accelerator) -> Any:  # noqa: ANN401 - Accelerate's loaders have no types
    """Return a loader over this process's share of each batch, which puts it on the process's device."""
    own = ProcessShare(loader.batch_sampler, accelerator.process_index, accelerator.num_processes)  # type: ignore[arg-type]
    own_loader = DataLoader(loader.dataset, batch_sampler=own, collate_fn=loader.collate_fn, num_workers=loader.num_workers)
    # Accelerate's own sharding takes all batches to be of one size, but the smaller one may come anywhere in an epoch here.
    return prepare_data_loader(own_loader, accelerator.device, num_processes=1, process_index=0, put_on_device=True)


def batches_after(loader: Any, num_done: int) -> Iterator[Any]:  # noqa: ANN401 - Accelerate's loaders have no types
    """Give the batches of the epoch after the first `num_done`, which are not read."""
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

    def mean_count(count: int) -> Tensor:
        mean: Tensor = accelerator.reduce(torch.tensor(float(count), device=accelerator.device), reduction="mean")
        # At least one value in all processes together, as `own_count` has it.
        return mean.clamp(min=1 / accelerator.num_processes)

    return own_count if accelerator.num_processes == 1 else mean_count


def in_main_process(accelerator: Accelerator, work: Callable[[], Run]) -> Run:
    """Let one process make or check the folder; all processes learn which it is, or why it cannot be."""
    outcome: list[Run | QamDetrError | None] = [None]
    if accelerator.is_main_process:
        try:
            outcome = [work()]
        except QamDetrError as error:
            outcome = [error]
    (found,) = broadcast_object_list(outcome)
    if isinstance(found, QamDetrError):
        raise found
    return found  # type: ignore[no-any-return]
