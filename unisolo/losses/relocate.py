"""Another cell for objects that lost all of theirs to others (`train.shared_cells=move`).

The reference has no such rule. Where objects are as small and dense as cells, an object whose only
cell has gone to a neighbour is trained on by no kernel, and its pixels are taught as background.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unisolo.losses.assign import Assignment, cell_distances, cells_at
from unisolo.structures import GridSpec

__all__ = ["move_losers"]


def move_losers(
    claimed: Assignment,
    kept: Assignment,
    centers: Tensor,
    grid: GridSpec,
    image_size: tuple[int, int],
) -> Assignment:
    """Give objects that claimed cells and kept none the nearest free one.

    An object may take one cell, on a level where it had claimed some, at most one row and one
    column from its centre's own. Of all such (object, cell) the two that are nearest to each other
    come first, then the nearest of what is left, and so on; equal distances go to the later object,
    as in `one_object_per_cell`, and then to the earlier cell. An object that finds no free cell
    stays without.

    Needs the pairs' values on the host: on a GPU it waits.

    Args:
        claimed: Pairs from `assign_grid`.
        kept: Those of them that `one_object_per_cell` left.
        centers: [N, 2] float32 (y, x), the objects' centres.
        grid: The model's grids.
        image_size: (H, W) of the padded batch.

    Returns:
        The kept pairs and the new ones, ordered as every `Assignment`, no cell twice.
    """
    losing = torch.zeros(len(centers), dtype=torch.bool, device=centers.device)
    losing[claimed.objects] = True
    losing[kept.objects] = False
    if not losing.any():
        return kept
    pairs = _within_reach(claimed, kept, losing, centers, grid, image_size)
    taken = _nearest_first(pairs, cell_distances(pairs, centers, grid, image_size))
    both = Assignment(*(torch.cat(values) for values in zip(kept, pairs.at(taken), strict=True)))
    order = torch.argsort(both.cells, stable=True)
    order = order[torch.argsort((both.levels * len(centers) + both.objects)[order], stable=True)]
    return both.at(order)


def _within_reach(
    claimed: Assignment,
    kept: Assignment,
    losing: Tensor,
    centers: Tensor,
    grid: GridSpec,
    image_size: tuple[int, int],
) -> Assignment:
    """The free cells that each losing object could take."""
    free = torch.ones(grid.num_cells, dtype=torch.bool, device=centers.device)
    free[kept.cells] = False
    on_level = torch.zeros(grid.num_levels, len(centers), dtype=torch.bool, device=centers.device)
    on_level[claimed.levels, claimed.objects] = True
    levels, objects = torch.nonzero(on_level & losing, as_tuple=True)
    beside = torch.arange(-1, 2, device=centers.device)
    rows, columns = (
        cells_at(centers, grid, image_size)[levels, objects, :, None].add(beside).unbind(1)
    )
    sizes = torch.tensor(grid.sizes, device=centers.device)[levels, None]
    starts = torch.tensor(grid.offsets, device=centers.device)[levels, None, None]
    inside = ((rows >= 0) & (rows < sizes))[:, :, None] & ((columns >= 0) & (columns < sizes))[
        :, None
    ]
    cells = starts + rows[:, :, None] * sizes[..., None] + columns[:, None]
    pair, row, column = torch.nonzero(inside, as_tuple=True)
    found = Assignment(cells[pair, row, column], objects[pair], levels[pair])
    return found.at(free[found.cells])


def _nearest_first(pairs: Assignment, distances: Tensor) -> Tensor:
    """Return the indices of the pairs that are taken, no object and no cell twice."""
    order = torch.argsort(pairs.cells, stable=True)
    for key in (-pairs.objects, distances):  # the last key sorted by counts most
        order = order[torch.argsort(key[order], stable=True)]
    cells, objects = pairs.cells[order].tolist(), pairs.objects[order].tolist()
    used_cells, used_objects, taken = set(), set(), []
    for place, (cell, mover) in enumerate(zip(cells, objects, strict=True)):
        if cell not in used_cells and mover not in used_objects:
            used_cells.add(cell)
            used_objects.add(mover)
            taken.append(place)
    return order[torch.tensor(taken, dtype=torch.int64, device=order.device)]
