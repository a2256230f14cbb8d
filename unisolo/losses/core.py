"""Losses of the SOLOv2 core: category (focal) and mask (dice)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from unisolo.losses.assign import (
    Assignment,
    assign_grid,
    block_objects,
    cell_owners,
    crowd_cells,
    masks_from_blocks,
    object_statistics,
)
from unisolo.losses.assign import one_object_per_cell as keep_one_object_per_cell
from unisolo.losses.functional import dice_loss, sigmoid_focal_loss
from unisolo.structures import MASK_STRIDE, GridSpec, Outputs, Target

__all__ = ["MAX_POSITIVES", "LossOptions", "loss_counts", "solo_losses"]

MAX_POSITIVES = 2000
"""Default of the most (cell, object) pairs whose masks one image trains."""


class LossOptions(TypedDict, total=False):
    """Settings that `solo_losses` and `loss_counts` share; tasks hand them on.

    Attributes:
        one_object_per_cell: See `solo_losses`.
        max_positives: Likewise.
    """

    one_object_per_cell: bool
    max_positives: int


def solo_losses(
    outputs: Outputs,
    targets: Sequence[Target],
    grid: GridSpec,
    *,
    one_object_per_cell: bool = True,
    max_positives: int = MAX_POSITIVES,
    counts: Mapping[str, Tensor] | None = None,
    max_pixels: int = 2**24,
) -> dict[str, Tensor]:
    """Return the unweighted losses of the category, kernel and mask-feature branches.

    Finite, with a gradient for every branch, whatever the batch holds: no object, only crowd.

    Args:
        outputs: Raw outputs for B images.
        targets: B targets on the same device, maps padded to 4 times the mask features' size.
        grid: The model's grids.
        one_object_per_cell: Train each kernel on one mask. False = the reference: a shared cell is
            trained on every object that claims it.
        max_positives: Pairs per image whose masks are trained; more are thinned out evenly.
        counts: What the sums are divided by, where the batch is a part of a larger one (see
            `loss_counts`); None = this batch's own counts.
        max_pixels: Mask pixels (cells x pixels at stride 4) that are held in float32 at a time.

    Returns:
        "loss_category": focal loss summed over cells, categories and images, divided by the number
        of positive cells + 1. Negatives of a category whose crowd the cell touches do not count.
        "loss_mask": mean dice loss over all (cell, object) pairs of the batch, 0 without pairs.
        Both float32 scalars.

    Raises:
        ValueError: If the outputs, the targets and the grid do not fit together.
    """
    height, width = outputs.mask_features.shape[-2:]
    image_size = (MASK_STRIDE * height, MASK_STRIDE * width)
    _check_shapes(outputs, targets, grid, image_size)
    assignments = _assign(targets, grid, image_size, one_object_per_cell)
    thinned = [_thinned(assignment, max_positives) for assignment in assignments]
    if counts is None:
        counts = _counts(assignments, thinned, grid)
    category = _category_loss_sum(outputs.category_logits, targets, assignments, grid)
    masks = _mask_loss_sum(outputs, targets, thinned, max_pixels)
    return {
        "loss_category": category / (counts["loss_category"] + 1),
        "loss_mask": masks / counts["loss_mask"].clamp(min=1),
    }


def loss_counts(
    targets: Sequence[Target],
    grid: GridSpec,
    image_size: tuple[int, int],
    *,
    one_object_per_cell: bool = True,
    max_positives: int = MAX_POSITIVES,
) -> dict[str, Tensor]:
    """Return what each loss of `solo_losses` is divided by, from the targets alone.

    A batch that is split over processes or into accumulated parts trains as the whole one would
    only if every part is divided by the whole batch's counts: a mean of the parts' means would
    give an object in an almost empty part more weight.

    Args:
        targets: B targets, maps padded to `image_size`.
        grid: The model's grids.
        image_size: (H, W) of the padded batch.
        one_object_per_cell: As for `solo_losses`.
        max_positives: As for `solo_losses`.

    Returns:
        "loss_category": positive cells; "loss_mask": (cell, object) pairs. Both int64 scalars.
    """
    assignments = _assign(targets, grid, image_size, one_object_per_cell)
    thinned = [_thinned(assignment, max_positives) for assignment in assignments]
    return _counts(assignments, thinned, grid)


def _assign(
    targets: Sequence[Target], grid: GridSpec, image_size: tuple[int, int], one_object: bool
) -> list[Assignment]:
    assignments = []
    for target in targets:
        centers, areas = object_statistics(target.object_map, len(target))
        assignment = assign_grid(target.boxes, centers, areas, grid, image_size)
        if one_object:
            assignment = keep_one_object_per_cell(assignment, centers, grid, image_size)
        assignments.append(assignment)
    return assignments


def _thinned(assignment: Assignment, at_most: int) -> Assignment:
    """Keep evenly spaced pairs: they are ordered by level and object, so every object keeps some.

    No random draw, so that a run stays repeatable whatever the number of processes.
    """
    total = len(assignment.cells)
    if total <= at_most:
        return assignment
    kept = torch.arange(at_most, device=assignment.cells.device) * total // at_most
    return Assignment(*(values[kept] for values in assignment))


def _counts(
    assignments: Sequence[Assignment], thinned: Sequence[Assignment], grid: GridSpec
) -> dict[str, Tensor]:
    owners = torch.stack([cell_owners(assignment, grid.num_cells) for assignment in assignments])
    pairs = sum(len(assignment.cells) for assignment in thinned)
    return {"loss_category": (owners >= 0).sum(), "loss_mask": owners.new_tensor(pairs)}


def _check_shapes(
    outputs: Outputs, targets: Sequence[Target], grid: GridSpec, image_size: tuple[int, int]
) -> None:
    batch, cells, _ = outputs.category_logits.shape
    if len(targets) != batch:
        raise ValueError(f"{batch} images need {batch} targets, got {len(targets)}")
    if cells != grid.num_cells:
        raise ValueError(f"category_logits have {cells} cells, the grid has {grid.num_cells}")
    for index, target in enumerate(targets):
        for name in ("object_map", "crowd_map"):
            shape = tuple(getattr(target, name).shape[-2:])
            if shape != image_size:
                raise ValueError(
                    f"{name} of target {index} is {shape}, the padded batch is {image_size}; "
                    "pad the maps with the images (unisolo.data.loader.collate does)"
                )


def _category_loss_sum(
    logits: Tensor, targets: Sequence[Target], assignments: Sequence[Assignment], grid: GridSpec
) -> Tensor:
    num_things = logits.shape[-1]
    labels = torch.stack(
        [
            # Owner -1 (none) picks the label that was appended, which no category has.
            F.pad(target.labels, (0, 1), value=-1)[cell_owners(assignment, grid.num_cells)]
            for target, assignment in zip(targets, assignments, strict=True)
        ]
    )
    positive = labels[..., None] == torch.arange(num_things, device=logits.device)
    crowd = torch.stack([crowd_cells(target.crowd_map, grid, num_things) for target in targets])
    return sigmoid_focal_loss(logits, positive).masked_fill(crowd & ~positive, 0).sum()


def _mask_loss_sum(
    outputs: Outputs,
    targets: Sequence[Target],
    assignments: Sequence[Assignment],
    max_pixels: int,
) -> Tensor:
    features = outputs.mask_features
    pairs_per_chunk = max(1, max_pixels // features[0, 0].numel())
    sums = []
    for kernels, feature, target, assignment in zip(
        outputs.kernels, features, targets, assignments, strict=True
    ):
        blocks = block_objects(target.object_map)
        # Without pairs there is one empty chunk: its sum is 0 and still ties the branches to the
        # loss, which data-parallel training needs.
        for cells, objects in zip(
            torch.split(assignment.cells, pairs_per_chunk),
            torch.split(assignment.objects, pairs_per_chunk),
            strict=True,
        ):
            # Recomputed in the backward pass: one more small matmul instead of keeping pairs x
            # pixels in float32 for the whole batch.
            sums.append(
                checkpoint(
                    _dice_sum,
                    kernels[cells],
                    feature,
                    blocks,
                    objects,
                    use_reentrant=False,
                    preserve_rng_state=False,
                )
            )
    return torch.stack(sums).sum()


def _dice_sum(kernels: Tensor, feature: Tensor, blocks: Tensor, objects: Tensor) -> Tensor:
    """Return the summed dice loss of kernels [P, E] on feature [E, h, w] for objects [P]."""
    # float32 also for the dynamic convolution: dice's gradient on one pixel is about
    # 1 / (pixels x pairs), which half precision flushes to zero.
    with torch.autocast(feature.device.type, enabled=False):
        logits = kernels.float() @ feature.float().flatten(1)
        return dice_loss(logits, masks_from_blocks(blocks, objects).flatten(1)).sum()
