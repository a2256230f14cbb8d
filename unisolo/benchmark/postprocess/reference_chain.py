"""The post-process in the order of operations of SOLOv2's published codes: the baseline.

A plain transcription of the method's description: the soft masks of all candidates at once, boolean
filters that wait for the device, float masks and one matrix product, masks of the kept as floats of
full size. Its results are those of `unisolo.ops.select.select_instances` as long as no more pairs
pass the threshold than that admits; its time and memory are what this package avoids.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from unisolo.structures import GridSpec, Outputs

__all__ = [
    "ReferenceCandidates",
    "ReferenceInstances",
    "reference_candidates",
    "reference_full_masks",
    "reference_instances",
    "reference_nms",
    "reference_select",
]


class ReferenceCandidates(NamedTuple):
    """The (cell, category) pairs of one image above the threshold, in order of cell, then category.

    Attributes:
        scores: [N] float32.
        labels: [N] int64.
        cells: [N] int64.
        kernels: [N, E].
        min_areas: [N] int64, the stride of the cell's level; a mask must have more pixels.
    """

    scores: Tensor
    labels: Tensor
    cells: Tensor
    kernels: Tensor
    min_areas: Tensor


class ReferenceInstances(NamedTuple):
    """What is left of one image, by falling score.

    Attributes:
        scores: [M] float32, after decay.
        labels: [M] int64.
        cells: [M] int64, the grid cell of each.
        mask_probs: [M, h, w] float32, soft masks at stride 4 of the padded input.
    """

    scores: Tensor
    labels: Tensor
    cells: Tensor
    mask_probs: Tensor


def reference_candidates(
    category_logits: Tensor, kernels: Tensor, grid: GridSpec, *, score_threshold: float = 0.1
) -> ReferenceCandidates:
    """Take every pair above the threshold after points NMS; waits for the device.

    Args:
        category_logits: [L, C] of one image.
        kernels: [L, E].
        grid: The model's grid.
        score_threshold: Strict.

    Returns:
        As many candidates as pass.
    """
    levels = []
    for logits, size in zip(
        torch.split(category_logits.float(), [size * size for size in grid.sizes]),
        grid.sizes,
        strict=True,
    ):
        probs = logits.sigmoid().t().reshape(1, -1, size, size)
        highest = F.max_pool2d(probs, kernel_size=2, stride=1, padding=1)[..., :-1, :-1]
        levels.append((probs * (highest == probs)).flatten(2).squeeze(0).t())
    probs = torch.cat(levels)
    pairs = (probs > score_threshold).nonzero()
    cells, labels = pairs.unbind(1)
    strides = torch.cat(
        [
            torch.full((size * size,), stride, device=probs.device)
            for size, stride in zip(grid.sizes, grid.strides, strict=True)
        ]
    )
    return ReferenceCandidates(
        probs[cells, labels], labels, cells, kernels[cells], strides[cells].long()
    )


def reference_instances(
    candidates: ReferenceCandidates,
    mask_features: Tensor,
    *,
    mask_threshold: float = 0.5,
    pre_nms: int = 500,
    sigma: float = 2.0,
    update_threshold: float = 0.05,
    max_instances: int = 100,
) -> ReferenceInstances:
    """Make the masks of all candidates, prune them, keep the best; waits for the device four times.

    Args:
        candidates: N candidates.
        mask_features: [E, h, w], the kernels' dtype.
        mask_threshold: Strict.
        pre_nms: Masks that enter Matrix NMS.
        sigma: Of the gaussian kernel.
        update_threshold: Inclusive.
        max_instances: Upper bound of M.

    Returns:
        M instances; none where no mask is left.
    """
    if len(candidates.scores) == 0:  # a convolution with no kernels is an error
        none = mask_features.new_zeros(0, *mask_features.shape[1:], dtype=torch.float32)
        return ReferenceInstances(candidates.scores, candidates.labels, candidates.cells, none)
    weight = candidates.kernels[:, :, None, None]
    soft = F.conv2d(mask_features.unsqueeze(0), weight).squeeze(0).float().sigmoid()
    masks = soft > mask_threshold
    areas = masks.sum((1, 2)).float()
    large = areas > candidates.min_areas
    soft, masks, areas = soft[large], masks[large], areas[large]
    scores, labels = candidates.scores[large], candidates.labels[large]
    cells = candidates.cells[large]
    scores = scores * ((soft * masks.float()).sum((1, 2)) / areas)
    # Stable, which the published codes are not: with exact ties their order is unspecified.
    order = scores.argsort(descending=True, stable=True)[:pre_nms]
    soft, masks, areas = soft[order], masks[order], areas[order]
    scores, labels, cells = scores[order], labels[order], cells[order]
    scores = reference_nms(masks.float(), labels, scores, areas, sigma=sigma)
    keep = scores >= update_threshold
    soft, scores, labels, cells = soft[keep], scores[keep], labels[keep], cells[keep]
    order = scores.argsort(descending=True, stable=True)[:max_instances]
    return ReferenceInstances(scores[order], labels[order], cells[order], soft[order])


def reference_nms(
    masks: Tensor, labels: Tensor, scores: Tensor, areas: Tensor, *, sigma: float = 2.0
) -> Tensor:
    """Matrix NMS as published: a product of float masks, then square matrices throughout.

    Args:
        masks: [N, h, w] float, zeros and ones, by falling score; none empty.
        labels: [N] int64.
        scores: [N] float32.
        areas: [N] float32.
        sigma: Of the gaussian kernel.

    Returns:
        [N] float32, decayed scores.
    """
    count = len(scores)
    if count == 0:
        return scores
    flat = masks.flatten(1)
    intersections = flat @ flat.t()
    rows = areas.expand(count, count)
    iou = (intersections / (rows + rows.t() - intersections)).triu(diagonal=1)
    of_label = labels.expand(count, count)
    iou = iou * (of_label == of_label.t()).float().triu(diagonal=1)
    compensation = iou.amax(0).expand(count, count).t()
    decay = torch.exp(-sigma * iou**2) / torch.exp(-sigma * compensation**2)
    return scores * decay.amin(0)


def reference_full_masks(
    mask_probs: Tensor,
    *,
    padded_size: tuple[int, int],
    input_size: tuple[int, int],
    orig_size: tuple[int, int],
    threshold: float = 0.5,
) -> Tensor:
    """Bring soft masks to the original size, all at once as floats, then take the threshold.

    Args:
        mask_probs: [M, h, w] float32.
        padded_size: (H, W) of the model's input with padding.
        input_size: (H, W) of its valid part.
        orig_size: (H, W) of the original image.
        threshold: Strict.

    Returns:
        [M, H, W] bool.
    """
    if len(mask_probs) == 0:
        return torch.zeros(0, *orig_size, dtype=torch.bool, device=mask_probs.device)
    full = F.interpolate(mask_probs.unsqueeze(0), padded_size, mode="bilinear")
    full = full[..., : input_size[0], : input_size[1]]
    if input_size != orig_size:
        full = F.interpolate(full, orig_size, mode="bilinear")
    return full.squeeze(0) > threshold


def reference_select(
    outputs: Outputs,
    grid: GridSpec,
    *,
    score_threshold: float = 0.1,
    mask_threshold: float = 0.5,
    pre_nms: int = 500,
    sigma: float = 2.0,
    update_threshold: float = 0.05,
    max_instances: int = 100,
) -> list[ReferenceInstances]:
    """From raw outputs to instances, image by image: the twin of `select_instances`.

    Args:
        outputs: Raw outputs of the model.
        grid: The model's grid.
        score_threshold: See `reference_candidates`.
        mask_threshold: See `reference_instances`.
        pre_nms: See `reference_instances`.
        sigma: See `reference_instances`.
        update_threshold: See `reference_instances`.
        max_instances: See `reference_instances`.

    Returns:
        Instances of each image.
    """
    return [
        reference_instances(
            reference_candidates(logits, kernels, grid, score_threshold=score_threshold),
            features,
            mask_threshold=mask_threshold,
            pre_nms=pre_nms,
            sigma=sigma,
            update_threshold=update_threshold,
            max_instances=max_instances,
        )
        for logits, kernels, features in zip(
            outputs.category_logits, outputs.kernels, outputs.mask_features, strict=True
        )
    ]
