"""Deformable variants run, and in the form for export too; heads equal the golden ones."""

from __future__ import annotations

from typing import Any

import foreign
import golden_tools
import pytest
import torch

from unisolo.convert import convert_weights
from unisolo.models import UniSolo, deform

LIGHT = {"blocks": (3, 4, 6, 3), "width": 64, "towers": (3, 256), "deform": ("backbone", "last")}


def outputs(model: UniSolo) -> list[torch.Tensor]:
    images = torch.randint(0, 256, (1, 3, 64, 96), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = model(images.to(torch.uint8))
    return [found.category_logits, found.kernels, found.mask_features]


@pytest.mark.parametrize(
    ("form", "taps", "settings"),
    [("solo", 2, ("v1", "last-v1", "none")), ("mmdetection", 3, ("v2", "last-v2", "none"))],
)
def test_light_models_run_and_export_alike(
    monkeypatch: pytest.MonkeyPatch, form: str, taps: int, settings: tuple[str, ...]
) -> None:
    state = foreign.drawn(foreign.mmdetection_shapes(**LIGHT, taps=taps))
    if form == "solo":
        state = foreign.from_mmdetection(state)
    model = convert_weights(state)
    assert model.config is not None
    parts = model.config.model
    assert (parts.backbone_deform, parts.head_deform, parts.mask_deform) == settings
    found = outputs(model)
    monkeypatch.setattr(deform, "exporting", lambda: True)
    for values, exported in zip(found, outputs(model), strict=True):
        assert values.isfinite().all() and values.std() > 0.01
        torch.testing.assert_close(exported, values, rtol=2e-2, atol=2e-3)
    # The offsets matter: without them the answer is another.
    for module in model.modules():
        if isinstance(module, deform.DeformConv2d):
            module.reset_offsets()
    assert (outputs(model)[0] - found[0]).abs().max() > 0.01


def test_resnet_101_is_deformable_throughout() -> None:
    shapes = foreign.mmdetection_shapes(
        (3, 4, 23, 3),
        width=64,
        towers=(4, 512),
        kernel=256,
        deform=("backbone", "all", "mask"),
    )
    model = convert_weights(foreign.drawn(shapes))
    assert model.config is not None
    parts = model.config.model
    assert (parts.backbone_deform, parts.head_deform, parts.mask_deform) == ("v2", "all-v2", "v2")
    convs = [module for module in model.modules() if isinstance(module, deform.DeformConv2d)]
    assert len(convs) == (4 + 23 + 3) + 2 * 4 + (1 + 1 + 2 + 3 + 1)
    assert all(values.isfinite().all() and values.std() > 0.01 for values in outputs(model))


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("head_tiny_defaultgrids", "solo"),
        ("head_tiny_defaultgrids", "mmdetection"),
        ("head_tiny_defaultgrids", "adelaidet"),
        ("head_tiny_light_dcnv1", "solo"),
        ("head_tiny_light_dcnv1", "mmdetection"),
    ],
)
def test_golden_heads_through_the_converter(golden: Any, name: str, form: str) -> None:
    arrays = golden(name)
    meta = arrays["meta"]
    # The rest of a model around the golden heads, in their narrow pyramid.
    narrow = meta["fpn_channels"]
    state = {}
    for key, shape in foreign.mmdetection_shapes().items():
        if key.startswith("neck."):
            shape = [narrow if size == 256 else size for size in shape]
            if "lateral_convs.2" in key and key.endswith("conv.weight"):
                shape[1] = 256  # the backbone's third stage has as many by itself
        if key.startswith(("backbone.", "neck.")):
            state.update(foreign.drawn({key: shape}))
    state.update({k[3:]: torch.from_numpy(v).float() for k, v in arrays.items() if k[:3] == "sd/"})
    model = convert_weights(foreign.renamed(state, form))
    model.solo_head.grid_sizes = tuple(meta["num_grids"])
    levels = [torch.from_numpy(arrays[f"feat{level}"]).float() for level in range(5)]
    with torch.no_grad():
        logits, kernels = model.solo_head(levels)
        masks, _ = model.mask_head(levels)
    golden_tools.check_heads(arrays, logits, kernels, masks)
