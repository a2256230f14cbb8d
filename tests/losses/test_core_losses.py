from __future__ import annotations

from dataclasses import replace

import assign_twin as twin
import numpy as np
import pytest
import torch
from assign_twin import TINY_GRID, make_target, rectangles, scenes
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from unisolo.losses.core import loss_counts, solo_losses
from unisolo.losses.functional import dice_loss, sigmoid_focal_loss
from unisolo.losses.targets import with_cell_targets
from unisolo.structures import Outputs, Target

SIZE = (64, 96)
CHANNELS = 6


def make_outputs(
    batch: int, size: tuple[int, int] = SIZE, num_things: int = 3, dtype: torch.dtype = torch.float
) -> Outputs:
    cells = TINY_GRID.num_cells
    height, width = size[0] // 4, size[1] // 4

    def leaf(*shape: int) -> torch.Tensor:
        return torch.randn(*shape).to(dtype).requires_grad_()

    return Outputs(
        leaf(batch, cells, num_things),
        leaf(batch, cells, CHANNELS),
        leaf(batch, CHANNELS, height, width),
        {},
    )


def nothing(size: tuple[int, int] = SIZE) -> Target:
    return make_target(np.zeros((0, *size), bool), [])


def crowd_only() -> Target:
    crowd = np.zeros(SIZE, np.int16)
    crowd[10:30, 20:50] = 2
    return make_target(np.zeros((0, *SIZE), bool), [], crowd=crowd)


def one_pixel() -> Target:
    return make_target(rectangles(SIZE, [(95, 63, 96, 64)]), [2])


def crowd_over_object() -> Target:
    return replace(
        make_target(rectangles(SIZE, [(16, 12, 36, 40)]), [1]), crowd_map=crowd_only().crowd_map
    )


def twice_the_same() -> Target:
    return make_target(rectangles(SIZE, [(16, 12, 36, 40)] * 2), [0, 1])


def ungridded() -> Target:  # sqrt(box area) below every scale range
    target = one_pixel()
    return replace(target, boxes=target.boxes * 0)


SCENES = (nothing, crowd_only, one_pixel, crowd_over_object, twice_the_same, ungridded)


@pytest.mark.parametrize("one_object_per_cell", [True, False])
@pytest.mark.parametrize("scene", SCENES)
def test_losses_and_every_gradient_are_finite(scene, one_object_per_cell: bool) -> None:
    outputs = make_outputs(1)
    losses = solo_losses(outputs, [scene()], TINY_GRID, one_object_per_cell=one_object_per_cell)
    assert list(losses) == ["loss_category", "loss_mask"]
    for loss in losses.values():
        assert loss.shape == () and loss.dtype == torch.float32 and loss.isfinite()
    sum(losses.values()).backward()
    for branch in outputs[:3]:
        assert branch.grad is not None and branch.grad.isfinite().all()


@pytest.mark.parametrize("scene", [nothing, crowd_only, ungridded])
def test_no_pairs_means_no_mask_loss(scene) -> None:
    outputs = make_outputs(2)
    loss = solo_losses(outputs, [scene(), scene()], TINY_GRID)["loss_mask"]
    loss.backward()
    assert loss.item() == 0
    for branch in outputs[1:3]:
        assert branch.grad is not None and not branch.grad.any()


