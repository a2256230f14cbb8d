"""Soft masks to packed masks at original size, with their boxes and areas, in one pass.

No float of the original's size is ever in memory: a program interpolates a tile in registers,
compares it with the threshold and writes 8 pixels per byte. A tile over values that are all at most
the threshold is written as zeros at once, since a mean of such values is at most the threshold
too; most tiles of most masks are such. So a program looks at many rows first, and goes through them
a few at a time only where the mask has something.

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

from unisolo.ops.kernels.launch import jit, on_device_of, round_up
from unisolo.ops.kernels.mask_tiles import (
    add_measure,
    cut_tile,
    join_measures,
    no_measure,
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

# With more rows per turn ptxas spills registers, or so many are used that few programs fit.
TILE = {"ROWS": 2, "TURNS": 16, "BYTES": 16, "WINDOW_ROWS": 4, "WINDOW_COLUMNS": 64}
FAST_TILE = {"ROWS": 2, "TURNS": 8, "BYTES": 64, "WINDOW_ROWS": 4}
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
    rows = (4 if fast else 1) * tile["ROWS"] * tile["TURNS"]
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
    TURNS: tl.constexpr,
    BYTES: tl.constexpr,
    WINDOW_ROWS: tl.constexpr,
    WINDOW_COLUMNS: tl.constexpr,
):
    """TURNS tiles of ROWS x 8 BYTES pixels of one mask, below each other; any pair of resizes."""
    tile = tl.program_id(0)
    mask = tl.program_id(1).to(tl.int64)
    base = maps + mask * map_stride
    first_row = tile // tiles_x * (ROWS * TURNS)
    byte_column = tile % tiles_x * BYTES
    byte_columns = byte_column + tl.arange(0, BYTES)
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
    top, bottom = axis_window(
        first_row,
        height,
        ROWS * TURNS,
        padded_step_y,
        original_step_y,
        low_height,
        input_height,
        TWICE,
    )
    peak = window_peak(
        base, row_stride, column_stride, top, bottom, left, right, WINDOW_ROWS, WINDOW_COLUMNS
    )
    measure = measures + mask * (5 * tl.num_programs(0)) + tile
    if peak > threshold:
        # Clamped, so that every tap lies in the map; what is outside is cut before it is written.
        columns = tl.minimum(8 * byte_column + tl.arange(0, 8 * BYTES), width - 1)
        x = axis_taps(columns, padded_step_x, original_step_x, low_width, input_width, TWICE)
        places = 128 >> (tl.arange(0, 8 * BYTES) % 8)
        union, area, low_y, high_y = no_measure(ROWS, BYTES)
        turns = tl.minimum(TURNS, (height - first_row + ROWS - 1) // ROWS)
        for turn in range(turns):
            row = first_row + turn * ROWS
            rows = row + tl.arange(0, ROWS)
            bytes_ = tl.zeros([ROWS, BYTES], tl.int32)
            top, bottom = axis_window(
                row,
                height,
                ROWS,
                padded_step_y,
                original_step_y,
                low_height,
                input_height,
                TWICE,
            )
            peak = window_peak(
                base,
                row_stride,
                column_stride,
                top,
                bottom,
                left,
                right,
                WINDOW_ROWS,
                WINDOW_COLUMNS,
            )
            if peak > threshold:
                y = axis_taps(
                    tl.minimum(rows, height - 1),
                    padded_step_y,
                    original_step_y,
                    low_height,
                    input_height,
                    TWICE,
                )
                above = resized(base, row_stride, column_stride, y, x, TWICE) > threshold
                bits = tl.where(above, places[None, :], 0)
                bytes_ = tl.sum(tl.reshape(bits, [ROWS, BYTES, 8]), 2)
                bytes_ = cut_tile(bytes_, rows, byte_columns, height, width)
                union, area, low_y, high_y = add_measure(bytes_, rows, union, area, low_y, high_y)
            store_tile(packed, mask, bytes_, rows, byte_columns, height, width)
        store_measure(measure, union, area, low_y, high_y, byte_columns)
    else:
        empty = tl.zeros([ROWS * TURNS, BYTES], tl.int32)
        all_rows = first_row + tl.arange(0, ROWS * TURNS)
        store_tile(packed, mask, empty, all_rows, byte_columns, height, width)
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
    TURNS: tl.constexpr,
    BYTES: tl.constexpr,
    WINDOW_ROWS: tl.constexpr,
):
    """As `_any_size`, of a mask that is four times as large as its map: 4 ROWS rows per turn."""
    tile = tl.program_id(0)
    mask = tl.program_id(1).to(tl.int64)
    base = maps + mask * map_stride
    first_row = tile // tiles_x * (ROWS * TURNS)
    byte_column = tile % tiles_x * BYTES
    byte_columns = byte_column + tl.arange(0, BYTES)
    peak = _peak_around(
        base,
        row_stride,
        column_stride,
        first_row,
        byte_column,
        low_height,
        low_width,
        ROWS * TURNS,
        BYTES,
        WINDOW_ROWS,
    )
    measure = measures + mask * (5 * tl.num_programs(0)) + tile
    if peak > threshold:
        columns = _four_columns(byte_columns, low_width, column_stride)
        union, area, low_y, high_y = no_measure(ROWS, BYTES)
        # A turn below the image writes nothing; a number of turns that varies would cost registers.
        for turn in range(TURNS):
            low_row = first_row + turn * ROWS
            low_rows = low_row + tl.arange(0, ROWS)
            peak = _peak_around(
                base,
                row_stride,
                column_stride,
                low_row,
                byte_column,
                low_height,
                low_width,
                ROWS,
                BYTES,
                WINDOW_ROWS,
            )
            if peak > threshold:
                above = _load_four(base, low_rows - 1, low_height, row_stride, columns)
                here = _load_four(base, low_rows, low_height, row_stride, columns)
                below = _load_four(base, low_rows + 1, low_height, row_stride, columns)
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
                    union, area, low_y, high_y = add_measure(
                        bytes_, rows, union, area, low_y, high_y
                    )
            else:
                nothing = tl.zeros([4 * ROWS, BYTES], tl.int32)
                turn_rows = 4 * low_row + tl.arange(0, 4 * ROWS)
                store_tile(packed, mask, nothing, turn_rows, byte_columns, height, width)
        store_measure(measure, union, area, low_y, high_y, byte_columns)
    else:
        empty = tl.zeros([4 * ROWS * TURNS, BYTES], tl.int32)
        all_rows = 4 * first_row + tl.arange(0, 4 * ROWS * TURNS)
        store_tile(packed, mask, empty, all_rows, byte_columns, height, width)
        store_empty_measure(measure)


@jit
def _peak_around(  # type: ignore[no-untyped-def]
    base,
    row_stride,
    column_stride,
    row,
    byte_column,
    low_height,
    low_width,
    ROWS: tl.constexpr,
    BYTES: tl.constexpr,
    WINDOW_ROWS: tl.constexpr,
):
    """Largest value of ROWS rows under BYTES bytes, and of the values around these."""
    top = _clamped(row - 1, low_height)
    bottom = _clamped(row + ROWS, low_height)
    left = _clamped(2 * byte_column, low_width)
    right = _clamped(2 * (byte_column + BYTES) - 1, low_width)
    peak = window_peak(
        base, row_stride, column_stride, top, bottom, left, right, WINDOW_ROWS, 2 * BYTES
    )
    # The columns beside them apart: in the window they would double its width.
    rows = tl.minimum(top + tl.arange(0, 2 * ROWS), bottom)
    sides = left - 1 + tl.arange(0, 2) * (right - left + 2)
    lines = base + rows.to(tl.int64)[:, None] * row_stride
    values = tl.load(lines + (_clamped(sides, low_width) * column_stride)[None, :])
    return tl.maximum(peak, tl.max(tl.max(values.to(tl.float32), 1), 0))


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
