"""The moving parts of a run: building them, saving them, putting them back."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from unisolo.build import build_model
from unisolo.checkpoint import CheckpointError
from unisolo.config import Config, ConfigError
from unisolo.devices import resolve_precision
from unisolo.engine.distributed import World
from unisolo.engine.logger import RunLogger
from unisolo.engine.optim import build_ema, build_optimizer, build_schedule, scaled_lr
from unisolo.engine.state import StateFolder, random_state, restore_random_state, seed_all
from unisolo.models import UniSolo
from unisolo.tasks import TaskAdapter

__all__ = ["Run", "holds_run", "introduce", "prepare", "remove_run", "restore", "save"]

_FILES = ("best.safetensors", "model.safetensors", "config.yaml", "log.jsonl")
_FOLDERS = ("checkpoints", "tensorboard", "evaluation")


@dataclass
class Run:
    """The moving parts of a run.

    Attributes:
        config: Resolved: the grid is written out.
        world: This process's place.
        task: Losses, results and evaluators.
        model: The network, the same object inside `forward`.
        forward: What is called: the network, compiled (`train.compile`) or in its data-parallel
            wrapper or both.
        optimizer: From timm.
        schedule: From timm; follows `done`.
        scaler: Loss scale; acts in fp16 only.
        ema: timm's averaged copy, or None.
        dtype: Compute dtype.
        loss_weights: Weight of each loss in the sum.
        total_steps: Length of the run, unless the clock ends it before.
        step: Steps done.
        skipped: Steps among them that were left out because they were not finite.
        seconds: Wall-clock of the steps, evaluation excluded.
        evaluated: Step of the last evaluation; -1 = none.
        metrics: Of the last evaluation, in percent.
        best: Best score so far.
    """

    config: Config
    world: World
    task: TaskAdapter
    model: UniSolo
    forward: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Any
    scaler: torch.amp.GradScaler
    ema: Any
    dtype: torch.dtype
    loss_weights: dict[str, float]
    total_steps: int
    step: int = 0
    skipped: int = 0
    seconds: float = 0.0
    evaluated: int = -1
    metrics: dict[str, float] = field(default_factory=dict)
    best: float = -math.inf

    @property
    def clock_share(self) -> float:
        """Share of `train.max_minutes` that is over; 0 without it."""
        minutes = self.config.train.max_minutes
        return 0.0 if minutes is None else min(self.seconds / (60 * minutes), 1.0)

    @property
    def done(self) -> float:
        """Where the run stands, in steps: those done, or of all steps the share of the clock."""
        return max(self.step, self.clock_share * self.total_steps)

    @property
    def is_over(self) -> bool:
        """Whether the last step is done or the clock has run out."""
        return self.step >= self.total_steps or self.clock_share >= 1

    def advance(self, seconds: float) -> None:
        """Count a step that took so many seconds; the learning rate follows.

        All processes must call this together: with a clock, the main one's time is everybody's.
        """
        self.step += 1
        self.seconds += seconds
        if self.config.train.max_minutes is not None:
            self.seconds = self.world.from_main(self.seconds)
        self.schedule.step_update(self.done)

    def ending(self) -> str:
        """Say what ended the run."""
        if self.step >= self.total_steps:
            return f"ended after its {self.step} steps, {self.seconds:.0f} s of training"
        return (
            f"ended by train.max_minutes={self.config.train.max_minutes:g} after step {self.step} "
            f"of {self.total_steps}, {self.seconds:.0f} s of training"
        )

    @property
    def averaged(self) -> UniSolo:
        """The weights to evaluate and ship: the averaged ones where there are any."""
        model: UniSolo = self.model if self.ema is None else self.ema.module
        return model

    @property
    def images_per_part(self) -> int:
        """Images in one forward pass of one process."""
        settings = self.config.train
        return settings.batch_size // (self.world.size * settings.accumulate)


def prepare(
    config: Config, world: World, task: TaskAdapter, num_images: int, *, load_backbone: bool
) -> Run:
    """Build model, optimiser, schedule, scaler and averaged weights.

    Args:
        config: With the grid written out.
        world: This process's place.
        task: The task.
        num_images: Size of the training set.
        load_backbone: Load ImageNet weights where the configuration asks for them.

    Raises:
        ConfigError: If settings do not fit each other or the number of processes.
        ValueError: If the backbone or the optimiser cannot be built.
    """
    settings = config.train
    share = world.size * settings.accumulate
    if settings.batch_size % share:
        raise ConfigError(
            f"train.batch_size={settings.batch_size} must be a multiple of processes x "
            f"train.accumulate = {world.size} x {settings.accumulate}"
        )
    steps = settings.steps
    if steps is None:
        if settings.epochs is None:
            raise ConfigError(
                "give train.epochs or train.steps; train.max_minutes may end it earlier"
            )
        steps = max(1, round(settings.epochs * num_images / settings.batch_size))
    unknown = set(settings.loss_weights) - set(task.loss_weights)
    if unknown:
        raise ConfigError(
            f"train.loss_weights: unknown {sorted(unknown)}; task '{task.name}' has "
            f"{sorted(task.loss_weights)}"
        )
    model = build_model(config, task.categories, load_backbone=load_backbone).to(world.device)
    # From here on processes differ: what is random in the network should not be the same for all.
    seed_all(settings.seed + world.rank)
    if settings.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if settings.sync_bn:
        model = _with_sync_bn(model, world)
    # A wrapper around the same weights: what is averaged, evaluated and saved is the plain network.
    forward: nn.Module = torch.compile(model) if settings.compile else model  # type: ignore[assignment]
    if world.size > 1:
        ids = [world.device] if world.device.type == "cuda" else None
        forward = DistributedDataParallel(forward, device_ids=ids)
    optimizer = build_optimizer(model, settings)
    dtype = resolve_precision(settings.precision, world.device)
    return Run(
        config=config,
        world=world,
        task=task,
        model=model,
        forward=forward,
        optimizer=optimizer,
        schedule=build_schedule(optimizer, settings, steps),
        scaler=torch.amp.GradScaler(world.device.type, enabled=dtype == torch.float16),
        ema=build_ema(model, settings),
        dtype=dtype,
        loss_weights={**task.loss_weights, **settings.loss_weights},
        total_steps=steps,
    )


def _with_sync_bn(model: UniSolo, world: World) -> UniSolo:
    if world.device.type != "cuda":
        raise ConfigError(
            f"train.sync_bn works on CUDA only, and this run is on {world.device}; use "
            "model.fpn_norm=group and model.frozen_bn=true, which need no batch statistics"
        )
    converted: UniSolo = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    return converted


def save(run: Run) -> None:
    """Write the training state; all processes must call this together.

    Raises:
        OSError: If it cannot be written; earlier states are untouched.
    """
    randoms = run.world.gather(random_state())
    if not run.world.is_main:
        return
    parts = {
        "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "scaler": run.scaler.state_dict(),
        "ema": None if run.ema is None else run.ema.module.state_dict(),
        "random": randoms,
        "skipped": run.skipped,
        "seconds": run.seconds,
        "evaluated": run.evaluated,
        "metrics": run.metrics,
        "best": run.best,
    }
    settings = run.config.train
    StateFolder(settings.out, keep=settings.keep_checkpoints).save(
        step=run.step, config=run.config, categories=run.task.categories, parts=parts
    )


def restore(run: Run, state: dict[str, Any], path: Path) -> None:
    """Put a run back to where its saved state was taken.

    The number of processes may be another one: then what is random in the network is drawn anew
    on processes there were not, and everything else goes on exactly.

    Raises:
        CheckpointError: If the state does not fit the model.
    """
    try:
        run.model.load_state_dict(state["model"])
        run.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"] and run.scaler.is_enabled():  # a resume may be on another device
            run.scaler.load_state_dict(state["scaler"])
        if run.ema is not None:
            run.ema.module.load_state_dict(state["ema"])
        run.step = state["step"]
        for name in ("skipped", "seconds", "evaluated", "metrics", "best"):
            setattr(run, name, state[name])
        run.schedule.step_update(run.done)
        if run.world.rank < len(state["random"]):
            restore_random_state(state["random"][run.world.rank])
    except (KeyError, RuntimeError, ValueError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path}: does not fit the run ({reason})") from None


def holds_run(out: Path) -> bool:
    """Whether a folder holds (what is left of) a run."""
    return any((out / name).exists() for name in (*_FILES, "checkpoints"))


def remove_run(out: Path) -> None:
    """Remove what an earlier run wrote, and only that: the folder may hold the user's data."""
    for name in (*_FILES, "report.html"):  # an evaluation's folder has a report too, and no run
        (out / name).unlink(missing_ok=True)
    for path in out.glob("nonfinite_step*.pt"):
        path.unlink()
    for name in _FOLDERS:
        shutil.rmtree(out / name, ignore_errors=True)


