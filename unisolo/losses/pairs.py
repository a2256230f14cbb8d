"""Which (cell, object) pairs are trained: claims, shared cells settled, losers moved."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from unisolo.losses.assign import Assignment, assign_grid
from unisolo.losses.assign import one_object_per_cell as keep_one_object_per_cell
from unisolo.losses.relocate import move_losers
from unisolo.structures import GridSpec

__all__ = ["SharedCells", "count_unassigned", "trained_pairs"]

SharedCells: TypeAlias = Literal["drop", "move"]
"""What becomes of objects that lose all their cells to others: nothing, or `move_losers`."""


def trained_pairs(
    boxes: Tensor,
    centers: Tensor,
    areas: Tensor,
    grid: GridSpec,
    image_size: tuple[int, int],
    *,
    sigma: float = 0.2,
    one_object_per_cell: bool = True,
    shared_cells: SharedCells = "drop",
) -> Assignment:
    """Pair objects with the cells that are trained on them.

    Args:
        boxes: As for `assign_grid`.
        centers: As for `assign_grid`.
        areas: As for `assign_grid`.
        grid: The model's grids.
        image_size: (H, W) of the padded batch.
        sigma: As for `assign_grid`.
        one_object_per_cell: Leave a shared cell to one object; False = to all, as the reference.
        shared_cells: With `one_object_per_cell`: "move" = objects that lose all their cells take
            the nearest free one; "drop" = they have none.

    Returns:
        The pairs, by level, object and cell.
    """
    claimed = assign_grid(boxes, centers, areas, grid, image_size, sigma=sigma)
    if not one_object_per_cell:
        return claimed
    kept = keep_one_object_per_cell(claimed, centers, grid, image_size)
    if shared_cells == "drop":
        return kept
    return move_losers(claimed, kept, centers, grid, image_size)


def count_unassigned(
    boxes: Tensor,
    centers: Tensor,
    areas: Tensor,
    grid: GridSpec,
    image_size: tuple[int, int],
    *,
    sigma: float = 0.2,
    one_object_per_cell: bool = True,
    shared_cells: SharedCells = "drop",
) -> Tensor:
    """Tell which objects no cell is trained on; their number says whether the grid fits the data.

    Args:
        boxes: As for `assign_grid`.
        centers: As for `assign_grid`.
        areas: As for `assign_grid`.
        grid: The model's grids.
        image_size: (H, W) of the padded batch.
        sigma: As for `assign_grid`.
        one_object_per_cell: Also count objects that lose all their cells to others.
        shared_cells: As for `trained_pairs`.

    Returns:
        [N] bool, True = no cell.
    """
    pairs = trained_pairs(
        boxes,
        centers,
        areas,
        grid,
        image_size,
        sigma=sigma,
        one_object_per_cell=one_object_per_cell,
        shared_cells=shared_cells,
    )
    unassigned = torch.ones_like(areas, dtype=torch.bool)
    unassigned[pairs.objects] = False
    return unassigned
