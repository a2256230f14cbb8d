"""Masks of a CPU as 64 pixels per word, and the pixels that they share."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unisolo.ops.masks import row_chunks

__all__ = ["count_bits", "intersections", "pack_words"]

PART_WORDS = 2**17
"""Words compared at a time: 1 MiB, which stays in a core's cache."""


def pack_words(masks: Tensor) -> NDArray[np.uint64]:
    """Pack boolean rows, 64 pixels to a word.

    Args:
        masks: [n, P] bool.

    Returns:
        [n, ceil(P / 64)]; the bits past P are 0. The order of the pixels inside a word is one and
        the same for all rows, and of no other meaning.
    """
    num_rows, num_pixels = masks.shape
    packed = np.zeros((num_rows, -(-num_pixels // 64) * 8), dtype=np.uint8)
    packed[:, : -(-num_pixels // 8)] = np.packbits(masks.numpy(), axis=1)
    words: NDArray[np.uint64] = packed.view(np.uint64)
    return words


def count_bits(words: NDArray[np.unsignedinteger[Any]]) -> NDArray[np.uint8]:
    """Count the set bits of every number.

    Args:
        words: Of any shape and size.

    Returns:
        Of the same shape.
    """
    counts: NDArray[np.uint8] = _bitwise_count(words)
    return counts


def _count_by_table(words: NDArray[np.unsignedinteger[Any]]) -> NDArray[np.uint8]:
    pieces = np.ascontiguousarray(words).view(np.uint8).reshape(*words.shape, words.itemsize)
    counts: NDArray[np.uint8] = _table()[pieces].sum(-1, dtype=np.uint8)
    return counts


@cache
def _table() -> NDArray[np.uint8]:
    """Set bits of all bytes."""
    counts: NDArray[np.uint8] = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(
        1, dtype=np.uint8
    )
    return counts


_bitwise_count = getattr(np, "bitwise_count", _count_by_table)  # NumPy 1 has none


def intersections(words: NDArray[np.uint64], areas: Tensor, labels: Tensor) -> Tensor:
    """Count the pixels that every two masks of one label share.

    Only pairs of one label whose ranges of occupied words meet are looked at, and of those only
    the words that both can occupy.

    Args:
        words: [N, M], from `pack_words`.
        areas: [N] int64, pixels of each mask.
        labels: [N] integer.

    Returns:
        [N, N] float32, symmetric, areas on the diagonal, 0 between different labels. Exact integers
        up to 2**24, beyond that the nearest float: as `unisolo.ops.masks.mask_intersections`.
    """
    shared = np.diag(areas.numpy()).astype(np.int64)
    occupied = words != 0
    first = occupied.argmax(1) if words.shape[1] else np.zeros(len(words), dtype=np.intp)
    last = words.shape[1] - 1 - occupied[:, ::-1].argmax(1) if words.shape[1] else first
    numbers = labels.numpy()
    held = areas.numpy() > 0
    for label in np.unique(numbers[held]):
        group = np.flatnonzero(held & (numbers == label))
        # By the first word, those that can meet a mask follow it without a gap.
        group = group[first[group].argsort(kind="stable")]
        shared[np.ix_(group, group)] = _shared(words[group], first[group], last[group] + 1)
    return torch.from_numpy(shared).float()


def _shared(
    rows: NDArray[np.uint64], starts: NDArray[np.intp], ends: NDArray[np.intp]
) -> NDArray[np.int64]:
    """Pixels that every two of rows [n, M] share; their words starts..ends are occupied."""
    count, num_words = rows.shape
    shared = np.zeros((count, count), dtype=np.int64)
    for block in row_chunks(count, count * num_words, PART_WORDS):
        stop = ends[block].max()
        reach = int(starts.searchsorted(stop))
        columns = slice(starts[block.start], stop)
        mine = rows[block, None, columns]
        for part in row_chunks(reach - block.start, mine.size, PART_WORDS):
            others = slice(block.start + part.start, block.start + part.stop)
            counts = count_bits(mine & rows[others, columns]).sum(2, dtype=np.uint32)
            shared[block, others] = counts
            shared[others, block] = counts.T
    return shared
