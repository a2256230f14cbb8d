"""What the grids make of a data set, said before the first step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unisolo.config import Config
from unisolo.data.loader import padded_size
from unisolo.data.transforms import resized_size
from unisolo.losses.assign import count_unassigned
from unisolo.structures import GridSpec

__all__ = ["coverage_line", "object_sides"]

SAMPLED_IMAGES = 500
"""Images in which lost cells are counted: enough to tell, in about a second."""


def object_sides(dataset: Any, config: Config) -> Tensor:
    """Return sqrt(box area) of every training object at the evaluation size.

    Args:
        dataset: One of `unisolo.data.DATASETS`.
        config: Its `data.image_size` and `data.max_size` say how images are resized.

    Returns:
        [N] float64, in pixels of the model's input. Crowd does not count.
    """
    found = dataset.object_boxes()
    boxes = torch.from_numpy(found.boxes).double()
    sides = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1).sqrt()
    sizes, where = torch.unique(torch.from_numpy(found.image_sizes), dim=0, return_inverse=True)
    scales = [_scale((height, width), config) for height, width in sizes.tolist()]
    return sides * torch.tensor(scales, dtype=torch.float64)[where]


def coverage_line(dataset: Any, config: Config, grid: GridSpec) -> str:
    """Say how many objects each level gets and how many get no cell, and why.

    Boxes stand for masks: an object's centre of mass is taken to be its box's centre.

    Args:
        dataset: One of `unisolo.data.DATASETS`.
        config: See `object_sides`.
        grid: The model's grids.
    """
    sides = object_sides(dataset, config)
    if sides.numel() == 0:
        return "objects: none in the training set"
    ranges = torch.tensor(grid.scale_ranges, dtype=torch.float64)
    inside = (sides[:, None] >= ranges[:, 0]) & (sides[:, None] <= ranges[:, 1])
    levels = "  ".join(
        f"{size}x{size} ({low:.0f}-{high:.0f} px): {count}"
        for size, (low, high), count in zip(
            grid.sizes, grid.scale_ranges, inside.sum(dim=0).tolist(), strict=True
        )
    )
    outside = int((~inside.any(dim=1)).sum())
    advice = " (set model.scale_ranges=auto)" if outside else ""
    lost, looked_at = _lost_cells(dataset, config, grid)
    return (
        f"objects: {sides.numel()}; {outside} outside every scale range{advice}; {lost} of the "
        f"{looked_at} looked at get no cell; per level {levels}"
    )


def _lost_cells(dataset: Any, config: Config, grid: GridSpec) -> tuple[int, int]:
    """Count objects without a cell, also those that lose theirs to others, in some images."""
    found = dataset.object_boxes()
    numbers = torch.from_numpy(found.image_numbers)
    wanted = torch.unique(numbers)
    step = -(-len(wanted) // SAMPLED_IMAGES)
    lost = looked_at = 0
    for number in wanted[::step]:
        mine = (numbers == number).nonzero().squeeze(1)
        height, width = found.image_sizes[mine[0]].tolist()
        scale = _scale((height, width), config)
        boxes = torch.from_numpy(found.boxes)[mine] * scale
        centers = (boxes[:, :2] + boxes[:, 2:]).flip(1) / 2
        size = padded_size((round(height * scale), round(width * scale)))
        unassigned = count_unassigned(
            boxes,
            centers,
            torch.ones(len(boxes), dtype=torch.int64),
            grid,
            size,
            one_object_per_cell=config.train.one_object_per_cell,
        )
        lost += int(unassigned.sum())
        looked_at += len(boxes)
    return lost, looked_at


def _scale(size: tuple[int, int], config: Config) -> float:
    return resized_size(size, config.data.image_size, config.data.max_size)[0] / size[0]
