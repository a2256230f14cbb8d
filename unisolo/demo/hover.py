"""What lies under the pointer: a small map of the picture, for overlapping instances too."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from unisolo.results import Result

__all__ = ["HoverMap", "hover_map"]

_SIDE = 640
"""Longest side of the map; the pointer is not more exact than that."""


@dataclass(frozen=True)
class HoverMap:
    """Which segments lie at each place.

    Attributes:
        numbers: [h, w] uint32, positions in `sets`.
        sets: The segments that lie on top of each other, the smallest first; `sets[0]` is empty.
            Of a panoptic map positions in `Result.segments_info`, else of instances.
    """

    numbers: npt.NDArray[np.uint32]
    sets: list[list[int]]

    @property
    def size(self) -> tuple[int, int]:
        """(h, w)."""
        return self.numbers.shape[0], self.numbers.shape[1]

    def tobytes(self) -> bytes:
        """Row by row, little-endian."""
        return self.numbers.astype("<u4").tobytes()


def hover_map(result: Result) -> HoverMap:
    """Make the map of a result on the CPU: of its panoptic map, else of its masks, else of boxes.

    Pixels are taken, not averaged, so that every number is one of the result's.
    """
    height, width = result.image_size
    step = max(height, width) / min(max(height, width), _SIDE)
    rows = ((np.arange(max(1, round(height / step))) + 0.5) * step).astype(np.int64)
    columns = ((np.arange(max(1, round(width / step))) + 0.5) * step).astype(np.int64)
    rows, columns = rows.clip(0, height - 1), columns.clip(0, width - 1)
    if result.panoptic_seg is not None and result.segments_info is not None:
        ids = result.panoptic_seg.numpy()[rows[:, None], columns]
        table = np.zeros(int(result.panoptic_seg.max()) + 1, dtype=np.uint32)
        for number, segment in enumerate(result.segments_info):
            table[segment.id] = number + 1
        return HoverMap(table[ids], [[], *([n] for n in range(len(result.segments_info)))])
    return _overlapping(_sampled(result, rows, columns))


def _sampled(
    result: Result, rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """[N, h, w] bool, the masks or boxes at some rows and columns."""
    masks = np.zeros((len(result), len(rows), len(columns)), dtype=bool)
    if result.packed_masks is not None:
        packed = result.packed_masks.numpy()
        for number, mask in enumerate(masks):
            bits = packed[number][rows[:, None], columns >> 3] >> (7 - (columns & 7))
            mask[:] = bits & 1
        return masks
    for mask, (left, top, right, bottom) in zip(masks, result.boxes.tolist(), strict=True):
        mask[:] = ((rows >= top) & (rows < bottom))[:, None] & (columns >= left) & (columns < right)
    return masks


def _overlapping(masks: npt.NDArray[np.bool_]) -> HoverMap:
    """Number the sets of masks that meet at a pixel.

    A set is told by the sum of random 64-bit numbers of its masks: with the few sets of a picture,
    two have the same sum once in some billion pictures.
    """
    weights = np.random.default_rng(0).integers(1, 2**63, len(masks), dtype=np.uint64)
    sums = np.zeros(masks.shape[1:], dtype=np.uint64)
    for mask, weight in zip(masks, weights, strict=True):
        sums[mask] += weight  # wraps round, as it should
    values, first, numbers = np.unique(sums, return_index=True, return_inverse=True)
    flat = masks.reshape(len(masks), sums.size)
    by_area = np.argsort(flat.sum(axis=1), kind="stable")
    sets = [[int(n) for n in by_area if flat[n, place]] for place in first]
    if values[0] != 0:  # no pixel is free: the empty set still comes first
        sets.insert(0, [])
        numbers = numbers + 1
    return HoverMap(numbers.reshape(masks.shape[1:]).astype(np.uint32), sets)
