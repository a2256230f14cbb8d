"""Training, as one story: data, model, optimiser, steps, evaluation, files.

train(config)
  load_datasets -> build_model -> optimiser, schedule, averaged weights -> (resume)
  for each step: batches -> forward -> losses -> backward -> clip -> update -> average
                 log; every n steps: save, evaluate
  evaluate, save the deployable file
"""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from unisolo.build import build_dataset, build_grid, build_model, with_grid
from unisolo.checkpoint import save_model
from unisolo.config import Config, ConfigError, config_to_dict
from unisolo.data.loader import build_loader
from unisolo.devices import autocast_for, resolve_precision
from unisolo.engine.distributed import World, join_world, mean_over_world
from unisolo.engine.evaluate import check_categories, evaluate
from unisolo.engine.logger import RunLogger
from unisolo.engine.optim import build_ema, build_optimizer, build_schedule, scaled_lr
from unisolo.engine.report import coverage_line, object_sides
from unisolo.engine.sampler import TrainSampler
from unisolo.engine.state import load_state, random_state, restore_random_state, save_state
from unisolo.files import write_atomically
from unisolo.models import UniSolo
from unisolo.structures import Batch
from unisolo.tasks import TaskAdapter, get_task

__all__ = ["TrainSummary", "train"]


@dataclass(frozen=True)
class TrainSummary:
    """What a run leaves behind.

    Attributes:
        checkpoint: The deployable file.
        steps: Optimiser steps done.
        seconds: Wall-clock of the training steps, evaluation excluded.
        metrics: Of the last evaluation, in percent; empty where there was none.
    """

    checkpoint: Path
    steps: int
    seconds: float
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass
class _Run:
    """The moving parts of a run."""

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
    total_steps: int
    step: int = 0
    seconds: float = 0.0
    best: float = -math.inf

    @property
    def averaged(self) -> UniSolo:
        """The weights to evaluate and ship: the averaged ones where there are any."""
        model: UniSolo = self.model if self.ema is None else self.ema.module
        return model


def train(config: Config, *, resume: bool = False, overwrite: bool = False) -> TrainSummary:
    """Train a model as the configuration says.

    Args:
        config: The run. `train.out` receives `config.yaml`, `log.jsonl`, `tensorboard/`, `last.pt`
            (to resume), `model.safetensors` (to use), `best.safetensors` with `eval_every`, and
            `evaluation/` with `metrics.json` and the predictions.
        resume: Go on from `last.pt` in `train.out`, with the settings the run was started with.
        overwrite: Start anew in a folder that holds a run; what that run wrote is removed.

    Returns:
        The summary; also on processes other than the main one.

    Raises:
        ConfigError: If the configuration and the data do not fit each other.
        CheckpointError: If the run to resume cannot be read, or a file cannot be written.
        FloatingPointError: If a loss is NaN or infinite; the message names it and the images.
        ValueError: If the data set is broken; the message names file and entry.
    """
    out = config.train.out
    if not resume and not overwrite and (out / "last.pt").exists():
        raise ConfigError(
            f"{out} already holds a run; give --resume to go on with it, --overwrite to replace "
            "it, or another train.out"
        )
    with join_world(config.train.device) as world:
        torch.manual_seed(config.train.seed)
        task_class = get_task(config.task)
        train_set = build_dataset(config, split="train")
        val_set = build_dataset(config, split="val")
        if len(val_set) == 0:
            raise ConfigError(f"the split data.val_split={config.data.val_split!r} has no images")
        missing = task_class.requires - train_set.provides
        if missing:
            raise ConfigError(
                f"task '{config.task}' needs {sorted(missing)}; data set "
                f"'{type(train_set).__name__}' provides {sorted(train_set.provides)}"
            )
        grid = build_grid(config, object_sides(train_set, config))
        config = with_grid(config, grid)
        task = task_class(train_set.categories)
        check_categories(val_set.categories, task)
        task.make_evaluators(val_set)  # broken annotations are told now, not after the training
        state = load_state(out / "last.pt", config, task.categories) if resume else None
        run = _prepare(config, world, task, len(train_set), load_backbone=not resume)
        if state is not None:
            _restore(run, state)
        elif world.is_main:
            _remove_run(out)
        with RunLogger(
            out,
            total_steps=run.total_steps,
            start_step=run.step,
            active=world.is_main,
            tensorboard=config.train.tensorboard,
        ) as log:
            _introduce(run, train_set, val_set, log)
            log.say(coverage_line(train_set, config, grid))
            metrics = _loop(run, train_set, val_set, log)
        return TrainSummary(out / "model.safetensors", run.step, run.seconds, metrics)


def _remove_run(out: Path) -> None:
    """Remove what an earlier run wrote, and only that: the folder may hold the user's data."""
    for name in ("last.pt", "best.safetensors", "model.safetensors", "log.jsonl"):
        (out / name).unlink(missing_ok=True)
    for name in ("tensorboard", "evaluation"):
        shutil.rmtree(out / name, ignore_errors=True)


