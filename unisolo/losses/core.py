"""Losses of the SOLOv2 core: category (focal) and mask (dice)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypedDict

import torch
from torch import Tensor

from unisolo.losses.dice import dynamic_dice_sum
from unisolo.losses.functional import sigmoid_focal_loss
from unisolo.losses.level_dice import level_dice_sum
from unisolo.losses.pairs import SharedCells
from unisolo.losses.targets import MAX_POSITIVES, with_cell_targets
from unisolo.structures import MASK_STRIDE, CellTargets, GridSpec, Outputs, Target

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["MAX_POSITIVES", "LossOptions", "loss_counts", "solo_losses"]


class LossOptions(TypedDict, total=False):
    """Settings that `solo_losses` and `loss_counts` share; tasks hand them on.

    Attributes:
        one_object_per_cell: See `solo_losses`.
        shared_cells: Likewise.
        max_positives: Likewise.
    """

    one_object_per_cell: bool
    shared_cells: SharedCells
    max_positives: int


def solo_losses(
    outputs: Outputs,
    targets: Sequence[Target],
    grid: GridSpec,
    *,
    one_object_per_cell: bool = True,
    shared_cells: SharedCells = "drop",
    max_positives: int = MAX_POSITIVES,
    counts: Mapping[str, Tensor] | None = None,
    max_pixels: int = 2**24,
) -> dict[str, Tensor]:
    """Return the unweighted losses of the category, kernel and mask-feature branches.

    Finite, with a gradient for every branch, whatever the batch holds: no object, only crowd.

    Args:
        outputs: Raw outputs for B images.
        targets: B targets on the same device, maps padded to 4 times the mask features' size.
            Those that come with `cells` (made with the same options) are taken at their word, and
            nothing here waits for a GPU; else the cells' targets are worked out first. Where levels
            have mask features of their own, see `unisolo.losses.level_dice`: one wait.
        grid: The model's grids.
        one_object_per_cell: Train each kernel on one mask. False = the reference: a shared cell is
            trained on every object that claims it.
        shared_cells: As for `unisolo.losses.pairs.trained_pairs`.
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
    cells = _cells(
        targets,
        grid,
        image_size,
        one_object_per_cell=one_object_per_cell,
        shared_cells=shared_cells,
        max_positives=max_positives,
    )
    if counts is None:
        counts = _counts(cells)
    category = _category_loss_sum(outputs.category_logits, cells)
    if outputs.level_features:
        masks = level_dice_sum(outputs, targets, cells, grid, max_pixels=max_pixels)
    else:
        masks = _mask_loss_sum(outputs, cells, max_pixels)
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
    shared_cells: SharedCells = "drop",
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
        shared_cells: As for `solo_losses`.
        max_positives: As for `solo_losses`.

    Returns:
        "loss_category": positive cells; "loss_mask": (cell, object) pairs. Both int64 scalars.
    """
    cells = _cells(
        targets,
        grid,
        image_size,
        one_object_per_cell=one_object_per_cell,
        shared_cells=shared_cells,
        max_positives=max_positives,
    )
    return _counts(cells)


def _cells(
    targets: Sequence[Target],
    grid: GridSpec,
    image_size: tuple[int, int],
    **options: Unpack[LossOptions],
) -> list[CellTargets]:
    filled = with_cell_targets(targets, grid, image_size, **options)
    return [target.cells for target in filled if target.cells is not None]


def _counts(cells: Sequence[CellTargets]) -> dict[str, Tensor]:
    labels = torch.stack([image.labels for image in cells])
    pairs = sum(len(image.cells) for image in cells)  # of shapes, which no device is asked for
    return {
        "loss_category": (labels >= 0).sum(),
        "loss_mask": torch.full((), pairs, dtype=torch.int64, device=labels.device),
    }


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


def _category_loss_sum(logits: Tensor, cells: Sequence[CellTargets]) -> Tensor:
    _, num_cells, num_things = logits.shape
    labels = torch.stack([image.labels for image in cells])
    positive = labels[..., None] == torch.arange(num_things, device=logits.device)
    hidden = torch.zeros_like(positive)
    crowd = [
        (number * num_cells + image.crowd[:, 0]) * num_things + image.crowd[:, 1]
        for number, image in enumerate(cells)
        if len(image.crowd)
    ]
    if crowd:
        hidden.view(-1).index_fill_(0, torch.cat(crowd), True)
    return sigmoid_focal_loss(logits, positive).masked_fill(hidden & ~positive, 0).sum()


def _mask_loss_sum(outputs: Outputs, cells: Sequence[CellTargets], max_pixels: int) -> Tensor:
    # Images without pairs have a sum of 0 that still ties the branches to the loss, which
    # data-parallel training needs.
    sums = [
        dynamic_dice_sum(
            kernels[image.cells], feature, image.blocks, image.objects, max_pixels=max_pixels
        )
        for kernels, feature, image in zip(
            outputs.kernels, outputs.mask_features, cells, strict=True
        )
    ]
    return torch.stack(sums).sum()
