"""Masks from dynamic kernels as bits; the CPU's form of `unisolo.ops.dynamic_masks`.

One product of matrices gives the logits of all candidates over some rows of the image. The steps
after it (sigmoid, threshold, packing, sums) take a few masks at a time, which stay in a core's
cache from one step to the next: passes over the memory are what takes the time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from unisolo.ops.cpu.packed import count_bits, pack_words
from unisolo.ops.masks import full_precision, row_chunks

__all__ = ["PackedCandidates", "pack_candidates", "write_soft_masks"]

CACHE_PIXELS = 2**17
"""Probabilities made at a time: 512 KiB."""
LEAST_ROWS = 16
"""Products of fewer rows are computed another way by BLAS libraries, and rounded differently."""
VECTOR = 64
"""Values that torch's elementwise functions take at once. Those left over are computed another way,
and rounded differently; so none are left over here, or a result would depend on the chunks."""


class PackedCandidates(NamedTuple):
    """Masks of n candidates.

    Attributes:
        words: [n, M] uint64, see `unisolo.ops.cpu.packed.pack_words`.
        areas: [n] int64, pixels.
        maskness: [n] float32, mean probability inside the mask; 0 for an empty mask.
        logits: What `write_soft_masks` need not compute again, if one chunk held all.
    """

    words: NDArray[np.uint64]
    areas: Tensor
    maskness: Tensor
    logits: Tensor | None


def pack_candidates(
    weights: Tensor,
    features: Tensor,
    *,
    mask_threshold: float,
    chunk_pixels: int | None,
    most_rows: int,
) -> PackedCandidates:
    """Make the masks of candidates.

    Args:
        weights: [n, E] floating, one 1 x 1 kernel per candidate.
        features: [E, h, w] floating.
        mask_threshold: Strict.
        chunk_pixels: Mask pixels in float at a time; None = all.
        most_rows: Kernels that the definition multiplies, at least n.

    Returns:
        The masks.
    """
    count = len(weights)
    height, width = features.shape[1:]
    rows = min(max(count, LEAST_ROWS), most_rows)
    blocks = list(_row_blocks(rows, features, chunk_pixels)) if count else []
    lengths = [-(-(block.stop - block.start) * width // 64) for block in blocks]
    words = np.empty((count, sum(lengths)), dtype=np.uint64)
    inside = weights.new_empty(count, height, dtype=torch.float32)
    logits = None
    start = 0
    for block, length in zip(blocks, lengths, strict=True):
        logits = _logits(weights, features[:, block], rows)
        num_pixels = (block.stop - block.start) * width
        for part in row_chunks(count, num_pixels, CACHE_PIXELS):
            soft = _sigmoid(logits, part, num_pixels)
            masks = soft > mask_threshold
            words[part, start : start + length] = pack_words(masks)
            inside[part, block] = _sums_inside(soft, masks, mask_threshold, width)
        start += length
    areas = torch.from_numpy(count_bits(words).sum(1, dtype=np.int64))
    # Each row of the image by itself, as the definition adds them.
    maskness = inside.sum(1) / areas.clamp_min(1)
    return PackedCandidates(words, areas, maskness, logits if len(blocks) == 1 else None)


def write_soft_masks(
    out: Tensor,
    logits: Tensor | None,
    places: Tensor,
    weights: Tensor,
    features: Tensor,
    *,
    chunk_pixels: int | None,
) -> None:
    """Write soft masks of some candidates.

    Args:
        out: [K, h, w] float32; the first m are written.
        logits: Of `pack_candidates`.
        places: [m] int64, which of them.
        weights: [n, E] floating, the kernels of all.
        features: [E, h, w] floating.
        chunk_pixels: As of `pack_candidates`.
    """
    count, (height, width) = len(places), out.shape[1:]
    if logits is not None:
        for mask, place in zip(out, places.tolist(), strict=False):
            soft = _sigmoid(logits, slice(place, place + 1), height * width)
            mask.copy_(soft.view(height, width))
        return
    rows = min(max(count, LEAST_ROWS), len(out))
    for block in _row_blocks(rows, features, chunk_pixels) if count else ():
        logits = _logits(weights[places], features[:, block], rows)
        num_pixels = (block.stop - block.start) * width
        for part in row_chunks(count, num_pixels, CACHE_PIXELS):
            soft = _sigmoid(logits, part, num_pixels)
            out[part, block] = soft.view(len(soft), -1, width)


def _row_blocks(num_masks: int, features: Tensor, chunk_pixels: int | None) -> Iterator[slice]:
    """Share out the rows of the image, so that every feature is read and turned to float once."""
    channels, height, width = features.shape
    values = width * max(num_masks, channels)
    return row_chunks(height, values, height * values if chunk_pixels is None else chunk_pixels)


def _logits(weights: Tensor, features: Tensor, num_rows: int) -> Tensor:
    """Multiply [n, E] by [E, rows, w]: flat, n * rows * w logits and some values of no meaning."""
    weights = F.pad(weights.float(), (0, 0, 0, num_rows - len(weights)))
    pixels = features.float().flatten(1)
    flat = pixels.new_empty(num_rows * pixels.shape[1] + VECTOR)
    with full_precision(weights.device):
        torch.mm(weights, pixels, out=flat[:-VECTOR].view(num_rows, -1))
    return flat


def _sigmoid(logits: Tensor, masks: slice, num_pixels: int) -> Tensor:
    """Probabilities [masks, num_pixels] from flat logits."""
    start, size = masks.start * num_pixels, (masks.stop - masks.start) * num_pixels
    soft = logits[start : start - (-size // VECTOR) * VECTOR].sigmoid()
    return soft[:size].view(-1, num_pixels)


def _sums_inside(soft: Tensor, masks: Tensor, mask_threshold: float, width: int) -> Tensor:
    """Sum the probabilities [n, rows * w] inside the masks: [n, rows]. `soft` is overwritten."""
    # A tenth of the time of `torch.where`.
    inside = F.threshold(soft, mask_threshold, 0.0, inplace=True)
    sums = inside.view(len(inside), -1, width).sum(-1)
    if sums.isnan().any():  # which a threshold lets through
        sums = torch.where(masks, inside, 0).view(len(inside), -1, width).sum(-1)
    return sums
