"""What a training split is like, from its annotation files."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unisolo.doctor.coverage import HasBoxes

__all__ = ["Facts", "look_at"]

_COCO_SIZE = (480, 640)
"""Taken for the size of the images where no object tells it."""


@dataclass(frozen=True)
class Facts:
    """A split in numbers; sizes in pixels of the image files.

    Attributes:
        images: How many images.
        objects: How many objects; crowd does not count.
        most_objects: Objects of the fullest image.
        short_side: Median of the images' short sides.
        aspect: Long side over short side; 95 % of the images have no more.
        area: Median of height times width.
        shares: [objects] float64, sqrt(box area) over the short side of its image.
    """

    images: int
    objects: int
    most_objects: int
    short_side: int
    aspect: float
    area: int
    shares: Tensor

    def visible(self, size: int, pixels: int) -> float:
        """Share of the objects that span `pixels` where the short side is resized to `size`."""
        return float((self.shares * size >= pixels).double().mean()) if self.objects else 1.0


def look_at(dataset: HasBoxes, images: int) -> Facts:
    """Return the facts of a split.

    Args:
        dataset: One of `unisolo.data.DATASETS`. Sizes are known of images with objects.
        images: How many images it has.
    """
    found = dataset.object_boxes()
    boxes, sizes = torch.from_numpy(found.boxes).double(), torch.from_numpy(found.image_sizes)
    sides = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1).clamp(min=0).sqrt()
    _, counts = torch.unique_consecutive(torch.from_numpy(found.image_numbers), return_counts=True)
    one_each = sizes[counts.cumsum(0) - 1] if len(counts) else torch.tensor([_COCO_SIZE])
    short, long = one_each.double().aminmax(dim=1)
    return Facts(
        images=images,
        objects=len(sides),
        most_objects=int(counts.max()) if len(counts) else 0,
        short_side=int(short.median()),
        aspect=float(torch.quantile(long / short, 0.95)),
        area=int((short * long).median()),
        shares=sides / sizes.double().amin(dim=1) if len(sides) else sides,
    )
