"""Targets against vectors of the reference: cells, order, labels and masks, all exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from assign_twin import paint
from golden_tools import unpack

from unisolo.losses.assign import (
    Assignment,
    assign_grid,
    cell_owners,
    mask_targets,
    object_statistics,
)
from unisolo.structures import GridSpec

Golden = Callable[[str], dict[str, Any]]


def grid_of(meta: dict[str, Any]) -> GridSpec:
    return GridSpec(
        sizes=tuple(meta["num_grids"]),
        strides=(8, 8, 16, 32, 32),
        scale_ranges=tuple((low, high) for low, high in meta["scale_ranges"]),
    )


def assignment_of(z: dict[str, Any]) -> tuple[Assignment, GridSpec, torch.Tensor]:
    masks = unpack(z, "gt_masks")
    assert masks.shape[1:] == tuple(z["meta"]["padded_hw"])
    grid = grid_of(z["meta"])
    object_map = paint(masks)
    centers, areas = object_statistics(object_map, len(masks))
    boxes = torch.from_numpy(z["gt_boxes"])
    sigma = z["meta"]["sigma"]
    pairs = assign_grid(boxes, centers, areas, grid, masks.shape[1:], sigma=sigma)
    assert (pairs.levels.diff() >= 0).all()
    return pairs, grid, object_map


@pytest.mark.parametrize("name", ["none", "empty_mask", "tiny", "mixed", "overlap", "real_ranges"])
def test_targets(golden: Golden, name: str) -> None:
    z = golden(f"targets_{name}")
    pairs, grid, object_map = assignment_of(z)
    masks = mask_targets(object_map, pairs.objects).numpy()
    owners = cell_owners(pairs, grid.num_cells).numpy()
    background = z["meta"]["background_label"]
    labels = np.append(z["gt_labels"], background)[owners]
    for level, (size, start) in enumerate(zip(grid.sizes, grid.offsets, strict=True)):
        here = (pairs.levels == level).numpy()
        cells = slice(start, start + size * size)
        np.testing.assert_array_equal(pairs.cells.numpy()[here] - start, z[f"order{level}"])
        np.testing.assert_array_equal(masks[here], unpack(z, f"mask_target{level}"))
        np.testing.assert_array_equal(labels[cells], z[f"cate_label{level}"].ravel())
        positive = np.unpackbits(z[f"positive{level}"])[: size * size].astype(bool)
        np.testing.assert_array_equal(owners[cells] >= 0, positive)
    counts = torch.bincount(pairs.levels, minlength=grid.num_levels).tolist()
    assert counts == z["meta"]["positives_per_level"]


def test_centres_on_cell_borders(golden: Golden) -> None:
    z = golden("targets_cell_boundary")
    pairs, grid, _ = assignment_of(z)
    for level, start in enumerate(grid.offsets):
        cells = pairs.cells[pairs.levels == level] - start
        np.testing.assert_array_equal(cells.numpy(), z[f"trunc_order{level}"])
