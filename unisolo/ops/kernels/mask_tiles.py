"""Tiles of packed masks: what lies beyond the image, where a tile is written, and its measures.

A tile is [R, C] int32, each value one byte of 8 pixels as in `unisolo.ops.masks.pack_bits`.
Programs leave area and extent of their tiles in a table [K, 5, tiles]; `join_measures` makes boxes
and areas of it. No atomics: nothing has to be cleared first, and any order of the programs gives
the same bits.
"""

from __future__ import annotations

import triton
import triton.language as tl

from unisolo.ops.kernels.launch import jit, popcount

__all__ = [
    "FAR",
    "add_measure",
    "cut_tile",
    "join_measures",
    "no_measure",
    "store_empty_measure",
    "store_measure",
    "store_tile",
]

FAR = tl.constexpr(2**30)
"""Beyond every pixel: the smallest row or column of an empty tile."""


@jit
def cut_tile(bytes_, rows, byte_columns, height, width):  # type: ignore[no-untyped-def]
    """Clear the pixels beyond the image."""
    left = tl.maximum(tl.minimum(width - 8 * byte_columns, 8), 0)  # pixels of each byte in it
    keep = (0xFF00 >> left) & 0xFF
    return tl.where((rows < height)[:, None], bytes_ & keep[None, :], 0)


@jit
def store_tile(packed, mask, bytes_, rows, byte_columns, height, width):  # type: ignore[no-untyped-def]
    """Write a tile of one mask into packed [K, H, ceil(W / 8)] uint8."""
    num_bytes = (width + 7) // 8
    lines = packed + (mask * height + rows.to(tl.int64)) * num_bytes
    inside = (rows < height)[:, None] & (byte_columns < num_bytes)[None, :]
    tl.store(lines[:, None] + byte_columns[None, :], bytes_.to(tl.uint8), mask=inside)


@jit
def no_measure(ROWS: tl.constexpr, BYTES: tl.constexpr):  # type: ignore[no-untyped-def]
    """Start the measures of a program's tiles: pixel columns, pixels, first row, last row + 1."""
    nothing = tl.zeros([ROWS, BYTES], tl.int32)
    return nothing, nothing, tl.full([ROWS, BYTES], FAR, tl.int32), nothing


@jit
def add_measure(bytes_, rows, union, area, low_y, high_y):  # type: ignore[no-untyped-def]
    """Add a tile at some rows to what `no_measure` began."""
    some = bytes_ != 0
    union |= bytes_
    area += popcount(bytes_)
    low_y = tl.minimum(low_y, tl.where(some, rows[:, None], FAR))
    high_y = tl.maximum(high_y, tl.where(some, rows[:, None] + 1, 0))
    return union, area, low_y, high_y


@jit
def _highest_bit(values):  # type: ignore[no-untyped-def]
    """Number of the highest set bit of values above 0: the exponent of their float form."""
    return (values.to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127


@jit
def store_measure(measure, columns, area, low_y, high_y, byte_columns):  # type: ignore[no-untyped-def]
    """Write area and half-open extent of a tile.

    Args:
        measure: Pointer to the first of its five numbers, which lie one tile count apart.
        columns: [R, C] int32 bytes: every pixel column that has a pixel in some row.
        area: [R, C] int32, pixels.
        low_y: [R, C] int32, smallest row, or FAR.
        high_y: [R, C] int32, largest row + 1, or 0.
        byte_columns: [C] int32.
    """
    stride = tl.num_programs(0)
    start = 8 * byte_columns[None, :]
    some = tl.where(columns == 0, 1, columns)  # the logarithm needs a bit
    low_x = tl.where(columns != 0, start + 7 - _highest_bit(some), FAR)
    high_x = tl.where(columns != 0, start + 8 - _highest_bit(some & -some), 0)
    tl.store(measure, tl.min(tl.min(low_x, 1), 0))
    tl.store(measure + stride, tl.min(tl.min(low_y, 1), 0))
    tl.store(measure + 2 * stride, tl.max(tl.max(high_x, 1), 0))
    tl.store(measure + 3 * stride, tl.max(tl.max(high_y, 1), 0))
    tl.store(measure + 4 * stride, tl.sum(tl.sum(area, 1), 0))


@jit
def store_empty_measure(measure):  # type: ignore[no-untyped-def]
    """Write the measures of a tile without a pixel, which takes no reductions."""
    stride = tl.num_programs(0)
    tl.store(measure, FAR)
    tl.store(measure + stride, FAR)
    tl.store(measure + 2 * stride, 0)
    tl.store(measure + 3 * stride, 0)
    tl.store(measure + 4 * stride, 0)


@triton.jit(do_not_specialize=["num_tiles"])  # type: ignore[untyped-decorator]
def join_measures(measures, boxes, areas, num_tiles, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Box and area of one mask from those of its tiles."""
    mask = tl.program_id(0).to(tl.int64)
    measures += mask * 5 * num_tiles
    low_x = tl.full([BLOCK], FAR, tl.int32)
    low_y = tl.full([BLOCK], FAR, tl.int32)
    high_x = tl.zeros([BLOCK], tl.int32)
    high_y = tl.zeros([BLOCK], tl.int32)
    area = tl.zeros([BLOCK], tl.int64)
    for start in range(0, num_tiles, BLOCK):
        tiles = start + tl.arange(0, BLOCK)
        inside = tiles < num_tiles
        low_x = tl.minimum(low_x, tl.load(measures + tiles, mask=inside, other=FAR))
        low_y = tl.minimum(low_y, tl.load(measures + num_tiles + tiles, mask=inside, other=FAR))
        high_x = tl.maximum(high_x, tl.load(measures + 2 * num_tiles + tiles, mask=inside, other=0))
        high_y = tl.maximum(high_y, tl.load(measures + 3 * num_tiles + tiles, mask=inside, other=0))
        area += tl.load(measures + 4 * num_tiles + tiles, mask=inside, other=0).to(tl.int64)
    end_x = tl.max(high_x, 0)
    end_y = tl.max(high_y, 0)
    # An empty mask ends at 0, and so does its box.
    tl.store(boxes + mask * 4, tl.minimum(tl.min(low_x, 0), end_x).to(tl.float32))
    tl.store(boxes + mask * 4 + 1, tl.minimum(tl.min(low_y, 0), end_y).to(tl.float32))
    tl.store(boxes + mask * 4 + 2, end_x.to(tl.float32))
    tl.store(boxes + mask * 4 + 3, end_y.to(tl.float32))
    tl.store(areas + mask, tl.sum(area, 0))
