"""The panoptic merge in five kernels, whatever the number of instances.

Who is accepted depends on all who came before, so the instances have to be walked in order; the
rest does not. Hence:

1. `_measure`: area and extent of every mask that may enter, all tiles of all masks at once. Integer
   atomics: the same sums in any order.
2. `_accept`: one program walks the instances by score. It counts how much of each the union of the
   accepted ones hides, over the mask's rows only, decides, and adds the mask to the union. A union
   of 800 x 1333 pixels is 134 kB, which stays in the caches. Only instances above the score
   threshold are walked: a few dozen in most pictures.
3. `_paint`: each tile of the map goes through the accepted instances that reach it; the first one
   to have a pixel owns it. Free pixels of stuff are counted, and marked with their stuff index.
4. `_enter_stuff`: one small program decides which stuff enters, and numbers it.
5. `_number_stuff`: marks become ids.

Grids are not synchronised inside a kernel, nothing is read by the host, and sizes follow from
shapes alone, so a CUDA graph can hold all of it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from unisolo.ops.kernels.launch import on_device_of, popcount, round_up
from unisolo.ops.panoptic import PanopticMerge, check_merge

__all__ = ["merge_panoptic"]

MEASURE_TILE = {"ROWS": 16, "BYTES": 128}
PAINT_TILE = {"ROWS": 4, "COLUMNS": 128}
UNION_BLOCK = 4096
EXTENT = 4
"""Numbers per instance that `_measure` leaves beside its area."""


def merge_panoptic(
    packed_masks: Tensor,
    width: int,
    scores: Tensor,
    stuff_index: Tensor | None,
    *,
    num_stuff: int,
    score_threshold: float = 0.5,
    overlap_threshold: float = 0.5,
    stuff_area_threshold: int = 4096,
) -> PanopticMerge:
    """Twin of `unisolo.ops.panoptic.merge_panoptic`: see there. The same numbers, bit for bit."""
    check_merge(packed_masks, width, scores, stuff_index, num_stuff)
    packed_masks = packed_masks.contiguous()
    num_masks, height, _ = packed_masks.shape
    device = packed_masks.device
    panoptic_seg = torch.empty(height, width, dtype=torch.int32, device=device)
    instance_ids = torch.empty(num_masks, dtype=torch.int32, device=device)
    instance_areas = torch.empty(num_masks, dtype=torch.int64, device=device)
    stuff_ids = torch.zeros(num_stuff, dtype=torch.int32, device=device)
    stuff_areas = torch.zeros(num_stuff, dtype=torch.int64, device=device)
    small_stuff_areas = torch.zeros_like(stuff_areas)
    # One allocation that is cleared: the number of instances in the map, then what is summed up.
    # Parts are multiples of 16 bytes: an address that is not would compile its own kernels.
    parts = [4, round_up(num_masks, 4), EXTENT * num_masks, num_stuff]
    sums = torch.zeros(sum(parts), dtype=torch.int32, device=device)
    num_things, areas, extents, counts = torch.split(sums, parts)
    with on_device_of(packed_masks):
        if num_masks:
            _accept_instances(
                packed_masks,
                (scores >= score_threshold).view(torch.uint8),
                float(overlap_threshold),
                (areas, extents, instance_ids, instance_areas, num_things),
            )
        has_stuff = stuff_index is not None and num_stuff > 0
        stuff = stuff_index.contiguous() if stuff_index is not None and has_stuff else panoptic_seg
        tiles = (
            round_up(width, PAINT_TILE["COLUMNS"]) // PAINT_TILE["COLUMNS"],
            round_up(height, PAINT_TILE["ROWS"]) // PAINT_TILE["ROWS"],
        )
        _paint[tiles](
            packed_masks,
            instance_ids,
            extents,
            stuff.view(torch.uint8) if stuff.dtype == torch.bool else stuff,
            panoptic_seg,
            counts,
            num_masks,
            height,
            width,
            num_stuff,
            HAS_STUFF=has_stuff,
            **PAINT_TILE,
        )
        if has_stuff:
            tables = (stuff_ids, stuff_areas, small_stuff_areas)
            _enter_stuff[(1,)](
                counts, num_things, *tables, num_stuff, stuff_area_threshold, BLOCK=256
            )
            size = panoptic_seg.numel()
            _number_stuff[(round_up(size, 1024) // 1024,)](
                panoptic_seg, stuff_ids, size, BLOCK=1024
            )
    return PanopticMerge(
        panoptic_seg, instance_ids, instance_areas, stuff_ids, stuff_areas, small_stuff_areas
    )


def _accept_instances(
    packed_masks: Tensor,
    eligible: Tensor,
    overlap_threshold: float,
    results: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
) -> None:
    """Decide who enters, in order: fills areas, extents, ids, owned areas and their number."""
    areas, extents, instance_ids, instance_areas, num_things = results
    num_masks, height, num_bytes = packed_masks.shape
    tiles_x = round_up(num_bytes, MEASURE_TILE["BYTES"]) // MEASURE_TILE["BYTES"]
    tiles = tiles_x * (round_up(height, MEASURE_TILE["ROWS"]) // MEASURE_TILE["ROWS"])
    _measure[(tiles, num_masks)](
        packed_masks, eligible, areas, extents, height, num_bytes, tiles_x, **MEASURE_TILE
    )
    # Words of four bytes where every mask begins at one; what a word holds does not matter.
    mask_bytes = height * num_bytes
    whole = mask_bytes % 4 == 0 and packed_masks.storage_offset() % 4 == 0
    words = packed_masks.view(-1).view(torch.int32) if whole else packed_masks
    word_bytes = words.element_size()
    union = words.new_zeros(mask_bytes // word_bytes)
    _accept[(1,)](
        words,
        areas,
        extents,
        union,
        instance_ids,
        instance_areas,
        num_things,
        overlap_threshold,
        num_masks,
        union.numel(),
        height,
        num_bytes,
        WORD_BYTES=word_bytes,
        BLOCK=UNION_BLOCK,
        num_warps=16,
    )


@triton.jit(do_not_specialize=["height", "num_bytes", "tiles_x"])  # type: ignore[untyped-decorator]
def _measure(  # type: ignore[no-untyped-def]
    packed,
    eligible,
    areas,
    extents,
    height,
    num_bytes,
    tiles_x,
    ROWS: tl.constexpr,
    BYTES: tl.constexpr,
):
    """Add one tile of one mask to its area and extent.

    The extent is four maxima, so that zeros say "empty": height - first row, last row + 1,
    num_bytes - first byte column, last byte column + 1.
    """
    mask = tl.program_id(1).to(tl.int64)
    if tl.load(eligible + mask) != 0:
        rows = tl.program_id(0) // tiles_x * ROWS + tl.arange(0, ROWS)
        columns = tl.program_id(0) % tiles_x * BYTES + tl.arange(0, BYTES)
        lines = packed + (mask * height + rows) * num_bytes
        inside = (rows < height)[:, None] & (columns < num_bytes)[None, :]
        bytes_ = tl.load(lines[:, None] + columns[None, :], mask=inside, other=0).to(tl.int32)
        area = tl.sum(tl.sum(popcount(bytes_), 1), 0)
        if area > 0:
            some_row = tl.max(bytes_, 1) > 0
            some_column = tl.max(bytes_, 0) > 0
            extent = extents + 4 * mask
            tl.atomic_add(areas + mask, area, sem="relaxed")
            above = tl.max(tl.where(some_row, height - rows, 0), 0)
            below = tl.max(tl.where(some_row, rows + 1, 0), 0)
            before = tl.max(tl.where(some_column, num_bytes - columns, 0), 0)
            after = tl.max(tl.where(some_column, columns + 1, 0), 0)
            tl.atomic_max(extent, above, sem="relaxed")
            tl.atomic_max(extent + 1, below, sem="relaxed")
            tl.atomic_max(extent + 2, before, sem="relaxed")
            tl.atomic_max(extent + 3, after, sem="relaxed")


@triton.jit(do_not_specialize=["num_masks", "height", "num_bytes"])  # type: ignore[untyped-decorator]
def _accept(  # type: ignore[no-untyped-def]
    words,
    areas,
    extents,
    union,
    instance_ids,
    instance_areas,
    num_things,
    overlap_threshold,
    num_masks,
    num_words,
    height,
    num_bytes,
    WORD_BYTES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Walk the instances: id and owned pixels of each, 0 where it does not enter the map.

    The union is written and read by different threads of this one program: the barrier at the end
    of a step makes one step's writes visible to the next.
    """
    entered = tl.full([], 0, tl.int32)
    mask_words = words
    for mask in range(num_masks):
        area = tl.load(areas + mask)
        owned = tl.full([], 0, tl.int32)
        if area > 0:
            first_row = height - tl.load(extents + 4 * mask)
            end_row = tl.load(extents + 4 * mask + 1)
            # Rounded down to whole vectors of words.
            first = first_row * num_bytes // WORD_BYTES // 16 * 16
            end = (end_row * num_bytes + WORD_BYTES - 1) // WORD_BYTES
            shared = tl.zeros([BLOCK], tl.int32)
            for start in range(first, end, BLOCK):
                places = start + tl.arange(0, BLOCK)
                inside = places < end
                bits = tl.load(mask_words + places, mask=inside, other=0)
                taken = tl.load(union + places, mask=inside, other=0)
                shared += popcount((bits & taken).to(tl.int32))
            hidden = tl.sum(shared, 0)
            share = tl.div_rn(hidden.to(tl.float32), area.to(tl.float32))
            if share <= overlap_threshold:
                owned = area - hidden
                for start in range(first, end, BLOCK):
                    places = start + tl.arange(0, BLOCK)
                    inside = places < end
                    bits = tl.load(mask_words + places, mask=inside, other=0)
                    taken = tl.load(union + places, mask=inside, other=0)
                    tl.store(union + places, bits | taken, mask=inside)
            tl.debug_barrier()
        entered += (owned > 0).to(tl.int32)
        tl.store(instance_ids + mask, tl.where(owned > 0, entered, 0))
        tl.store(instance_areas + mask, owned.to(tl.int64))
        mask_words += num_words
    tl.store(num_things, entered)


