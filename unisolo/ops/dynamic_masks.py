"""Masks from dynamic kernels: a 1 x 1 convolution of the mask features per candidate, bounded.

With a number of pixels at a time, all masks are made over some rows of the image, then over the
next: every feature is read and turned to float once, however many candidates there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from unisolo.ops.masks import full_precision, pack_bits, popcount, row_chunks

__all__ = ["CandidateMasks", "candidate_masks", "kept_masks"]


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
    mask_features: Tensor,
    *,
    mask_threshold: float,
    chunk_pixels: int | None = None,
) -> CandidateMasks:
    """Make the masks of all candidates by dynamic convolution.

    Args:
        kernels: [n, E] or [B, n, E] floating, one 1 x 1 kernel per candidate.
        mask_features: [E, h, w] or [B, E, h, w] floating.
        mask_threshold: Strict.
        chunk_pixels: None = all at once, as bool masks. Else packed masks (`pack_bits`), made some
            rows of the image at a time: as many as hold this many values in float.

    Returns:
        Masks with areas and maskness.
    """
    if chunk_pixels is None:
        return _hard_masks(kernels, mask_features, mask_threshold)
    height, width = mask_features.shape[-2:]
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
    kernels: Tensor, mask_features: Tensor, valid: Tensor, *, chunk_pixels: int | None = None
) -> Tensor:
    """Make the soft masks of the instances that were kept.

    Args:
        kernels: [B, K, E] floating.
        mask_features: [B, E, h, w] floating.
        valid: [B, K] bool; the masks of other places are 0.
        chunk_pixels: Values in float at a time besides the result; None = all at once.

    Returns:
        [B, K, h, w] float32.
    """
    filled = valid[..., None, None]
    if chunk_pixels is None:
        return torch.where(filled, _soft_masks(kernels, mask_features), 0)
    size = mask_features.shape[-2:]
    whole = torch.empty(*valid.shape, *size, dtype=torch.float32, device=kernels.device)
    for rows, soft in _soft_blocks(kernels, mask_features, chunk_pixels):
        whole[..., rows, :] = torch.where(filled, soft, 0)
    return whole


def _hard_masks(kernels: Tensor, mask_features: Tensor, mask_threshold: float) -> CandidateMasks:
    soft = _soft_masks(kernels, mask_features)
    masks = soft > mask_threshold
    # Counted in float, exact up to 2**24 pixels: runtimes would first write all masks as int64.
    areas = masks.sum((-2, -1), dtype=torch.float32)
    maskness = torch.where(masks, soft, 0).sum((-2, -1)) / areas.clamp_min(1)
    return CandidateMasks(masks, areas.long(), maskness)


def _soft_blocks(
    kernels: Tensor, mask_features: Tensor, chunk_pixels: int
) -> Iterator[tuple[slice, Tensor]]:
    """Yield some rows of the image and all soft masks there, [..., n, rows, w]."""
    height, width = mask_features.shape[-2:]
    values = max(kernels.shape[:-1].numel(), mask_features.shape[:-2].numel())
    for rows in row_chunks(height, width * values, chunk_pixels):
        yield rows, _soft_masks(kernels, mask_features[..., rows, :])


def _soft_masks(kernels: Tensor, mask_features: Tensor) -> Tensor:
    """Mask probabilities [..., n, h, w] float32 of kernels [..., n, E] over [..., E, h, w]."""
    with full_precision(kernels.device):
        logits = kernels.float() @ mask_features.float().flatten(-2)
    return logits.sigmoid_().reshape(*kernels.shape[:-1], *mask_features.shape[-2:])
