from __future__ import annotations

import assign_twin as twin
import numpy as np
import pytest
import torch
from assign_twin import TINY_GRID, mask_boxes, paint, rectangles, scenes
from hypothesis import given
from hypothesis import strategies as st

from unisolo.losses.assign import (
    Assignment,
    assign_grid,
    cell_owners,
    crowd_cells,
    mask_targets,
    object_statistics,
    one_object_per_cell,
)
from unisolo.losses.pairs import count_unassigned
from unisolo.structures import GridSpec

ONE_LEVEL = GridSpec(sizes=(4,), strides=(8,), scale_ranges=((1, 512),))


def assigned(
    masks: np.ndarray, grid: GridSpec, boxes: torch.Tensor | None = None, sigma: float = 0.2
) -> tuple[Assignment, torch.Tensor]:
    centers, areas = object_statistics(paint(masks), len(masks))
    boxes = mask_boxes(masks) if boxes is None else boxes
    return assign_grid(boxes, centers, areas, grid, masks.shape[1:], sigma=sigma), centers


def as_tuples(assignment: Assignment) -> list[tuple[int, int, int]]:
    columns = (assignment.levels, assignment.objects, assignment.cells)
    return list(zip(*(values.tolist() for values in columns), strict=True))


@given(scenes())
def test_statistics_are_those_of_the_masks(masks: np.ndarray) -> None:
    centers, areas = object_statistics(paint(masks), len(masks))
    assert centers.dtype == torch.float32 and areas.dtype == torch.int64
    assert areas.tolist() == [int(mask.sum()) for mask in masks]
    for mask, center in zip(masks, centers, strict=True):
        if mask.any():
            expected = [np.float32(i.sum()) / np.float32(len(i)) for i in np.nonzero(mask)]
            assert center.tolist() == expected
        else:
            assert center.tolist() == [0, 0]


def test_one_pixel_has_its_index_as_centre() -> None:
    object_map = torch.zeros(2, 8, 8, dtype=torch.int16)
    object_map[1, 3, 6] = 2
    centers, areas = object_statistics(object_map, 2)
    assert centers.tolist() == [[0, 0], [3, 6]] and areas.tolist() == [0, 1]


def test_statistics_of_large_objects_are_exact() -> None:
    size = 1024  # sums of row numbers above 2 ** 24, where float32 would already have lost counts
    object_map = torch.ones(1, size, size, dtype=torch.int16)
    centers, areas = object_statistics(object_map, 1)
    assert areas.tolist() == [size * size] and centers.tolist() == [[511.5, 511.5]]


@given(scenes(), st.sampled_from([0.0, 0.2, 0.5, 1.0]))
def test_assignment_is_the_twins(masks: np.ndarray, sigma: float) -> None:
    boxes = mask_boxes(masks)
    assignment, _ = assigned(masks, TINY_GRID, boxes, sigma)
    assert as_tuples(assignment) == twin.pairs(masks, boxes.numpy(), TINY_GRID, sigma)


@given(scenes())
def test_assignment_on_a_grid_finer_than_the_objects(masks: np.ndarray) -> None:
    grid = GridSpec(sizes=(40, 1), strides=(8, 32), scale_ranges=((1, 40), (30, 512)))
    boxes = mask_boxes(masks)
    assignment, _ = assigned(masks, grid, boxes)
    assert as_tuples(assignment) == twin.pairs(masks, boxes.numpy(), grid)


@given(scenes())
def test_every_cell_keeps_exactly_one_object(masks: np.ndarray) -> None:
    shared, centers = assigned(masks, TINY_GRID)
    kept = one_object_per_cell(shared, centers, TINY_GRID, masks.shape[1:])
    assert as_tuples(kept) == twin.winners(as_tuples(shared), masks, TINY_GRID)
    assert sorted(kept.cells.tolist()) == sorted(set(shared.cells.tolist()))


