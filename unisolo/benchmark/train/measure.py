"""How many images a second training takes, against torchvision's Mask R-CNN on the same backbone.

Both take the same batches from the same loader and feed, in one process, one after the other; the
optimiser, the precision, the gradient's norm and the one look at whether it is finite are the same.
"""

from __future__ import annotations

import gc
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unisolo.benchmark.gpu_timing import tf32
from unisolo.benchmark.machine import describe_machine
from unisolo.benchmark.mask_rcnn import build_mask_rcnn, mask_rcnn_inputs
from unisolo.benchmark.train.crowded import CrowdedShapes
from unisolo.benchmark.train.report import PEER, TrainReport, TrainRow
from unisolo.build import build_dataset, build_grid, with_grid
from unisolo.config import Config, load_config
from unisolo.data.cache import keep_in_memory
from unisolo.data.transforms import TrainTransform
from unisolo.devices import autocast_for, resolve_device, resolve_precision
from unisolo.engine.distributed import World
from unisolo.engine.feed import BatchFeed
from unisolo.engine.optim import build_optimizer
from unisolo.engine.run import prepare
from unisolo.engine.step import train_step
from unisolo.models import TimmBackbone
from unisolo.structures import Batch
from unisolo.tasks import get_task

__all__ = ["measure_training"]

SCENES = 64
"""Generated images; with 16 to a batch every image comes again after four steps."""


def measure_training(
    recipes: Sequence[Path],
    *,
    data: Path | None = None,
    batch_size: int = 16,
    steps: int = 40,
    warm_up: int = 10,
    image_size: int | None = None,
    workers: int = 2,
    overrides: Sequence[str] = (),
    device: str = "auto",
    tell: Callable[[str], None] = lambda text: None,
) -> TrainReport:
    """Train every recipe's model and its peer for some steps, from random weights.

    Args:
        recipes: Configuration files.
        data: Folder of a COCO data set; None = generated crowded images.
        batch_size: Images per step.
        steps: Timed steps, at least 1.
        warm_up: Steps before them: kernels are chosen and compiled, the loader fills its queue.
        image_size: Short side; None = the recipe's.
        workers: Loader processes.
        overrides: Further settings as `key.sub=value`, e.g. `train.compile=true`.
        device: Where to train.
        tell: Gets one line per model.

    Returns:
        The report.

    Raises:
        ConfigError: If a file is not a configuration.
        ValueError: If a number is out of range, or the data cannot be used.
    """
    if not recipes:
        raise ValueError("at least one recipe is needed")
    if min(steps, batch_size) < 1 or min(warm_up, workers) < 0:
        raise ValueError(
            f"steps and batch size must be at least 1, steps before them and loader processes at "
            f"least 0, got {steps}, {batch_size}, {warm_up} and {workers}"
        )
    place = resolve_device(device)
    world = World(rank=0, size=1, device=place)
    rows: list[TrainRow] = []
    with torch.cuda.device(place) if place.type == "cuda" else nullcontext():
        machine = describe_machine()  # of the device that is measured
        for recipe in recipes:
            with tempfile.TemporaryDirectory(prefix="unisolo-benchmark-") as folder:
                settings = _settings(
                    recipe, overrides, data, batch_size, image_size, workers, Path(folder), place
                )
                dataset = _dataset(settings, Path(folder))
                if settings.data.cache == "ram":
                    keep_in_memory(dataset, settings.data.cache_gib, tell)
                rows += _pair(_Job(recipe.stem, settings, world, dataset, warm_up, steps), tell)
    return TrainReport(
        machine=machine,
        device=place.type,
        # As the recipes end up, not as was asked for: `overrides` may say otherwise.
        precision=str(resolve_precision(settings.train.precision, place)).removeprefix("torch."),
        data="generated crowded images" if data is None else str(data),
        workers=settings.data.workers,
        compiled=settings.train.compile,
        rows=tuple(rows),
    )


def _settings(
    recipe: Path,
    overrides: Sequence[str],
    data: Path | None,
    batch_size: int,
    image_size: int | None,
    workers: int,
    folder: Path,
    device: torch.device,
) -> Config:
    """The recipe with its grid written out, random weights and steps too small to diverge."""
    changes = [
        "task=instance",
        "model.pretrained=false",
        f"data.root={folder if data is None else data}",
        f"data.workers={workers}",
        "data.cache=ram",
        f"train.batch_size={batch_size}",
        f"train.lr_batch_size={batch_size}",
        "train.lr=1e-6",
        "train.steps=1000000",
        f"train.out={folder}",
        f"train.device={device}",
        "train.precision=auto",
    ]
    config = load_config(recipe, [*changes, *overrides])
    if image_size is not None:
        scale = image_size / config.data.image_size
        crop = config.data.augment.crop
        cut = "null" if crop is None else str([round(scale * side) for side in crop])
        changes += [
            f"data.image_size={image_size}",
            f"data.max_size={round(scale * config.data.max_size)}",
            f"data.augment.crop={cut}",
        ]
    if config.model.scale_ranges == "auto":
        changes.append("model.scale_ranges=scaled")
    config = load_config(recipe, [*changes, *overrides])
    return with_grid(config, build_grid(config))


