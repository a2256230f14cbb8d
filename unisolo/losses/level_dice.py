"""The dice loss where each level has mask features of its own, at their resolution (SOLOv1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unisolo.losses.assign import block_objects
from unisolo.losses.dice import dynamic_dice_sum
from unisolo.ops.transfer import to_host
from unisolo.structures import MASK_STRIDE, CellTargets, GridSpec, Outputs, Target

__all__ = ["level_blocks", "level_dice_sum"]


def level_dice_sum(
    outputs: Outputs,
    targets: Sequence[Target],
    cells: Sequence[CellTargets],
    grid: GridSpec,
    *,
    max_pixels: int,
) -> Tensor:
    """Return the sum of `dice_loss` over the masks of all pairs, each on the map of its level.

    How many pairs a level has is not known before; on a GPU the batch waits once to be told.

    Args:
        outputs: Raw outputs of B images, with `level_features`.
        targets: B targets, maps padded to 4 times the size of the finest features.
        cells: Their cells' targets.
        grid: The model's grid.
        max_pixels: Cells x pixels that are held in float32 at a time.

    Returns:
        Float32 scalar, 0 without pairs; it has a gradient for every level and for the kernels.

    Raises:
        ValueError: If the number of maps is not that of the grid's levels.
    """
    maps = outputs.level_features
    if len(maps) != grid.num_levels:
        raise ValueError(
            f"the grid has {grid.num_levels} levels, but {len(maps)} have mask features; the model "
            "and the grid must belong together"
        )
    starts = torch.tensor(grid.offsets[1:], device=outputs.kernels.device)
    levels = [torch.bucketize(image.cells, starts, right=True) for image in cells]
    every = torch.arange(grid.num_levels, device=starts.device)
    counts = to_host([(level == every[:, None]).sum(dim=1) for level in levels])
    strides = [MASK_STRIDE * maps[0].shape[-2] // level.shape[-2] for level in maps]
    sums = []
    for number, (target, image) in enumerate(zip(targets, cells, strict=True)):
        order = levels[number].argsort(stable=True)
        parts = torch.split(order, counts[number].tolist())
        blocks = {stride: level_blocks(target, image, stride) for stride in set(strides)}
        for features, stride, pairs in zip(maps, strides, parts, strict=True):
            # A level without pairs has a sum of 0 that still ties its branch to the loss, which
            # data-parallel training needs.
            sums.append(
                dynamic_dice_sum(
                    outputs.kernels[number, image.cells[pairs]],
                    features[number],
                    blocks[stride],
                    image.objects[pairs],
                    max_pixels=max_pixels,
                )
            )
    return torch.stack(sums).sum()


def level_blocks(target: Target, cells: CellTargets, stride: int) -> Tensor:
    """Return the objects that hold at least 2 of the 4 central pixels of each block.

    What shrinking the 0 / 1 mask bilinearly and rounding comes to at any even stride.

    Args:
        target: Ground truth of one image.
        cells: Its cells' targets, which have the blocks at stride 4.
        stride: 4, or a larger even number that divides the sides of the maps.

    Returns:
        [2 D, H / stride, W / stride], dtype and numbering of the object map.
    """
    if stride == MASK_STRIDE:
        return cells.blocks
    depth, height, width = target.object_map.shape
    rows, columns = height // stride, width // stride
    middle = slice(stride // 2 - 2, stride // 2 + 2)  # of which the middle is taken once more
    central = target.object_map.reshape(depth, rows, stride, columns, stride)[
        :, :, middle, :, middle
    ]
    return block_objects(central.reshape(depth, 4 * rows, 4 * columns))
