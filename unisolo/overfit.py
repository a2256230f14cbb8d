"""Can the chain learn these data at all? Trains on a few images and scores the same ones."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from unisolo.build import build_dataset
from unisolo.doctor.command import doctor_config
from unisolo.engine.train import train
from unisolo.tasks import get_task

__all__ = ["Verdict", "check_learning"]

# From random weights, minutes on two CPU cores: configs/quickstart.yaml without augmentation.
RECIPE = (
    "model.backbone=regnetx_002",
    "model.pretrained=false",
    "model.fpn_channels=48",
    "model.fpn_norm=batch",
    "model.head_channels=48",
    "model.head_convs=2",
    "model.kernel_channels=48",
    "model.mask_channels=48",
    "model.stuff_channels=48",
    "model.scale_ranges=auto",
    "data.image_size=192",
    "data.max_size=256",
    "data.workers=0",
    "data.augment.flip=0",
    "train.optimizer=adamw",
    "train.lr=0.003",
    "train.schedule=cosine",
    "train.warmup_steps=20",
    "train.clip_norm=10",
    "train.log_every=25",
    "train.tensorboard=false",
    "inference.stuff_area_threshold=0",
)
"""Settings of the built-in recipe."""

_ENOUGH = 60.0
"""Training-set score that only a chain that works can reach, of the first metric of the task's
headline."""
_AT_50 = {"segm/AP": "segm/AP50", "bbox/AP": "bbox/AP50"}
"""AP at IoU 0.5 instead, because the recipe's small images leave out the last pixels of small
objects."""


@dataclass(frozen=True)
class Verdict:
    """What came of it.

    Attributes:
        learned: Whether the images were learned.
        sentence: The same for people, with the figures.
        metrics: Of the last evaluation, in percent.
    """

    learned: bool
    sentence: str
    metrics: dict[str, float]


def check_learning(
    root: Path,
    *,
    task: str | None = None,
    images: int = 8,
    steps: int = 150,
    config: Path | None = None,
    overrides: Iterable[str] = (),
) -> Verdict:
    """Train on the first images of the training split and score the same images.

    Judged by the task's first score: PQ for panoptic, mask AP50 for instance, box AP50 for
    detection. Few steps, few images: a pass says that files, targets, losses and evaluation fit
    each other, and nothing about unseen images.

    Args:
        root: Folder in COCO's layout.
        task: A key of `unisolo.tasks.TASKS`; None = as `doctor_config` chooses.
        images: How many, the first by id.
        steps: Optimiser steps.
        config: A recipe to use instead of the built-in one.
        overrides: `key.sub=value` settings over it. Without a `train.out` among them the run is
            removed when it is done.

    Returns:
        The verdict.

    Raises:
        ConfigError: If the settings cannot be used.
        ValueError: If the data set is broken, or the images hold no object; the message names what.
    """
    with tempfile.TemporaryDirectory(prefix="unisolo-overfit-") as folder:
        run = (
            f"data.max_images={images}",
            f"train.out={folder}/run",
            f"train.steps={steps}",
            f"train.batch_size={images}",
            f"train.lr_batch_size={images}",
        )
        recipe = () if config is not None else RECIPE
        settings = doctor_config(
            root, task=task, config=config, overrides=(*recipe, *run, *overrides)
        )
        data = settings.data.model_copy(update={"val_split": settings.data.train_split})
        settings = settings.model_copy(update={"data": data})
        images = len(build_dataset(settings, split="train"))  # the data set may have fewer
        summary = train(settings)
    metrics = summary.metrics
    headline = get_task(settings.task).headline[0]
    name = _AT_50.get(headline, headline)
    score = metrics[name]
    learned = score >= _ENOUGH
    end = (
        "the chain can learn these data"
        if learned
        else f"{_ENOUGH:.0f} was wanted: give more steps, or look for what is wrong with the "
        "annotations or the settings"
    )
    sentence = (
        f"{name} is {score:.1f} on the {images} images trained on, after {summary.steps} steps in "
        f"{summary.seconds / 60:.1f} min; {end}"
    )
    return Verdict(learned, sentence, metrics)
