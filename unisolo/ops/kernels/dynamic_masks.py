"""Triton: masks of the candidates, from kernels and features straight to bits.

The dynamic convolution, the sigmoid, the threshold, the area and the maskness are one kernel: soft
masks of the candidates never reach memory. A grid as large as the GPU walks over the pixels; each
program keeps its candidates' kernels on the chip and what it sums in registers, and writes its
sums once. A second kernel adds the sums in a fixed order, so that every run gives the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from unisolo.ops.kernels.launch import as_pixels, exact_tanh, jit, on_device_of, popcount, tanh
from unisolo.ops.kernels.packed import BLOCK_WORDS, PackedMasks, words_of
from unisolo.ops.kernels.products import is_wide, logit_tile, resident_kernels, tiling_of
from unisolo.ops.select import Candidates
from unisolo.structures import GridSpec

__all__ = ["dynamic_masks"]

SUMS = 4
"""Area, twice the probability above one half, first and last occupied block."""


def dynamic_masks(
    kernels: Tensor,
    features: Tensor,
    candidates: Candidates,
    grid: GridSpec,
    *,
    mask_threshold: float,
    least_areas: Sequence[int],
) -> tuple[PackedMasks, Tensor]:
    """Make and measure the masks of all candidates of a batch.

    Args:
        kernels: [B, L, E] floating, one 1 x 1 kernel per cell, any strides.
        features: [B, E, h, w] floating, any strides.
        candidates: [B, n], n at least 1; score 0 marks an empty place, whose mask is empty.
        grid: The model's grid.
        mask_threshold: A pixel is inside where its probability is above this.
        least_areas: For each level the area that a mask must exceed.

    Returns:
        Packed masks (pixels interleaved, see `unpack_masks`), and [B, n] float32 scores:
        probability times maskness, 0 for a mask whose area is not above the least.
    """
    batch_size, num_candidates = candidates.scores.shape
    num_pixels = features.shape[2] * features.shape[3]
    num_words = words_of(num_pixels)
    features, strides = as_pixels(features)
    tiling = tiling_of(kernels, features, strides, num_candidates, most_rows=256)
    row_blocks = triton.cdiv(num_candidates, tiling.rows)
    parts = tiling.parts(features.device, row_blocks * batch_size, num_words // BLOCK_WORDS)
    padded = row_blocks * tiling.rows
    padded_parts = triton.next_power_of_2(parts)
    measured_rows = max(2, min(16, 2048 // padded_parts))  # what four warps hold in registers
    device = features.device
    bits = torch.empty(batch_size, num_candidates, num_words, dtype=torch.int32, device=device)
    sums = torch.empty(batch_size, parts, SUMS, padded, dtype=torch.int32, device=device)
    measured = torch.empty(3, batch_size, num_candidates, dtype=torch.int32, device=device)
    weighed = torch.empty(2, batch_size, num_candidates, dtype=torch.float32, device=device)
    with on_device_of(features):
        _masks[(row_blocks, parts, batch_size)](
            kernels,
            features,
            candidates.cells,
            candidates.scores,
            bits,
            sums,
            num_candidates,
            num_pixels,
            num_words,
            kernels.shape[2],
            *kernels.stride(),
            *strides,
            _logit(mask_threshold),
            BLOCK_WORDS=BLOCK_WORDS,
            BELOW_HALF=mask_threshold < 0.5,
            AT_HALF=mask_threshold == 0.5,
            EXACT=tiling.operand == torch.float32,
            WIDE=is_wide(features) or num_candidates * num_words >= 2**31,
            **tiling.constants,
            num_warps=tiling.warps,
        )
        _measure[(triton.cdiv(num_candidates, measured_rows), batch_size)](
            sums,
            candidates.cells,
            candidates.scores,
            *measured,
            *weighed,
            num_candidates,
            padded,
            parts,
            STARTS=grid.offsets,
            LEAST=tuple(least_areas),
            NUM_LEVELS=grid.num_levels,
            BLOCK=measured_rows,
            PARTS=padded_parts,
            num_warps=4,
        )
    areas, first, last = measured
    maskness, scores = weighed
    return PackedMasks(bits, areas, maskness, first, last), scores


def _logit(probability: float) -> float:
    if not 0 < probability < 1:
        return math.inf if probability >= 1 else -math.inf
    return math.log(probability / (1 - probability))


@jit
def _masks(  # type: ignore[no-untyped-def]
    kernels_ptr,
    features_ptr,
    cells_ptr,
    scores_ptr,
    bits_ptr,
    sums_ptr,
    num_candidates,
    num_pixels,
    num_words,
    num_channels,
    kernel_image,
    kernel_cell,
    kernel_channel,
    feature_image,
    feature_channel,
    feature_pixel,
    threshold,
    BLOCK_WORDS: tl.constexpr,
    BELOW_HALF: tl.constexpr,
    AT_HALF: tl.constexpr,
    EXACT: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    RESIDENT: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Bits and partial sums of ROWS candidates over every num_programs(1)-th block of pixels."""
    PIXELS: tl.constexpr = 32 * BLOCK_WORDS
    image = tl.program_id(2).to(tl.int64)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    exists = rows < num_candidates
    listed = image * num_candidates + rows
    real = exists & (tl.load(scores_ptr + listed, mask=exists, other=0.0) > 0)
    cells = tl.load(cells_ptr + listed, mask=exists, other=0)
    rows_ptr = kernels_ptr + image * kernel_image + cells * kernel_cell
    features_ptr += image * feature_image
    starts = rows
    if WIDE:
        starts = starts.to(tl.int64)
    bits_ptr += image * num_candidates * num_words
    held = rows
    if RESIDENT:
        held = resident_kernels(rows_ptr, real, num_channels, kernel_channel, CHANNELS)
    areas = tl.zeros([ROWS], tl.int32)
    above = tl.zeros([ROWS], tl.float32)
    first = tl.full([ROWS], 0x7FFFFFFF, tl.int32)
    last = tl.full([ROWS], -1, tl.int32)
    weights = 1 << tl.arange(0, 32)
    for block in tl.range(
        tl.program_id(1), num_words // BLOCK_WORDS, tl.num_programs(1), num_stages=3
    ):
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
        inside = logits > threshold
        if BELOW_HALF:  # else the zeros of padding are never above it
            inside = inside & in_map[None, :] & real[:, None]
        # In this order of pixels a thread packs mostly what it has computed itself.
        ordered = inside.reshape(ROWS, PIXELS // 8, BLOCK_WORDS, 8 // BLOCK_WORDS)
        ordered = ordered.permute(0, 2, 1, 3).reshape(ROWS, BLOCK_WORDS, 32)
        words = tl.sum(tl.where(ordered, weights[None, None, :], 0), 2)
        at = block * BLOCK_WORDS + tl.arange(0, BLOCK_WORDS)
        at = starts[:, None] * num_words + at[None, :]
        tl.store(bits_ptr + at, words, mask=exists[:, None])
        here = tl.sum(popcount(words), 1)
        areas += here
        first = tl.minimum(first, tl.where(here > 0, block, 0x7FFFFFFF))
        last = tl.maximum(last, tl.where(here > 0, block, -1))
        # sigmoid(x) = (1 + tanh(x / 2)) / 2, and tanh(0) = 0: pixels outside add nothing.
        # At one half a maximum says the same, and is cheaper than to keep or repeat a comparison.
        halves = 0.5 * (tl.maximum(logits, 0.0) if AT_HALF else tl.where(inside, logits, 0.0))
        tangents = exact_tanh(halves) if EXACT else tanh(halves)
        above += tl.sum(tangents, 1)
    padded = tl.num_programs(0) * ROWS
    sums_ptr += (image * tl.num_programs(1) + tl.program_id(1)) * 4 * padded
    tl.store(sums_ptr + rows, areas)
    tl.store(sums_ptr + padded + rows, above.to(tl.int32, bitcast=True))
    tl.store(sums_ptr + 2 * padded + rows, first)
    tl.store(sums_ptr + 3 * padded + rows, last)


@jit
def _measure(  # type: ignore[no-untyped-def]
    sums_ptr,
    cells_ptr,
    probs_ptr,
    areas_ptr,
    first_ptr,
    last_ptr,
    maskness_ptr,
    scores_ptr,
    num_candidates,
    padded,
    num_parts,
    STARTS: tl.constexpr,
    LEAST: tl.constexpr,
    NUM_LEVELS: tl.constexpr,
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Add the partial sums of BLOCK candidates; areas, maskness and scores come of them."""
    image = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = rows < num_candidates
    listed = image * num_candidates + rows
    parts = tl.arange(0, PARTS)
    counted = (parts < num_parts)[:, None] & exists[None, :]
    at = sums_ptr + (image * num_parts + parts)[:, None] * 4 * padded + rows[None, :]
    # All loads before the first sum: one wait for memory.
    areas = tl.load(at, mask=counted, other=0)
    above = tl.load(at + padded, mask=counted, other=0).to(tl.float32, bitcast=True)
    first = tl.load(at + 2 * padded, mask=counted, other=0x7FFFFFFF)
    last = tl.load(at + 3 * padded, mask=counted, other=-1)
    cells = tl.load(cells_ptr + listed, mask=exists, other=0)
    probs = tl.load(probs_ptr + listed, mask=exists, other=0.0)
    areas, first, last = tl.sum(areas, 0), tl.min(first, 0), tl.max(last, 0)
    size = areas.to(tl.float32)
    maskness = 0.5 * (size + tl.sum(above, 0)) / tl.maximum(size, 1.0)
    least = tl.zeros([BLOCK], tl.int32)
    for level in tl.static_range(NUM_LEVELS):
        least = tl.where(cells >= STARTS[level], LEAST[level], least)
    tl.store(areas_ptr + listed, areas, mask=exists)
    tl.store(first_ptr + listed, first, mask=exists)
    tl.store(last_ptr + listed, last, mask=exists)
    tl.store(maskness_ptr + listed, maskness, mask=exists)
    tl.store(scores_ptr + listed, tl.where(areas > least, probs * maskness, 0.0), mask=exists)