def test_the_object_with_fewest_cells_wins() -> None:
    masks = rectangles((32, 32), [(11, 11, 14, 14), (0, 0, 32, 32)])
    shared, centers = assigned(masks, ONE_LEVEL)
    assert as_tuples(shared)[0] == (0, 0, 5)
    assert [cell for _, index, cell in as_tuples(shared) if index == 1] == [5, 6, 9, 10]
    kept = one_object_per_cell(shared, centers, ONE_LEVEL, (32, 32))
    assert as_tuples(kept) == [(0, 0, 5), (0, 1, 6), (0, 1, 9), (0, 1, 10)]


def test_the_nearer_object_wins_when_claims_are_equal() -> None:
    # One cell each, the cell whose middle is (12, 12); order of annotation must not matter.
    masks = rectangles((32, 32), [(11, 11, 13, 13), (8, 8, 10, 10)])
    for order in ([0, 1], [1, 0]):
        shared, centers = assigned(masks[order], ONE_LEVEL)
        assert shared.cells.tolist() == [5, 5]
        kept = one_object_per_cell(shared, centers, ONE_LEVEL, (32, 32))
        assert kept.objects.tolist() == [order.index(0)]


def test_the_later_of_two_equal_objects_wins() -> None:
    masks = rectangles((32, 32), [(9, 9, 15, 15)] * 3)  # full overlap: three layers
    object_map = paint(masks)
    assert len(object_map) == 3
    shared, centers = assigned(masks, ONE_LEVEL)
    kept = one_object_per_cell(shared, centers, ONE_LEVEL, (32, 32))
    assert shared.objects.tolist() == [0, 1, 2] and kept.objects.tolist() == [2]
    assert cell_owners(shared, 16).tolist() == [-1] * 5 + [2] + [-1] * 10


def test_a_centre_on_a_border_belongs_to_the_next_cell() -> None:
    masks = rectangles((32, 32), [(14, 6, 19, 11)])  # centre (8, 16)
    shared, _ = assigned(masks, ONE_LEVEL, sigma=0.0)
    assert shared.cells.tolist() == [1 * 4 + 2]


def test_distance_is_between_places_not_between_indices() -> None:
    # Pixel 10 of row 11 has its middle at x = 10.5 and pixel 13 at 13.5: as far from the cell's
    # middle (12, 12) on either side, so the later object wins.
    masks = rectangles((32, 32), [(10, 11, 11, 13), (13, 11, 14, 13)])
    for order in ([0, 1], [1, 0]):
        shared, centers = assigned(masks[order], ONE_LEVEL)
        assert shared.cells.tolist() == [5, 5]
        kept = one_object_per_cell(shared, centers, ONE_LEVEL, (32, 32))
        assert kept.objects.tolist() == [1]


def test_a_region_beyond_the_image_stops_at_its_border() -> None:
    mask = rectangles((32, 32), [(0, 0, 1, 32)])
    mask[0, 0, 31] = True  # mass at the left, box over the whole width
    grid = GridSpec(sizes=(16,), strides=(8,), scale_ranges=((1, 512),))
    boxes = mask_boxes(mask)
    assignment, _ = assigned(mask, grid, boxes, sigma=1.0)
    assert as_tuples(assignment) == twin.pairs(mask, boxes.numpy(), grid, 1.0)
    assert set((assignment.cells % 16).tolist()) == {0, 1}


def test_an_object_without_pixels_takes_no_part_whatever_its_box() -> None:
    masks = np.zeros((1, 32, 32), bool)
    shared, centers = assigned(masks, ONE_LEVEL, torch.tensor([[4.0, 4.0, 20.0, 20.0]]))
    assert len(shared.cells) == 0 and centers.isfinite().all()


def test_scale_ranges_include_both_ends() -> None:
    masks = rectangles((64, 64), [(0, 0, 8, 8), (0, 0, 16, 16), (0, 0, 17, 16), (0, 0, 8, 7)])
    grid = GridSpec(sizes=(1,), strides=(8,), scale_ranges=((8, 16),))
    shared, _ = assigned(masks, grid)
    assert shared.objects.tolist() == [0, 1]


