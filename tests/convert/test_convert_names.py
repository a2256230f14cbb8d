"""Names and shapes: of the real configurations, and of those that are built here."""

from __future__ import annotations

from typing import Any

import foreign
import pytest
import torch

from unisolo.config import Config
from unisolo.convert import convert_weights
from unisolo.convert.coco_names import COCO_NAMES
from unisolo.convert.names import FORMATS, modern_offsets

RANGES = {
    800: ((1, 96), (48, 192), (96, 384), (192, 768), (384, 2048)),
    448: ((1, 56), (28, 112), (56, 224), (112, 448), (224, 896)),
    512: ((1, 64), (32, 128), (64, 256), (128, 512), (256, 2048)),
}


def expected_settings(name: str) -> dict[str, Any]:
    """What the name of a key list says about its model."""
    depth = next(depth for depth in ("r18", "r34", "r50", "r101") if depth in name)
    light = "light" in name
    dcn = "dcn" in name
    version = "v1" if "512_dcn" in name else "v2"
    return {
        "backbone": f"resnet{depth[1:]}",
        "head_channels": 256 if light else 512,
        "head_convs": (3 if dcn else 2) if light else 4,
        "kernel_channels": 128 if light else 256,
        "backbone_deform": version if dcn else "none",
        "head_deform": f"{'last' if light else 'all'}-{version}" if dcn else "none",
        "mask_deform": version if dcn and not light else "none",
        "stride_in_1x1": "adet" in name,
        "std": (1.0, 1.0, 1.0) if "adet" in name else (58.395, 57.12, 57.375),
        "mean": (123.675, 116.28, 103.53),
        "grid_sizes": (40, 36, 24, 16, 12),
    }


def check_settings(config: Config, expected: dict[str, Any], size: tuple[int, int]) -> None:
    for key, value in expected.items():
        assert getattr(config.model, key) == value, key
    assert (config.data.image_size, config.data.max_size) == size
    assert config.model.scale_ranges == RANGES[size[0]]
    inference = config.inference
    assert (inference.score_threshold, inference.update_threshold) == (0.1, 0.05)
    assert (inference.pre_nms, inference.max_instances) == (500, 100)
    assert (inference.nms_kernel, inference.nms_sigma) == ("gaussian", 2.0)


@pytest.mark.parametrize("name", foreign.key_list_names())
def test_every_real_configuration(name: str) -> None:
    shapes = foreign.key_list(name)
    # A number of its own for each tensor: a swapped pair of equal shapes would be seen.
    state = {
        key: torch.full(shape, float(number)) if shape else torch.tensor(number)
        for number, (key, shape) in enumerate(shapes.items())
    }
    model = convert_weights(state)

    form = {"wx": "solo", "mm": "mmdetection", "adet": "adelaidet"}[name.split("_")[1]]
    made = model.state_dict()
    places = {FORMATS[form].ours(key): key for key in shapes}
    assert None not in places and len(places) == len(shapes)
    assert all(FORMATS[form].foreign(ours) == key for ours, key in places.items())
    for ours, values in made.items():
        if ours not in places:
            assert form == "adelaidet" and ours.endswith("num_batches_tracked")
            continue
        assert list(values.shape) == shapes[places[ours]]
        assert (values == state[places[ours]].flatten()[0]).all(), ours

    light = "light" in name
    size = (800, 1333) if not light else (512, 852) if "dcn" in name else (448, 768)
    assert model.config is not None and model.categories is not None
    check_settings(model.config, expected_settings(name), size)
    assert model.config.data.resize == ("torch" if form == "adelaidet" else "opencv")
    assert not model.training
    assert [(c.id, c.name) for c in model.categories] == list(COCO_NAMES.items())


