"""Triton: soft masks of the kept instances alone, read once from kernels and features."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from unisolo.ops.kernels.launch import as_pixels, jit, on_device_of, sigmoid
from unisolo.ops.kernels.products import is_wide, logit_tile, resident_kernels, tiling_of

__all__ = ["soft_masks"]

PIXELS = 64
"""Pixels per block, as in `unisolo.ops.kernels.dynamic_masks`."""


def soft_masks(kernels: Tensor, features: Tensor, cells: Tensor, valid: Tensor) -> Tensor:
    """Make the mask probabilities of instances.

    Args:
        kernels: [B, L, E] floating, one 1 x 1 kernel per cell, any strides.
        features: [B, E, h, w] floating, any strides.
        cells: [B, K] int64, K at least 1, the cell of each instance.
        valid: [B, K] bool; the masks of other places are zeros.

    Returns:
        [B, K, h, w], float16 where kernels and features share a half precision, else float32.
    """
    batch_size, places = cells.shape
    height, width = features.shape[2:]
    features, strides = as_pixels(features)
    tiling = tiling_of(kernels, features, strides, places, most_rows=128)
    row_blocks = triton.cdiv(places, tiling.rows)
    num_blocks = triton.cdiv(height * width, PIXELS)
    parts = tiling.parts(features.device, row_blocks * batch_size, num_blocks)
    single = tiling.operand == torch.float32
    soft = torch.empty(
        batch_size,
        places,
        height,
        width,
        dtype=torch.float32 if single else torch.float16,
        device=features.device,
    )
    with on_device_of(features):
        _soft[(row_blocks, parts, batch_size)](
            kernels,
            features,
            cells.contiguous(),
            valid.contiguous().view(torch.uint8),
            soft,
            places,
            height * width,
            num_blocks,
            kernels.shape[2],
            *kernels.stride(),
            *strides,
            PIXELS=PIXELS,
            WIDE=is_wide(features) or places * height * width >= 2**31,
            **tiling.constants,
            num_warps=tiling.warps,
        )
    return soft


@jit
def _soft(  # type: ignore[no-untyped-def]
    kernels_ptr,
    features_ptr,
    cells_ptr,
    valid_ptr,
    soft_ptr,
    num_places,
    num_pixels,
    num_blocks,
    num_channels,
    kernel_image,
    kernel_cell,
    kernel_channel,
    feature_image,
    feature_channel,
    feature_pixel,
    PIXELS: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    RESIDENT: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Probabilities of ROWS instances on every num_programs(1)-th block of pixels."""
    image = tl.program_id(2).to(tl.int64)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    exists = rows < num_places
    listed = image * num_places + rows
    real = exists & (tl.load(valid_ptr + listed, mask=exists, other=0) != 0)
    cells = tl.load(cells_ptr + listed, mask=exists, other=0)
    rows_ptr = kernels_ptr + image * kernel_image + cells * kernel_cell
    features_ptr += image * feature_image
    soft_ptr += image * num_places * num_pixels
    starts = rows
    if WIDE:
        starts = starts.to(tl.int64)
    held = rows
    if RESIDENT:
        held = resident_kernels(rows_ptr, real, num_channels, kernel_channel, CHANNELS)
    for block in tl.range(tl.program_id(1), num_blocks, tl.num_programs(1), num_stages=3):
        pixels = block * PIXELS + tl.arange(0, PIXELS)
        in_map = pixels < num_pixels
        logits = logit_tile(
            held,
            rows_ptr,
            real,
            features_ptr,
            pixels,
            in_map,
            num_channels,
            kernel_channel,
            feature_channel,
            feature_pixel,
            CHANNELS,
            RESIDENT,
            OPERAND,
            PRECISION,
            WIDE,
        )
        probs = sigmoid(tl.where(real[:, None], logits, -float("inf")))
        tl.store(
            soft_ptr + starts[:, None] * num_pixels + pixels[None, :],
            probs.to(soft_ptr.dtype.element_ty),
            mask=exists[:, None] & in_map[None, :],
        )
