"""Grids finer than the features, up to S = 80, from the settings to the instances."""

from __future__ import annotations

import torch
from assign_twin import make_target, rectangles
from tiny_model import lively_model, tiny_config

from unisolo.build import build_grid
from unisolo.losses.core import solo_losses
from unisolo.ops.select import select_instances

FINE = "model.grid_sizes=[80,40,6,4,3]"


def test_a_grid_of_80_trains_and_answers() -> None:
    model = lively_model(FINE)
    cells = 80 * 80 + 40 * 40 + 36 + 16 + 9
    images = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    outputs = model(images, torch.tensor([[64, 96]]))
    assert outputs.category_logits.shape == (1, cells, 2)
    with torch.no_grad():
        found = select_instances(outputs, model.grid, max_instances=20, min_area=0)
    assert found.valid.any() and found.cells.max() < cells
    dots = rectangles((64, 96), [(x, y, x + 1, y + 1) for y in range(4) for x in range(4)])
    losses = solo_losses(outputs, [make_target(dots, [0] * 16)], model.grid, shared_cells="move")
    sum(losses.values()).backward()
    gradients = [p.grad for p in model.solo_head.parameters() if p.grad is not None]
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)


def test_large_images_get_80_by_themselves() -> None:
    settings = ("model.grid_sizes=scaled", "data.image_size=1600", "data.max_size=1600")
    assert build_grid(tiny_config(*settings)).sizes[0] == 80