def _prepare(
    config: Config, world: World, task: TaskAdapter, num_images: int, *, load_backbone: bool
) -> _Run:
    """Build model, optimiser, schedule, scaler and averaged weights."""
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
            raise ConfigError("give train.epochs or train.steps")
        steps = max(1, round(settings.epochs * num_images / settings.batch_size))
    model = build_model(config, task.categories, load_backbone=load_backbone).to(world.device)
    if settings.channels_last:
        model = model.to(memory_format=torch.channels_last)
    forward: nn.Module = model
    if world.size > 1:
        ids = [world.device] if world.device.type == "cuda" else None
        forward = DistributedDataParallel(model, device_ids=ids)
    optimizer = build_optimizer(model, settings)
    dtype = resolve_precision(settings.precision, world.device)
    return _Run(
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
        total_steps=steps,
    )


def _introduce(run: _Run, train_set: Any, val_set: Any, log: RunLogger) -> None:
    """Say what is about to happen, and keep the resolved configuration."""
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
        f"({run.total_steps * settings.batch_size / len(train_set):.1f} epochs), learning rate "
        f"{scaled_lr(settings):.3g} = {settings.lr:g} x {settings.batch_size} / "
        f"{settings.lr_batch_size}"
    )
    if run.world.is_main:
        text = yaml.safe_dump(config_to_dict(run.config), sort_keys=False)
        path = settings.out / "config.yaml"
        write_atomically(path, lambda temporary: Path(temporary).write_text(text, "utf-8"))


def _loop(run: _Run, train_set: Any, val_set: Any, log: RunLogger) -> dict[str, float]:
    """Take the steps; return the metrics of the last evaluation."""
    settings = run.config.train
    weights = _loss_weights(run)
    batches = _batches(run, train_set)
    metrics: dict[str, float] = {}
    evaluated = -1
    window, waited, since = 0, 0.0, time.monotonic()
    run.forward.train()
    while run.step < run.total_steps:
        begin = time.monotonic()
        parts = [next(batches) for _ in range(settings.accumulate)]
        fetched = time.monotonic()
        losses, norm = train_step(run, parts, weights)
        run.step += 1
        run.seconds += time.monotonic() - begin
        waited += fetched - begin
        window += 1
        log.advance(run.step)
        if run.step % settings.log_every == 0 or run.step == run.total_steps:
            elapsed = time.monotonic() - since
            values = mean_over_world(
                {name: float(loss) for name, loss in losses.items()}, run.world.device
            )
            values |= {
                "grad_norm": float(norm),
                "lr": run.optimizer.param_groups[-1]["lr"],
                "images_per_second": window * settings.batch_size / elapsed,
                "data_share": waited / elapsed,
                "memory_gib": _memory_gib(run.world.device),
            }
            log.line(run.step, values)
            window, waited, since = 0, 0.0, time.monotonic()
        if run.step % settings.checkpoint_every == 0 or run.step == run.total_steps:
            _save(run)
        if settings.eval_every and run.step % settings.eval_every == 0:
            begin = time.monotonic()
            metrics, evaluated = _evaluate(run, val_set, log), run.step
            _save(run)  # the best score is part of the state
            since += time.monotonic() - begin
    if evaluated != run.step:
        metrics = _evaluate(run, val_set, log)
    return metrics


def train_step(
    run: _Run, batches: list[Batch], weights: dict[str, float]
) -> tuple[dict[str, Tensor], Tensor]:
    """Take one optimiser step over one or more batches.

    Returns:
        The unweighted losses and their weighted sum "loss" (means over the batches, detached), and
        the gradient's norm before clipping.

    Raises:
        FloatingPointError: If a loss is not finite.
    """
    settings = run.config.train
    run.optimizer.zero_grad(set_to_none=True)
    sums: dict[str, Tensor] = {}
    for number, part in enumerate(batches):
        batch = part.to(run.world.device, non_blocking=True)
        images = batch.images
        if settings.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        last = number == len(batches) - 1
        waits = isinstance(run.forward, DistributedDataParallel) and not last
        with run.forward.no_sync() if waits else nullcontext():  # type: ignore[operator]
            with autocast_for(run.dtype, run.world.device):
                outputs = run.forward(images, batch.image_sizes)
                losses = run.task.losses(
                    outputs,
                    batch.targets,
                    run.model.grid,
                    one_object_per_cell=settings.one_object_per_cell,
                )
            total = torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()
            losses["loss"] = total
            _check_finite(losses, batch, run.step)
            torch.autograd.backward(run.scaler.scale(total / len(batches)))
        for name, loss in losses.items():
            sums[name] = sums.get(name, 0.0) + loss.detach() / len(batches)
    run.scaler.unscale_(run.optimizer)
    limit = settings.clip_norm if settings.clip_norm > 0 else math.inf
    norm = nn.utils.clip_grad_norm_(run.model.parameters(), limit)
    if not run.scaler.is_enabled() and not math.isfinite(float(norm)):
        raise FloatingPointError(
            f"the gradient is not finite at step {run.step + 1} although the losses are; lower "
            "train.lr, or train in another train.precision. The last saved state is unchanged."
        )
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.schedule.step_update(run.step + 1)
    if run.ema is not None:
        run.ema.update(run.model, step=run.step)
    return sums, norm


