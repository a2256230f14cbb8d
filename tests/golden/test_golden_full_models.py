"""Whole models, converted from the names of all three codes, from the image to the final masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import foreign
import golden_tools
import numpy as np
import official_names
import pytest
import torch
from torch import Tensor

from unisolo.checkpoint import load_checkpoint
from unisolo.convert import convert_checkpoint
from unisolo.models import UniSolo
from unisolo.ops.masks import unpack_bits, upsample_masks
from unisolo.ops.select import select_instances
from unisolo.structures import Instances


def converted(meta: dict[str, Any], form: str, folder: Path) -> UniSolo:
    """The reference's weights through a file of another code, the converter and our own file."""
    official = official_names.recipe_weights(meta)
    state = {name: torch.as_tensor(values) for name, values in official.items()}
    source = foreign.write(foreign.renamed(state, form), form, folder / "foreign.pth")
    out = folder / "model.safetensors"
    report = convert_checkpoint(source, out)
    assert report.format == form
    assert report.tensors == len(official)
    model = load_checkpoint(out)
    assert model.config is not None
    if model.config.model.stride_in_1x1:  # the reference's weights are of the other form
        for stage in ("layer2", "layer3", "layer4"):
            block = getattr(model.backbone.net, stage)[0]
            block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
    return model


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


@pytest.mark.parametrize("form", ["solo", "mmdetection", "adelaidet"])
@pytest.mark.parametrize("name", ["full_r18_light", "full_r50"])
def test_whole_model_equals_the_reference(
    golden: Any, name: str, form: str, tmp_path: Path
) -> None:
    arrays = golden(name)
    model = converted(arrays["meta"], form, tmp_path)
    images, image_sizes = padded_input(arrays)

    with torch.no_grad():
        normalised = model.normalize(images, image_sizes)
        features = model.backbone(normalised)
        pyramid = model.neck(features)
        outputs = model(images, image_sizes)
        instances = select_instances(outputs, model.grid)

    # AdelaiDet's models have the standard deviation in their first convolution.
    divided = normalised / foreign.STD[:, None, None]
    inputs = divided if form == "adelaidet" else normalised
    np.testing.assert_allclose(golden_tools.stats(inputs.numpy()), arrays["input_stats"], rtol=1e-3)
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
