"""How large a candidate's mask must be to stay: the area filter's limit on each level."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from unisolo.structures import GridSpec

__all__ = ["MinArea", "cell_areas", "level_areas"]

MinArea: TypeAlias = Literal["stride"] | int
"""Area, in pixels of the stride-4 map, that a mask must exceed: "stride" = the stride of its level,
as in the reference; a number is that of all levels."""


def level_areas(grid: GridSpec, min_area: MinArea) -> tuple[int, ...]:
    """Return for each level the area that a mask must exceed.

    Args:
        grid: The model's grid.
        min_area: The setting.

    Raises:
        ValueError: If `min_area` is neither "stride" nor a number of pixels, 0 to 2**31 - 1.
    """
    if min_area == "stride":
        return grid.strides
    if not isinstance(min_area, int) or isinstance(min_area, bool) or not 0 <= min_area < 2**31:
        raise ValueError(
            "min_area must be 'stride' or a whole number of pixels from 0 to 2**31 - 1, got "
            f"{min_area!r}"
        )
    return (min_area,) * grid.num_levels


def cell_areas(grid: GridSpec, min_area: MinArea, device: torch.device) -> Tensor:
    """Return [L] int64, for each cell the area that its mask must exceed.

    Made on the device, without a sync.

    Args:
        grid: The model's grid.
        min_area: The setting.
        device: Where to make it.

    Raises:
        ValueError: As `level_areas`.
    """
    return torch.cat(
        [
            torch.full((size * size,), area, dtype=torch.int64, device=device)
            for size, area in zip(grid.sizes, level_areas(grid, min_area), strict=True)
        ]
    )
