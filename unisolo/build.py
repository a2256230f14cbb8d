"""The one place that joins backbone, neck, heads and task into a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor

from unisolo.categories import Categories
from unisolo.config import Config, ConfigError, ModelConfig
from unisolo.data import DATASETS
from unisolo.data.transforms import EvalTransform
from unisolo.models import FPN, MaskHead, SeparateMaskHead, SoloHead, TimmBackbone, UniSolo
from unisolo.structures import GridSpec
from unisolo.tasks import get_task

__all__ = ["build_dataset", "build_grid", "build_model", "fit_scale_ranges", "with_grid"]

REFERENCE_SIZE = 800
"""Short side at which SOLOv2 states its grids and scale ranges."""

MIN_SPAN = 4
"""Features an object must span for a level of fitted scale ranges; SOLOv2's own give 6 to 12."""


def build_model(
    config: Config,
    categories: Categories,
    *,
    load_backbone: bool = True,
    empty_heads: bool = False,
) -> UniSolo:
    """Build a model with its task's heads.

    Args:
        config: Configuration; `model.scale_ranges` may not be "auto" any more (see `build_grid`).
        categories: Categories of the data set; they set the number of channels.
        load_backbone: Whether to load ImageNet weights where the configuration asks for them;
            False when a checkpoint follows.
        empty_heads: Make neck and heads without memory, on the "meta" device: their sizes come
            from the configuration, which the caller can compare with the weights before it
            allocates them (`to_empty`).

    Returns:
        The model, in training mode, with `categories` and `config` attached.

    Raises:
        ValueError: If the backbone is unknown, cannot serve features at free sizes, or cannot have
            an option (deformable convolutions, strides).
    """
    settings = config.model
    backbone = TimmBackbone(
        settings.backbone,
        pretrained=settings.pretrained and load_backbone,
        weights_file=settings.backbone_weights if load_backbone else None,
        frozen_stages=settings.frozen_stages,
        frozen_bn=settings.frozen_bn,
        deform=settings.backbone_deform,
        stride_in_1x1=settings.stride_in_1x1,
        mean=settings.mean,
        std=settings.std,
    )
    task = get_task(config.task)(categories)
    grid = build_grid(config)
    with torch.device("meta") if empty_heads else nullcontext():
        neck = FPN(
            backbone.channels,
            backbone.strides,
            channels=settings.fpn_channels,
            norm=settings.fpn_norm,
        )
        solo_head = SoloHead(
            settings.fpn_channels,
            categories.num_things,
            channels=settings.head_channels,
            num_convs=settings.head_convs,
            kernel_channels=settings.kernel_channels,
            grid_sizes=grid.sizes,
            deform=settings.head_deform,
            norm=settings.head_norm,
            mask_branch=settings.mask_branch,
            coordinates=settings.coordinates,
        )
        mask_head = _build_mask_head(settings, trunk=bool(task.heads))
        heads = task.build_heads(
            trunk_channels=settings.mask_channels
            if settings.mask_features == "unified"
            else settings.kernel_channels,
            stuff_channels=settings.stuff_channels,
        )
    if heads.keys() != task.heads:
        raise ValueError(
            f"task '{task.name}' builds the heads {sorted(heads)}, but its attribute `heads` names "
            f"{sorted(task.heads)}; they must agree, since files are checked by it"
        )
    model = UniSolo(backbone, neck, solo_head, mask_head, heads=heads, grid=grid)
    model.categories = categories
    model.config = config
    return model


def _build_mask_head(settings: ModelConfig, *, trunk: bool) -> MaskHead | SeparateMaskHead:
    if settings.mask_features == "unified":
        return MaskHead(
            settings.fpn_channels,
            mid_channels=settings.mask_channels,
            out_channels=settings.kernel_channels,
            deform=settings.mask_deform,
            norm=settings.head_norm,
            coordinates=settings.coordinates,
        )
    return SeparateMaskHead(
        settings.fpn_channels,
        mid_channels=settings.mask_channels,
        out_channels=settings.kernel_channels,
        num_convs=settings.head_convs,
        deform=settings.mask_deform,
        norm=settings.head_norm,
        coordinates=settings.coordinates,
        trunk=trunk,
    )


def build_dataset(
    config: Config, *, split: Literal["train", "val"], augment: bool | None = None
) -> Any:
    """Build one split of the data set with its transform.

    Args:
        config: Configuration; `data.root` must be set.
        split: "train" (`data.train_split`) or "val" (`data.val_split`).
        augment: Whether to use the training transform; by default for "train" only.

    Raises:
        ConfigError: If `data.root` is not set.
        ValueError: If the folder does not hold the data set; the message names the missing path.
    """
    settings = config.data
    if settings.root is None:
        raise ConfigError("no data set: give --data DIR (or data.root in the configuration)")
    name = settings.dataset
    if name == "auto":
        name = "coco_panoptic" if "stuff" in get_task(config.task).requires else "coco_instance"
    if name not in DATASETS:
        raise ConfigError(f"unknown data.dataset {name!r}; choose from auto, {', '.join(DATASETS)}")
    transform: Any
    augmented = split == "train" if augment is None else augment
    if augmented:
        from unisolo.data.transforms import TrainTransform

        transform = TrainTransform(
            settings.image_size,
            settings.max_size,
            resize=settings.resize,
            **settings.augment.transform_arguments(),
        )
    else:
        transform = EvalTransform(settings.image_size, settings.max_size, resize=settings.resize)
    dataset = DATASETS[name].from_root(
        settings.root,
        settings.train_split if split == "train" else settings.val_split,
        transform=transform,
        max_images=settings.max_images,
        # Evaluators read the ground truth from the files themselves.
        with_targets=split == "train",
    )
    if augmented and split == "train" and settings.augment.copy_paste > 0:
        _add_copy_paste(dataset, settings.augment.copy_paste)
    return dataset


