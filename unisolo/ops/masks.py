"""Masks as bits, their intersections, and their way back to the size of the original image."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from unisolo.ops.backend import backend_for
from unisolo.ops.boxes import masks_to_boxes

__all__ = [
    "CHUNK_PIXELS",
    "UpsampledMasks",
    "check_frames",
    "full_precision",
    "mask_intersections",
    "pack_bits",
    "popcount",
    "resize_to_original",
    "row_chunks",
    "unpack_bits",
    "upsample_masks",
]

CHUNK_PIXELS = 2**24
"""Default number of values of the largest temporary float tensor (64 MiB in float32)."""


class UpsampledMasks(NamedTuple):
    """Masks of one image at its original size.

    Attributes:
        packed: [K, H, ceil(W / 8)] uint8, bits along the width (see `pack_bits`).
        boxes: [K, 4] float32 xyxy, half-open, original pixels; zeros for an empty mask.
        areas: [K] int64, pixels.
    """

    packed: Tensor
    boxes: Tensor
    areas: Tensor


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which matrix products keep their inputs' precision.

    Under `torch.autocast` a product of float32 tensors is rounded to half precision, which would
    make counts wrong. Outside autocast this is a null context, which leaves no trace in an export.

    Args:
        device: Device of the tensors that are multiplied.

    Returns:
        A context manager.
    """
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def row_chunks(num_rows: int, row_size: int, chunk_size: int) -> Iterator[slice]:
    """Split rows so that each part holds at most `chunk_size` values, and at least one row.

    Args:
        num_rows: How many rows there are; 0 yields nothing.
        row_size: Values per row.
        chunk_size: Values per part.

    Yields:
        Slices that cover all rows in order.

    Raises:
        ValueError: If `chunk_size` is below 1.
    """
    if chunk_size < 1:
        raise ValueError(f"a chunk must hold at least 1 value, got {chunk_size}")
    step = max(1, chunk_size // max(1, row_size))
    for start in range(0, num_rows, step):
        yield slice(start, min(start + step, num_rows))


def pack_bits(masks: Tensor) -> Tensor:
    """Pack the last dimension of boolean masks, 8 pixels to a byte.

    Args:
        masks: [..., W] bool.

    Returns:
        [..., ceil(W / 8)] uint8, first pixel in the highest bit as in `numpy.packbits`; the bits
        past the width are 0.

    Raises:
        ValueError: If `masks` is not bool or has no dimension.
    """
    if masks.dtype != torch.bool or masks.ndim < 1:
        raise ValueError(
            f"pack_bits needs bool masks [..., W], got {masks.dtype} {list(masks.shape)}"
        )
    width = masks.shape[-1]
    num_bytes = (width + 7) // 8
    bits = F.pad(masks, (0, num_bytes * 8 - width)).view(torch.uint8)
    bits = bits.reshape(*masks.shape[:-1], num_bytes, 8)
    packed = bits[..., 7].clone()
    for place in range(7):  # three times faster than a sum over 8 values
        packed |= bits[..., place] << (7 - place)
    return packed


def unpack_bits(packed: Tensor, width: int) -> Tensor:
    """Undo `pack_bits`.

    Args:
        packed: [..., ceil(width / 8)] uint8.
        width: Number of pixels in the last dimension.

    Returns:
        [..., width] bool.

    Raises:
        ValueError: If the number of bytes does not fit the width.
    """
    _check_packed("unpack_bits", packed, width)
    # Made on the device: a copy from the host would be a sync.
    shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=packed.device)
    bits = (packed.unsqueeze(-1) >> shifts) & 1
    return bits.reshape(*packed.shape[:-1], packed.shape[-1] * 8)[..., :width].bool()


