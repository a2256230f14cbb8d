"""Training, as one story: data, model, optimiser, steps, evaluation, files.

train(config)
  load_datasets -> prepare model, optimiser, schedule, averaged weights -> (restore)
  until the last step: batches -> train_step (forward, losses, backward, clip, update, average)
                       log; every n steps: save, evaluate
  evaluate, save the deployable file; report
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from unisolo.build import build_dataset, build_grid, with_grid
from unisolo.checkpoint import save_model
from unisolo.config import Config, ConfigError, config_to_dict
from unisolo.data.cache import keep_in_memory
from unisolo.doctor import brief
from unisolo.engine.distributed import World, join_world, local_size, restart_count
from unisolo.engine.evaluate import check_categories, evaluate
from unisolo.engine.feed import BatchFeed
from unisolo.engine.logger import RunLogger
from unisolo.engine.meter import Meter
from unisolo.engine.report import coverage_line, object_sides
from unisolo.engine.run import Run, holds_run, introduce, prepare, remove_run, restore, save
from unisolo.engine.state import StateFolder, check_state, seed_all
from unisolo.engine.step import train_step
from unisolo.engine.stop import StopRequest, TrainingStopped
from unisolo.files import write_atomically
from unisolo.report import TrainingFacts, leave_report, noted_warnings
from unisolo.tasks import TaskAdapter, get_task

__all__ = ["TrainSummary", "train"]


@dataclass(frozen=True)
class TrainSummary:
    """What a run leaves behind.

    Attributes:
        checkpoint: The deployable file.
        steps: Optimiser steps done.
        seconds: Wall-clock of the training steps, evaluation excluded.
        metrics: Of the last evaluation, in percent.
        skipped: Steps left out because they were not finite.
    """

    checkpoint: Path
    steps: int
    seconds: float
    metrics: dict[str, float] = field(default_factory=dict)
    skipped: int = 0


def train(
    config: Config, *, resume: bool | Literal["auto"] = False, overwrite: bool = False
) -> TrainSummary:
    """Train a model as the configuration says.

    SIGTERM, SIGUSR1 and Ctrl-C end the run after the step in hand, its state saved. Processes that
    torchrun restarts (`--max-restarts`) go on from the last state by themselves.

    Args:
        config: The run. `train.out` receives `config.yaml`, `log.jsonl`, `tensorboard/`,
            `checkpoints/` (to resume), `model.safetensors` (to use), `best.safetensors` with
            `eval_every`, `evaluation/` with `metrics.json` and the predictions, and
            `report.html`.
        resume: Go on from the newest state in `train.out`, with the settings the run was started
            with; "auto" = if there is one, else start.
        overwrite: Start anew in a folder that holds a run; what that run wrote is removed.

    Returns:
        The summary; also on processes other than the main one.

    Raises:
        ConfigError: If the configuration and the data do not fit each other.
        CheckpointError: If the run to resume cannot be read.
        TrainingStopped: If a signal asked for it; `exit_code` says which kind.
        FloatingPointError: If a loss or gradient is NaN or infinite (`train.on_nonfinite`).
        MemoryError: If memory runs out; the message says what was big and what to lower.
        OSError: If a file cannot be written, or loader processes are killed again and again.
        ValueError: If the data set is broken; the message names file and entry.
    """
    with (
        _deterministic(config.train.deterministic),
        join_world(config.train.device) as world,
        StopRequest() as stop,
        noted_warnings() as noted,
    ):
        (restarted,) = world.any(restart_count() > 0)  # nodes may count differently
        if restarted:
            resume, overwrite = "auto", False
        states = StateFolder(config.train.out, keep=config.train.keep_checkpoints)
        path, state = _state_to_resume(states, world, resume)
        may_replace = overwrite or resume == "auto"
        if state is None and not may_replace and world.from_main(holds_run(config.train.out)):
            raise ConfigError(
                f"{config.train.out} already holds a run; give --resume to go on with it, "
                "--overwrite to replace it, or another train.out"
            )
        seed_all(config.train.seed)
        if world.is_main and config.data.root is not None:
            for sentence in brief(config):  # all faults; the readers below stop at the first
                print(sentence, file=sys.stderr, flush=True)
                noted.append(sentence)
        config, task, train_set, val_set = _load(config)
        if state is not None:
            check_state(path, state, config, task.categories)
        run = prepare(config, world, task, len(train_set), load_backbone=state is None)
        if state is not None:
            restore(run, state, path)
            del state  # it holds a second copy of weights and optimiser
        elif world.is_main:
            remove_run(config.train.out)
        with RunLogger(
            config.train.out,
            total_steps=run.total_steps,
            start_step=run.step,
            start_done=run.done,
            evaluated=run.evaluated,
            active=world.is_main,
            tensorboard=config.train.tensorboard,
        ) as log:
            introduce(run, train_set, val_set, log)
            _write_config(run)
            log.say(coverage_line(train_set, config, run.model.grid))
            if config.data.cache == "ram":
                limit, say = config.data.cache_gib, log.say
                keep_in_memory(train_set, limit, say, processes=local_size())
            _loop(run, train_set, val_set, log, stop, noted)
    # Outside: other processes need not wait for it, and a signal now ends it at once.
    if world.is_main:
        leave_report(config.train.out, val_set)
    return TrainSummary(
        config.train.out / "model.safetensors", run.step, run.seconds, run.metrics, run.skipped
    )


def _state_to_resume(
    states: StateFolder, world: World, resume: bool | Literal["auto"]
) -> tuple[Path, dict[str, Any] | None]:
    """The newest whole state, the same one on every process; None to start anew."""
    if world.is_main:
        states.remove_unfinished()
    some = world.from_main(bool(states.paths()))
    if not resume or (resume == "auto" and not some):
        return Path(), None

    def say(text: str) -> None:
        if world.is_main:
            print(text, file=sys.stderr, flush=True)

    path, state = states.newest(say)
    say(f"resuming from {path}")
    steps = world.gather(state["step"])
    if len(set(steps)) > 1:
        raise ConfigError(
            f"processes found states of different steps {steps} in {states.folder}; train.out "
            "must be one folder that every node sees"
        )
    return path, state


def _load(config: Config) -> tuple[Config, TaskAdapter, Any, Any]:
    """Open both splits; return the configuration with its grid written out, task and data sets."""
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
    config = with_grid(config, build_grid(config, object_sides(train_set, config)))
    task = task_class(train_set.categories)
    check_categories(val_set.categories, task)
    task.make_evaluators(val_set)  # broken annotations are told now, not after the training
    return config, task, train_set, val_set


def _write_config(run: Run) -> None:
    """Keep every setting as it was resolved."""
    if run.world.is_main:
        text = yaml.safe_dump(config_to_dict(run.config), sort_keys=False)
        path = run.config.train.out / "config.yaml"
        write_atomically(path, lambda temporary: Path(temporary).write_text(text, "utf-8"))


def _loop(
    run: Run,
    train_set: Any,
    val_set: Any,
    log: RunLogger,
    stop: StopRequest,
    noted: Sequence[str],
) -> None:
    """Take the steps, save and evaluate."""
    settings = run.config.train
    feed = BatchFeed(train_set, run.config, run.world, log.say)
    meter = Meter()
    run.forward.train()
    while True:
        if _evaluation_is_due(run):
            begin = time.monotonic()
            if run.is_over:
                feed.close()
                log.say(meter.sentence())
                if settings.max_minutes is not None:
                    log.say(run.ending())
            _evaluate(run, val_set, log, stop, noted)
            save(run)  # metrics and the best score are part of the state
            meter.leave_out(time.monotonic() - begin)
        if run.is_over:
            return
        begin = time.monotonic()
        batches = feed.take(run.step)
        result = train_step(run, batches, partial(feed.prepare, run.step + 1))
        run.advance(time.monotonic() - begin)
        meter.add(waited=feed.waited())
        log.advance(run.done)
        if run.step % settings.log_every == 0 or run.is_over:
            losses = run.world.total(list(result.losses.values()))
            values = dict(zip(result.losses, map(float, losses), strict=True))
            values |= {
                "grad_norm": float(result.grad_norm),
                "lr": run.optimizer.param_groups[-1]["lr"],
                **meter.take(settings.batch_size),
                "memory_gib": _memory_gib(run.world.device),
            }
            log.line(run.step, values, done=run.done)
        (stopping,) = run.world.any(bool(stop))
        if stopping or run.step % settings.checkpoint_every == 0 or run.is_over:
            save(run)
        if stopping:
            name = next(filter(None, run.world.gather(stop.signal_name)))
            raise TrainingStopped(
                name,
                f"stopped by {name} after step {run.step} of {run.total_steps}, state saved; go on "
                "with --resume",
            )


def _evaluation_is_due(run: Run) -> bool:
    every = run.config.train.eval_every
    at_step = run.is_over or (every and run.step and run.step % every == 0)
    return bool(at_step) and run.evaluated != run.step


def _evaluate(
    run: Run, dataset: Any, log: RunLogger, stop: StopRequest, noted: Sequence[str]
) -> None:
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

    def stop_if_asked(done: int, total: int) -> None:
        if stop:  # the state of this step is saved, and its evaluation is done after resuming
            raise TrainingStopped(
                stop.signal_name,
                f"stopped by {stop.signal_name} in the evaluation at step {run.step}, state saved; "
                "go on with --resume",
            )

    planned = run.step if run.is_over else run.total_steps
    run.metrics = evaluate(
        shipped,
        dataset,
        task=run.task,
        world=run.world,
        precision=settings.precision,
        batch_size=run.images_per_part,
        workers=run.config.data.workers,
        out=settings.out / "evaluation",
        on_image=stop_if_asked,
        training=TrainingFacts(run.step, planned, run.seconds, run.skipped, tuple(noted)),
    )
    shipped.train(mode)
    run.evaluated = run.step
    log.log(run.step, run.metrics)
    names = _headline(run.task, run.metrics)
    scores = "  ".join(f"{name} {run.metrics[name]:.1f}" for name in names)
    log.say(f"evaluation at step {run.step}: {scores}  ({time.monotonic() - begin:.0f} s)")
    score = run.metrics[names[0]]
    if settings.eval_every and score > run.best:
        run.best = score
        if run.world.is_main:
            path = settings.out / "best.safetensors"
            save_model(run.model, path, state_dict=shipped.state_dict())


def _headline(task: TaskAdapter, metrics: dict[str, float]) -> tuple[str, ...]:
    """The task's headline; an error if its evaluators do not give it."""
    absent = set(task.headline) - set(metrics)
    if absent or not task.headline:
        raise ValueError(
            f"task '{task.name}' names {sorted(absent)} in its headline, but its evaluators give "
            f"{sorted(metrics)}"
        )
    return task.headline


@contextmanager
def _deterministic(wanted: bool) -> Iterator[None]:
    """Hold torch to algorithms that give the same bits at every run."""
    if not wanted:
        yield
        return
    # cuBLAS reads it when it starts, and torch refuses to go on without it.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]


def _memory_gib(device: torch.device) -> float:
    """Peak memory so far: of the GPU, or of this process on CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # ru_maxrss counts bytes on macOS and KiB elsewhere.
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20
