"""How many pixels every two packed masks share, as exact integers.

Two ways with the same result. On the tensor cores (`unisolo.ops.kernels.mma`) all pairs cost the
same; this is the first choice. Pair by pair, below, is the way without CUDA C: one kernel lists the
pairs that can meet (same label, overlapping ranges of occupied blocks), the next goes through the
list, whose length it reads on the device. That is fast where few masks meet, and takes ten times
as long where all are large and of one label.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from unisolo.ops.kernels.launch import jit, multiprocessors, on_device_of, popcount
from unisolo.ops.kernels.mma import mma_intersections, mma_kernel
from unisolo.ops.kernels.packed import BLOCK_WORDS, PackedMasks

__all__ = ["packed_intersections", "pair_intersections"]

LIST_BLOCK = 32
"""Rows and columns of the pairs that one program looks at."""

WORDS_AT_ONCE = 128
"""Words per turn of the one warp that counts a pair: 16 bytes of each mask for each of 32 lanes."""

PROGRAMS_PER_PROCESSOR = 16


def packed_intersections(
    packed: PackedMasks, labels: Tensor, scores: Tensor | None = None
) -> Tensor:
    """Count the pixels that every two masks of an image share.

    Args:
        packed: Masks of N candidates for each of B images.
        labels: [B, N] integer; only masks of one label are compared.
        scores: [B, N] floating; candidates whose score is 0 take no part (empty places). None =
            all take part.

    Returns:
        [B, N, N] int32, symmetric: shared pixels where both have the same label, areas on the
        diagonal; 0 for other pairs and for candidates that take no part.
    """
    labels = labels.long().contiguous()
    if scores is None:
        scores = torch.ones_like(labels, dtype=torch.float32)
    scores = scores.float().contiguous()
    launch = mma_kernel(packed.bits.device)
    if launch is not None:
        return mma_intersections(launch, packed, labels, scores)
    return pair_intersections(packed, labels, scores)


def pair_intersections(packed: PackedMasks, labels: Tensor, scores: Tensor) -> Tensor:
    """Count shared pixels pair by pair; see `packed_intersections`.

    Args:
        packed: Masks of N candidates for each of B images.
        labels: [B, N] int64, contiguous.
        scores: [B, N] float32, contiguous.

    Returns:
        [B, N, N] int32.
    """
    batch_size, num_masks, num_words = packed.bits.shape
    device = packed.bits.device
    size = batch_size * num_masks * num_masks
    # One fill for the result and, behind it, the lengths of the lists.
    zeros = torch.zeros(size + batch_size, dtype=torch.int32, device=device)
    out = zeros[:size].view(batch_size, num_masks, num_masks)
    if size == 0:
        return out
    lengths = zeros[size:]
    capacity = num_masks * (num_masks - 1) // 2  # every pair has a place
    pairs = torch.empty(batch_size, max(1, capacity), dtype=torch.int32, device=device)
    bits, first, last = (part.contiguous() for part in (packed.bits, packed.first, packed.last))
    blocks = triton.cdiv(num_masks, LIST_BLOCK)
    programs = max(1, PROGRAMS_PER_PROCESSOR * multiprocessors(device) // batch_size)
    with on_device_of(bits):
        _list_pairs[(blocks, blocks, batch_size)](
            labels,
            scores,
            packed.areas.contiguous(),
            first,
            last,
            out,
            pairs,
            lengths,
            num_masks,
            capacity,
            BLOCK=LIST_BLOCK,
            num_warps=4,
        )
        _count_pairs[(min(programs, max(1, capacity)), batch_size)](
            bits,
            first,
            last,
            out,
            pairs,
            lengths,
            num_masks,
            num_words,
            capacity,
            BLOCK_WORDS=BLOCK_WORDS,
            WIDTH=WORDS_AT_ONCE,
            num_warps=1,
        )
    return out


@jit
def _list_pairs(  # type: ignore[no-untyped-def]
    labels_ptr,
    scores_ptr,
    areas_ptr,
    first_ptr,
    last_ptr,
    out_ptr,
    pairs_ptr,
    lengths_ptr,
    num_masks,
    capacity,
    BLOCK: tl.constexpr,
):
    """List the pairs i < j of a block that can share pixels, as i * num_masks + j."""
    if tl.program_id(1) >= tl.program_id(0):
        image = tl.program_id(2)
        base = image.to(tl.int64) * num_masks
        i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        j = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        label_i = tl.load(labels_ptr + base + i, mask=i < num_masks, other=0)
        label_j = tl.load(labels_ptr + base + j, mask=j < num_masks, other=0)
        first_i = tl.load(first_ptr + base + i, mask=i < num_masks, other=0)
        first_j = tl.load(first_ptr + base + j, mask=j < num_masks, other=0)
        last_i = tl.load(last_ptr + base + i, mask=i < num_masks, other=-1)
        last_j = tl.load(last_ptr + base + j, mask=j < num_masks, other=-1)
        # An empty range meets no other, so that it stands for all reasons to take no part.
        last_i = tl.where(
            tl.load(scores_ptr + base + i, mask=i < num_masks, other=0) > 0, last_i, -1
        )
        last_j = tl.where(
            tl.load(scores_ptr + base + j, mask=j < num_masks, other=0) > 0, last_j, -1
        )
        if tl.program_id(1) == tl.program_id(0):
            areas = tl.load(areas_ptr + base + i, mask=i < num_masks, other=0)
            takes_part = (i < num_masks) & (first_i <= last_i)
            tl.store(out_ptr + (base + i) * num_masks + i, areas, mask=takes_part)
        begin = tl.maximum(first_i[:, None], first_j[None, :])
        end = tl.minimum(last_i[:, None], last_j[None, :])
        meets = (begin <= end) & (label_i[:, None] == label_j[None, :])
        meets = meets & (i[:, None] < j[None, :])
        flags = tl.reshape(meets.to(tl.int32), (BLOCK * BLOCK,))
        codes = tl.reshape(i[:, None] * num_masks + j[None, :], (BLOCK * BLOCK,))
        found = tl.sum(flags, 0)
        if found > 0:
            # Where in the list depends on which program comes first; what it leads to does not.
            start = tl.atomic_add(lengths_ptr + image, found, sem="relaxed")
            place = start + tl.cumsum(flags, 0) - flags
            tl.store(pairs_ptr + image.to(tl.int64) * capacity + place, codes, mask=flags > 0)


@jit
def _count_pairs(  # type: ignore[no-untyped-def]
    bits_ptr,
    first_ptr,
    last_ptr,
    out_ptr,
    pairs_ptr,
    lengths_ptr,
    num_masks,
    num_words,
    capacity,
    BLOCK_WORDS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Count the listed pairs, each where both masks have pixels."""
    image = tl.program_id(1)
    base = image.to(tl.int64) * num_masks
    bits_ptr += base * num_words
    out_ptr += base * num_masks
    length = tl.load(lengths_ptr + image)
    for place in range(tl.program_id(0), length, tl.num_programs(0)):
        code = tl.load(pairs_ptr + image.to(tl.int64) * capacity + place)
        i = code // num_masks
        j = code - i * num_masks
        begin = tl.maximum(tl.load(first_ptr + base + i), tl.load(first_ptr + base + j))
        end = tl.minimum(tl.load(last_ptr + base + i), tl.load(last_ptr + base + j)) + 1
        row = bits_ptr + i.to(tl.int64) * num_words
        column = bits_ptr + j.to(tl.int64) * num_words
        # To whole loads of 16 bytes; what lies outside the range is 0 in one of the two.
        begin = begin * BLOCK_WORDS // 4 * 4
        end = (end * BLOCK_WORDS + 3) // 4 * 4
        counts = tl.zeros([WIDTH], tl.int32)
        for start in range(begin, end, WIDTH):
            words = start + tl.arange(0, WIDTH)
            inside = words < end
            both = tl.load(row + words, mask=inside, other=0) & tl.load(
                column + words, mask=inside, other=0
            )
            counts += popcount(both)
        shared = tl.sum(counts, 0)
        tl.store(out_ptr + i * num_masks + j, shared)
        tl.store(out_ptr + j * num_masks + i, shared)
