"""A deformable convolution in loops of plain numbers, written from the papers."""

from __future__ import annotations

import math

import numpy as np


def bilinear(plane: np.ndarray, y: float, x: float) -> float:
    """Value of [h, w] at a real position; everything outside is zero."""
    total = 0.0
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < plane.shape[0] and 0 <= column < plane.shape[1]:
                share = (1 - abs(y - row)) * (1 - abs(x - column))
                total += share * float(plane[row, column])
    return total


def deformable(
    features: np.ndarray,  # [C, h, w]
    offsets: np.ndarray,  # [2 k k, H, W]
    mask: np.ndarray | None,  # [k k, H, W]
    weight: np.ndarray,  # [O, C / groups, k, k]
    *,
    stride: int,
    padding: int,
    dilation: int,
) -> np.ndarray:
    out_channels, group_channels, side, _ = weight.shape
    groups = features.shape[0] // group_channels
    height, width = offsets.shape[1:]
    result = np.zeros((out_channels, height, width))
    for out_channel in range(out_channels):
        group = out_channel // (out_channels // groups)
        for row in range(height):
            for column in range(width):
                total = 0.0
                for tap in range(side * side):
                    i, j = divmod(tap, side)
                    y = row * stride - padding + i * dilation + offsets[2 * tap, row, column]
                    x = column * stride - padding + j * dilation + offsets[2 * tap + 1, row, column]
                    factor = 1.0 if mask is None else mask[tap, row, column]
                    for channel in range(group_channels):
                        plane = features[group * group_channels + channel]
                        value = bilinear(plane, y, x)
                        total += factor * value * weight[out_channel, channel, i, j]
                result[out_channel, row, column] = total
    return result
