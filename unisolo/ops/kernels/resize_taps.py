"""The two bilinear resizes of SOLOv2 as one: what an original pixel reads of a low-resolution map.

`unisolo.ops.masks.resize_to_original` makes the padded frame, cuts it and resizes again. Here a
pixel of the original asks which pixels of the padded frame its resize reads (two per axis), and
each of those which values of the map it is made of (two per axis). The same products and sums in
the same order, but no frame in memory. The order matters: one combined weight per value would be
shorter, but its rounding would move a plateau at exactly the threshold (sigmoid(0) = 0.5) to the
other side.
"""

from __future__ import annotations

from typing import Any

import triton.language as tl
from torch import Tensor

from unisolo.ops.kernels.launch import jit

__all__ = [
    "UNSPECIALIZED",
    "axis_taps",
    "axis_window",
    "resize_arguments",
    "resized",
    "window_peak",
]

UNSPECIALIZED = [
    "low_height",
    "low_width",
    "input_height",
    "input_width",
    "height",
    "width",
    "map_stride",
    "row_stride",
]
"""Arguments of `resize_arguments` whose values must not each compile a kernel of its own."""


def resize_arguments(
    maps: Tensor,
    *,
    padded_size: tuple[int, int],
    input_size: tuple[int, int],
    orig_size: tuple[int, int],
) -> dict[str, Any]:
    """Describe a pair of resizes to a kernel.

    Args:
        maps: [K, h, w] floating over the padded input, any strides.
        padded_size: (H, W) of the model's input with padding.
        input_size: (H, W) of its valid part.
        orig_size: (H, W) of the original image.

    Returns:
        Keyword arguments: sizes, strides, and per axis how many source pixels an output pixel is
        wide. TWICE is False where the second resize changes nothing.
    """
    low_height, low_width = maps.shape[1:]
    map_stride, row_stride, column_stride = maps.stride()
    return {
        "low_height": low_height,
        "low_width": low_width,
        "input_height": input_size[0],
        "input_width": input_size[1],
        "height": orig_size[0],
        "width": orig_size[1],
        "map_stride": map_stride,
        "row_stride": row_stride,
        "column_stride": column_stride,
        "padded_step_y": low_height / padded_size[0],
        "padded_step_x": low_width / padded_size[1],
        "original_step_y": input_size[0] / orig_size[0],
        "original_step_x": input_size[1] / orig_size[1],
        "TWICE": tuple(input_size) != tuple(orig_size),
    }


@jit
def _neighbours(index, step, size):  # type: ignore[no-untyped-def]
    """Say which two of `size` source values an output index lies between, and the second's weight.

    Half-pixel centres (align_corners=False); the first value is repeated beyond the edges.
    """
    place = tl.maximum((index + 0.5) * step - 0.5, 0.0)
    first = tl.minimum(place.to(tl.int32), size - 1)
    second = tl.minimum(first + 1, size - 1)
    return first, second, place - first.to(tl.float32)