FULL = {"width": 64, "towers": (4, 512), "kernel": 256}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("keys_mm_solov2-light_r18_fpn_ms-3x_coco", {}),
        ("keys_mm_solov2-light_r34_fpn_ms-3x_coco", {"blocks": (3, 4, 6, 3)}),
        ("keys_mm_solov2_r50_fpn_1x_coco", {"blocks": (3, 4, 6, 3), **FULL}),
        (
            "keys_mm_solov2-light_r50-dcn_fpn_ms-3x_coco",
            {"blocks": (3, 4, 6, 3), "width": 64, "towers": (3, 256)}
            | {"deform": ("backbone", "last")},
        ),
        (
            "keys_mm_solov2_r101-dcn_fpn_ms-3x_coco",
            {"blocks": (3, 4, 23, 3), "deform": ("backbone", "all", "mask"), **FULL},
        ),
    ],
)
def test_shapes_built_here_are_the_real_ones(name: str, options: dict[str, Any]) -> None:
    assert foreign.mmdetection_shapes(**options) == foreign.key_list(name)


def test_resnext_101_64x4d_with_deformable_convolutions() -> None:
    shapes = foreign.mmdetection_shapes(
        (3, 4, 23, 3),
        width=256,
        group_width=4,
        towers=(4, 512),
        kernel=256,
        deform=("backbone", "all", "mask"),
    )
    assert shapes["backbone.layer4.0.conv2.weight"] == [2048, 32, 3, 3]
    assert shapes["backbone.layer4.0.conv2.conv_offset.weight"] == [27, 2048, 3, 3]
    model = convert_weights(foreign.drawn(shapes))
    assert model.config is not None
    expected = {"backbone": "resnext101_64x4d", "stride_in_1x1": False, "backbone_deform": "v2"}
    check_settings(model.config, expected, (800, 1333))


def test_old_spelling_of_offsets() -> None:
    later = {
        "backbone.layer2.0.conv2.weight": 1,
        "backbone.layer2.0.conv2.conv_offset.weight": 2,
        "backbone.layer2.0.conv2.conv_offset.bias": 3,
        "bbox_head.cate_convs.2.conv.weight": 4,
        "bbox_head.cate_convs.2.conv.conv_offset.weight": 5,
        "mask_feat_head.convs_all_levels.2.conv1.conv.weight": 6,
        "mask_feat_head.convs_all_levels.2.conv1.conv.conv_offset.bias": 7,
        "mask_feat_head.conv_pred.0.conv.weight": 8,
        "mask_feat_head.conv_pred.0.conv.conv_offset.weight": 9,
    }
    older = {name.replace(".conv_offset.", "_offset."): value for name, value in later.items()}
    assert "mask_feat_head.convs_all_levels.2.conv1.conv_offset.bias" in older
    assert older.keys() != later.keys()
    assert modern_offsets(older) == later
    assert modern_offsets(later) == later
    both = {
        "backbone.layer2.0.conv2.weight": 1,
        "backbone.layer2.0.conv2_offset.bias": 2,
        "backbone.layer2.0.conv2.conv_offset.bias": 3,
    }
    assert modern_offsets(both) == both


def test_a_model_in_the_old_spelling() -> None:
    shapes = foreign.mmdetection_shapes(
        (3, 4, 6, 3), width=64, towers=(3, 256), deform=("backbone", "last"), taps=2
    )
    state = foreign.drawn(shapes)
    old = {name.replace(".conv_offset.", "_offset."): value for name, value in state.items()}
    expected, found = convert_weights(state), convert_weights(old)
    assert expected.config is not None and expected.config.model.head_deform == "last-v1"
    assert expected.config == found.config
    for name, values in found.state_dict().items():
        assert torch.equal(values, expected.state_dict()[name])


def test_coco_names_are_the_official_ones(shared_data: Any) -> None:
    import json

    folder = shared_data("coco-mini")
    files = sorted((folder / "annotations").glob("instances*.json"))
    entries = json.loads(files[0].read_text())["categories"]
    assert {entry["id"]: entry["name"] for entry in entries} == COCO_NAMES
    assert list(COCO_NAMES) == sorted(COCO_NAMES)
