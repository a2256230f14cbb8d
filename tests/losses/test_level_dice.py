from __future__ import annotations

from dataclasses import replace

import assign_twin as twin
import numpy as np
import pytest
import torch
from assign_twin import TINY_GRID, make_target, rectangles, scenes
from hypothesis import given
from hypothesis import strategies as st

from unisolo.losses.core import solo_losses
from unisolo.losses.functional import dice_loss
from unisolo.losses.level_dice import level_blocks, level_dice_sum
from unisolo.losses.targets import cell_targets
from unisolo.structures import LEVEL_FEATURES, CellTargets, Outputs, Target

SIZE = (64, 96)
STRIDES = (4, 4, 8, 16, 16)
CHANNELS = 6


def make_outputs(batch: int, dtype: torch.dtype = torch.float, strides=STRIDES) -> Outputs:
    def leaf(*shape: int) -> torch.Tensor:
        return torch.randn(*shape).to(dtype).requires_grad_()

    first, *others = (
        leaf(batch, CHANNELS, SIZE[0] // stride, SIZE[1] // stride) for stride in strides
    )
    cells = TINY_GRID.num_cells
    extras = dict(zip(LEVEL_FEATURES, others, strict=True))
    return Outputs(leaf(batch, cells, 3), leaf(batch, cells, CHANNELS), first, extras)


def leaves(outputs: Outputs) -> list[torch.Tensor]:
    return [outputs.kernels, *outputs.level_features]


def nothing() -> Target:
    return make_target(np.zeros((0, *SIZE), bool), [])


def one_pixel() -> Target:
    return make_target(rectangles(SIZE, [(95, 63, 96, 64)]), [2])


def crowd_only() -> Target:
    crowd = np.zeros(SIZE, np.int16)
    crowd[10:30, 20:50] = 2
    return make_target(np.zeros((0, *SIZE), bool), [], crowd=crowd)


def shrunk(mask: np.ndarray, stride: int) -> np.ndarray:
    """Whether 2 of the 4 pixels around the middle of each block are set."""
    middle = stride // 2
    small = np.zeros((mask.shape[0] // stride, mask.shape[1] // stride), bool)
    for y, x in np.ndindex(*small.shape):
        top, left = y * stride + middle - 1, x * stride + middle - 1
        small[y, x] = mask[top : top + 2, left : left + 2].sum() >= 2
    return small


def brute_force(
    outputs: Outputs, targets: list[Target], masks: list[np.ndarray], one_object_per_cell: bool
) -> float:
    losses = []
    starts = [*TINY_GRID.offsets, TINY_GRID.num_cells]
    for b, (target, image_masks) in enumerate(zip(targets, masks, strict=True)):
        found = twin.pairs(image_masks, target.boxes.numpy(), TINY_GRID)
        if one_object_per_cell:
            found = twin.winners(found, image_masks, TINY_GRID)
        for _, index, cell in found:
            level = next(n for n in range(5) if starts[n] <= cell < starts[n + 1])
            features = outputs.level_features[level][b].flatten(1)
            wanted = torch.from_numpy(shrunk(image_masks[index], STRIDES[level])).flatten()
            logits = outputs.kernels[b, cell] @ features
            losses.append(dice_loss(logits[None], wanted[None]).item())
    return sum(losses) / max(len(losses), 1)


@pytest.mark.parametrize("one_object_per_cell", [True, False])
def test_against_loops(one_object_per_cell: bool) -> None:
    first = rectangles(SIZE, [(4, 4, 60, 50), (10, 8, 30, 30), (20, 20, 24, 26), (30, 20, 90, 64)])
    second = rectangles(SIZE, [(40, 10, 50, 20), (44, 12, 48, 18)])
    targets = [make_target(first, [0, 1, 2, 1]), make_target(second, [2, 2])]
    outputs = make_outputs(2)
    expected = brute_force(outputs, targets, [first, second], one_object_per_cell)
    for max_pixels in (2**24, 1):
        losses = solo_losses(
            outputs, targets, TINY_GRID,
            one_object_per_cell=one_object_per_cell, max_pixels=max_pixels,
        )  # fmt: skip
        assert losses["loss_mask"].item() == pytest.approx(expected, rel=1e-5)


@given(scenes(), st.sampled_from((4, 8, 16)))
def test_blocks_of_any_stride_against_loops(masks: np.ndarray, stride: int) -> None:
    target = make_target(masks, [0] * len(masks))
    cells = cell_targets(target, TINY_GRID, masks.shape[1:])
    blocks = level_blocks(target, cells, stride)
    assert blocks.dtype == torch.int16
    for index, mask in enumerate(masks):
        ours = (blocks == index + 1).any(dim=0)
        assert np.array_equal(ours.numpy(), shrunk(mask, stride))


@pytest.mark.parametrize("scene", [nothing, one_pixel, crowd_only])
def test_loss_and_every_gradient_are_finite(scene) -> None:
    outputs = make_outputs(1)
    losses = solo_losses(outputs, [scene()], TINY_GRID)
    sum(losses.values()).backward()
    assert losses["loss_mask"].isfinite()
    for leaf in leaves(outputs):
        assert leaf.grad is not None and leaf.grad.isfinite().all()
        if scene is not one_pixel:
            assert not leaf.grad.any()
    if scene is not one_pixel:
        assert losses["loss_mask"].item() == 0


def test_every_level_learns_from_its_own_pairs_only() -> None:
    small = make_target(rectangles(SIZE, [(40, 20, 46, 26)]), [0])  # sqrt(area) 6: levels 0 and 1
    outputs = make_outputs(1)
    solo_losses(outputs, [small], TINY_GRID)["loss_mask"].backward()
    assert [bool(level.grad.any()) for level in outputs.level_features] == [True, True] + 3 * [
        False
    ]


def test_maps_of_one_size_are_what_one_map_is() -> None:
    """Five copies of one map give the loss and gradients of that map."""
    masks = rectangles(SIZE, [(4, 4, 60, 50), (10, 8, 30, 30), (30, 20, 90, 64)])
    target = make_target(masks, [0, 1, 2])
    several = make_outputs(1, strides=(4,) * 5)
    one = several._replace(
        kernels=several.kernels.detach().requires_grad_(),
        mask_features=several.mask_features.detach().requires_grad_(),
        extras={},
    )
    with torch.no_grad():
        for level in several.level_features[1:]:
            level.copy_(several.mask_features)
    ours, theirs = (solo_losses(x, [target], TINY_GRID)["loss_mask"] for x in (several, one))
    torch.testing.assert_close(ours, theirs)
    ours.backward(), theirs.backward()
    torch.testing.assert_close(several.kernels.grad, one.kernels.grad)
    total = sum(level.grad for level in several.level_features)
    torch.testing.assert_close(total, one.mask_features.grad)


def test_order_of_the_pairs_does_not_matter() -> None:
    masks = rectangles(SIZE, [(4, 4, 60, 50), (10, 8, 30, 30), (30, 20, 90, 64)])
    target = make_target(masks, [0, 1, 2])
    cells = cell_targets(target, TINY_GRID, SIZE)
    order = torch.randperm(len(cells.cells))
    shuffled: CellTargets = cells._replace(cells=cells.cells[order], objects=cells.objects[order])
    outputs = make_outputs(1)
    first, second = (
        level_dice_sum(outputs, [target], [of_cells], TINY_GRID, max_pixels=2**20)
        for of_cells in (cells, shuffled)
    )
    torch.testing.assert_close(first, second)


def test_half_precision_is_computed_in_float32() -> None:
    target = make_target(rectangles(SIZE, [(4, 4, 60, 50), (10, 8, 30, 30)]), [0, 1])
    half = make_outputs(1, torch.bfloat16)
    full = half._replace(
        kernels=half.kernels.float(),
        mask_features=half.mask_features.float(),
        extras={name: level.float() for name, level in half.extras.items()},
    )
    with torch.autocast("cpu", torch.bfloat16):
        rounded = solo_losses(half, [target], TINY_GRID)["loss_mask"]
    exact = solo_losses(full, [target], TINY_GRID)["loss_mask"]
    assert torch.equal(rounded, exact)


def test_a_missing_level_is_named() -> None:
    outputs = make_outputs(1)
    short = replace_extras(outputs, LEVEL_FEATURES[:3])
    with pytest.raises(ValueError, match="the grid has 5 levels, but 4 have mask features"):
        solo_losses(short, [one_pixel()], TINY_GRID)


def replace_extras(outputs: Outputs, names: tuple[str, ...]) -> Outputs:
    return outputs._replace(extras={name: outputs.extras[name] for name in names})


def test_targets_from_the_loader_give_the_same() -> None:
    target = make_target(rectangles(SIZE, [(4, 4, 60, 50), (10, 8, 30, 30)]), [0, 1])
    outputs = make_outputs(1)
    made = replace(target, cells=cell_targets(target, TINY_GRID, SIZE))
    first, second = (solo_losses(outputs, [t], TINY_GRID)["loss_mask"] for t in (target, made))
    assert torch.equal(first, second)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_loss_and_gradients() -> None:
    target = make_target(rectangles(SIZE, [(4, 4, 60, 50), (10, 8, 30, 30)]), [0, 1])
    outputs = make_outputs(2)
    results = []
    for device in ("cpu", "cuda"):
        values = [leaf.detach().to(device).requires_grad_() for leaf in leaves(outputs)]
        kernels, first, *others = values
        extras = dict(zip(LEVEL_FEATURES, others, strict=True))
        logits = outputs.category_logits.detach().to(device)
        targets = [target.to(device), nothing().to(device)]
        loss = solo_losses(Outputs(logits, kernels, first, extras), targets, TINY_GRID)["loss_mask"]
        loss.backward()
        results.append([loss.detach().cpu(), *(leaf.grad.cpu() for leaf in values)])
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)
