"""Triton: the most probable (cell, category) pairs in order, any number of them, without a sync.

Probabilities are positive floats, so their bits sort as they do. The first kernel suppresses pairs
by points NMS and counts the bits of the rest in 2,048 steps of 1/64 octave. The second lists all
pairs from the step of the n-th one on, in any order: n, and the few that share the last step.
A pair's place is then the number of listed pairs before it, counted by the fourth kernel. The
third one does nothing as a rule: only where more pairs share the last step than counting is good
for (all logits equal), it finds the n-th exactly, digit by digit, and shortens the list to n.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from unisolo.ops.kernels.launch import jit, on_device_of
from unisolo.ops.select import Candidates
from unisolo.ops.stages import NUM_TOP
from unisolo.structures import GridSpec

__all__ = ["CAPACITY", "RankedPairs", "ranked_pairs"]

STEPS = tl.constexpr(2048)
LOWEST_STEP = tl.constexpr((0x3F800000 >> 17) - 2047)
"""Probability 1 is in the last step; what is below 2**-31 shares the first one."""

CAPACITY = 4096
"""Most pairs that are put in order by comparing each with each."""


class RankedPairs(NamedTuple):
    """The best pairs of each image of a batch.

    Attributes:
        candidates: [B, n] by falling score; score 0 marks an empty place.
        num_passing: [B, 1] int32, all pairs above the threshold.
        top_probs: [B, 5] float32, the highest probabilities before any threshold.
        top_labels: [B, 5] int64, their labels.
    """

    candidates: Candidates
    num_passing: Tensor
    top_probs: Tensor
    top_labels: Tensor


def ranked_pairs(
    category_logits: Tensor,
    grid: GridSpec,
    *,
    score_threshold: float,
    max_candidates: int,
    capacity: int = CAPACITY,
) -> RankedPairs:
    """Rank pairs as `category_probs` and `top_candidates` of `unisolo.ops.select` do, tie for tie.

    Memory: about 16 bytes per pair.

    Args:
        category_logits: [B, L, C] floating, C at least 1.
        grid: The model's grid; L is its number of cells.
        score_threshold: Pairs at or below this become empty places.
        max_candidates: Upper bound of n.
        capacity: Longest list whose order is counted; changes speed, never the result.

    Returns:
        n = min(max_candidates, L * C) candidates, and what the statistics need.

    Raises:
        ValueError: If an image has 2**30 pairs or more.
    """
    batch_size, num_cells, num_categories = category_logits.shape
    num_pairs = num_cells * num_categories
    if num_pairs >= 2**30:
        raise ValueError(
            f"the Triton kernels rank fewer than 2**30 pairs, got {num_cells} cells x "
            f"{num_categories} categories; use UNISOLO_KERNELS=torch"
        )
    # torch's own sigmoid: which neighbours tie must be the same to the last bit.
    probs = category_logits.float().sigmoid().contiguous()
    device = probs.device
    count = min(max_candidates, num_pairs)
    wanted = min(max(max_candidates, NUM_TOP), num_pairs)
    left = torch.empty_like(probs)
    places = torch.empty(batch_size, num_pairs, dtype=torch.int32, device=device)
    # Steps, then the length of the list and the number above the threshold.
    state = torch.zeros(batch_size, STEPS.value + 2, dtype=torch.int32, device=device)
    labels, cells = torch.empty(2, batch_size, count, dtype=torch.int64, device=device)
    scores = torch.empty(batch_size, count, dtype=torch.float32, device=device)
    fill = torch.zeros if num_pairs < NUM_TOP else torch.empty
    top_probs = fill(batch_size, NUM_TOP, dtype=torch.float32, device=device)
    top_labels = fill(batch_size, NUM_TOP, dtype=torch.int64, device=device)
    shape = (num_pairs, num_categories)
    ranked = min(max(capacity, wanted), num_pairs)
    with on_device_of(probs):
        chunks = (triton.cdiv(num_pairs, 2048), batch_size)
        _suppress[chunks](
            probs,
            left,
            state,
            *shape,
            float(score_threshold),
            SIZES=grid.sizes,
            STARTS=grid.offsets,
            NUM_LEVELS=grid.num_levels,
            BLOCK=2048,
            num_warps=8,
        )
        # The list takes the place of the probabilities, which are not needed any more.
        listed = probs.view(torch.int32)
        _list[chunks](left, state, listed, places, num_pairs, wanted, BLOCK=2048, num_warps=8)
        _shorten[(batch_size,)](
            state, listed, places, num_pairs, wanted, capacity, BLOCK=2048, num_warps=8
        )
        _rank[(triton.cdiv(ranked, 8), batch_size)](
            state,
            listed,
            places,
            scores,
            labels,
            cells,
            top_probs,
            top_labels,
            *shape,
            wanted,
            count,
            capacity,
            float(score_threshold),
            NUM_TOP=NUM_TOP,
            OWN=8,
            OTHERS=256,
            num_warps=4,
        )
    num_passing = state[:, STEPS.value + 1 :]
    return RankedPairs(Candidates(scores, labels, cells), num_passing, top_probs, top_labels)


@jit
def _suppress(  # type: ignore[no-untyped-def]
    probs_ptr,
    left_ptr,
    state_ptr,
    num_pairs,
    num_categories,
    threshold,
    SIZES: tl.constexpr,
    STARTS: tl.constexpr,
    NUM_LEVELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Points NMS of BLOCK pairs, and their numbers in each step and above the threshold."""
    image = tl.program_id(1).to(tl.int64)
    probs_ptr += image * num_pairs
    state_ptr += image * (STEPS + 2)
    pairs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = pairs < num_pairs
    cells = pairs // num_categories
    size = tl.full([BLOCK], 1, tl.int32)
    place = cells
    for level in tl.static_range(NUM_LEVELS):
        here = cells >= STARTS[level]
        size = tl.where(here, SIZES[level], size)
        place = tl.where(here, cells - STARTS[level], place)
    lower = exists & (place >= size)
    right = exists & (place % size != 0)
    up = probs_ptr + (pairs - size * num_categories)
    own = tl.load(probs_ptr + pairs, mask=exists, other=0.0)
    above = tl.load(up, mask=lower, other=0.0)
    beside = tl.load(probs_ptr + pairs - num_categories, mask=right, other=0.0)
    corner = tl.load(up - num_categories, mask=lower & right, other=0.0)
    # One by one: a maximum would pass over a NaN on a GPU, where the definition's pool keeps it.
    own = tl.where((own >= above) & (own >= beside) & (own >= corner), own, 0.0)
    tl.store(left_ptr + image * num_pairs + pairs, own, mask=exists)
    # The next kernel sees all counts whatever the order of memory inside this one: no fences.
    # What is no pair counts in the first step, whose number is never looked at.
    counts = tl.histogram(_step(own.to(tl.int32, bitcast=True)), STEPS)
    steps = tl.arange(0, STEPS)
    tl.atomic_add(state_ptr + steps, counts, mask=counts > 0, sem="relaxed")
    passing = tl.sum((exists & (own > threshold)).to(tl.int32), 0)
    if passing > 0:
        tl.atomic_add(state_ptr + STEPS + 1, passing, sem="relaxed")


