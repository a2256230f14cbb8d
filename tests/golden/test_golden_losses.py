"""Losses and gradients against vectors of the reference (tolerances of the vectors' README)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from assign_twin import make_target
from golden_tools import stats, unpack

from unisolo.losses.core import solo_losses
from unisolo.losses.functional import dice_loss, sigmoid_focal_loss
from unisolo.structures import GridSpec, Outputs

Golden = Callable[[str], dict[str, Any]]


def test_elementwise(golden: Golden) -> None:
    z = golden("loss_elementwise")
    logits = torch.from_numpy(z["focal_logits"]).requires_grad_()
    loss = sigmoid_focal_loss(logits, torch.from_numpy(z["focal_targets"]))
    loss.sum().backward()
    np.testing.assert_allclose(loss.detach(), z["focal"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(logits.grad, z["focal_grad"], rtol=0, atol=1e-5)

    logits = torch.from_numpy(z["dice_logits"]).requires_grad_()
    loss = dice_loss(logits.flatten(1), torch.from_numpy(z["dice_targets"]).flatten(1))
    loss.sum().backward()
    np.testing.assert_allclose(loss.detach(), z["dice"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(logits.grad, z["dice_grad"], rtol=0, atol=1e-5)


def flat(levels: list[torch.Tensor]) -> torch.Tensor:
    """[B, C, S, S] per level -> [B, L, C]."""
    return torch.cat([level.flatten(2) for level in levels], dim=2).transpose(1, 2)


@pytest.mark.parametrize("max_pixels", [1, 2**24])
@pytest.mark.parametrize("name", ["all_empty", "one_empty_image", "batch2", "overlap"])
def test_losses_and_gradients(golden: Golden, name: str, max_pixels: int) -> None:
    z = golden(f"loss_{name}")
    meta = z["meta"]
    grid = GridSpec(
        sizes=tuple(meta["num_grids"]),
        strides=(8, 8, 16, 32, 32),
        scale_ranges=tuple((low, high) for low, high in meta["scale_ranges"]),
    )

    def leaves(branch: str) -> list[torch.Tensor]:
        arrays = [z[f"{branch}{level}"] for level in range(grid.num_levels)]
        return [torch.from_numpy(array).float().requires_grad_() for array in arrays]

    categories, kernels = leaves("cate"), leaves("kernel")
    features = torch.from_numpy(z["mask_feat"]).float().requires_grad_()
    targets = [
        make_target(unpack(z, f"gt_masks_{b}"), z[f"gt_labels_{b}"], boxes=z[f"gt_boxes_{b}"])
        for b in range(len(features))
    ]
    losses = solo_losses(
        Outputs(flat(categories), flat(kernels), features, {}),
        targets,
        grid,
        one_object_per_cell=False,
        max_pixels=max_pixels,
    )
    loss_mask = meta["ins_loss_weight"] * losses["loss_mask"]
    (loss_mask + losses["loss_category"]).backward()

    np.testing.assert_allclose(losses["loss_category"].item(), z["loss_cate"], rtol=1e-5)
    np.testing.assert_allclose(loss_mask.item(), z["loss_ins"], rtol=1e-5)
    for level, (category, kernel) in enumerate(zip(categories, kernels, strict=True)):
        np.testing.assert_allclose(category.grad, z[f"grad_cate{level}"], rtol=0, atol=1e-6)
        per_cell = kernel.grad.abs().sum(dim=1)
        np.testing.assert_allclose(per_cell, z[f"grad_kernel{level}_cellsum"], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(
            stats(kernel.grad.numpy()), z[f"grad_kernel{level}_stats"], rtol=1e-4, atol=1e-6
        )
    sample = features.grad.flatten()[:: meta["mask_feat_sample_step"]]
    np.testing.assert_allclose(sample, z["grad_mask_feat_sample"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(
        stats(features.grad.numpy()), z["grad_mask_feat_stats"], rtol=1e-4, atol=1e-6
    )