@triton.jit(do_not_specialize=["num_masks", "height", "width", "num_stuff"])  # type: ignore[untyped-decorator]
def _paint(  # type: ignore[no-untyped-def]
    packed,
    instance_ids,
    extents,
    stuff_index,
    panoptic_seg,
    counts,
    num_masks,
    height,
    width,
    num_stuff,
    HAS_STUFF: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One tile of the map: ids of instances, -1 - s where stuff index s is free to enter."""
    num_bytes = (width + 7) // 8
    row = tl.program_id(1) * ROWS
    column = tl.program_id(0) * COLUMNS
    rows = row + tl.arange(0, ROWS)
    columns = column + tl.arange(0, COLUMNS)
    inside = (rows < height)[:, None] & (columns < width)[None, :]
    shifts = 7 - columns % 8
    places = rows.to(tl.int64)[:, None] * num_bytes + (columns // 8)[None, :]
    owner = tl.zeros([ROWS, COLUMNS], tl.int32)
    mask_bytes = packed
    for mask in range(num_masks):
        number = tl.load(instance_ids + mask)
        first_row = height - tl.load(extents + 4 * mask)
        end_row = tl.load(extents + 4 * mask + 1)
        first_column = 8 * (num_bytes - tl.load(extents + 4 * mask + 2))
        end_column = 8 * tl.load(extents + 4 * mask + 3)
        reaches_rows = (first_row < row + ROWS) & (end_row > row)
        reaches_columns = (first_column < column + COLUMNS) & (end_column > column)
        if (number > 0) & reaches_rows & reaches_columns:
            bytes_ = tl.load(mask_bytes + places, mask=inside, other=0).to(tl.int32)
            mine = ((bytes_ >> shifts[None, :]) & 1) != 0
            owner = tl.where(mine & (owner == 0), number, owner)
        mask_bytes += height.to(tl.int64) * num_bytes

    lines = rows.to(tl.int64)[:, None] * width + columns[None, :]
    if HAS_STUFF:
        stuff = tl.load(stuff_index + lines, mask=inside, other=0)
        # Compared before it is narrowed: a 64-bit number may wrap.
        known = inside & (owner == 0) & (stuff >= 0) & (stuff < num_stuff)
        waiting = tl.where(known, stuff.to(tl.int32), num_stuff)
        owner = tl.where(known, -1 - waiting, owner)
        # One turn per stuff index in the tile, of which there are few.
        least = tl.min(tl.min(waiting, 1), 0)
        while least < num_stuff:
            here = waiting == least
            tl.atomic_add(counts + least, tl.sum(tl.sum(here.to(tl.int32), 1), 0), sem="relaxed")
            waiting = tl.where(here, num_stuff, waiting)
            least = tl.min(tl.min(waiting, 1), 0)
    tl.store(panoptic_seg + lines, owner, mask=inside)


@triton.jit(do_not_specialize=["num_stuff", "stuff_area_threshold"])  # type: ignore[untyped-decorator]
def _enter_stuff(  # type: ignore[no-untyped-def]
    counts,
    num_things,
    stuff_ids,
    stuff_areas,
    small_stuff_areas,
    num_stuff,
    stuff_area_threshold,
    BLOCK: tl.constexpr,
):
    """Number the stuff that has enough free pixels, after the instances."""
    entered = tl.load(num_things)
    for start in range(0, num_stuff, BLOCK):
        index = start + tl.arange(0, BLOCK)
        inside = index < num_stuff
        count = tl.load(counts + index, mask=inside, other=0)
        present = (count > 0) & (count >= stuff_area_threshold)
        ids = entered + tl.cumsum(present.to(tl.int32), 0)
        area = tl.where(present, count, 0)
        tl.store(stuff_ids + index, tl.where(present, ids, 0), mask=inside)
        tl.store(stuff_areas + index, area.to(tl.int64), mask=inside)
        tl.store(small_stuff_areas + index, (count - area).to(tl.int64), mask=inside)
        entered += tl.sum(present.to(tl.int32), 0)


@triton.jit(do_not_specialize=["size"])  # type: ignore[untyped-decorator]
def _number_stuff(panoptic_seg, stuff_ids, size, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Turn marks into ids: 0 where the stuff did not enter."""
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(panoptic_seg + places, mask=places < size, other=0)
    marked = values < 0
    ids = tl.load(stuff_ids + (-1 - values), mask=marked, other=0)
    tl.store(panoptic_seg + places, ids, mask=marked)
