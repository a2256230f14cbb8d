"""The ways to prune masks that Matrix NMS is compared with, each in the form that serves it best.

Those that go through the candidates one by one run on the host in numpy, to which the IoU matrix is
copied once: a loop that launches kernels on a GPU takes many times as long. All count a candidate
as better where its score is higher, and prune within a label only.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "fast_nms",
    "greedy_nms",
    "greedy_nms_by_iou",
    "mask_iou",
    "soft_nms",
]

IOU_THRESHOLD = 0.5
SOFT_SIGMA = 0.5
"""Divides, as in Soft-NMS (arXiv 1704.04503): exp(-iou**2 / sigma)."""


def mask_iou(masks: Tensor) -> Tensor:
    """Return the overlaps of all pairs by one product of float masks.

    Args:
        masks: [N, P] bool.

    Returns:
        [N, N] float32; 0 for two empty masks.
    """
    flat = masks.float()
    intersections = flat @ flat.t()
    areas = intersections.diagonal()
    unions = areas.unsqueeze(0) + areas.unsqueeze(1) - intersections
    return intersections / unions.clamp_min(1)


def greedy_nms(
    masks: Tensor, labels: Tensor, scores: Tensor, *, threshold: float = IOU_THRESHOLD
) -> Tensor:
    """Sequential NMS, mask by mask: each kept mask removes those that it overlaps too much.

    Args:
        masks: [N, P] bool.
        labels: [N] int64.
        scores: [N] float32.
        threshold: An overlap above this removes.

    Returns:
        [N] bool, kept.
    """
    order = scores.argsort(descending=True, stable=True)
    sorted_masks, sorted_labels = masks[order], labels[order]
    alive = torch.ones_like(sorted_labels, dtype=torch.bool)
    areas = sorted_masks.sum(1)
    for place in range(len(order)):
        if not alive[place]:
            continue
        rest = slice(place + 1, None)
        shared = (sorted_masks[rest] & sorted_masks[place]).sum(1)
        iou = shared / (areas[rest] + areas[place] - shared).clamp_min(1)
        alive[rest] &= (iou <= threshold) | (sorted_labels[rest] != sorted_labels[place])
    return torch.zeros_like(alive).index_copy_(0, order, alive)


def greedy_nms_by_iou(
    iou: Tensor, labels: Tensor, scores: Tensor, *, threshold: float = IOU_THRESHOLD
) -> Tensor:
    """The same from the IoU matrix.

    Args:
        iou: [N, N] float32.
        labels: [N] int64.
        scores: [N] float32.
        threshold: An overlap above this removes.

    Returns:
        [N] bool, kept, on the host.
    """
    overlaps = _within_labels(iou, labels).cpu().numpy() > threshold
    order = scores.argsort(descending=True, stable=True).cpu().numpy()
    kept = torch.zeros(len(order), dtype=torch.bool)
    alive = torch.ones(len(order), dtype=torch.bool).numpy()
    for index in order:
        if alive[index]:
            kept[int(index)] = True
            alive &= ~overlaps[index]
    return kept


def soft_nms(iou: Tensor, labels: Tensor, scores: Tensor, *, sigma: float = SOFT_SIGMA) -> Tensor:
    """Soft-NMS with the gaussian penalty: the best of the rest lowers all that are left.

    Args:
        iou: [N, N] float32.
        labels: [N] int64.
        scores: [N] float32.
        sigma: Divides.

    Returns:
        [N] float32, decayed scores, on the host.
    """
    penalties = torch.exp(-(_within_labels(iou, labels) ** 2) / sigma).cpu().numpy()
    left = scores.cpu().numpy().copy()
    decayed = left.copy()
    for _ in range(len(left)):
        best = int(left.argmax())
        decayed[best] = left[best]
        left *= penalties[best]
        left[best] = -1.0  # taken: a product with a penalty stays below 0
    return torch.from_numpy(decayed)


def fast_nms(
    iou: Tensor, labels: Tensor, scores: Tensor, *, threshold: float = IOU_THRESHOLD
) -> Tensor:
    """Fast NMS (YOLACT, arXiv 1904.02689): removed masks remove too, which makes it one maximum.

    Args:
        iou: [N, N] float32.
        labels: [N] int64.
        scores: [N] float32.
        threshold: An overlap above this removes.

    Returns:
        [N] bool, kept.
    """
    if len(scores) == 0:  # a maximum over nothing is undefined
        return scores.bool()
    order = scores.argsort(descending=True, stable=True)
    ordered = _within_labels(iou, labels)[order][:, order].triu(diagonal=1)
    return torch.zeros_like(scores, dtype=torch.bool).index_copy_(
        0, order, ordered.amax(0) <= threshold
    )


def _within_labels(iou: Tensor, labels: Tensor) -> Tensor:
    return torch.where(labels.unsqueeze(0) == labels.unsqueeze(1), iou, 0)
