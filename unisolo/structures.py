"""The typed values that travel between the parts: Sample, Batch, Outputs, Instances, GridSpec.

Sizes are always (height, width). Boxes are xyxy, absolute pixels, half-open, float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "LEVEL_FEATURES",
    "MASK_STRIDE",
    "SIZE_DIVISOR",
    "STUFF_IGNORE",
    "Batch",
    "CellTargets",
    "GridSpec",
    "ImageMeta",
    "Instances",
    "Outputs",
    "Sample",
    "Target",
]

MASK_STRIDE = 4
"""Mask features are a quarter of the padded input (SOLOv2, "Mask Feature")."""

SIZE_DIVISOR = 32
"""Sides of the model's input are multiples of this: the coarsest stride of the backbone."""

STUFF_IGNORE = -1
"""Value of `Target.stuff_map` where the stuff loss is not taken (void, crowd, padding)."""

LEVEL_FEATURES = ("mask_features_1", "mask_features_2", "mask_features_3", "mask_features_4")
"""Names in `Outputs.extras` of the mask features of the levels after the first, where levels have
their own (`model.mask_features=separate`)."""


@dataclass(frozen=True)
class ImageMeta:
    """Where an image came from and the frames it has been through.

    Attributes:
        image_id: Id in the data set's file, or any name the caller gave.
        file_name: Path as written in the data set's file; empty for an array.
        orig_size: (H, W) of the decoded, upright image: the frame of every result.
        input_size: (H, W) after resizing, before padding: the valid part of the model's input.
    """

    image_id: int | str
    file_name: str
    orig_size: tuple[int, int]
    input_size: tuple[int, int]


class CellTargets(NamedTuple):
    """What the grid cells of one image are trained on (see `unisolo.losses.targets`).

    Attributes:
        labels: [L] int64, thing label of each cell; -1 = none, a negative cell.
        cells: [P] int64, the cell of each mask that is trained.
        objects: [P] int64, the object that is its target.
        crowd: [Q, 2] int64, (cell, thing label) where a crowd region hides what is true.
        blocks: [2 D, H / 4, W / 4] int16, the objects at stride 4, numbered as in
            `Target.object_map`.
    """

    labels: Tensor
    cells: Tensor
    objects: Tensor
    crowd: Tensor
    blocks: Tensor


@dataclass(frozen=True)
class Target:
    """Ground truth of one image, in the frame of the model's input.

    Objects are stored as numbers painted in maps instead of one mask each, so memory does not grow
    with the number of objects. Objects that overlap lie in different layers of `object_map`;
    panoptic data needs one layer.

    Attributes:
        labels: [N] int64, thing label of each object (0 .. num_things - 1).
        boxes: [N, 4] float32 xyxy, half-open, of the object's visible mask.
        object_map: [D, H, W] int16; 0 = no object, n + 1 = object n. D >= 1. Every object has at
            least one pixel.
        crowd_map: [H, W] int16; 0 = no crowd, label + 1 = crowd region of that thing label. Crowd
            is never an object.
        stuff_map: [H, W] int16, or None where the data set has no stuff. Stuff index s (label
            minus num_things) is s; any thing is num_stuff ("other"); STUFF_IGNORE is not scored.
        cells: The targets of the grid cells, where the loader has worked them out; else None.
    """

    labels: Tensor
    boxes: Tensor
    object_map: Tensor
    crowd_map: Tensor
    stuff_map: Tensor | None = None
    cells: CellTargets | None = None

    def __len__(self) -> int:
        return int(self.labels.shape[0])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Target:
        """Return a copy with every tensor on `device`."""
        return self.each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def each(self, change: Callable[[Tensor], Tensor]) -> Target:
        """Return a copy with every tensor changed."""
        return Target(
            labels=change(self.labels),
            boxes=change(self.boxes),
            object_map=change(self.object_map),
            crowd_map=change(self.crowd_map),
            stuff_map=None if self.stuff_map is None else change(self.stuff_map),
            cells=None if self.cells is None else CellTargets(*map(change, self.cells)),
        )


@dataclass(frozen=True)
class Sample:
    """One image as a data set or `Predictor.preprocess` gives it.

    Attributes:
        image: [3, H, W] uint8 RGB.
        meta: Identity and frames; `meta.input_size == image.shape[-2:]`.
        target: Ground truth in the image's frame, or None at inference.
    """

    image: Tensor
    meta: ImageMeta
    target: Target | None = None