def introduce(run: Run, train_set: Any, val_set: Any, log: RunLogger) -> None:
    """Say what is about to happen."""
    settings = run.config.train
    parameters = sum(parameter.numel() for parameter in run.model.parameters())
    log.say(
        f"task {run.config.task}: {len(train_set)} training and {len(val_set)} validation images, "
        f"{run.task.categories}"
    )
    log.say(
        f"model {run.config.model.backbone}, {parameters / 1e6:.2f} M parameters, on "
        f"{run.world.size} x {run.world.device} in {str(run.dtype).removeprefix('torch.')}"
    )
    log.say(
        f"{run.total_steps} steps of {settings.batch_size} images "
        f"({run.total_steps * settings.batch_size / len(train_set):.1f} epochs; {run.world.size} "
        f"processes x {settings.accumulate} parts x {run.images_per_part} images), learning rate "
        f"{scaled_lr(settings):.3g} = {settings.lr:g} x {settings.batch_size} / "
        f"{settings.lr_batch_size}"
    )
    if settings.max_minutes is not None:
        log.say(
            f"train.max_minutes={settings.max_minutes:g}: the run ends after as many minutes of "
            f"training steps, {60 * settings.max_minutes - run.seconds:.0f} s from now, or after "
            "its last step, whichever is first; the learning rate follows the same share"
        )
