"""The most likely stuff index of every pixel of the original image, in one kernel.

A program resizes one channel after the other for its tile and keeps the largest value and its index
in registers: the definition's passes over full-size maps, about six per channel, do not exist. A
channel whose largest logit under the tile is below the smallest of the tile's best values so far is
not resized at all. In a region of one category that spares most of them.

Floor for 54 channels of 200 x 336 to 800 x 1333: 14.5 MB read and 2.1 MB written; the kernel is
bound by the loads of each pixel's neighbours instead (16 per channel that is resized, 4 where the
original is the valid input), which hit the first-level cache.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from unisolo.ops.kernels.launch import on_device_of, round_up
from unisolo.ops.kernels.resize_taps import (
    UNSPECIALIZED,
    axis_taps,
    axis_window,
    resize_arguments,
    resized,
    window_peak,
)
from unisolo.ops.masks import CHUNK_PIXELS, check_frames

__all__ = ["segment_stuff"]

TILE = {"ROWS": 4, "COLUMNS": 128, "WINDOW_ROWS": 4, "WINDOW_COLUMNS": 64}


def segment_stuff(
    stuff_logits: Tensor,
    *,
    padded_size: tuple[int, int],
    input_size: tuple[int, int],
    orig_size: tuple[int, int],
    chunk_pixels: int = CHUNK_PIXELS // 4,
) -> Tensor:
    """Twin of `unisolo.ops.panoptic.segment_stuff`: see there.

    Where two logits are equal within float32 rounding, either index may win. `chunk_pixels` bounds
    a temporary that does not exist here.
    """
    # A program reads one channel at a time: in channels_last order each value would come from a
    # sector of its own, 54 channels apart, in every one of many reads; bringing them together is
    # one read and one write of a small map.
    stuff_logits = stuff_logits.detach().contiguous()
    check_frames(stuff_logits, padded_size=padded_size, input_size=input_size)
    index = torch.empty(orig_size, dtype=torch.int16, device=stuff_logits.device)
    arguments = resize_arguments(
        stuff_logits, padded_size=padded_size, input_size=input_size, orig_size=orig_size
    )
    tiles = tuple(
        round_up(size, tile) // tile
        for size, tile in zip(orig_size[::-1], (TILE["COLUMNS"], TILE["ROWS"]), strict=True)
    )
    with on_device_of(stuff_logits):
        _best_channel[tiles](stuff_logits, index, len(stuff_logits), **arguments, **TILE)
    return index


@triton.jit(do_not_specialize=[*UNSPECIALIZED, "channels"])  # type: ignore[untyped-decorator]
def _best_channel(  # type: ignore[no-untyped-def]
    logits,
    index,
    channels,
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
    COLUMNS: tl.constexpr,
    WINDOW_ROWS: tl.constexpr,
    WINDOW_COLUMNS: tl.constexpr,
):
    """One tile of the original: the index of the largest of its resized logits."""
    row = tl.program_id(1) * ROWS
    column = tl.program_id(0) * COLUMNS
    rows = row + tl.arange(0, ROWS)
    columns = column + tl.arange(0, COLUMNS)
    top, bottom = axis_window(
        row, height, ROWS, padded_step_y, original_step_y, low_height, input_height, TWICE
    )
    left, right = axis_window(
        column, width, COLUMNS, padded_step_x, original_step_x, low_width, input_width, TWICE
    )
    # Clamped, so that every tap lies in the map; what is outside is not written.
    y = axis_taps(
        tl.minimum(rows, height - 1),
        padded_step_y,
        original_step_y,
        low_height,
        input_height,
        TWICE,
    )
    x = axis_taps(
        tl.minimum(columns, width - 1),
        padded_step_x,
        original_step_x,
        low_width,
        input_width,
        TWICE,
    )
    best = tl.full([ROWS, COLUMNS], float("-inf"), tl.float32)
    winner = tl.zeros([ROWS, COLUMNS], tl.int32)
    to_beat = tl.min(tl.min(best, 1), 0)
    channel_logits = logits
    for channel in range(channels):
        peak = window_peak(
            channel_logits,
            row_stride,
            column_stride,
            top,
            bottom,
            left,
            right,
            WINDOW_ROWS,
            WINDOW_COLUMNS,
        )
        # Rounding lifts a mean above the largest value by far less than this margin.
        if peak + 1e-5 * tl.abs(peak) >= to_beat:
            values = resized(channel_logits, row_stride, column_stride, y, x, TWICE)
            # Channels come in rising order: of equal ones the first stays.
            winner = tl.where(values > best, channel, winner)
            best = tl.maximum(best, values)
            to_beat = tl.min(tl.min(best, 1), 0)
        channel_logits += map_stride
    inside = (rows < height)[:, None] & (columns < width)[None, :]
    lines = index + rows.to(tl.int64) * width
    tl.store(lines[:, None] + columns[None, :], winner.to(tl.int16), mask=inside)