def popcount(packed: Tensor) -> Tensor:
    """Count the pixels of packed masks along the last dimension.

    Args:
        packed: [..., M] uint8.

    Returns:
        [...] int64.

    Raises:
        ValueError: If `packed` is not uint8 or has no dimension.
    """
    if packed.dtype != torch.uint8 or packed.ndim < 1:
        raise ValueError(f"popcount needs uint8 [..., M], got {packed.dtype} {list(packed.shape)}")
    # Sums of neighbouring bits inside each byte, then of pairs, then of nibbles: unlike a lookup
    # table this needs no int64 index eight times the size of the masks.
    pairs = packed - ((packed >> 1) & 0x55)
    nibbles = (pairs & 0x33) + ((pairs >> 2) & 0x33)
    return ((nibbles + (nibbles >> 4)) & 0x0F).sum(-1, dtype=torch.int64)


def mask_intersections(masks: Tensor, *, chunk_pixels: int | None = CHUNK_PIXELS) -> Tensor:
    """Count the pixels that every two masks share.

    Args:
        masks: [N, P] or [B, N, P] bool; or uint8, 8 pixels to a byte as `pack_bits` gives them.
        chunk_pixels: Mask pixels turned to float at a time; changes memory, never the result.
            None = all, for at most 2**24 pixels per mask.

    Returns:
        [..., N, N] float32, symmetric, areas on the diagonal. Exact integers up to 2**24, beyond
        that the nearest float.

    Raises:
        ValueError: If `masks` is neither bool nor uint8, or not of rank 2 or 3.
    """
    if masks.dtype not in (torch.bool, torch.uint8) or masks.ndim not in (2, 3):
        raise ValueError(
            "mask_intersections needs bool or packed masks [N, P], "
            f"got {masks.dtype} {list(masks.shape)}"
        )
    # Zeros and ones are exact in every float format (TF32 too) and a float32 sum of at most 2**24
    # of them is exact; the parts are added as integers.
    with full_precision(masks.device):
        if chunk_pixels is None:
            whole = _pixels(masks)
            return whole @ whole.mT
        num_rows = math.prod(masks.shape[:-1])
        chunk_pixels = min(chunk_pixels, max(1, num_rows) * 2**24)
        counts = torch.zeros(
            *masks.shape[:-1], masks.shape[-2], dtype=torch.int64, device=masks.device
        )
        column_size = num_rows if masks.dtype == torch.bool else 8 * num_rows
        for columns in row_chunks(masks.shape[-1], column_size, chunk_pixels):
            part = _pixels(masks[..., columns])
            counts += (part @ part.mT).to(torch.int64)
    return counts.float()


def _pixels(masks: Tensor) -> Tensor:
    """Bool or packed masks as zeros and ones in float32."""
    if masks.dtype == torch.uint8:
        masks = unpack_bits(masks, 8 * masks.shape[-1])
    return masks.float()


def check_frames(
    maps: Tensor, *, padded_size: tuple[int, int], input_size: tuple[int, int]
) -> None:
    """Refuse what `resize_to_original` and its twins cannot resize.

    Raises:
        ValueError: If `maps` is not float of rank 3, or the valid part exceeds the padded size.
    """
    if maps.ndim != 3 or not maps.is_floating_point():
        raise ValueError(
            f"resize_to_original needs float maps [K, h, w], got {maps.dtype} {list(maps.shape)}"
        )
    height, width = input_size
    if not (0 < height <= padded_size[0] and 0 < width <= padded_size[1]):
        raise ValueError(
            f"input_size {input_size} must be positive and inside padded_size {padded_size}; "
            "both are (H, W)"
        )


