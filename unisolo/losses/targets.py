"""From an image's objects to what each grid cell is trained on.

How many cells an object gets depends on where it lies, so the lists differ in length from image to
image. On a GPU every such length would have to be read by the processor, which waits for all work
in flight. The loader's processes therefore work the lists out, in time that nobody waits for, and
the device only gathers by index. Targets that come without them are served here as well, where
they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from unisolo.losses.assign import (
    Assignment,
    block_objects,
    cell_owners,
    crowd_cells,
    object_statistics,
)
from unisolo.losses.pairs import SharedCells, trained_pairs
from unisolo.structures import CellTargets, GridSpec, Target

__all__ = ["MAX_POSITIVES", "cell_targets", "with_cell_targets"]

MAX_POSITIVES = 2000
"""Default of the most (cell, object) pairs whose masks one image trains."""


def cell_targets(
    target: Target,
    grid: GridSpec,
    image_size: tuple[int, int],
    *,
    one_object_per_cell: bool = True,
    shared_cells: SharedCells = "drop",
    max_positives: int = MAX_POSITIVES,
) -> CellTargets:
    """Work out what each cell is trained on.

    Args:
        target: Ground truth of one image, maps padded to `image_size`.
        grid: The model's grids.
        image_size: (H, W) of the padded batch, multiples of 4: cells divide the padding too.
        one_object_per_cell: Train each kernel on one mask. False = the reference: a shared cell is
            trained on every object that claims it.
        shared_cells: As for `unisolo.losses.pairs.trained_pairs`.
        max_positives: Pairs whose masks are trained; more are thinned out evenly.

    Returns:
        The targets, on the target's device. A cell's label is that of the last object paired with
        it, thinned out or not.
    """
    centers, areas = object_statistics(target.object_map, len(target))
    pairs = trained_pairs(
        target.boxes,
        centers,
        areas,
        grid,
        image_size,
        one_object_per_cell=one_object_per_cell,
        shared_cells=shared_cells,
    )
    owners = cell_owners(pairs, grid.num_cells)
    # Owner -1 (none) picks the label that is appended, which no category has.
    labels = torch.nn.functional.pad(target.labels, (0, 1), value=-1)[owners]
    trained = _thinned(pairs, max_positives)
    crowd = _crowd_pairs(target.crowd_map, grid)
    blocks = block_objects(target.object_map)
    return CellTargets(labels, trained.cells, trained.objects, crowd, blocks)


def with_cell_targets(
    targets: Sequence[Target],
    grid: GridSpec,
    image_size: tuple[int, int],
    *,
    one_object_per_cell: bool = True,
    shared_cells: SharedCells = "drop",
    max_positives: int = MAX_POSITIVES,
) -> tuple[Target, ...]:
    """Return the targets with `cells` filled in; those that have them stay as they are.

    Args:
        targets: B targets.
        grid: As for `cell_targets`.
        image_size: As for `cell_targets`.
        one_object_per_cell: As for `cell_targets`.
        shared_cells: As for `cell_targets`.
        max_positives: As for `cell_targets`.

    Raises:
        ValueError: If a target's cells belong to another grid or size.
    """
    filled = []
    for index, target in enumerate(targets):
        if target.cells is None:
            cells = cell_targets(
                target,
                grid,
                image_size,
                one_object_per_cell=one_object_per_cell,
                shared_cells=shared_cells,
                max_positives=max_positives,
            )
            target = replace(target, cells=cells)
        _check_fit(target.cells, grid, image_size, index)
        filled.append(target)
    return tuple(filled)


def _check_fit(
    cells: CellTargets | None, grid: GridSpec, image_size: tuple[int, int], index: int
) -> None:
    size = (image_size[0] // 4, image_size[1] // 4)
    if cells is None or (len(cells.labels), tuple(cells.blocks.shape[1:])) != (
        grid.num_cells,
        size,
    ):
        raise ValueError(
            f"the cells of target {index} were worked out for another grid or padded size than "
            f"{grid.num_cells} cells and {image_size}; leave them to the loss (cells=None)"
        )


def _thinned(pairs: Assignment, at_most: int) -> Assignment:
    """Keep evenly spaced pairs: they are ordered by level and object, so every object keeps some.

    No random draw, so that a run stays repeatable whatever the number of processes.
    """
    total = len(pairs.cells)
    if total <= at_most:
        return pairs
    kept = torch.arange(at_most, device=pairs.cells.device) * total // at_most
    return Assignment(*(values[kept] for values in pairs))


def _crowd_pairs(crowd_map: Tensor, grid: GridSpec) -> Tensor:
    """Return [Q, 2] int64, the (cell, label) that crowd regions touch; most images have none."""
    highest = int(crowd_map.max())
    if highest == 0:
        return torch.zeros(0, 2, dtype=torch.int64, device=crowd_map.device)
    return torch.nonzero(crowd_cells(crowd_map, grid, highest))
