"""Masks as numbers in as few layers as their overlap needs."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from unisolo.data.raw import MAX_OBJECTS

__all__ = ["paint_layers"]


def paint_layers(
    masks: Iterable[npt.NDArray[np.bool_]], height: int, width: int
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int64]]:
    """Paint masks as numbers into as few layers as their order allows.

    Each mask goes to the first layer where its pixels are free, so the number of layers follows
    the depth of overlap and not the number of objects. Masks are taken one at a time and may come
    from a generator: they never exist together. Empty masks are passed over.

    Args:
        masks: [H, W] bool each.
        height: H in pixels.
        width: W in pixels.

    Returns:
        The map [D, H, W] int16, D >= 1, n + 1 = n-th painted mask; and the index [N] int64 in
        `masks` of each painted mask.

    Raises:
        ValueError: If there are more masks than int16 can number.
    """
    layers = [np.zeros((height, width), dtype=np.int16)]
    painted: list[int] = []
    for index, mask in enumerate(masks):
        rows = np.flatnonzero(mask.any(axis=1))
        if not len(rows):
            continue
        columns = np.flatnonzero(mask.any(axis=0))
        window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        inside = mask[window]
        painted.append(index)
        if len(painted) > MAX_OBJECTS:
            raise ValueError(f"an image may have at most {MAX_OBJECTS} objects")
        for layer in layers:
            if not layer[window][inside].any():
                break
        else:
            layer = np.zeros((height, width), dtype=np.int16)
            layers.append(layer)
        layer[window][inside] = len(painted)
    return np.stack(layers), np.array(painted, dtype=np.int64)