@dataclass(frozen=True)
class Batch:
    """Images padded at the bottom and right to one size, a multiple of 32.

    Attributes:
        images: [B, 3, H, W] uint8 RGB, padding 0 (the model zeroes it again after normalising).
        image_sizes: [B, 2] int64, (H, W) of the valid part of each image.
        metas: One per image.
        targets: One per image, their maps padded to (H, W) with 0 / 0 / STUFF_IGNORE; empty tuple
            at inference.
    """

    images: Tensor
    image_sizes: Tensor
    metas: tuple[ImageMeta, ...]
    targets: tuple[Target, ...] = ()

    def __len__(self) -> int:
        return len(self.metas)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Return a copy with every tensor on `device`."""
        return replace(
            self,
            images=self.images.to(device, non_blocking=non_blocking),
            image_sizes=self.image_sizes.to(device, non_blocking=non_blocking),
            targets=tuple(target.to(device, non_blocking) for target in self.targets),
        )

    def pin_memory(self) -> Batch:
        """Return a copy in page-locked memory (called by the data loader)."""
        pinned = [target.each(lambda tensor: tensor.pin_memory()) for target in self.targets]
        return replace(self, images=self.images.pin_memory(), targets=tuple(pinned))


@dataclass(frozen=True)
class GridSpec:
    """The grids of the five head levels: a constant of the model (SOLOv2, section 3).

    Cells of all levels are numbered in one sequence: level 0 first, row-major inside a level.

    Attributes:
        sizes: S of each level's S x S grid.
        strides: Stride of each level as used by the area filter.
        scale_ranges: Inclusive (low, high) range of sqrt(box area) in input pixels that each level
            is responsible for in training. Ranges overlap on purpose.
    """

    sizes: tuple[int, ...] = (40, 36, 24, 16, 12)
    strides: tuple[int, ...] = (8, 8, 16, 32, 32)
    scale_ranges: tuple[tuple[float, float], ...] = (
        (1, 96),
        (48, 192),
        (96, 384),
        (192, 768),
        (384, 2048),
    )

    def __post_init__(self) -> None:
        if not len(self.sizes) == len(self.strides) == len(self.scale_ranges):
            raise ValueError(
                f"grid needs one size, stride and scale range per level; got {len(self.sizes)} "
                f"sizes, {len(self.strides)} strides, {len(self.scale_ranges)} scale ranges"
            )
        if any(size < 1 for size in self.sizes):
            raise ValueError(f"grid sizes must be at least 1, got {self.sizes}")

    @property
    def num_levels(self) -> int:
        """Number of head levels."""
        return len(self.sizes)

    @property
    def num_cells(self) -> int:
        """Number of cells of all levels together: L of `Outputs`."""
        return sum(size * size for size in self.sizes)

    @property
    def offsets(self) -> tuple[int, ...]:
        """Number of the first cell of each level."""
        starts, total = [], 0
        for size in self.sizes:
            starts.append(total)
            total += size * size
        return tuple(starts)


class Outputs(NamedTuple):
    """Raw outputs of the model, the same in training and evaluation.

    Attributes:
        category_logits: [B, L, C], L = cells of all levels, C = thing categories.
        kernels: [B, L, E], the dynamic 1 x 1 kernel of each cell.
        mask_features: [B, E, h, w], non-negative, at stride 4 of the padded input; of level 0 alone
            where levels have their own (see `level_features`).
        extras: Outputs of the task's own heads by name, e.g. "stuff_logits" [B, S + 1, h, w].
    """

    category_logits: Tensor
    kernels: Tensor
    mask_features: Tensor
    extras: dict[str, Tensor]

    @property
    def level_features(self) -> tuple[Tensor, ...]:
        """Mask features of each level, [B, E, h_l, w_l]; empty where all levels share one map."""
        others = tuple(self.extras[name] for name in LEVEL_FEATURES if name in self.extras)
        return (self.mask_features, *others) if others else ()


class Instances(NamedTuple):
    """Instances after Matrix NMS: a fixed number K per image, sorted by falling score.

    Empty places have score 0 and `valid` False; they are always last.

    Attributes:
        scores: [B, K] float32, after decay.
        labels: [B, K] int64, thing label.
        cells: [B, K] int64, the grid cell that made the instance.
        valid: [B, K] bool.
        mask_probs: [B, K, h, w], soft masks at stride 4 of the padded input.
        stage_counts: [B, 6] int64, candidates left by each step (`unisolo.ops.stages.STAGES`).
        top_probs: [B, 5] float32, the highest category probabilities before any threshold.
        top_labels: [B, 5] int64, their thing labels.
    """

    scores: Tensor
    labels: Tensor
    cells: Tensor
    valid: Tensor
    mask_probs: Tensor
    stage_counts: Tensor
    top_probs: Tensor
    top_labels: Tensor