@jit
def _step(bits):  # type: ignore[no-untyped-def]
    """Step of a probability's bits."""
    return tl.maximum((bits >> 17) - LOWEST_STEP, 0)


@jit
def _reached(counts, wanted):  # type: ignore[no-untyped-def]
    """Highest place from which on there are at least as many as wanted; else the first one."""
    size: tl.constexpr = counts.shape[0]
    enough = tl.cumsum(counts, 0, reverse=True) >= wanted
    return tl.max(tl.where(enough, tl.arange(0, size), 0), 0)


@jit
def _list(  # type: ignore[no-untyped-def]
    left_ptr, state_ptr, listed_ptr, places_ptr, num_pairs, wanted, BLOCK: tl.constexpr
):
    """Append those of BLOCK pairs that can be among the wanted ones."""
    image = tl.program_id(1).to(tl.int64)
    state_ptr += image * (STEPS + 2)
    last_step = _reached(tl.load(state_ptr + tl.arange(0, STEPS)), wanted)
    pairs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = pairs < num_pairs
    left = tl.load(left_ptr + image * num_pairs + pairs, mask=exists, other=0.0)
    bits = left.to(tl.int32, bitcast=True)
    found = (exists & (_step(bits) >= last_step)).to(tl.int32)
    number = tl.sum(found, 0)
    if number > 0:
        start = tl.atomic_add(state_ptr + STEPS, number, sem="relaxed")
        to = image * num_pairs + start + tl.cumsum(found, 0) - found
        tl.store(listed_ptr + to, bits, mask=found != 0)
        tl.store(places_ptr + to, pairs, mask=found != 0)