def _check_finite(losses: dict[str, Tensor], batch: Batch, step: int) -> None:
    """Raise if a loss is NaN or infinite, naming the losses, the step and the images."""
    if math.isfinite(float(losses["loss"].detach())):
        return
    values = {name: float(loss) for name, loss in losses.items()}
    ids = [meta.image_id for meta in batch.metas]
    raise FloatingPointError(
        f"a loss is not finite at step {step + 1}: {values}, image ids {ids}; lower train.lr or "
        "train.clip_norm, or train in another train.precision. The last saved state is unchanged."
    )


def _loss_weights(run: _Run) -> dict[str, float]:
    """The task's weights with the configuration's laid over; unknown names are errors."""
    unknown = set(run.config.train.loss_weights) - set(run.task.loss_weights)
    if unknown:
        raise ConfigError(
            f"train.loss_weights: unknown {sorted(unknown)}; task '{run.task.name}' has "
            f"{sorted(run.task.loss_weights)}"
        )
    return {**run.task.loss_weights, **run.config.train.loss_weights}


def _batches(run: _Run, dataset: Any) -> Iterator[Batch]:
    settings = run.config.train
    sampler = TrainSampler(
        len(dataset),
        seed=settings.seed,
        rank=run.world.rank,
        world_size=run.world.size,
        start=run.step * settings.batch_size,
    )
    loader = build_loader(
        dataset,
        batch_size=settings.batch_size // (run.world.size * settings.accumulate),
        workers=run.config.data.workers,
        sampler=sampler,
        seed=settings.seed,
        first_position=run.step * settings.batch_size // run.world.size,
        pin_memory=run.world.device.type == "cuda",
    )
    return iter(loader)


def _evaluate(run: _Run, dataset: Any, log: RunLogger) -> dict[str, float]:
    """Evaluate the shipped weights, write them, and keep the best."""
    settings = run.config.train
    shipped = run.averaged
    mode = shipped.training
    shipped.eval()
    if run.world.size > 1:
        # Every process has seen other images, so running statistics differ: score what is shipped.
        for buffer in shipped.buffers():
            torch.distributed.broadcast(buffer, 0)
    if run.world.is_main:
        save_model(run.model, settings.out / "model.safetensors", state_dict=shipped.state_dict())
    begin = time.monotonic()
    metrics = evaluate(
        shipped,
        dataset,
        task=run.task,
        world=run.world,
        precision=settings.precision,
        batch_size=settings.batch_size // (run.world.size * settings.accumulate),
        workers=run.config.data.workers,
        out=settings.out / "evaluation",
    )
    shipped.train(mode)
    log.log(run.step, metrics)
    brief = "  ".join(f"{name} {metrics[name]:.1f}" for name in _headline(metrics))
    log.say(f"evaluation at step {run.step}: {brief}  ({time.monotonic() - begin:.0f} s)")
    score = metrics[_headline(metrics)[0]]
    if settings.eval_every and score > run.best:
        run.best = score
        if run.world.is_main:
            path = settings.out / "best.safetensors"
            save_model(run.model, path, state_dict=shipped.state_dict())
    return metrics


def _headline(metrics: dict[str, float]) -> list[str]:
    """The metrics to show in one line; the first decides which weights are best."""
    names = ("panoptic/PQ", "segm/AP", "bbox/AP")
    return [name for name in names if name in metrics]


def _save(run: _Run) -> None:
    if not run.world.is_main:
        return
    parts = {
        "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "scaler": run.scaler.state_dict(),
        "ema": None if run.ema is None else run.ema.module.state_dict(),
        "random": random_state(),
        "seconds": run.seconds,
        "best": run.best,
    }
    save_state(
        run.config.train.out / "last.pt",
        step=run.step,
        config=run.config,
        categories=run.task.categories,
        parts=parts,
    )


def _restore(run: _Run, state: dict[str, Any]) -> None:
    """Put a run back to where its saved state was taken."""
    run.model.load_state_dict(state["model"])
    run.optimizer.load_state_dict(state["optimizer"])
    if state["scaler"] and run.scaler.is_enabled():  # a resume may be on another kind of device
        run.scaler.load_state_dict(state["scaler"])
    if run.ema is not None:
        run.ema.module.load_state_dict(state["ema"])
    run.step = state["step"]
    run.seconds = state["seconds"]
    run.best = state["best"]
    run.schedule.step_update(run.step)
    restore_random_state(state["random"])


def _memory_gib(device: torch.device) -> float:
    """Peak memory so far: of the GPU, or of this process on CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    try:
        import resource
    except ImportError:  # Windows
        return math.nan
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # ru_maxrss counts bytes on macOS and KiB elsewhere.
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20
