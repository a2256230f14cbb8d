"""What the grids make of a data set, said before the first step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unisolo.config import Config
from unisolo.data.transforms import resized_size
from unisolo.structures import GridSpec

__all__ = ["coverage_line", "object_sides"]


def object_sides(dataset: Any, config: Config) -> Tensor:
    """Return sqrt(box area) of every training object at the evaluation size.

    Args:
        dataset: One of `unisolo.data.DATASETS`.
        config: Its `data.image_size` and `data.max_size` say how images are resized.

    Returns:
        [N] float64, in pixels of the model's input. Crowd does not count.
    """
    sizes, image_sizes = dataset.object_sizes()
    unique, where = torch.unique(torch.from_numpy(image_sizes), dim=0, return_inverse=True)
    scales = [
        resized_size((height, width), config.data.image_size, config.data.max_size)[0] / height
        for height, width in unique.tolist()
    ]
    sides = torch.from_numpy(sizes).double().prod(dim=1).sqrt()
    return sides * torch.tensor(scales, dtype=torch.float64)[where]


def coverage_line(sides: Tensor, grid: GridSpec) -> str:
    """Say how many objects each level gets and how many get no cell."""
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
    lost = int((~inside.any(dim=1)).sum())
    advice = ""
    if lost:
        advice = " (outside every scale range: set model.scale_ranges=auto)"
    return f"objects: {sides.numel()}, {lost} get no cell{advice}; per level {levels}"
