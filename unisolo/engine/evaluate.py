"""Evaluation: one pass over the images, every metric of the task."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Subset

from unisolo.categories import Categories
from unisolo.checkpoint import model_facts
from unisolo.config import Config, config_to_dict, load_config
from unisolo.data.loader import collate, padded_size_groups, start_worker
from unisolo.devices import autocast_for, resolve_precision
from unisolo.engine.distributed import World
from unisolo.engine.tally import DetectionTally
from unisolo.evaluation.base import Evaluator
from unisolo.files import write_json
from unisolo.graphs import Graph, select
from unisolo.models import UniSolo
from unisolo.report import (
    TrainingFacts,
    leave_report,
    make_record,
    noted_warnings,
    write_record,
)
from unisolo.results import Result
from unisolo.structures import Batch, Sample
from unisolo.tasks import TaskAdapter

__all__ = ["check_categories", "evaluate", "evaluation_config", "run_batch"]


def evaluation_config(
    config: Config,
    data: str | os.PathLike[str],
    *,
    task: str | None = None,
    split: str | None = None,
    overrides: Iterable[str] = (),
) -> Config:
    """Return a checkpoint's configuration, turned to a data set to be evaluated on.

    Args:
        config: Of the checkpoint or graph.
        data: Folder of the data set, in COCO's layout; all its images are taken.
        task: The task to answer; None = the checkpoint's.
        split: The part of the data; None = the checkpoint's `data.val_split`.
        overrides: Settings as `key.sub=value`.

    Raises:
        ConfigError: If a setting is wrong.
    """
    values = config_to_dict(config)
    values["data"].update({"root": str(data), "dataset": "auto", "max_images": None})
    if task is not None:
        values["task"] = task
    if split is not None:
        values["data"]["val_split"] = split
    return load_config(None, overrides, values=values)


def run_batch(model: UniSolo | Graph, task: TaskAdapter, batch: Batch) -> list[Result]:
    """Run the model and the task's post-process on one batch, with the model's own settings."""
    settings = model_facts(model)[0].inference
    grid = None if isinstance(model, Graph) else model.grid
    found = select(model(batch.images, batch.image_sizes), grid, settings)
    return task.postprocess(
        found.instances,
        found.extras,
        batch.metas,
        padded_size=found.padded_size,
        **settings.postprocess_arguments(),
    )


@torch.inference_mode()
def evaluate(
    model: UniSolo | Graph,
    dataset: Any,
    *,
    task: TaskAdapter,
    world: World,
    precision: str = "auto",
    batch_size: int = 8,
    workers: int = 0,
    backend: str = "hotcoco",
    out: Path | None = None,
    on_image: Callable[[int, int], None] | None = None,
    training: TrainingFacts | None = None,
) -> dict[str, float]:
    """Evaluate a model on a data set, shared out over the processes of `world`.

    Only run-length codes and compressed maps are kept between images (see the evaluators). If no
    image gets an instance, one warning says which threshold is above what the model gives.

    Args:
        model: In evaluation mode, on `world.device`; or an exported graph of size "stride4".
        dataset: One of `unisolo.data.DATASETS`, with the evaluation transform.
        task: The task to answer; a panoptic model may be evaluated on all three.
        world: This process's place.
        precision: As `train.precision`.
        batch_size: Images of one padded size that are run together.
        workers: Loader processes.
        backend: "hotcoco" or "official" (pycocotools, panopticapi).
        out: Folder for `metrics.json`, the predictions in COCO formats, `evaluation.json` (on what
            and how) and `report.html`; None writes nothing.
        on_image: Called with (images done, images of this process).
        training: Of the training that evaluates, which makes its own report at its end; None =
            there is none.

    Returns:
        Metrics by flat name, in percent, the same on every process.
    """
    begin = time.monotonic()
    check_categories(dataset.categories, task)
    evaluators: list[Evaluator] = task.make_evaluators(dataset, backend=backend)
    with noted_warnings() as noted:
        tally = _predict(
            model,
            dataset,
            task,
            world,
            evaluators,
            precision=precision,
            batch_size=batch_size,
            workers=workers,
            on_image=on_image,
        )
        warning = tally.warning(world)
        if warning is not None and world.is_main:
            warnings.warn(warning, stacklevel=2)
        metrics = _compute(evaluators, world, out)
    if out is None or not world.is_main:
        return metrics
    record = make_record(
        # A panoptic model may have answered another task.
        model_facts(model)[0].model_copy(update={"task": task.name}),
        device=world.device,
        processes=world.size,
        images=len(dataset),
        seconds=time.monotonic() - begin,
        backend=backend,
        warnings=noted,
        training=training,
    )
    write_record(out, record)
    write_json(out / "metrics.json", metrics, indent=2)
    if training is None:
        leave_report(out, dataset)
    return metrics


def _predict(
    model: UniSolo | Graph,
    dataset: Any,
    task: TaskAdapter,
    world: World,
    evaluators: Sequence[Evaluator],
    *,
    precision: str,
    batch_size: int,
    workers: int,
    on_image: Callable[[int, int], None] | None,
) -> DetectionTally:
    """Hand the results of this process's images to the evaluators; return what was found at all."""
    indices = range(world.rank, len(dataset), world.size)
    loader: Iterable[Sample] = DataLoader(
        Subset(dataset, indices),
        batch_size=None,
        num_workers=workers,
        worker_init_fn=start_worker,
    )
    dtype = resolve_precision(precision, world.device)
    done, tally = 0, DetectionTally()
    samples = _told_if_killed(loader)
    for group in padded_size_groups(samples, batch_size, lambda sample: sample.meta.input_size):
        batch = collate(group).to(world.device, non_blocking=True)
        with autocast_for(dtype, world.device):
            results = [result.cpu() for result in run_batch(model, task, batch)]
        for evaluator in evaluators:
            evaluator.update(results, batch.metas)
        tally.update(results)
        done += len(batch)
        if on_image is not None:
            on_image(done, len(indices))
    return tally