def resize_to_original(
    maps: Tensor,
    *,
    padded_size: tuple[int, int],
    input_size: tuple[int, int],
    orig_size: tuple[int, int],
) -> Tensor:
    """Bring maps of the padded model input to the original image (SOLOv2's two resizes).

    Bilinear (align_corners=False, no antialias) to the padded size, cut to the valid part, bilinear
    to the original size. One resize straight to the original would shift the masks.

    Args:
        maps: [K, h, w] floating, covering the padded input.
        padded_size: (H, W) of the model's input with padding.
        input_size: (H, W) of the valid part, at the top left.
        orig_size: (H, W) of the original image.

    Returns:
        [K, *orig_size] float32.

    Raises:
        ValueError: If `maps` is not of rank 3, or the valid part exceeds the padded size.
    """
    check_frames(maps, padded_size=padded_size, input_size=input_size)
    # Maps go as the batch, not the channels: a batch of 0 is allowed, 0 channels are not.
    padded = F.interpolate(maps.float().unsqueeze(1), padded_size, mode="bilinear")
    valid = padded[..., : input_size[0], : input_size[1]]
    if input_size == orig_size and not torch.compiler.is_compiling():  # a graph's sizes are free
        return valid.squeeze(1)
    return F.interpolate(valid, orig_size, mode="bilinear").squeeze(1)


def upsample_masks(
    mask_probs: Tensor,
    *,
    padded_size: tuple[int, int],
    input_size: tuple[int, int],
    orig_size: tuple[int, int],
    threshold: float = 0.5,
    chunk_pixels: int = CHUNK_PIXELS,
) -> UpsampledMasks:
    """Make the final masks of one image: soft masks to the original size, then the threshold.

    Boxes and areas are measured on these masks, so they agree with what the user sees; boxes
    measured at stride 4 would be off by up to several pixels after the resizes.

    Memory: full-size floats exist for `chunk_pixels` pixels at a time (or for one instance, where
    the image alone is larger); what remains is one bit per pixel and instance.

    Args:
        mask_probs: [K, h, w] floating, soft masks over the padded input.
        padded_size: (H, W) of the model's input with padding.
        input_size: (H, W) of the valid part of the model's input.
        orig_size: (H, W) of the original image.
        threshold: A pixel belongs to the mask where its probability is above this (strict).
        chunk_pixels: Changes memory, never the result.

    Returns:
        Packed masks, boxes and areas in the original frame. Masks may be empty.

    Raises:
        ValueError: As `resize_to_original`.
    """
    backend = backend_for(mask_probs.device)
    if backend == "triton":
        from unisolo.ops.kernels.upsample import upsample_masks as twin

        return twin(
            mask_probs,
            padded_size=padded_size,
            input_size=input_size,
            orig_size=orig_size,
            threshold=threshold,
            chunk_pixels=chunk_pixels,
        )
    if backend == "cpu":
        from unisolo.ops.cpu.upsample import upsample_masks as cpu_twin

        return cpu_twin(
            mask_probs,
            padded_size=padded_size,
            input_size=input_size,
            orig_size=orig_size,
            threshold=threshold,
            chunk_pixels=chunk_pixels,
        )
    num_masks = mask_probs.shape[0]
    height, width = orig_size
    device = mask_probs.device
    packed = torch.empty(num_masks, height, (width + 7) // 8, dtype=torch.uint8, device=device)
    boxes = torch.empty(num_masks, 4, dtype=torch.float32, device=device)
    areas = torch.empty(num_masks, dtype=torch.int64, device=device)
    largest = max(height * width, padded_size[0] * padded_size[1])
    for rows in row_chunks(num_masks, largest, chunk_pixels):
        soft = resize_to_original(
            mask_probs[rows], padded_size=padded_size, input_size=input_size, orig_size=orig_size
        )
        masks = soft > threshold
        packed[rows] = pack_bits(masks)
        boxes[rows] = masks_to_boxes(masks)
        areas[rows] = popcount(packed[rows].flatten(1))
    return UpsampledMasks(packed, boxes, areas)


def _check_packed(name: str, packed: Tensor, width: int) -> None:
    if packed.dtype != torch.uint8 or packed.ndim < 1 or packed.shape[-1] != (width + 7) // 8:
        raise ValueError(
            f"{name} needs uint8 [..., {(width + 7) // 8}] for a width of {width}, "
            f"got {packed.dtype} {list(packed.shape)}"
        )
