"""Panoptic merge inside the instances' boxes; the CPU's twin of `merge_panoptic`."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unisolo.ops.cpu.packed import count_bits
from unisolo.ops.panoptic import PanopticMerge

__all__ = ["merge_panoptic"]


def merge_panoptic(
    packed_masks: Tensor,
    width: int,
    scores: Tensor,
    stuff_index: Tensor | None,
    *,
    num_stuff: int,
    score_threshold: float = 0.5,
    overlap_threshold: float = 0.5,
    stuff_area_threshold: int = 4096,
) -> PanopticMerge:
    """Merge instances and stuff by the COCO heuristics.

    An instance costs what its box holds: instances below the threshold are not looked at, and one
    that is accepted is painted at once, with its final id.

    Args:
        packed_masks: [K, H, ceil(W / 8)] uint8 by falling score; arguments as the definition has
            checked them.
        width: W.
        scores: [K] floating.
        stuff_index: [H, W] integer or None.
        num_stuff: S.
        score_threshold: A score equal to it is kept.
        overlap_threshold: A share equal to it is kept.
        stuff_area_threshold: Pixels; an area equal to it is kept.

    Returns:
        As the definition.
    """
    panoptic_seg = np.zeros((packed_masks.shape[1], width), dtype=np.int32)
    eligible = (scores >= score_threshold).numpy()
    areas = _paint_instances(panoptic_seg, packed_masks.numpy(), eligible, overlap_threshold)
    instance_ids = np.where(areas > 0, (areas > 0).cumsum(), 0)
    counts = np.zeros(num_stuff, dtype=np.int64)
    present = np.zeros(num_stuff, dtype=bool)
    stuff_ids = counts
    if stuff_index is not None and num_stuff > 0:
        free = panoptic_seg == 0
        index = stuff_index.numpy()[free].astype(np.int64)
        index[(index < 0) | (index >= num_stuff)] = num_stuff
        counts = np.bincount(index, minlength=num_stuff + 1)[:num_stuff]
        present = (counts >= stuff_area_threshold) & (counts > 0)
        stuff_ids = np.where(present, (areas > 0).sum() + present.cumsum(), 0)
        panoptic_seg[free] = np.append(stuff_ids, 0).astype(np.int32)[index]
    return PanopticMerge(
        torch.from_numpy(panoptic_seg),
        torch.from_numpy(instance_ids).int(),
        torch.from_numpy(areas),
        torch.from_numpy(stuff_ids).int(),
        torch.from_numpy(np.where(present, counts, 0)),
        torch.from_numpy(np.where(present, 0, counts)),
    )


def _paint_instances(
    panoptic_seg: NDArray[np.int32],
    masks: NDArray[np.uint8],
    eligible: NDArray[np.bool_],
    overlap_threshold: float,
) -> NDArray[np.int64]:
    """Give pixels their instances, numbered from 1; return the areas [K] owned by each."""
    areas = np.zeros(len(masks), dtype=np.int64)
    used = np.zeros(masks.shape[1:], dtype=np.uint8)
    number = 0
    for k in np.flatnonzero(eligible):
        rows, columns = (
            np.flatnonzero(np.bitwise_or.reduce(masks[k], axis=axis)) for axis in (1, 0)
        )
        if len(rows) == 0:
            continue
        box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        mask, taken = masks[k][box], used[box]
        area = int(count_bits(mask).sum(dtype=np.int64))
        hidden = int(count_bits(mask & taken).sum(dtype=np.int64))
        # Divided by torch, as the definition does: a share equal to the threshold is kept.
        if hidden == area or torch.tensor(hidden, device="cpu") / area > overlap_threshold:
            continue
        number += 1
        areas[k] = area - hidden
        pixels = panoptic_seg[box[0], 8 * box[1].start : 8 * box[1].stop]
        visible = np.unpackbits(mask & ~taken, axis=1, count=pixels.shape[1])
        np.copyto(pixels, number, where=visible.view(np.bool_))
        taken |= mask
    return areas