@jit
def _shorten(  # type: ignore[no-untyped-def]
    state_ptr, listed_ptr, places_ptr, num_pairs, wanted, capacity, BLOCK: tl.constexpr
):
    """Cut a list that is longer than the capacity to the wanted pairs, in place.

    The wanted pairs are those whose bits, and whose place from the end where bits are equal, are
    at least the last one's. Both have 30 bits: three digits of ten bits each, the highest first.
    """
    image = tl.program_id(0).to(tl.int64)
    length = tl.load(state_ptr + image * (STEPS + 2) + STEPS)
    listed_ptr += image * num_pairs
    places_ptr += image * num_pairs
    if length > capacity:
        missing = wanted
        last_bits = 0
        last_place = 0
        for digit in tl.static_range(6):
            counts = _digits(
                listed_ptr, places_ptr, length, last_bits, last_place, DIGIT=digit, BLOCK=BLOCK
            )
            found = _reached(counts, missing)
            missing -= tl.sum(tl.where(tl.arange(0, 2048) > found, counts, 0), 0)
            if digit < 3:
                last_bits = last_bits * 1024 + found
            else:
                last_place = last_place * 1024 + found
        written = 0
        for start in range(0, length, BLOCK):
            at = start + tl.arange(0, BLOCK)
            bits = tl.load(listed_ptr + at, mask=at < length, other=0)
            places = tl.load(places_ptr + at, mask=at < length, other=0)
            stays = (bits == last_bits) & (0x3FFFFFFF - places >= last_place)
            stays = ((at < length) & (stays | (bits > last_bits))).to(tl.int32)
            # Never past what has been read: no pair is lost.
            to = written + tl.cumsum(stays, 0) - stays
            tl.store(listed_ptr + to, bits, mask=stays != 0)
            tl.store(places_ptr + to, places, mask=stays != 0)
            written += tl.sum(stays, 0)


@jit
def _digits(  # type: ignore[no-untyped-def]
    listed_ptr,
    places_ptr,
    length,
    last_bits,
    last_place,
    DIGIT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """How often a digit has each value, where the digits before it are the last pair's."""
    shift: tl.constexpr = 20 - 10 * (DIGIT % 3)
    counts = tl.zeros([2048], tl.int32)
    for start in range(0, length, BLOCK):
        at = start + tl.arange(0, BLOCK)
        bits = tl.load(listed_ptr + at, mask=at < length, other=0)
        if DIGIT < 3:
            key = bits
            same = (at < length) & ((key >> shift >> 10) == last_bits)
        else:
            key = 0x3FFFFFFF - tl.load(places_ptr + at, mask=at < length, other=0)
            same = (at < length) & (bits == last_bits) & ((key >> shift >> 10) == last_place)
        # The second half takes what is not looked for.
        counts += tl.histogram(tl.where(same, (key >> shift) & 1023, 1024), 2048)
    return tl.where(tl.arange(0, 2048) < 1024, counts, 0)


@jit
def _rank(  # type: ignore[no-untyped-def]
    state_ptr,
    listed_ptr,
    places_ptr,
    scores_ptr,
    labels_ptr,
    cells_ptr,
    top_probs_ptr,
    top_labels_ptr,
    num_pairs,
    num_categories,
    wanted,
    count,
    capacity,
    threshold,
    NUM_TOP: tl.constexpr,
    OWN: tl.constexpr,
    OTHERS: tl.constexpr,
):
    """Write OWN listed pairs to the places that the numbers of pairs before them say."""
    image = tl.program_id(1).to(tl.int64)
    length = tl.load(state_ptr + image * (STEPS + 2) + STEPS)
    length = tl.where(length > capacity, wanted, length)  # see _shorten
    listed_ptr += image * num_pairs
    places_ptr += image * num_pairs
    first = tl.program_id(0) * OWN
    if first < length:
        own = first + tl.arange(0, OWN)
        exists = own < length
        bits = tl.load(listed_ptr + own, mask=exists, other=0)
        pairs = tl.load(places_ptr + own, mask=exists, other=0)
        rank = tl.zeros([OWN], tl.int32)
        for start in range(0, length, OTHERS):
            other = start + tl.arange(0, OTHERS)
            other_bits = tl.load(listed_ptr + other, mask=other < length, other=-1)[None, :]
            other_pairs = tl.load(places_ptr + other, mask=other < length, other=0)[None, :]
            tied = (other_bits == bits[:, None]) & (other_pairs < pairs[:, None])
            rank += tl.sum(((other_bits > bits[:, None]) | tied).to(tl.int32), 1)
        probs = bits.to(tl.float32, bitcast=True)
        cells = pairs // num_categories
        labels = (pairs - cells * num_categories).to(tl.int64)
        chosen = exists & (rank < count)
        to = image * count + rank
        tl.store(scores_ptr + to, tl.where(probs > threshold, probs, 0.0), mask=chosen)
        tl.store(labels_ptr + to, labels, mask=chosen)
        tl.store(cells_ptr + to, cells.to(tl.int64), mask=chosen)
        top = exists & (rank < NUM_TOP)
        to = image * NUM_TOP + rank
        tl.store(top_probs_ptr + to, probs, mask=top)
        tl.store(top_labels_ptr + to, labels, mask=top)
