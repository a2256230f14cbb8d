from __future__ import annotations

import numpy as np
import pytest
from tiny_model import tiny_config

from unisolo.build import build_grid
from unisolo.data.raw import ObjectBoxes
from unisolo.engine.report import coverage_line, object_sides


class Boxes:
    """A data set of which only the boxes are asked: rows (x, y, w, h, H, W, image)."""

    def __init__(self, rows: list[list[float]]) -> None:
        self._boxes = ObjectBoxes.from_rows(rows)

    def object_boxes(self) -> ObjectBoxes:
        return self._boxes


CONFIG = tiny_config("data.image_size=100", "data.max_size=400")


def test_sides_are_in_pixels_of_the_input() -> None:
    data = Boxes([[0, 0, 40, 10, 200, 300, 0], [0, 0, 9, 9, 50, 50, 1]])
    np.testing.assert_allclose(object_sides(data, CONFIG), [10, 18])


def test_no_objects() -> None:
    grid = build_grid(CONFIG)
    assert coverage_line(Boxes([]), CONFIG, grid) == "objects: none in the training set"


def test_objects_outside_every_range_are_counted() -> None:
    config = tiny_config(
        "data.image_size=100", "model.scale_ranges=[[1,9],[8,20],[15,40],[30,50],[40,60]]"
    )
    data = Boxes([[0, 0, 80, 80, 100, 100, 0], [5, 5, 5, 5, 100, 100, 1]])
    line = coverage_line(data, config, build_grid(config))
    assert "objects: 2; 1 outside every scale range (set model.scale_ranges=auto)" in line
    assert "1 of the 2 looked at get no cell" in line


@pytest.mark.parametrize(("one_object", "lost"), [(True, 2), (False, 0)])
def test_objects_that_lose_their_cells_are_counted(one_object: bool, lost: int) -> None:
    config = tiny_config("data.image_size=100", f"train.one_object_per_cell={one_object}")
    # Three objects of one size on one spot: one of them gets the cells.
    data = Boxes([[50, 50, 4, 4, 100, 100, 0]] * 3)
    line = coverage_line(data, config, build_grid(config))
    assert f"{lost} of the 3 looked at get no cell" in line
