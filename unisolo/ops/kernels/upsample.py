"""Soft masks to packed masks at original size, with their boxes and areas, in one pass.

No float of the original's size is ever in memory: a program interpolates a tile in registers,
compares it with the threshold and writes 8 pixels per byte. A tile over values that are all at most
the threshold is written as zeros at once, since a mean of such values is at most the threshold too;
most tiles of most masks are such.

Two kernels share that frame. `_any_size` resizes as `resize_taps` does. `_four_times` serves images
that are shown as the model saw them (original = valid input) from masks at stride 4: the weights
are then one of four per axis (1/8, 3/8, 5/8, 7/8), and 12 values make 32 pixels.

Floor for 100 masks of 200 x 336 to 800 x 1333 on an H100: 13.4 MB written, 4.2 us at the 3.17 TB/s
of a memset; the soft masks (27 MB in float32) come from the second-level cache.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from unisolo.ops.kernels.launch import jit, on_device_of, popcount, round_up
from unisolo.ops.kernels.mask_tiles import (
    FAR,
    cut_tile,
    join_measures,
    store_empty_measure,
    store_measure,
    store_tile,
)
from unisolo.ops.kernels.resize_taps import (
    UNSPECIALIZED,
    axis_taps,
    axis_window,
    resize_arguments,
    resized,
    window_peak,
)
from unisolo.ops.masks import CHUNK_PIXELS, UpsampledMasks, check_frames

__all__ = ["upsample_masks"]

# Eight warps: with four a thread's pixels need so many registers that half as many programs fit.
TILE = {"ROWS": 4, "BYTES": 32, "WINDOW_ROWS": 8, "WINDOW_COLUMNS": 128, "num_warps": 8}
FAST_TILE = {"ROWS": 4, "BYTES": 64, "WINDOW_ROWS": 8, "WINDOW_COLUMNS": 256, "num_warps": 4}
FAST_ARGUMENTS = (
    "low_height",
    "low_width",
    "height",
    "width",
    "map_stride",
    "row_stride",
    "column_stride",
)


def upsample_masks(
    mask_probs: Tensor,
    *,
    padded_size: tuple[int, int],
    input_size: tuple[int, int],
    orig_size: tuple[int, int],
    threshold: float = 0.5,
    chunk_pixels: int = CHUNK_PIXELS,
) -> UpsampledMasks:
    """Twin of `unisolo.ops.masks.upsample_masks`: see there.

    Pixels whose value is within float32 rounding of the threshold may fall on the other side.
    `chunk_pixels` bounds a temporary that does not exist here.
    """
    check_frames(mask_probs, padded_size=padded_size, input_size=input_size)
    num_masks, low_height, low_width = mask_probs.shape
    height, width = orig_size
    device = mask_probs.device
    packed = torch.empty(num_masks, height, (width + 7) // 8, dtype=torch.uint8, device=device)
    boxes = torch.empty(num_masks, 4, dtype=torch.float32, device=device)
    areas = torch.empty(num_masks, dtype=torch.int64, device=device)
    if num_masks == 0:
        return UpsampledMasks(packed, boxes, areas)
    arguments = resize_arguments(
        mask_probs, padded_size=padded_size, input_size=input_size, orig_size=orig_size
    )
    fast = tuple(padded_size) == (4 * low_height, 4 * low_width) and not arguments["TWICE"]
    tile = FAST_TILE if fast else TILE
    tiles_x = round_up(packed.shape[2], tile["BYTES"]) // tile["BYTES"]
    rows = 4 * tile["ROWS"] if fast else tile["ROWS"]
    num_tiles = tiles_x * (round_up(height, rows) // rows)
    measures = torch.empty(num_masks, 5, num_tiles, dtype=torch.int32, device=device)
    if fast:
        arguments = {name: arguments[name] for name in FAST_ARGUMENTS}
    kernel = _four_times if fast else _any_size
    with on_device_of(mask_probs):
        kernel[(num_tiles, num_masks)](
            mask_probs, packed, measures, float(threshold), tiles_x, **arguments, **tile
        )
        join_measures[(num_masks,)](measures, boxes, areas, num_tiles, BLOCK=256)
    return UpsampledMasks(packed, boxes, areas)


@triton.jit(do_not_specialize=[*UNSPECIALIZED, "tiles_x"])  # type: ignore[untyped-decorator]
def _any_size(  # type: ignore[no-untyped-def]
    maps,
    packed,
    measures,
    threshold,
    tiles_x,
    low_height,
    low_width,
    input_height,
    input_width,
    height,
    width,
    map_stride,
    row_stride,
    column_stride,
    padded_step_y,
    padded_step_x,
    original_step_y,
    original_step_x,
    TWICE: tl.constexpr,
    ROWS: tl.constexpr,
    BYTES: tl.constexpr,
    WINDOW_ROWS: tl.constexpr,
    WINDOW_COLUMNS: tl.constexpr,
):
    """One tile of ROWS x 8 BYTES pixels of one mask, any pair of resizes."""
    tile = tl.program_id(0)
    mask = tl.program_id(1).to(tl.int64)
    base = maps + mask * map_stride
    row = tile // tiles_x * ROWS
    byte_column = tile % tiles_x * BYTES
    rows = row + tl.arange(0, ROWS)
    byte_columns = byte_column + tl.arange(0, BYTES)
    top, bottom = axis_window(
        row, height, ROWS, padded_step_y, original_step_y, low_height, input_height, TWICE
    )
    left, right = axis_window(
        8 * byte_column,
        width,
        8 * BYTES,
        padded_step_x,
        original_step_x,
        low_width,
        input_width,
        TWICE,
    )
    peak = window_peak(
        base, row_stride, column_stride, top, bottom, left, right, WINDOW_ROWS, WINDOW_COLUMNS
    )
    measure = measures + mask * (5 * tl.num_programs(0)) + tile
    if peak > threshold:
        # Clamped, so that every tap lies in the map; what is outside is cut before it is written.
        inside_rows = tl.minimum(rows, height - 1)
        inside_columns = 8 * byte_column + tl.arange(0, 8 * BYTES)
        inside_columns = tl.minimum(inside_columns, width - 1)
        y = axis_taps(inside_rows, padded_step_y, original_step_y, low_height, input_height, TWICE)
        x = axis_taps(inside_columns, padded_step_x, original_step_x, low_width, input_width, TWICE)
        above = resized(base, row_stride, column_stride, y, x, TWICE) > threshold
        places = 128 >> (tl.arange(0, 8 * BYTES) % 8)
        bits = tl.where(above, places[None, :], 0)
        bytes_ = tl.sum(tl.reshape(bits, [ROWS, BYTES, 8]), 2)
        bytes_ = cut_tile(bytes_, rows, byte_columns, height, width)
        store_tile(packed, mask, bytes_, rows, byte_columns, height, width)
        low_y = tl.where(bytes_ != 0, rows[:, None], FAR)
        high_y = tl.where(bytes_ != 0, rows[:, None] + 1, 0)
        store_measure(measure, bytes_, popcount(bytes_), low_y, high_y, byte_columns)
    else:
        empty = tl.zeros([ROWS, BYTES], tl.int32)
        store_tile(packed, mask, empty, rows, byte_columns, height, width)
        store_empty_measure(measure)


@triton.jit(do_not_specialize=[*UNSPECIALIZED, "tiles_x"])  # type: ignore[untyped-decorator]
def _four_times(  # type: ignore[no-untyped-def]
    maps,
    packed,
    measures,
    threshold,
    tiles_x,
    low_height,
    low_width,
    height,
    width,
    map_stride,
    row_stride,
    column_stride,
    ROWS: tl.constexpr,
    BYTES: tl.constexpr,
    WINDOW_ROWS: tl.constexpr,
    WINDOW_COLUMNS: tl.constexpr,
):
    """One tile of 4 ROWS x 8 BYTES pixels of one mask that is four times as large as its map."""
    tile = tl.program_id(0)
    mask = tl.program_id(1).to(tl.int64)
    base = maps + mask * map_stride
    low_row = tile // tiles_x * ROWS
    byte_column = tile % tiles_x * BYTES
    low_rows = low_row + tl.arange(0, ROWS)
    byte_columns = byte_column + tl.arange(0, BYTES)
    peak = window_peak(
        base,
        row_stride,
        column_stride,
        _clamped(low_row - 1, low_height),
        _clamped(low_row + ROWS, low_height),
        _clamped(2 * byte_column - 1, low_width),
        _clamped(2 * (byte_column + BYTES), low_width),
        WINDOW_ROWS,
        WINDOW_COLUMNS,
    )
    measure = measures + mask * (5 * tl.num_programs(0)) + tile
    if peak > threshold:
        columns = _four_columns(byte_columns, low_width, column_stride)
        above = _load_four(base, low_rows - 1, low_height, row_stride, columns)
        here = _load_four(base, low_rows, low_height, row_stride, columns)
        below = _load_four(base, low_rows + 1, low_height, row_stride, columns)
        union = tl.zeros([ROWS, BYTES], tl.int32)
        area = tl.zeros([ROWS, BYTES], tl.int32)
        low_y = tl.full([ROWS, BYTES], FAR, tl.int32)
        high_y = tl.zeros([ROWS, BYTES], tl.int32)
        for phase in tl.static_range(4):
            # Rows 0 and 1 of four lie above the middle of the value, 2 and 3 below it.
            if phase == 0:
                bytes_ = _byte(above, here, 0.375, threshold)
            elif phase == 1:
                bytes_ = _byte(above, here, 0.125, threshold)
            elif phase == 2:
                bytes_ = _byte(below, here, 0.125, threshold)
            else:
                bytes_ = _byte(below, here, 0.375, threshold)
            rows = 4 * low_rows + phase
            bytes_ = cut_tile(bytes_, rows, byte_columns, height, width)
            store_tile(packed, mask, bytes_, rows, byte_columns, height, width)
            union |= bytes_
            area += popcount(bytes_)
            low_y = tl.minimum(low_y, tl.where(bytes_ != 0, rows[:, None], FAR))
            high_y = tl.maximum(high_y, tl.where(bytes_ != 0, rows[:, None] + 1, 0))
        store_measure(measure, union, area, low_y, high_y, byte_columns)
    else:
        empty = tl.zeros([4 * ROWS, BYTES], tl.int32)
        all_rows = 4 * low_row + tl.arange(0, 4 * ROWS)
        store_tile(packed, mask, empty, all_rows, byte_columns, height, width)
        store_empty_measure(measure)


@jit
def _clamped(index, size):  # type: ignore[no-untyped-def]
    return tl.maximum(tl.minimum(index, size - 1), 0)


@jit
def _four_columns(byte_columns, low_width, column_stride):  # type: ignore[no-untyped-def]
    """Offsets of the columns 2 j - 1 to 2 j + 2 of a map, repeated beyond its edges."""
    before = _clamped(2 * byte_columns - 1, low_width) * column_stride
    first = _clamped(2 * byte_columns, low_width) * column_stride
    second = _clamped(2 * byte_columns + 1, low_width) * column_stride
    after = _clamped(2 * byte_columns + 2, low_width) * column_stride
    return before, first, second, after


@jit
def _load_four(base, rows, low_height, row_stride, columns):  # type: ignore[no-untyped-def]
    """Values of some rows, repeated beyond the edges, in four sets of columns."""
    lines = base + _clamped(rows, low_height).to(tl.int64)[:, None] * row_stride
    return (
        tl.load(lines + columns[0][None, :]).to(tl.float32),
        tl.load(lines + columns[1][None, :]).to(tl.float32),
        tl.load(lines + columns[2][None, :]).to(tl.float32),
        tl.load(lines + columns[3][None, :]).to(tl.float32),
    )


@jit
def _byte(other, here, share: tl.constexpr, threshold):  # type: ignore[no-untyped-def]
    """Eight pixels of one row, over two columns of a map; the first in the highest bit.

    Args:
        other: Four columns of the map's row above or below: [R, C] float32 each.
        here: The same of its own row.
        share: Weight of the other row.
        threshold: Strict.

    Returns:
        [R, C] int32, 0 to 255.
    """
    before = share * other[0] + (1 - share) * here[0]
    first = share * other[1] + (1 - share) * here[1]
    second = share * other[2] + (1 - share) * here[2]
    after = share * other[3] + (1 - share) * here[3]
    bits = tl.where(0.375 * before + 0.625 * first > threshold, 128, 0)
    bits += tl.where(0.125 * before + 0.875 * first > threshold, 64, 0)
    bits += tl.where(0.875 * first + 0.125 * second > threshold, 32, 0)
    bits += tl.where(0.625 * first + 0.375 * second > threshold, 16, 0)
    bits += tl.where(0.375 * first + 0.625 * second > threshold, 8, 0)
    bits += tl.where(0.125 * first + 0.875 * second > threshold, 4, 0)
    bits += tl.where(0.875 * second + 0.125 * after > threshold, 2, 0)
    bits += tl.where(0.625 * second + 0.375 * after > threshold, 1, 0)
    return bits