def test_no_objects() -> None:
    shared, centers = assigned(np.zeros((0, 32, 64), bool), TINY_GRID)
    kept = one_object_per_cell(shared, centers, TINY_GRID, (32, 64))
    for assignment in (shared, kept):
        assert all(values.shape == (0,) for values in assignment)
        assert all(values.dtype == torch.int64 for values in assignment)
    assert (cell_owners(kept, TINY_GRID.num_cells) == -1).all()
    assert mask_targets(torch.zeros(1, 8, 12, dtype=torch.int16), kept.objects).shape == (0, 2, 3)


@given(scenes())
def test_unassigned_objects_are_those_in_no_pair(masks: np.ndarray) -> None:
    grid = GridSpec(sizes=(4, 2), strides=(8, 16), scale_ranges=((4, 12), (20, 30)))
    size = masks.shape[1:]
    boxes = mask_boxes(masks)
    centers, areas = object_statistics(paint(masks), len(masks))
    shared = twin.pairs(masks, boxes.numpy(), grid)
    for one_each, found in ((False, shared), (True, twin.winners(shared, masks, grid))):
        unassigned = count_unassigned(
            boxes, centers, areas, grid, size, one_object_per_cell=one_each
        )
        served = {index for _, index, _ in found}
        assert unassigned.tolist() == [index not in served for index in range(len(masks))]


@given(scenes(), st.lists(st.integers(0, 5), max_size=8))
def test_mask_targets_count_central_pixels(masks: np.ndarray, wanted: list[int]) -> None:
    wanted = [index for index in wanted if index < len(masks)]
    found = mask_targets(paint(masks), torch.tensor(wanted, dtype=torch.int64))
    assert found.dtype == torch.bool
    blocks = masks.reshape(len(masks), masks.shape[1] // 4, 4, masks.shape[2] // 4, 4)
    expected = blocks[:, :, 1:3, :, 1:3].sum(axis=(2, 4)) >= 2
    assert np.array_equal(found.numpy(), expected[wanted])


@given(st.lists(st.integers(0, 3), min_size=4, max_size=4))
def test_every_way_to_share_a_block(central: list[int]) -> None:
    object_map = torch.full((1, 4, 4), 9, dtype=torch.int16)
    object_map[0, 1:3, 1:3] = torch.tensor(central, dtype=torch.int16).view(2, 2)
    found = mask_targets(object_map, torch.arange(3))
    assert found.flatten().tolist() == [central.count(number) >= 2 for number in (1, 2, 3)]


def test_mask_targets_name_a_size_that_is_not_padded() -> None:
    with pytest.raises(ValueError, match="multiples of 4, got 8 x 30"):
        mask_targets(torch.zeros(1, 8, 30, dtype=torch.int16), torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"\[D, H, W\], got \(8, 32\)"):
        object_statistics(torch.zeros(8, 32, dtype=torch.int16), 0)


@st.composite
def crowd_maps(draw: st.DrawFn) -> np.ndarray:
    crowd = np.zeros((draw(st.integers(1, 40)), draw(st.integers(1, 40))), np.int16)
    for _ in range(draw(st.integers(0, 3))):
        y = draw(st.integers(0, crowd.shape[0] - 1))
        x = draw(st.integers(0, crowd.shape[1] - 1))
        y_end, x_end = y + draw(st.integers(1, 12)), x + draw(st.integers(1, 12))
        crowd[y:y_end, x:x_end] = draw(st.integers(1, 3))
    return crowd


@given(crowd_maps())
def test_crowd_cells_are_the_twins(crowd_map: np.ndarray) -> None:
    # Cells larger and smaller than a pixel.
    grid = GridSpec(sizes=(7, 12, 3), strides=(8, 8, 16), scale_ranges=((1, 2),) * 3)
    found = crowd_cells(torch.from_numpy(crowd_map), grid, 3)
    assert np.array_equal(found.numpy(), twin.crowd(crowd_map, grid, 3))


def test_no_crowd() -> None:
    found = crowd_cells(torch.zeros(32, 32, dtype=torch.int16), TINY_GRID, 1203)
    assert found.shape == (TINY_GRID.num_cells, 1203) and not found.any()
