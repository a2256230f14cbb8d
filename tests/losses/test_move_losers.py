"""Objects that lose every cell to others take the nearest free one (`train.shared_cells=move`)."""

from __future__ import annotations

import assign_twin as twin
import numpy as np
import pytest
from assign_twin import TINY_GRID, make_target, mask_boxes, paint, rectangles
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import tiny_config

from unisolo.losses.assign import object_statistics
from unisolo.losses.core import loss_counts
from unisolo.losses.pairs import count_unassigned, trained_pairs
from unisolo.losses.targets import cell_targets
from unisolo.structures import GridSpec

ONE_LEVEL = GridSpec(sizes=(4,), strides=(8,), scale_ranges=((1, 512),))

Pair = tuple[int, int, int]


def pairs_of(masks: np.ndarray, grid: GridSpec, **options) -> list[Pair]:
    centers, areas = object_statistics(paint(masks), len(masks))
    found = trained_pairs(mask_boxes(masks), centers, areas, grid, masks.shape[1:], **options)
    return list(
        zip(found.levels.tolist(), found.objects.tolist(), found.cells.tolist(), strict=True)
    )


def moved_by_loops(masks: np.ndarray, grid: GridSpec) -> list[Pair]:
    """Place losers one at a time: always the loser and the free cell nearest to each other."""
    one = np.float32
    claimed = twin.pairs(masks, mask_boxes(masks).numpy(), grid)
    kept = twin.winners(claimed, masks, grid)
    losers = {pair[1] for pair in claimed} - {pair[1] for pair in kept}
    free = set(range(grid.num_cells)) - {pair[2] for pair in kept}
    shape = masks.shape[1:]
    while True:
        best: tuple[tuple[np.float32, int, int], Pair] | None = None
        for level, index in {pair[:2] for pair in claimed if pair[1] in losers}:
            size, start = grid.sizes[level], grid.offsets[level]
            middle = [one(axis.sum()) / one(len(axis)) for axis in np.nonzero(masks[index])]
            own = [int(m / one(s) / one(1 / size)) for m, s in zip(middle, shape, strict=True)]
            for row in range(max(own[0] - 1, 0), min(own[0] + 2, size)):
                for column in range(max(own[1] - 1, 0), min(own[1] + 2, size)):
                    cell = start + row * size + column
                    distance = one(0)
                    for number, length, center in zip((row, column), shape, middle, strict=True):
                        edge = one(number + 0.5) * one(length) / one(size)
                        distance += (edge - (center + one(0.5))) ** 2
                    rank = (distance, -index, cell)
                    if cell in free and (best is None or rank < best[0]):
                        best = rank, (level, index, cell)
        if best is None:
            return sorted(kept)
        kept.append(best[1])
        losers.remove(best[1][1])
        free.remove(best[1][2])


@st.composite
def dense(draw: st.DrawFn) -> np.ndarray:
    """Many small rectangles, most of them in one corner, where they want the same cells."""
    size = draw(st.sampled_from([(32, 32), (32, 64), (64, 32)]))
    count = draw(st.integers(0, 14))
    masks = np.zeros((count, *size), bool)
    for mask in masks:
        y, x = draw(st.integers(0, 14)), draw(st.integers(0, 14))
        mask[y : y + draw(st.integers(1, 9)), x : x + draw(st.integers(1, 9))] = True
    return masks


@given(dense(), st.sampled_from([ONE_LEVEL, TINY_GRID]))
def test_as_by_loops(masks: np.ndarray, grid: GridSpec) -> None:
    assert pairs_of(masks, grid, shared_cells="move") == moved_by_loops(masks, grid)


@given(dense())
def test_nobody_loses_by_it(masks: np.ndarray) -> None:
    dropped = pairs_of(masks, ONE_LEVEL)
    moved = pairs_of(masks, ONE_LEVEL, shared_cells="move")
    assert set(dropped) <= set(moved) and moved == sorted(moved)
    cells = [cell for _, _, cell in moved]
    assert len(cells) == len(set(cells))
    new = [index for _, index, _ in set(moved) - set(dropped)]
    assert len(new) == len(set(new)) and not set(new) & {index for _, index, _ in dropped}


def test_the_nearest_goes_first_and_the_crowded_stay_without() -> None:
    # Eleven objects of one pixel in one cell of 8 x 8 pixels in the corner of a grid: the
    # centre's own goes to the nearest of them, three others find a cell beside it.
    places = [
        (1, 1),
        (3, 3),
        (6, 2),
        (2, 6),
        (5, 5),
        (1, 4),
        (4, 1),
        (0, 0),
        (0, 3),
        (3, 0),
        (2, 2),
    ]
    masks = rectangles((32, 32), [(x, y, x + 1, y + 1) for y, x in places])
    found = pairs_of(masks, ONE_LEVEL, shared_cells="move")
    assert [(index, cell) for _, index, cell in found] == [(1, 0), (2, 4), (3, 1), (4, 5)]


def test_one_pixel_alone_and_no_object() -> None:
    alone = rectangles((32, 32), [(31, 31, 32, 32)])
    assert pairs_of(alone, ONE_LEVEL, shared_cells="move") == [(0, 0, 15)]
    assert pairs_of(alone[:0], ONE_LEVEL, shared_cells="move") == []


def test_an_object_outside_every_scale_range_is_not_moved() -> None:
    grid = GridSpec(sizes=(4,), strides=(8,), scale_ranges=((4, 512),))
    masks = rectangles((32, 32), [(2, 2, 7, 7), (3, 3, 4, 4)])
    assert [index for _, index, _ in pairs_of(masks, grid, shared_cells="move")] == [0]


def test_targets_counts_and_the_doctor_follow_the_option() -> None:
    masks = rectangles((32, 32), [(1, 1, 4, 4), (4, 4, 7, 7)])
    target = make_target(masks, [0, 1])
    centers, areas = object_statistics(target.object_map, 2)
    for option, trained in (("drop", 1), ("move", 2)):
        cells = cell_targets(target, ONE_LEVEL, (32, 32), shared_cells=option)
        assert (cells.labels >= 0).sum() == len(cells.cells) == trained
        counts = loss_counts([target], ONE_LEVEL, (32, 32), shared_cells=option)
        assert counts["loss_mask"] == counts["loss_category"] == trained
        lost = count_unassigned(
            target.boxes, centers, areas, ONE_LEVEL, (32, 32), shared_cells=option
        )
        assert lost.sum() == 2 - trained


def test_the_setting() -> None:
    options = tiny_config("train.shared_cells=move").train.loss_options()
    assert options == {"one_object_per_cell": True, "shared_cells": "move", "max_positives": 2000}
    with pytest.raises(ValueError, match="shared_cells=move needs one_object_per_cell=true"):
        tiny_config("train.shared_cells=move", "train.one_object_per_cell=false")


def test_a_grid_of_80_trains_touching_dots() -> None:
    # 8 x 8 pixels a cell at 640 pixels; dots 8 pixels apart collide on the default grid of 40.
    boxes = [(x, y, x + 7, y + 7) for y in range(256, 320, 8) for x in range(256, 320, 8)]
    masks = rectangles((640, 640), boxes)
    fine, coarse = (
        GridSpec(sizes=(size,), strides=(8,), scale_ranges=((1, 96),)) for size in (80, 40)
    )
    assert len(pairs_of(masks, fine)) == 64
    assert len(pairs_of(masks, coarse)) == 16
