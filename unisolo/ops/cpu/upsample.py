"""Masks to the original size, inside their boxes; the twin of `unisolo.ops.masks.upsample_masks`.

Both resizes are linear and treat the axes alike, so together they are one small matrix per axis,
and a mask is a product of three: what lies around it is never touched. Products round differently
from the two resizes. A mask with a pixel so close to the threshold that this could matter is made
again by the definition: about one in a hundred of a network's masks.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unisolo.ops.backend import use_kernels
from unisolo.ops.boxes import extents
from unisolo.ops.cpu.packed import count_bits
from unisolo.ops.masks import (
    CHUNK_PIXELS,
    UpsampledMasks,
    check_frames,
    full_precision,
    resize_to_original,
    row_chunks,
)
from unisolo.ops.masks import (
    upsample_masks as definition,
)

__all__ = ["upsample_masks"]

ROUNDING = 13 * 2.0**-24
"""How far the two ways can be apart per resize, as a share of a pixel's value. A resize rounds 4
times on the way to a pixel. Here the matrix of each axis rounds 2 times and each product 2 times,
as it adds 2 values that are not 0; the last unit covers what roundings do to each other."""

UNDERFLOW = 1e-30
"""Where values are so small that shares of them are no measure."""

STRIP = 128
"""Rows of a matrix used at a time: they reach few columns, all others are 0."""

ENOUGH = 8
"""Masks made in vain, if more than half were, before the definition makes the rest: noise."""

REUSED_PIXELS = 2**22
"""Floats of a size that an allocator keeps, instead of asking for new pages each time."""


class _Axis(NamedTuple):
    """Both resizes along one axis.

    Attributes:
        weights: [size, n] float, of the original's pixel and the map's.
        first: [size] int64, first map pixel that is read; rises.
        end: [size] int64, the last one + 1; rises.
    """

    weights: Tensor
    first: NDArray[np.int64]
    end: NDArray[np.int64]

    def outputs(self, start: int, stop: int) -> tuple[int, int]:
        """Range of the original's pixels that read any map pixel of start..stop."""
        return int(self.end.searchsorted(start, "right")), int(self.first.searchsorted(stop))

    def inputs(self, start: int, stop: int) -> tuple[int, int]:
        """Range of the map's pixels that pixels start..stop of the original read."""
        return int(self.first[start]), int(self.end[stop - 1])


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

    Memory: one mask in float, as far as it reaches, and one bit per pixel and instance.

    Args:
        mask_probs: [K, h, w] floating.
        padded_size: (H, W) of the model's input with padding.
        input_size: (H, W) of its valid part.
        orig_size: (H, W) of the original image.
        threshold: Strict.
        chunk_pixels: Upper bound for masks that the definition makes.

    Returns:
        Packed masks, boxes and areas, equal to the definition's bit for bit.

    Raises:
        ValueError: As the definition.
    """
    sizes = {"padded_size": padded_size, "input_size": input_size, "orig_size": orig_size}
    check_frames(mask_probs, padded_size=padded_size, input_size=input_size)
    num_masks = len(mask_probs)
    packed = mask_probs.new_zeros(
        num_masks, orig_size[0], (orig_size[1] + 7) // 8, dtype=torch.uint8
    )
    boxes = mask_probs.new_zeros(num_masks, 4, dtype=torch.float32)
    areas = mask_probs.new_zeros(num_masks, dtype=torch.int64)
    found = UpsampledMasks(packed, boxes, areas)
    if num_masks == 0:
        return found
    soft = mask_probs.detach().float()
    lowest, highest = (float(value) for value in soft.aminmax())
    unsure = list(range(num_masks))
    if math.isfinite(lowest) and math.isfinite(highest):
        axes = [_axis(*lengths) for lengths in zip(soft.shape[1:], *sizes.values(), strict=True)]
        # Sums of what is not negative err by a share of themselves, others by one of their terms.
        scale = abs(threshold) if lowest >= 0 else max(abs(threshold), -lowest, abs(highest))
        resizes = (soft.shape[1:] != padded_size) + (input_size != orig_size)
        margin = resizes * ROUNDING * scale + UNDERFLOW
        unsure = _upsample(soft, axes, threshold, margin, found)
    if unsure:
        with use_kernels("torch"):
            exact = definition(
                mask_probs[unsure],
                **sizes,
                threshold=threshold,
                chunk_pixels=min(chunk_pixels, REUSED_PIXELS),
            )
        packed[unsure], boxes[unsure], areas[unsure] = exact
    return found


def _axis(size: int, padded: int, valid: int, orig: int) -> _Axis:
    """Find what the resizes do along one axis by resizing each pixel alone."""
    # Along the width, which takes half of the time.
    single = torch.eye(size, dtype=torch.float32, device="cpu").unsqueeze(1)
    resized = resize_to_original(
        single, padded_size=(1, padded), input_size=(1, valid), orig_size=(1, orig)
    )
    weights = resized.squeeze(1).t().contiguous()
    if torch.get_float32_matmul_precision() != "highest":
        weights = weights.double()  # products of float32 would be rounded to less
    read = weights.numpy() != 0
    return _Axis(weights, read.argmax(1), size - read[:, ::-1].argmax(1))


def _upsample(
    soft: Tensor,
    axes: list[_Axis],
    threshold: float,
    margin: float,
    found: UpsampledMasks,
) -> list[int]:
    """Fill in all masks of which every pixel is sure; return the numbers of the others."""
    vertical, horizontal = axes
    packed, boxes, areas = (field.numpy() for field in found)
    # A mean of values at most this high cannot pass the threshold, however it is rounded.
    rows = torch.stack(extents(soft.amax(2) > threshold - margin), 1).tolist()
    columns = torch.stack(extents(soft.amax(1) > threshold - margin), 1).tolist()
    unsure: list[int] = []
    for k, probs in enumerate(soft):
        if len(unsure) >= ENOUGH and 2 * len(unsure) > k:
            return [*unsure, *range(k, len(soft))]
        top, bottom = vertical.outputs(*rows[k])
        left, right = horizontal.outputs(*columns[k])
        if top >= bottom or left >= right:
            continue
        left -= left % 8  # whole bytes
        values = _resized(probs, vertical, horizontal, (top, bottom), (left, right))
        bits = np.packbits(values.numpy() > threshold, axis=1)
        if values.sub_(threshold).abs_().amin() <= margin:
            unsure.append(k)
            continue
        packed[k, top:bottom, left // 8 : left // 8 + bits.shape[1]] = bits
        y = np.flatnonzero(bits.any(1))
        if len(y):
            x = np.flatnonzero(np.unpackbits(np.bitwise_or.reduce(bits, axis=0)))
            boxes[k] = [left + x[0], top + y[0], left + x[-1] + 1, top + y[-1] + 1]
            areas[k] = count_bits(bits).sum(dtype=np.int64)
    return unsure


def _resized(
    probs: Tensor,
    vertical: _Axis,
    horizontal: _Axis,
    rows: tuple[int, int],
    columns: tuple[int, int],
) -> Tensor:
    """Resize [h, w] to a part of the original's pixels."""
    left, right = horizontal.inputs(*columns)
    tall = vertical.weights.new_empty(rows[1] - rows[0], right - left)
    values = tall.new_empty(len(tall), columns[1] - columns[0])
    with full_precision(probs.device):
        probs = probs[:, left:right].to(tall.dtype)
        for part in row_chunks(len(tall), 1, STRIP):
            outputs = slice(part.start + rows[0], part.stop + rows[0])
            inputs = slice(*vertical.inputs(outputs.start, outputs.stop))
            torch.mm(vertical.weights[outputs, inputs], probs[inputs], out=tall[part])
        for part in row_chunks(values.shape[1], 1, STRIP):
            outputs = slice(part.start + columns[0], part.stop + columns[0])
            start, stop = horizontal.inputs(outputs.start, outputs.stop)
            weights = horizontal.weights[outputs, start:stop]
            torch.mm(tall[:, start - left : stop - left], weights.t(), out=values[:, part])
    return values
