"""Slow, plain twins of the target rules, and scenes to try them on. Loops on purpose."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from hypothesis import strategies as st

from unisolo.structures import GridSpec, Target

TINY_GRID = GridSpec(
    sizes=(10, 8, 6, 4, 3),
    strides=(8, 8, 16, 32, 32),
    scale_ranges=((1, 12), (6, 16), (10, 24), (16, 48), (24, 512)),
)


def paint(masks: np.ndarray) -> torch.Tensor:
    """Object map [D, H, W] of boolean masks (n, H, W): each mask in the first layer it fits in."""
    layers = [np.zeros(masks.shape[1:], np.int16)]
    for index, mask in enumerate(masks):
        free = next((layer for layer in layers if not layer[mask].any()), None)
        if free is None:
            free = np.zeros_like(layers[0])
            layers.append(free)
        free[mask] = index + 1
    return torch.from_numpy(np.stack(layers))


def mask_boxes(masks: np.ndarray) -> torch.Tensor:
    boxes = np.zeros((len(masks), 4), np.float32)
    for index, mask in enumerate(masks):
        ys, xs = np.nonzero(mask)
        if len(ys):
            boxes[index] = xs.min(), ys.min(), xs.max() + 1, ys.max() + 1
    return torch.from_numpy(boxes)


def make_target(
    masks: np.ndarray,
    labels: Sequence[int],
    *,
    crowd: np.ndarray | None = None,
    boxes: np.ndarray | None = None,
) -> Target:
    size = masks.shape[1:]
    return Target(
        labels=torch.tensor(list(labels), dtype=torch.int64),
        boxes=mask_boxes(masks) if boxes is None else torch.from_numpy(boxes),
        object_map=paint(masks),
        crowd_map=torch.from_numpy(np.zeros(size, np.int16) if crowd is None else crowd),
    )


def rectangles(size: tuple[int, int], boxes: Sequence[tuple[int, int, int, int]]) -> np.ndarray:
    masks = np.zeros((len(boxes), *size), bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[y1:y2, x1:x2] = True
    return masks


@st.composite
def scenes(draw: st.DrawFn, max_objects: int = 6) -> np.ndarray:
    """Boolean masks (n, H, W) of rectangles, some with holes, some empty, many overlapping."""
    height = draw(st.sampled_from((32, 64, 96)))
    width = draw(st.sampled_from((32, 64, 96)))
    count = draw(st.integers(0, max_objects))
    masks = np.zeros((count, height, width), bool)
    for mask in masks:
        y1 = draw(st.integers(0, height - 1))
        x1 = draw(st.integers(0, width - 1))
        y2 = draw(st.integers(y1, height))  # y2 == y1: an empty mask
        x2 = draw(st.integers(x1 + 1, width))
        mask[y1:y2, x1:x2] = True
        if draw(st.booleans()):
            mask[y1 + 1 : y2 - 1 : 2, x1 + 1 : x2 - 1] = False
    return masks


def pairs(
    masks: np.ndarray, boxes: np.ndarray, grid: GridSpec, sigma: float = 0.2
) -> list[tuple[int, int, int]]:
    """(level, object, flat cell) of every pair, in the reference's order."""
    one = np.float32
    height, width = masks.shape[1:]
    found = []
    for level, size in enumerate(grid.sizes):
        low, high = grid.scale_ranges[level]
        for index, mask in enumerate(masks):
            ys, xs = np.nonzero(mask)
            x1, y1, x2, y2 = (one(side) for side in boxes[index])
            if len(ys) == 0 or not low <= np.sqrt((x2 - x1) * (y2 - y1)) <= high:
                continue
            spans = []
            for indices, extent, length in ((ys, y2 - y1, height), (xs, x2 - x1, width)):
                center = one(indices.sum()) / one(len(indices))
                half = one(0.5) * extent * one(sigma)

                def cell(place: np.float32, length: int = length, size: int = size) -> int:
                    return int(place / one(length) / one(1 / size))  # towards zero

                first = max(0, cell(center - half), cell(center) - 1)
                last = min(size - 1, cell(center + half), cell(center) + 1)
                spans.append(range(first, last + 1))
            for row in spans[0]:
                for column in spans[1]:
                    found.append((level, index, grid.offsets[level] + row * size + column))
    return found


def winners(
    found: list[tuple[int, int, int]], masks: np.ndarray, grid: GridSpec
) -> list[tuple[int, int, int]]:
    """The pairs left when every cell keeps one object; order kept."""
    one = np.float32
    height, width = masks.shape[1:]

    def rank(pair: tuple[int, int, int]) -> tuple[int, np.float32, int]:
        level, index, cell = pair
        size = grid.sizes[level]
        row, column = divmod(cell - grid.offsets[level], size)
        claims = sum(1 for other in found if other[:2] == (level, index))
        distance = one(0)
        for indices, number, length in zip(
            np.nonzero(masks[index]), (row, column), (height, width), strict=True
        ):
            center = one(indices.sum()) / one(len(indices)) + one(0.5)
            distance += (one(number + 0.5) * one(length) / one(size) - center) ** 2
        return claims, distance, -index

    best: dict[int, tuple[int, int, int]] = {}
    for pair in found:
        cell = pair[2]
        if cell not in best or rank(pair) < rank(best[cell]):
            best[cell] = pair
    return [pair for pair in found if best[pair[2]] == pair]


def crowd(crowd_map: np.ndarray, grid: GridSpec, num_things: int) -> np.ndarray:
    """[L, C] bool: does a pixel of the category's crowd overlap the cell's rectangle?"""
    height, width = crowd_map.shape
    touched = np.zeros((grid.num_cells, num_things), bool)
    for size, offset in zip(grid.sizes, grid.offsets, strict=True):
        for row in range(size):
            for column in range(size):
                # Pixel y overlaps (row * H / S, (row + 1) * H / S) where it has length in common.
                ys = slice(row * height // size, -(-(row + 1) * height // size))
                xs = slice(column * width // size, -(-(column + 1) * width // size))
                for value in np.unique(crowd_map[ys, xs]):
                    if value:
                        touched[offset + row * size + column, value - 1] = True
    return touched
