"""Category, kernel and mask branches against the reference, with the reference's weights."""

from __future__ import annotations

from typing import Any

import golden_tools
import numpy as np
import official_names
import pytest
import torch
from torch import nn

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

    golden_tools.check_heads(arrays, category_logits, kernels, mask_features)
    assert trunk.shape[1] == meta["mask_mid_channels"]


def test_recipe_reproduces_stored_weights_and_features(golden: Any) -> None:
    """The recipe behind the large cases, checked where its products are also stored."""
    arrays = golden("head_tiny_b")
    for name, values in official_names.recipe_weights(arrays["meta"]).items():
        np.testing.assert_array_equal(values, arrays[f"sd/{name}"].astype(np.float32), name)
    for level, values in enumerate(official_names.recipe_features(arrays["meta"])):
        np.testing.assert_array_equal(values, arrays[f"feat{level}"].astype(np.float32))
