"""Masks as int32 words on the GPU: the form in which the kernels hand them to each other."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from unisolo.ops.kernels.launch import jit, on_device_of, popcount, round_up

__all__ = ["BLOCK_WORDS", "WORDS_MULTIPLE", "PackedMasks", "pack_masks", "unpack_masks", "words_of"]

BLOCK_WORDS = 2
"""Words per block, the unit of `PackedMasks.first` and `last`: 64 pixels."""

WORDS_MULTIPLE = 16
"""Words per mask are a multiple of this (512 pixels), so that rows can be read 16 bytes at a time
and a tensor-core product needs no tail."""


class PackedMasks(NamedTuple):
    """Masks of a batch of images, 32 pixels to a word.

    Pixels lie inside a mask in one fixed order that all masks of a call share (`unpack_masks`
    knows it): counts of shared pixels do not depend on it. Bits past the last pixel are 0.

    Attributes:
        bits: [B, N, M] int32, M a multiple of 16.
        areas: [B, N] int32, pixels.
        maskness: [B, N] float32: mean probability inside the mask; 0 for an empty mask.
        first: [B, N] int32, the first occupied block of `BLOCK_WORDS` words.
        last: [B, N] int32, the last one; below `first` where the mask is empty.
    """

    bits: Tensor
    areas: Tensor
    maskness: Tensor
    first: Tensor
    last: Tensor


def words_of(num_pixels: int) -> int:
    """Return M, the words of a mask of so many pixels; at least 16."""
    return round_up(max(1, (num_pixels + 31) // 32), WORDS_MULTIPLE)


def pack_masks(masks: Tensor) -> PackedMasks:
    """Pack boolean masks, pixels in their natural order; maskness is 1 (0 for an empty mask).

    Args:
        masks: [B, N, P] bool, N at least 1.

    Returns:
        Packed masks.

    Raises:
        ValueError: If `masks` is not bool of rank 3.
    """
    if masks.dtype != torch.bool or masks.ndim != 3:
        raise ValueError(
            f"pack_masks needs bool masks [B, N, P], got {masks.dtype} {list(masks.shape)}"
        )
    batch_size, num_masks, num_pixels = masks.shape
    masks = masks.contiguous()
    num_words = words_of(num_pixels)
    bits = torch.empty(batch_size, num_masks, num_words, dtype=torch.int32, device=masks.device)
    areas, first, last = torch.empty(
        3, batch_size, num_masks, dtype=torch.int32, device=masks.device
    )
    maskness = torch.empty(batch_size, num_masks, dtype=torch.float32, device=masks.device)
    packed = PackedMasks(bits, areas, maskness, first, last)
    with on_device_of(masks):
        _pack[(batch_size * num_masks,)](
            masks.view(torch.uint8),
            *packed,
            num_pixels,
            num_words,
            BLOCK=min(256, triton.next_power_of_2(num_words)),
            BLOCK_WORDS=BLOCK_WORDS,
            num_warps=4,
        )
    return packed


def unpack_masks(packed: PackedMasks, size: tuple[int, int], *, interleaved: bool) -> Tensor:
    """Undo the packing.

    Args:
        packed: Packed masks.
        size: (h, w) of the masks.
        interleaved: Whether pixels lie in the order of `unisolo.ops.kernels.dynamic_masks`: inside
            each block of 64, bit k of word w is pixel 8 * (k // 4) + 4 * w + k % 4. Otherwise
            bit k of word w is pixel 32 * w + k.

    Returns:
        [B, N, h, w] bool.
    """
    bits = packed.bits
    shifts = torch.arange(32, dtype=torch.int32, device=bits.device)
    pixels = (bits.unsqueeze(-1) >> shifts) & 1
    if interleaved:
        blocks = pixels.reshape(*bits.shape[:2], -1, BLOCK_WORDS, 8, 4)
        pixels = blocks.transpose(-3, -2)
    height, width = size
    flat = pixels.reshape(*bits.shape[:2], -1)[..., : height * width]
    return flat.reshape(*bits.shape[:2], height, width).bool()


@jit
def _pack(  # type: ignore[no-untyped-def]
    masks_ptr,
    bits_ptr,
    areas_ptr,
    maskness_ptr,
    first_ptr,
    last_ptr,
    num_pixels,
    num_words,
    BLOCK: tl.constexpr,
    BLOCK_WORDS: tl.constexpr,
):
    """Pack one mask per program."""
    mask = tl.program_id(0)
    masks_ptr += mask.to(tl.int64) * num_pixels
    bits_ptr += mask.to(tl.int64) * num_words
    places = tl.arange(0, 32)
    area = 0
    first = num_words
    last = -1
    for start in range(0, num_words, BLOCK):
        words = start + tl.arange(0, BLOCK)
        pixels = words[:, None] * 32 + places[None, :]
        inside = tl.load(masks_ptr + pixels, mask=pixels < num_pixels, other=0).to(tl.int32)
        packed = tl.sum((inside != 0).to(tl.int32) << places[None, :], 1)
        tl.store(bits_ptr + words, packed, mask=words < num_words)
        area += tl.sum(popcount(packed), 0)
        occupied = packed != 0
        blocks = words // BLOCK_WORDS
        first = tl.minimum(first, tl.min(tl.where(occupied, blocks, num_words), 0))
        last = tl.maximum(last, tl.max(tl.where(occupied, blocks, -1), 0))
    tl.store(areas_ptr + mask, area)
    tl.store(maskness_ptr + mask, tl.where(area > 0, 1.0, 0.0))
    tl.store(first_ptr + mask, first)
    tl.store(last_ptr + mask, last)
