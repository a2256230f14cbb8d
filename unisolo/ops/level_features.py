"""Which mask features the kernel of a cell is applied to: those of all levels, or of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from unisolo.ops.dynamic_masks import LevelFeatures
from unisolo.structures import LEVEL_FEATURES, GridSpec, Outputs

__all__ = ["check_level_features", "features_of_cells"]


def features_of_cells(
    outputs: Outputs, grid: GridSpec, images: slice, cells: Tensor
) -> Tensor | LevelFeatures:
    """Return what the kernels of some cells are applied to.

    Args:
        outputs: Raw outputs of B images.
        grid: The model's grid.
        images: b of the images.
        cells: [b, n] int64, cells of these images.

    Returns:
        [b, E, h, w] where all levels share one map, else those of each level.
    """
    maps = tuple(level[images].detach() for level in outputs.level_features)
    if not maps:
        return outputs.mask_features[images].detach()
    levels = torch.cat(
        [
            torch.full((size * size,), level, dtype=torch.int64, device=cells.device)
            for level, size in enumerate(grid.sizes)
        ]
    )
    return LevelFeatures(maps, levels[cells])


def check_level_features(outputs: Outputs, grid: GridSpec) -> None:
    """Check the mask features of levels, where levels have their own.

    Args:
        outputs: Raw outputs.
        grid: The model's grid.

    Raises:
        ValueError: If their number or a shape does not fit.
    """
    maps = outputs.level_features
    if maps and len(maps) != grid.num_levels:
        raise ValueError(
            f"the grid has {grid.num_levels} levels, but {len(maps)} have mask features; give "
            f"those of level 0 as mask_features and the others as extras {list(LEVEL_FEATURES)}"
        )
    finest = tuple(outputs.mask_features.shape)
    for level, features in enumerate(maps):
        shape = tuple(features.shape)
        fits = len(shape) == 4 and shape[:2] == finest[:2]
        sides = zip(finest[2:], shape[2:], strict=False)
        if not fits or any(side < 1 or whole % side for whole, side in sides):
            raise ValueError(
                f"mask features of level {level} are {list(shape)}; they need the images and "
                f"channels of level 0, {list(finest)}, and sides that divide its sides"
            )
