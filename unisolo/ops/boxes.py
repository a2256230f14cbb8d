"""Boxes: xyxy, absolute pixels, half-open (`x2` = last column + 1), float32."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["extents", "masks_to_boxes", "sqrt_area", "xyxy_to_xywh"]


def masks_to_boxes(masks: Tensor) -> Tensor:
    """Return the tight box of every mask.

    Args:
        masks: [N, H, W] bool.

    Returns:
        [N, 4] float32 xyxy, half-open, in the masks' pixels; 0, 0, 0, 0 for an empty mask.

    Raises:
        ValueError: If `masks` is not bool of rank 3.
    """
    if masks.dtype != torch.bool or masks.ndim != 3:
        raise ValueError(
            f"masks_to_boxes needs bool masks [N, H, W], got {masks.dtype} {list(masks.shape)}"
        )
    values = masks.view(torch.uint8)  # its maximum is many times faster than `any` of bools
    x1, x2 = extents(values.amax(1) > 0)
    y1, y2 = extents(values.amax(2) > 0)
    return torch.stack([x1, y1, x2, y2], dim=1).float()


def xyxy_to_xywh(boxes: Tensor) -> Tensor:
    """Turn corners into the x, y, width, height of COCO files.

    Args:
        boxes: [..., 4] xyxy, half-open.

    Returns:
        [..., 4] xywh, same dtype.
    """
    return torch.cat([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], dim=-1)


def sqrt_area(boxes: Tensor) -> Tensor:
    """Return sqrt(width * height), the size by which objects are shared among levels.

    Args:
        boxes: [..., 4] xyxy, half-open.

    Returns:
        [...] floating, pixels; 0 for an inverted box.
    """
    width, height = (boxes[..., 2:] - boxes[..., :2]).clamp_min(0).unbind(-1)
    return (width * height).sqrt()


def extents(occupied: Tensor) -> tuple[Tensor, Tensor]:
    """Return where each row begins and ends.

    Args:
        occupied: [..., M] bool.

    Returns:
        [...] int64 each: the first occupied place, and the last one + 1; 0 and 0 where none is.
    """
    size = occupied.shape[-1]
    places = torch.arange(size, device=occupied.device)
    first = torch.where(occupied, places, size).amin(-1)
    end = torch.where(occupied, places + 1, 0).amax(-1)
    # `end` is 0 exactly where nothing is occupied.
    return torch.minimum(first, end), end
