from __future__ import annotations

import pytest
import torch

from unisolo.config import InferenceConfig
from unisolo.ops.area_filter import cell_areas, level_areas
from unisolo.ops.backend import use_kernels
from unisolo.ops.select import select_instances
from unisolo.structures import GridSpec, Outputs

GRID = GridSpec((4, 3, 1), (8, 16, 32), ((1, 8), (4, 16), (8, 64)))


def squares(*areas: int) -> Outputs:
    """One image; candidate n, in its own cell of level 0, has a mask of `areas[n]` pixels."""
    logits = torch.full((1, GRID.num_cells, 1), -9.0)
    kernels = torch.zeros(1, GRID.num_cells, len(areas))
    features = torch.full((1, len(areas), 8, 8), -1.0)
    for number, area in enumerate(areas):
        cell = (0, 2, 8, 10)[number]  # no two are neighbours: points NMS leaves them
        logits[0, cell] = 3.0 - number
        kernels[0, cell, number] = 9.0
        features[0, number].view(-1)[:area] = 1.0
    return Outputs(logits, kernels, features, {})


def kept(outputs: Outputs, twin: str, **settings) -> list[int]:
    with use_kernels(twin):
        found = select_instances(outputs, GRID, nms_kernel="linear", update_threshold=0, **settings)
    assert int(found.stage_counts[0, 2]) == int(found.valid.sum())
    return sorted((found.mask_probs[0, found.valid[0]] > 0.5).sum((1, 2)).tolist())


@pytest.mark.parametrize("twin", ["torch", "auto"])
def test_a_mask_must_exceed_the_area(twin: str) -> None:
    outputs = squares(0, 1, 8, 9)
    assert kept(outputs, twin) == [9]  # the stride of level 0 is 8
    assert kept(outputs, twin, min_area="stride") == [9]
    assert kept(outputs, twin, min_area=0) == [1, 8, 9]
    assert kept(outputs, twin, min_area=1) == [8, 9]
    assert kept(outputs, twin, min_area=64) == []


def test_each_cell_has_the_area_of_its_level() -> None:
    device = torch.device("cpu")
    assert level_areas(GRID, "stride") == (8, 16, 32)
    assert cell_areas(GRID, "stride", device).tolist() == [8] * 16 + [16] * 9 + [32]
    assert level_areas(GRID, 5) == (5, 5, 5)
    assert cell_areas(GRID, 5, device).tolist() == [5] * 26


def test_the_setting_reaches_the_selection() -> None:
    assert InferenceConfig().select_arguments()["min_area"] == "stride"
    assert InferenceConfig(min_area=3).select_arguments()["min_area"] == 3
    for wrong in (-1, 2**31, "strides", 1.5):
        with pytest.raises(ValueError, match="min_area"):
            InferenceConfig(min_area=wrong)  # type: ignore[arg-type]
