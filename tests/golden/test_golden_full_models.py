"""Whole models, official weight names on timm backbones, from the image to the final masks."""

from __future__ import annotations

from typing import Any

import golden_tools
import numpy as np
import official_names
import pytest
import torch
from torch import Tensor

from unisolo.models import FPN, MaskHead, SoloHead, TimmBackbone, UniSolo
from unisolo.ops.masks import unpack_bits, upsample_masks
from unisolo.ops.select import select_instances
from unisolo.structures import GridSpec, Instances


def build(meta: dict[str, Any]) -> UniSolo:
    grid = GridSpec()
    backbone = TimmBackbone(f"resnet{meta['depth']}")
    model = UniSolo(
        backbone,
        FPN(backbone.channels, backbone.strides),
        SoloHead(
            256,
            meta["num_classes"],
            channels=meta["feat_channels"],
            num_convs=meta["stacked_convs"],
            kernel_channels=meta["kernel_dim"],
            grid_sizes=grid.sizes,
        ),
        MaskHead(256, 128, meta["kernel_dim"]),
        grid=grid,
    )
    # Strict: every official tensor has one place in our model, and every place gets one.
    model.load_state_dict(official_names.ours(official_names.recipe_weights(meta)))
    return model.eval()


def padded_input(arrays: dict[str, Any]) -> tuple[Tensor, Tensor]:
    height, width = arrays["meta"]["img_shape"]
    # Padding that is not black: the model has to zero it after normalising.
    images = torch.full((1, 3, *arrays["meta"]["padded"]), 77, dtype=torch.uint8)
    images[0, :, :height, :width] = torch.from_numpy(arrays["image_rgb"]).permute(2, 0, 1)
    return images, torch.tensor([[height, width]])


def check(arrays: dict[str, Any], name: str, values: Tensor) -> None:
    found = values.numpy()
    sample = found.ravel()[:: arrays["meta"]["sample_step"]]
    # atol only for values that are zero but for rounding.
    np.testing.assert_allclose(sample, arrays[f"{name}_sample"], rtol=1e-3, atol=2e-5, err_msg=name)
    np.testing.assert_allclose(
        golden_tools.stats(found), arrays[f"{name}_stats"], rtol=1e-3, err_msg=f"{name}_stats"
    )


def check_instances(arrays: dict[str, Any], instances: Instances) -> None:
    meta = arrays["meta"]
    scores, labels = instances.scores[0].numpy(), instances.labels[0].numpy()
    assert instances.valid[0].sum() == meta["n_final"]
    np.testing.assert_allclose(scores, arrays["scores"], rtol=0, atol=1e-3)

    made = upsample_masks(
        instances.mask_probs[0],
        padded_size=tuple(meta["padded"]),
        input_size=tuple(meta["img_shape"]),
        orig_size=tuple(meta["ori_shape"]),
    )
    masks = unpack_bits(made.packed, meta["ori_shape"][1]).numpy()
    expected = golden_tools.unpack(arrays, "masks")
    matched = sum(
        any(
            labels[other] == arrays["labels"][place]
            and abs(scores[other] - arrays["scores"][place]) < 1e-3
            and (masks[other] != mask).sum() <= max(3, 0.01 * mask.sum())
            for other in range(len(scores))
        )
        for place, mask in enumerate(expected)
    )
    assert matched >= 0.9 * len(expected)


@pytest.mark.parametrize("name", ["full_r18_light", "full_r50"])
def test_whole_model_equals_the_reference(golden: Any, name: str) -> None:
    arrays = golden(name)
    meta = arrays["meta"]
    model = build(meta)
    images, image_sizes = padded_input(arrays)

    with torch.no_grad():
        normalised = model.normalize(images, image_sizes)
        features = model.backbone(normalised)
        pyramid = model.neck(features)
        outputs = model(images, image_sizes)
        instances = select_instances(outputs, model.grid)

    np.testing.assert_allclose(
        golden_tools.stats(normalised.numpy()), arrays["input_stats"], rtol=1e-3
    )
    for level, feature in enumerate(features):
        check(arrays, f"C{level + 2}", feature)
    for level, feature in enumerate(pyramid):
        check(arrays, f"P{level + 2}", feature)
    check(arrays, "mask_feat", outputs.mask_features)
    for level, (start, size) in enumerate(zip(model.grid.offsets, model.grid.sizes, strict=True)):
        cells = slice(start, start + size * size)
        for official, values in (
            ("cate", outputs.category_logits),
            ("kernel", outputs.kernels),
        ):
            grid = values[:, cells].transpose(1, 2).contiguous()
            check(arrays, f"{official}{level}", grid)
    check_instances(arrays, instances)
