"""Masks from dynamic kernels: a 1 x 1 convolution of the mask features per candidate, bounded.

With a number of pixels at a time, all masks are made over some rows of the image, then over the
next: every feature is read and turned to float once, however many candidates there are.

Where each level has mask features of its own (`LevelFeatures`) the masks of all candidates are made
on every level, and each candidate's own is taken: the shapes stay fixed, for the time of about 2.4
masks each. The mask of a coarse level is resized to stride 4 as a probability, as SOLOv1 does.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from unisolo.ops.masks import full_precision, pack_bits, popcount, row_chunks

__all__ = ["CandidateMasks", "LevelFeatures", "candidate_masks", "kept_masks"]


class LevelFeatures(NamedTuple):
    """What some kernels are applied to where each level has mask features of its own.

    Attributes:
        maps: [B, E, h, w] at stride 4, and coarser ones [B, E, h / f, w / f], f whole.
        levels: [B, n] int64, which of them each kernel reads.
    """

    maps: tuple[Tensor, ...]
    levels: Tensor


class CandidateMasks(NamedTuple):
    """Masks of the candidates of an image, at stride 4 of the padded input.

    Attributes:
        masks: [n, h, w] or [B, n, h, w] bool; or packed, [..., n, h, ceil(w / 8)] uint8.
        areas: [n] or [B, n] int64, pixels.
        maskness: Likewise, float32: mean probability inside the mask; 0 for an empty mask.
    """

    masks: Tensor
    areas: Tensor
    maskness: Tensor


def candidate_masks(
    kernels: Tensor,
    mask_features: Tensor | LevelFeatures,
    *,
    mask_threshold: float,
    chunk_pixels: int | None = None,
) -> CandidateMasks:
    """Make the masks of all candidates by dynamic convolution.

    Args:
        kernels: [n, E] or [B, n, E] floating, one 1 x 1 kernel per candidate.
        mask_features: [E, h, w] or [B, E, h, w] floating; or those of each level.
        mask_threshold: Strict.
        chunk_pixels: None = all at once, as bool masks. Else packed masks (`pack_bits`), made some
            rows of the image at a time: as many as hold this many values in float.

    Returns:
        Masks with areas and maskness.
    """
    if chunk_pixels is None:
        return _hard_masks(kernels, mask_features, mask_threshold)
    height, width = _finest(mask_features).shape[-2:]
    rows_of_masks = (*kernels.shape[:-1], height)
    device = kernels.device
    packed = torch.empty(*rows_of_masks, (width + 7) // 8, dtype=torch.uint8, device=device)
    areas = torch.empty(rows_of_masks, dtype=torch.int64, device=device)
    # Summed row by row, so that the maskness does not depend on how many rows are made at a time.
    inside = torch.empty(rows_of_masks, dtype=torch.float32, device=device)
    for rows, soft in _soft_blocks(kernels, mask_features, chunk_pixels):
        masks = soft > mask_threshold
        packed[..., rows, :] = pack_bits(masks)
        areas[..., rows] = popcount(packed[..., rows, :])
        inside[..., rows] = torch.where(masks, soft, 0).sum(-1)
    whole = areas.sum(-1)
    return CandidateMasks(packed, whole, inside.sum(-1) / whole.clamp_min(1))


def kept_masks(
    kernels: Tensor,
    mask_features: Tensor | LevelFeatures,
    valid: Tensor,
    *,
    chunk_pixels: int | None = None,
) -> Tensor:
    """Make the soft masks of the instances that were kept.

    Args:
        kernels: [B, K, E] floating.
        mask_features: [B, E, h, w] floating; or those of each level.
        valid: [B, K] bool; the masks of other places are 0.
        chunk_pixels: Values in float at a time besides the result; None = all at once.

    Returns:
        [B, K, h, w] float32.
    """
    filled = valid[..., None, None]
    if chunk_pixels is None:
        return torch.where(filled, _soft_masks(kernels, mask_features), 0)
    size = _finest(mask_features).shape[-2:]
    whole = torch.empty(*valid.shape, *size, dtype=torch.float32, device=kernels.device)
    for rows, soft in _soft_blocks(kernels, mask_features, chunk_pixels):
        whole[..., rows, :] = torch.where(filled, soft, 0)
    return whole


def _hard_masks(
    kernels: Tensor, mask_features: Tensor | LevelFeatures, mask_threshold: float
) -> CandidateMasks:
    soft = _soft_masks(kernels, mask_features)
    masks = soft > mask_threshold
    # Counted in float, exact up to 2**24 pixels: runtimes would first write all masks as int64.
    areas = masks.sum((-2, -1), dtype=torch.float32)
    maskness = torch.where(masks, soft, 0).sum((-2, -1)) / areas.clamp_min(1)
    return CandidateMasks(masks, areas.long(), maskness)


def _finest(mask_features: Tensor | LevelFeatures) -> Tensor:
    return mask_features if isinstance(mask_features, Tensor) else mask_features.maps[0]


def _soft_blocks(
    kernels: Tensor, mask_features: Tensor | LevelFeatures, chunk_pixels: int
) -> Iterator[tuple[slice, Tensor]]:
    """Yield some rows of the image and all soft masks there, [..., n, rows, w]."""
    finest = _finest(mask_features)
    height, width = finest.shape[-2:]
    values = max(kernels.shape[:-1].numel(), finest.shape[:-2].numel())
    for rows in row_chunks(height, width * values, chunk_pixels):
        if isinstance(mask_features, Tensor):
            yield rows, _soft_masks(kernels, mask_features[..., rows, :])
        else:
            yield rows, _of_own_level(kernels, mask_features, rows)


def _of_own_level(kernels: Tensor, features: LevelFeatures, rows: slice | None) -> Tensor:
    """Soft masks [B, n, rows, w] of kernels on the features of their levels; None = all rows."""
    masks = _at_stride_4(kernels, features.maps[0], features.maps[0], rows)
    for level, maps in enumerate(features.maps[1:], start=1):
        of_level = (features.levels == level)[..., None, None]
        masks = torch.where(of_level, _at_stride_4(kernels, maps, features.maps[0], rows), masks)
    return masks


def _at_stride_4(kernels: Tensor, maps: Tensor, finest: Tensor, rows: slice | None) -> Tensor:
    """Soft masks of all kernels on one level, resized to rows of the finest."""
    height, width = finest.shape[-2:]
    if maps.shape[-2:] == finest.shape[-2:]:
        return _soft_masks(kernels, maps if rows is None else maps[..., rows, :])
    if rows is None:
        return _resized(_soft_masks(kernels, maps), (height, width))
    factor = height // maps.shape[-2]
    # A row more on each side, which the resize of the outer rows looks at.
    first = max(rows.start // factor - 1, 0)
    soft = _soft_masks(kernels, maps[..., first : -(-rows.stop // factor) + 1, :])
    whole = _resized(soft, (factor * soft.shape[-2], width))
    return whole[..., rows.start - factor * first : rows.stop - factor * first, :]


def _resized(masks: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(masks, size=size, mode="bilinear", align_corners=False)


def _soft_masks(kernels: Tensor, mask_features: Tensor | LevelFeatures) -> Tensor:
    """Mask probabilities [..., n, h, w] float32 of kernels [..., n, E] over [..., E, h, w]."""
    if isinstance(mask_features, LevelFeatures):
        return _of_own_level(kernels, mask_features, None)
    with full_precision(kernels.device):
        logits = kernels.float() @ mask_features.float().flatten(-2)
    return logits.sigmoid_().reshape(*kernels.shape[:-1], *mask_features.shape[-2:])