def _add_copy_paste(dataset: Any, probability: float) -> None:
    if not hasattr(dataset, "read"):
        raise ConfigError(
            "data.augment.copy_paste needs a data set with a method read(index) -> RawSample, and "
            f"{type(dataset).__name__} has none; set data.augment.copy_paste=0"
        )
    from unisolo.data.copy_paste import CopyPaste

    dataset.transform = CopyPaste(dataset.transform, probability, dataset)


def build_grid(config: Config, object_sides: Tensor | None = None) -> GridSpec:
    """Resolve grid sizes and scale ranges.

    SOLOv2's constants hold at a short side of 800 pixels. At another `data.image_size` "scaled"
    ranges keep their share of the image, and "scaled" grids do what the paper's light-weight models
    do: smaller images keep its numbers, so that cells keep their share of the image, down to one
    cell per feature of the level; larger images get more cells in proportion.

    Args:
        config: Configuration.
        object_sides: [N] float, sqrt(box area) of the training objects in input pixels; needed when
            `model.scale_ranges` is "auto".

    Raises:
        ValueError: If the numbers of levels disagree, or "auto" comes without objects.
    """
    reference = GridSpec()
    settings = config.model
    factor = config.data.image_size / REFERENCE_SIZE
    if settings.grid_sizes == "scaled":
        sizes = tuple(
            max(1, min(round(size * max(factor, 1)), config.data.image_size // stride))
            for size, stride in zip(reference.sizes, reference.strides, strict=True)
        )
    else:
        sizes = settings.grid_sizes
    ranges: Sequence[tuple[float, float]]
    if settings.scale_ranges == "scaled":
        ranges = [(low * factor, high * factor) for low, high in reference.scale_ranges]
        # No object is too small for the finest level or too large for the coarsest.
        ranges[0] = (min(1.0, ranges[0][0]), ranges[0][1])
        ranges[-1] = (ranges[-1][0], max(2048.0, ranges[-1][1]))
    elif settings.scale_ranges == "auto":
        if object_sides is None:
            raise ValueError(
                "model.scale_ranges=auto is resolved from the training set; build the grid with "
                "the objects' sizes first, or give the ranges"
            )
        ranges = fit_scale_ranges(object_sides, reference.strides[: len(sizes)])
    else:
        ranges = settings.scale_ranges
    return GridSpec(sizes=sizes, strides=reference.strides, scale_ranges=tuple(ranges))


def with_grid(config: Config, grid: GridSpec) -> Config:
    """Return the configuration with the grid written out, as checkpoints keep it."""
    model: ModelConfig = config.model.model_copy(
        update={"grid_sizes": grid.sizes, "scale_ranges": grid.scale_ranges}
    )
    return config.model_copy(update={"model": model})


def fit_scale_ranges(object_sides: Tensor, strides: Sequence[int]) -> list[tuple[float, float]]:
    """Share a data set's objects among the levels, with the paper's overlap.

    The cut points between levels are the quantiles of sqrt(box area) that would share the objects
    evenly, but an object only goes to a level where it spans `MIN_SPAN` features: on a coarser one
    it is a single feature mixed with its surroundings, from which its category cannot be told.
    Each range reaches sqrt(2) beyond its cut points, as SOLOv2's do (96 and 48 around 68, ...).

    Args:
        object_sides: [N] float, sqrt(box area) in input pixels.
        strides: Stride of each level's features, rising.

    Returns:
        One inclusive (low, high) per level; the first starts at 1 or below, the last is open.

    Raises:
        ValueError: If there is no object to fit to.
    """
    sides = object_sides[object_sides > 0].double()
    if sides.numel() == 0:
        raise ValueError(
            "model.scale_ranges=auto needs objects, and the training set has none; use 'scaled'"
        )
    overlap = math.sqrt(2)
    cuts: list[float] = []
    ordered = sides.sort().values
    for level in range(1, len(strides)):
        quantile = float(ordered[int(level / len(strides) * ordered.numel())])
        apart = cuts[-1] * overlap if cuts else 0.0
        cuts.append(max(quantile, MIN_SPAN * strides[level], apart))
    lows = [min(1.0, float(ordered[0]))] + [cut / overlap for cut in cuts]
    highs = [cut * overlap for cut in cuts] + [1e5]
    return list(zip(lows, highs, strict=True))