def _told_if_killed(loader: Iterable[Sample]) -> Iterator[Sample]:
    """Hand samples on; say it plainly when the system has killed a loader process."""
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise OSError(
            f"a loader process was killed during the evaluation ({str(error).splitlines()[0]}). "
            "The system does that when memory runs out: lower data.workers or the batch size"
        ) from None


def check_categories(found: Categories, task: TaskAdapter) -> None:
    """Raise a ValueError unless a data set's categories mean what the task's do.

    Ids, names and thing / stuff must agree; colours need not. A task without stuff ignores it.
    """

    def facts(categories: Categories) -> set[tuple[int, str, bool]]:
        return {
            (category.id, category.name, category.isthing)
            for category in categories
            if category.isthing or "stuff" in task.requires
        }

    ours, theirs = facts(task.categories), facts(found)
    if ours == theirs:
        return
    raise ValueError(
        f"the data set's categories are not the model's: only in the data set "
        f"{sorted(theirs - ours)[:5]}, only in the model {sorted(ours - theirs)[:5]} "
        "(id, name, is a thing); evaluate on data of the categories it was trained on"
    )


def _compute(evaluators: Sequence[Evaluator], world: World, out: Path | None) -> dict[str, float]:
    """Join what the processes found, let the main process write it, and compute.

    `metrics.json` goes first and comes last: a folder that has one is whole.
    """
    metrics: dict[str, float] = {}
    if out is not None and world.is_main:
        (out / "metrics.json").unlink(missing_ok=True)
    for evaluator in evaluators:
        if world.size > 1:
            evaluator.merge(world.gather(evaluator.state()))
        if out is not None and world.is_main:
            evaluator.save(out)  # first: a failing metric must not lose the predictions
        metrics.update(evaluator.compute())
    return metrics
