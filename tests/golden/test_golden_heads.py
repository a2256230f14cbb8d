"""Category, kernel and mask branches against the reference, with the reference's weights."""

from __future__ import annotations

from typing import Any

import golden_tools
import numpy as np
import official_names
import pytest
import torch
from torch import Tensor, nn

from unisolo.models import MaskHead, SoloHead


def heads_of(meta: dict[str, Any]) -> nn.ModuleDict:
    return nn.ModuleDict(
        {
            "solo_head": SoloHead(
                meta["fpn_channels"],
                meta["num_classes"],
                channels=meta["feat_channels"],
                num_convs=meta["stacked_convs"],
                kernel_channels=meta["kernel_dim"],
                grid_sizes=meta["num_grids"],
                # The light models with DCN: v1, in the last convolution of each tower.
                deform="last-v1" if meta["dcn"] == "DCN" else "none",
            ),
            "mask_head": MaskHead(
                meta["fpn_channels"], meta["mask_mid_channels"], meta["kernel_dim"]
            ),
        }
    )


def by_level(cells: Tensor, grid_sizes: list[int]) -> list[Tensor]:
    """[B, L, C] -> one [B, C, S, S] per level."""
    parts = cells.split([size * size for size in grid_sizes], dim=1)
    return [
        part.transpose(1, 2).unflatten(2, (size, size))
        for part, size in zip(parts, grid_sizes, strict=True)
    ]


def check(arrays: dict[str, Any], name: str, values: Tensor) -> None:
    found = values.numpy()
    if name in arrays:
        np.testing.assert_allclose(found, arrays[name], atol=1e-4, rtol=0, err_msg=name)
    if f"{name}_sample" in arrays:
        sample = found.ravel()[:: arrays["meta"]["sample_step"]]
        np.testing.assert_allclose(sample, arrays[f"{name}_sample"], atol=1e-4, rtol=0)
    assert found.shape == tuple(arrays[f"{name}_shape"])
    np.testing.assert_allclose(
        golden_tools.stats(found), arrays[f"{name}_stats"], rtol=1e-4, err_msg=f"{name}_stats"
    )


@pytest.mark.parametrize(
    "name",
    [
        "head_tiny_a",
        "head_tiny_b",
        "head_tiny_defaultgrids",
        "head_full_r50",
        "head_tiny_light_dcnv1",
    ],
)
def test_heads_equal_the_reference(golden: Any, name: str) -> None:
    arrays = golden(name)
    meta = arrays["meta"]
    if meta["stored_weights"]:
        weights = {key[3:]: arrays[key] for key in arrays if key.startswith("sd/")}
        features = [arrays[f"feat{level}"] for level in range(5)]
    else:
        weights = official_names.recipe_weights(meta)
        features = official_names.recipe_features(meta)
    heads = heads_of(meta)
    heads.load_state_dict(official_names.ours(weights))
    pyramid = [torch.from_numpy(feature).float() for feature in features]

    with torch.no_grad():
        category_logits, kernels = heads["solo_head"](pyramid)
        mask_features, trunk = heads["mask_head"](pyramid)

    check(arrays, "mask_feat", mask_features)
    assert trunk.shape[1] == meta["mask_mid_channels"]
    for level, logits in enumerate(by_level(category_logits, meta["num_grids"])):
        check(arrays, f"cate{level}", logits)
    for level, kernel in enumerate(by_level(kernels, meta["num_grids"])):
        check(arrays, f"kernel{level}", kernel)


def test_recipe_reproduces_stored_weights_and_features(golden: Any) -> None:
    """The recipe behind the large cases, checked where its products are also stored."""
    arrays = golden("head_tiny_b")
    for name, values in official_names.recipe_weights(arrays["meta"]).items():
        np.testing.assert_array_equal(values, arrays[f"sd/{name}"].astype(np.float32), name)
    for level, values in enumerate(official_names.recipe_features(arrays["meta"])):
        np.testing.assert_array_equal(values, arrays[f"feat{level}"].astype(np.float32))