def _dataset(config: Config, folder: Path) -> Any:
    settings = config.data
    if settings.root != folder:
        return build_dataset(config, split="train")
    transform = TrainTransform(
        settings.image_size,
        settings.max_size,
        resize=settings.resize,
        **settings.augment.transform_arguments(),
    )
    side = max(32, settings.image_size // 4)
    return CrowdedShapes(folder / "scenes", SCENES, (side, side * 4 // 3), transform)


@dataclass(frozen=True)
class _Job:
    """What both models of a recipe are measured with."""

    recipe: str
    config: Config
    world: World
    dataset: Any
    warm_up: int
    steps: int


def _pair(job: _Job, tell: Callable[[str], None]) -> list[TrainRow]:
    """Measure both models; each is told as soon as it is known."""
    rows: list[TrainRow] = []
    for model, measure in (("unisolo", _measure_own), (PEER, _measure_peer)):
        tell(f"{job.recipe}: training {model}")
        try:
            rows.append(measure(job))
        except torch.OutOfMemoryError as error:
            raise MemoryError(
                f"{model} runs out of GPU memory with {job.config.train.batch_size} images in a "
                "step: a smaller --batch needs less, for both"
            ) from error
        _free()
        tell(f"  {rows[-1].images_per_second:.3g} images/s, {rows[-1].data_share:.1%} waiting")
    own, peer = rows
    return [replace(own, ratio=own.images_per_second / peer.images_per_second), peer]


def _measure_own(job: _Job) -> TrainRow:
    task = get_task(job.config.task)(job.dataset.categories)
    run = prepare(job.config, job.world, task, len(job.dataset), load_backbone=False)
    run.forward.train()

    def step(batches: list[Batch], meanwhile: Callable[[], object]) -> None:
        train_step(run, batches, meanwhile)
        run.advance(0.0)  # without a clock of its own

    return _measure(job, "unisolo", step)


def _measure_peer(job: _Job) -> TrainRow:
    settings, device = job.config.model, job.world.device
    backbone = TimmBackbone(
        settings.backbone, frozen_stages=settings.frozen_stages, frozen_bn=settings.frozen_bn
    )
    model: Any = build_mask_rcnn(
        backbone, job.dataset.categories.num_things, job.config.data.image_size
    )
    model.to(device).to(memory_format=torch.channels_last).train()
    optimizer = build_optimizer(model, job.config.train)
    dtype = resolve_precision(job.config.train.precision, device)
    limit = job.config.train.clip_norm or math.inf

    def step(batches: list[Batch], meanwhile: Callable[[], object]) -> None:
        optimizer.zero_grad(set_to_none=True)
        for batch in batches:
            images, targets = mask_rcnn_inputs(batch.to(device, non_blocking=True))
            with autocast_for(dtype, device):
                losses = model(images, targets)
            total = torch.stack([loss.float() for loss in losses.values()]).sum()
            torch.autograd.backward(total / len(batches))
        norm = nn.utils.clip_grad_norm_(model.parameters(), limit)
        meanwhile()
        if bool(norm.isfinite()):
            optimizer.step()

    # As `train_step` does: products that stay float32 may use tensor cores in 16-bit training.
    with tf32(True) if dtype != torch.float32 else nullcontext():
        return _measure(job, PEER, step)


def _measure(
    job: _Job, model: str, step: Callable[[list[Batch], Callable[[], object]], object]
) -> TrainRow:
    """Take steps from the start of the data; time the later ones.

    `step` gets the batches, and what to call while the device is busy.
    """
    config, device = job.config, job.world.device
    cuda = device.type == "cuda"
    feed = BatchFeed(job.dataset, config, job.world, lambda text: None)
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    objects = 0
    begin = time.perf_counter()
    for number in range(job.warm_up + job.steps):
        if number == job.warm_up:
            if cuda:
                torch.cuda.synchronize(device)
            feed.waited()
            begin = time.perf_counter()
        batches = feed.take(number)
        step(batches, partial(feed.prepare, number + 1))
        if number >= job.warm_up:
            objects += sum(len(target) for batch in batches for target in batch.targets)
    if cuda:
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - begin
    waited = feed.waited()
    feed.close()
    images = job.steps * config.train.batch_size
    return TrainRow(
        recipe=job.recipe,
        backbone=config.model.backbone,
        model=model,
        image_size=config.data.image_size,
        batch_size=config.train.batch_size,
        steps=job.steps,
        objects=objects / images,
        images_per_second=images / seconds,
        step_ms=1e3 * seconds / job.steps,
        data_share=waited / seconds,
        peak_gib=torch.cuda.max_memory_allocated(device) / 2**30 if cuda else None,
        ratio=None,
    )


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