@jit
def axis_taps(index, padded_step, original_step, low_size, input_size, TWICE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Find what output rows (or columns) read.

    Args:
        index: [N] int32, rows of the original, inside it.
        padded_step: Values of the map per pixel of the padded frame.
        original_step: Pixels of the valid part per pixel of the original.
        low_size: Values of the map along this axis.
        input_size: Pixels of the valid part along this axis.
        TWICE: False where the second resize changes nothing.

    Returns:
        Seven [N] vectors: for the nearer and the farther pixel of the padded frame the two values
        it lies between (int32) and the second's weight (float32), then the farther pixel's weight.
        Indices rise with `index`.
    """
    near = index
    far = index
    weight = tl.zeros_like(index).to(tl.float32)
    if TWICE:
        near, far, weight = _neighbours(index, original_step, input_size)
    near_first, near_second, near_weight = _neighbours(near, padded_step, low_size)
    far_first, far_second, far_weight = _neighbours(far, padded_step, low_size)
    return near_first, near_second, near_weight, far_first, far_second, far_weight, weight


@jit
def axis_window(  # type: ignore[no-untyped-def]
    first,
    size,
    tile: tl.constexpr,
    padded_step,
    original_step,
    low_size,
    input_size,
    TWICE: tl.constexpr,
):
    """Find the first and the last value of the map that a tile reads along an axis.

    Args:
        first: The tile's first row (or column) of the original.
        size: Rows of the original.
        tile: Rows of the tile, of which some may lie beyond the original.
        padded_step: As in `axis_taps`, like the rest.
        original_step: See there.
        low_size: See there.
        input_size: See there.
        TWICE: See there.

    Returns:
        Two scalars; both ends belong to the window.
    """
    near = first
    far = tl.minimum(first + tile, size) - 1
    if TWICE:
        near, _, _ = _neighbours(near, original_step, input_size)
        _, far, _ = _neighbours(far, original_step, input_size)
    low, _, _ = _neighbours(near, padded_step, low_size)
    _, high, _ = _neighbours(far, padded_step, low_size)
    return low, high


@jit
def _between(first, second, weight):  # type: ignore[no-untyped-def]
    return (1 - weight) * first + weight * second


@jit
def _value(base, row_stride, column_stride, rows, columns):  # type: ignore[no-untyped-def]
    lines = base + rows.to(tl.int64)[:, None] * row_stride
    return tl.load(lines + columns[None, :] * column_stride).to(tl.float32)


@jit
def _padded_pixel(  # type: ignore[no-untyped-def]
    base, row_stride, column_stride, top, bottom, y_weight, left, right, x_weight
):
    """Value of the padded frame between two rows and two columns of the map: [R, C]."""
    above = _between(
        _value(base, row_stride, column_stride, top, left),
        _value(base, row_stride, column_stride, top, right),
        x_weight[None, :],
    )
    below = _between(
        _value(base, row_stride, column_stride, bottom, left),
        _value(base, row_stride, column_stride, bottom, right),
        x_weight[None, :],
    )
    return _between(above, below, y_weight[:, None])


@jit
def resized(base, row_stride, column_stride, y, x, TWICE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Resize one map for a tile of the original.

    Args:
        base: Pointer to the map.
        row_stride: Elements from row to row of the map.
        column_stride: Elements from column to column.
        y: `axis_taps` of R rows.
        x: `axis_taps` of C columns.
        TWICE: As there.

    Returns:
        [R, C] float32.
    """
    if not TWICE:
        pixels = _padded_pixel(base, row_stride, column_stride, y[0], y[1], y[2], x[0], x[1], x[2])
    else:
        above = _between(
            _padded_pixel(base, row_stride, column_stride, y[0], y[1], y[2], x[0], x[1], x[2]),
            _padded_pixel(base, row_stride, column_stride, y[0], y[1], y[2], x[3], x[4], x[5]),
            x[6][None, :],
        )
        below = _between(
            _padded_pixel(base, row_stride, column_stride, y[3], y[4], y[5], x[0], x[1], x[2]),
            _padded_pixel(base, row_stride, column_stride, y[3], y[4], y[5], x[3], x[4], x[5]),
            x[6][None, :],
        )
        pixels = _between(above, below, y[6][:, None])
    return pixels


@jit
def window_peak(  # type: ignore[no-untyped-def]
    base,
    row_stride,
    column_stride,
    top,
    bottom,
    left,
    right,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Largest value of a map in a window; both ends belong to it."""
    peak = tl.full([ROWS, COLUMNS], float("-inf"), tl.float32)
    for row in range(top, bottom + 1, ROWS):
        # Repeating the last row and column is cheaper than leaving out what lies beyond.
        rows = tl.minimum(row + tl.arange(0, ROWS), bottom)
        lines = base + rows.to(tl.int64)[:, None] * row_stride
        for column in range(left, right + 1, COLUMNS):
            columns = tl.minimum(column + tl.arange(0, COLUMNS), right)
            values = tl.load(lines + columns[None, :] * column_stride)
            peak = tl.maximum(peak, values.to(tl.float32))
    return tl.max(tl.max(peak, 1), 0)