def brute_force(
    outputs: Outputs, targets: list[Target], masks: list[np.ndarray], one_object_per_cell: bool
) -> tuple[float, float]:
    focal, dice, num_positive = 0.0, [], 0
    num_things = outputs.category_logits.shape[-1]
    for b, (target, image_masks) in enumerate(zip(targets, masks, strict=True)):
        found = twin.pairs(image_masks, target.boxes.numpy(), TINY_GRID)
        if one_object_per_cell:
            found = twin.winners(found, image_masks, TINY_GRID)
        owner = {cell: index for _, index, cell in found}  # the later object owns the label
        num_positive += len(owner)
        crowd = twin.crowd(target.crowd_map.numpy(), TINY_GRID, num_things)
        for cell in range(TINY_GRID.num_cells):
            for label in range(num_things):
                positive = cell in owner and int(target.labels[owner[cell]]) == label
                if positive or not crowd[cell, label]:
                    logit = outputs.category_logits[b, cell, label]
                    focal += sigmoid_focal_loss(logit, torch.tensor(positive)).item()
        features = outputs.mask_features[b].flatten(1)
        for _, index, cell in found:
            mask = image_masks[index].reshape(SIZE[0] // 4, 4, SIZE[1] // 4, 4)
            wanted = mask[:, 1:3, :, 1:3].sum(axis=(1, 3)) >= 2
            logits = outputs.kernels[b, cell] @ features
            row = torch.from_numpy(wanted).flatten()[None]
            dice.append(dice_loss(logits[None], row).item())
    return focal / (num_positive + 1), sum(dice) / max(len(dice), 1)


@pytest.mark.parametrize("one_object_per_cell", [True, False])
def test_against_loops(one_object_per_cell: bool) -> None:
    first = rectangles(SIZE, [(4, 4, 60, 50), (10, 8, 30, 30), (20, 20, 24, 26), (30, 20, 90, 64)])
    second = rectangles(SIZE, [(40, 10, 50, 20), (44, 12, 48, 18)])
    crowd = np.zeros(SIZE, np.int16)
    crowd[10:30, 5:50], crowd[40:60, 60:64] = 2, 3
    targets = [make_target(first, [0, 1, 2, 1], crowd=crowd), make_target(second, [2, 2])]
    outputs = make_outputs(2)
    losses = solo_losses(outputs, targets, TINY_GRID, one_object_per_cell=one_object_per_cell)
    category, mask = brute_force(outputs, targets, [first, second], one_object_per_cell)
    assert losses["loss_category"].item() == pytest.approx(category, rel=1e-5)
    assert losses["loss_mask"].item() == pytest.approx(mask, rel=1e-5)


def test_one_object_per_cell_trains_each_kernel_on_one_mask() -> None:
    target = twice_the_same()
    outputs = make_outputs(1)
    alone = solo_losses(outputs, [target], TINY_GRID)
    shared = solo_losses(outputs, [target], TINY_GRID, one_object_per_cell=False)
    later = make_target(rectangles(SIZE, [(16, 12, 36, 40)]), [1])
    expected = solo_losses(outputs, [later], TINY_GRID)
    assert torch.equal(alone["loss_mask"], expected["loss_mask"])
    # Equal masks: the reference's second pair per cell does not change the mean.
    torch.testing.assert_close(shared["loss_mask"], expected["loss_mask"])
    assert shared["loss_category"] == alone["loss_category"] == expected["loss_category"]


def test_crowd_hides_negatives_and_nothing_else() -> None:
    outputs = make_outputs(1)
    target = crowd_over_object()
    solo_losses(outputs, [target], TINY_GRID)["loss_category"].backward()
    assert outputs.category_logits.grad is not None
    silent = outputs.category_logits.grad[0] == 0
    crowd = torch.from_numpy(twin.crowd(target.crowd_map.numpy(), TINY_GRID, 3))
    masks = (target.object_map == 1).numpy()
    positive = torch.zeros_like(crowd)
    for _, _, cell in twin.pairs(masks, target.boxes.numpy(), TINY_GRID):
        positive[cell, 1] = True
    assert (crowd & positive).any()
    assert torch.equal(silent, crowd & ~positive)


@given(st.lists(scenes(max_objects=4), min_size=1, max_size=2), st.booleans())
def test_any_scene_is_finite(images: list[np.ndarray], one_object_per_cell: bool) -> None:
    size = images[0].shape[1:]
    targets = [
        make_target(masks, [index % 3 for index in range(len(masks))])
        for masks in images
        if masks.shape[1:] == size
    ]
    outputs = make_outputs(len(targets), size)
    losses = solo_losses(outputs, targets, TINY_GRID, one_object_per_cell=one_object_per_cell)
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert 0 <= losses["loss_mask"] <= 1
    assert all(branch.grad is not None and branch.grad.isfinite().all() for branch in outputs[:3])


@pytest.mark.parametrize("num_things", [1, 1203])
def test_number_of_categories(num_things: int) -> None:
    outputs = make_outputs(1, num_things=num_things)
    target = make_target(rectangles(SIZE, [(16, 12, 36, 40)]), [num_things - 1])
    losses = solo_losses(outputs, [target], TINY_GRID)
    losses["loss_category"].backward()
    assert outputs.category_logits.grad is not None
    rising = (outputs.category_logits.grad[0] < 0).nonzero()  # pulled up: the positives
    cells = [
        cell
        for _, _, cell in twin.pairs(
            (target.object_map == 1).numpy(), target.boxes.numpy(), TINY_GRID
        )
    ]
    assert rising.tolist() == [[cell, num_things - 1] for cell in cells]


def test_small_chunks_change_nothing() -> None:
    target = make_target(rectangles(SIZE, [(4, 4, 60, 50), (30, 20, 90, 64)]), [0, 1])
    results = []
    for max_pixels in (1, 1000, 2**24):
        torch.manual_seed(3)
        outputs = make_outputs(1)
        loss = solo_losses(outputs, [target], TINY_GRID, max_pixels=max_pixels)["loss_mask"]
        loss.backward()
        results.append((loss.detach(), outputs.kernels.grad, outputs.mask_features.grad))
    for other in results[:-1]:
        torch.testing.assert_close(other, results[-1])


def test_losses_inside_autocast_are_those_of_float32() -> None:
    half = make_outputs(2, dtype=torch.bfloat16)
    full = Outputs(*(branch.detach().float().requires_grad_() for branch in half[:3]), {})
    targets = [crowd_over_object(), one_pixel()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = solo_losses(half, targets, TINY_GRID)
    expected = solo_losses(full, targets, TINY_GRID)
    for name in expected:
        assert losses[name].dtype == torch.float32
        assert torch.equal(losses[name], expected[name])
    sum(losses.values()).backward()
    sum(expected.values()).backward()
    for branch, reference in zip(half[:3], full[:3], strict=True):
        assert branch.grad is not None and reference.grad is not None
        torch.testing.assert_close(branch.grad, reference.grad.bfloat16())


READING = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim"}


class NothingIsRead(TorchDispatchMode):
    """Fails where the processor would have to wait for a GPU: values and lengths read from it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = func.overloadpacket.__name__
        assert name not in READING, name
        # A tensor made of Python numbers is copied to the device, and the copy waited for.
        assert name not in {"lift_fresh", "lift_fresh_copy"}, name
        for index in args[1] if name in {"index", "index_put", "index_put_"} else ():
            assert index is None or index.dtype != torch.bool, name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("one_object_per_cell", [True, False])
def test_cells_from_the_loader_give_the_same_losses_and_read_nothing(
    one_object_per_cell: bool,
) -> None:
    targets = [scene() for scene in SCENES]
    options = {"one_object_per_cell": one_object_per_cell, "max_positives": 3}
    filled = with_cell_targets(targets, TINY_GRID, SIZE, **options)
    assert all(target.cells is None for target in targets)
    outputs = make_outputs(len(targets))
    wanted = solo_losses(outputs, targets, TINY_GRID, **options)
    counts = loss_counts(targets, TINY_GRID, SIZE, **options)
    with NothingIsRead():
        found = solo_losses(outputs, filled, TINY_GRID, **options)
        found_counts = loss_counts(filled, TINY_GRID, SIZE, **options)
        torch.stack(list(found.values())).sum().backward()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert found_counts == counts and counts["loss_mask"] > 0
    with pytest.raises(AssertionError, match=r"nonzero|lift_fresh"), NothingIsRead():
        solo_losses(outputs, targets, TINY_GRID, **options)


def test_cells_of_another_grid_or_size_are_refused() -> None:
    outputs = make_outputs(1)
    coarse = replace(TINY_GRID, sizes=(9, 8, 6, 4, 3))
    for grid, size in ((coarse, SIZE), (TINY_GRID, (64, 64))):
        other = with_cell_targets([nothing(size)], grid, size)[0].cells
        with pytest.raises(ValueError, match="cells of target 0 were worked out for another grid"):
            solo_losses(outputs, [replace(nothing(), cells=other)], TINY_GRID)


def test_wrong_input_is_named() -> None:
    outputs = make_outputs(1)
    with pytest.raises(ValueError, match="1 images need 1 targets, got 2"):
        solo_losses(outputs, [nothing(), nothing()], TINY_GRID)
    with pytest.raises(ValueError, match=r"object_map of target 0 is \(64, 64\).*\(64, 96\)"):
        solo_losses(outputs, [nothing((64, 64))], TINY_GRID)
    short = outputs._replace(category_logits=outputs.category_logits[:, :5])
    with pytest.raises(ValueError, match="5 cells, the grid has 225"):
        solo_losses(short, [nothing()], TINY_GRID)
