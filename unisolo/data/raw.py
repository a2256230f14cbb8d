"""An image and its ground truth as read from disk, and the step that makes a `Sample` of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unisolo.structures import ImageMeta, Sample, Target

__all__ = [
    "MAX_OBJECTS",
    "Int16Map",
    "ObjectBoxes",
    "RawSample",
    "RawTarget",
    "Transform",
    "areas_and_boxes",
    "to_sample",
]

MAX_OBJECTS = 32767
"""Objects an image may have: their numbers are painted in int16 maps."""

Int16Map: TypeAlias = npt.NDArray[np.int16]


class ObjectBoxes(NamedTuple):
    """Boxes of all objects of a data set, as its files give them; crowd is not among them.

    Attributes:
        boxes: [N, 4] float32 xyxy, half-open, pixels of the image file.
        image_sizes: [N, 2] int64, (H, W) of each object's image.
        image_numbers: [N] int64, the sample each object is in, rising.
    """

    boxes: npt.NDArray[np.float32]
    image_sizes: npt.NDArray[np.int64]
    image_numbers: npt.NDArray[np.int64]

    @classmethod
    def from_rows(cls, rows: Sequence[Sequence[float]]) -> ObjectBoxes:
        """Make the arrays of rows (x, y, width, height, H, W, image number)."""
        table = np.array(rows, dtype=np.float64).reshape(-1, 7)
        corners = np.concatenate([table[:, :2], table[:, :2] + table[:, 2:4]], axis=1)
        return cls(
            corners.astype(np.float32),
            table[:, 4:6].astype(np.int64),
            table[:, 6].astype(np.int64),
        )


@dataclass(frozen=True)
class RawTarget:
    """Ground truth in the frame of the image file; the maps mean what `Target`'s mean.

    Attributes:
        labels: [N] int64, thing label of each object.
        object_map: [D, H, W] int16; an object may have lost all its pixels (it is dropped later).
        crowd_map: [H, W] int16.
        stuff_map: [H, W] int16, or None where the data set has no stuff.
    """

    labels: npt.NDArray[np.int64]
    object_map: Int16Map
    crowd_map: Int16Map
    stuff_map: Int16Map | None = None


@dataclass(frozen=True)
class RawSample:
    """What a transform takes.

    Attributes:
        image: [H, W, 3] uint8 RGB, upright.
        meta: Identity and frames; `input_size` is not yet of interest.
        target: Ground truth, or None at inference.
    """

    image: npt.NDArray[np.uint8]
    meta: ImageMeta
    target: RawTarget | None = None


Transform: TypeAlias = Callable[[RawSample], Sample]
"""A transform of a data set: `EvalTransform`, `TrainTransform`, or any function like them."""


def to_sample(raw: RawSample, *, image: Tensor | None = None, min_object_area: int = 1) -> Sample:
    """Make tensors of a raw sample and settle which objects are left.

    Objects with too few pixels are dropped, the others are numbered anew without gaps (their order
    stays), empty layers of the object map go, and boxes are taken **from the visible mask**: after
    a crop, or where another segment covers an object, the annotation's box no longer says where
    the object is.

    Args:
        raw: Image and maps, all of one size.
        image: [3, H, W] uint8, where a transform has it as a tensor already; else `raw.image`.
        min_object_area: Objects with fewer pixels than this (at least 1) are dropped.

    Returns:
        The sample; `meta.input_size` is the size of its image.
    """
    if image is None:
        image = torch.from_numpy(np.ascontiguousarray(raw.image.transpose(2, 0, 1)))
    height, width = image.shape[-2:]
    meta = replace(raw.meta, input_size=(int(height), int(width)))
    target = None if raw.target is None else _to_target(raw.target, max(min_object_area, 1))
    return Sample(image.contiguous(), meta, target)


def _to_target(target: RawTarget, min_area: int) -> Target:
    areas, boxes = areas_and_boxes(target.object_map, len(target.labels))
    keep = areas >= min_area
    object_map = target.object_map
    if not keep.all():
        numbers = np.zeros(len(keep) + 1, dtype=np.int16)
        numbers[1:][keep] = np.arange(1, keep.sum() + 1, dtype=np.int16)
        object_map = numbers[object_map]
    used = np.flatnonzero(object_map.reshape(len(object_map), -1).any(axis=1))
    object_map = object_map[used] if len(used) else object_map[:1]  # one layer always stays
    return Target(
        labels=torch.from_numpy(target.labels[keep]),
        boxes=torch.from_numpy(boxes[keep]),
        object_map=torch.from_numpy(np.ascontiguousarray(object_map)),
        crowd_map=torch.from_numpy(np.ascontiguousarray(target.crowd_map)),
        stuff_map=None
        if target.stuff_map is None
        else torch.from_numpy(np.ascontiguousarray(target.stuff_map)),
    )


def areas_and_boxes(
    object_map: Int16Map, count: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Areas and boxes of the objects painted in a map, without making a mask of each.

    Works on the runs of equal numbers in the map's rows, of which there are far fewer than pixels.

    Args:
        object_map: [D, H, W]; n + 1 = object n.
        count: Number of objects N.

    Returns:
        [N] int64 areas in pixels, and [N, 4] float32 xyxy, half-open; zeros for an object without
        pixels.
    """
    _, height, width = object_map.shape
    first = np.ones(object_map.shape, dtype=bool)
    np.not_equal(object_map[..., 1:], object_map[..., :-1], out=first[..., 1:])
    starts = np.flatnonzero(first)
    numbers = object_map.ravel()[starts]
    lengths = np.diff(starts, append=object_map.size)
    painted = numbers > 0
    numbers, starts, lengths = numbers[painted], starts[painted], lengths[painted]
    left, top = starts % width, starts // width % height
    areas = np.zeros(count + 1, dtype=np.int64)
    np.add.at(areas, numbers, lengths)
    boxes = np.zeros((4, count + 1), dtype=np.int64)
    boxes[:2] = max(height, width)
    np.minimum.at(boxes[0], numbers, left)
    np.minimum.at(boxes[1], numbers, top)
    np.maximum.at(boxes[2], numbers, left + lengths)
    np.maximum.at(boxes[3], numbers, top + 1)
    boxes[:, areas == 0] = 0
    return areas[1:], np.ascontiguousarray(boxes.T[1:], dtype=np.float32)
