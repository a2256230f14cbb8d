"""What does not fit is named; categories; what the report says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import foreign
import pytest
import timm
import torch
from tiny_model import tiny_model
from torch import Tensor

from unisolo import Categories, Category
from unisolo.checkpoint import load_checkpoint
from unisolo.convert import ConversionError, convert_checkpoint, convert_weights
from unisolo.convert.coco_names import COCO_NAMES


@pytest.fixture(scope="module")
def whole() -> dict[str, Tensor]:
    """A light R18 model of three classes under mmdetection's names."""
    return foreign.drawn(foreign.mmdetection_shapes(classes=3))


def refused(state: dict[str, Tensor], *words: str, **options: Any) -> None:
    with pytest.raises(ConversionError) as error:
        convert_weights(state, **options)
    for word in words:
        assert word in str(error.value), str(error.value)


def without(state: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {name: values for name, values in state.items() if name not in names}


def test_missing_names_the_nearest(whole: dict[str, Tensor]) -> None:
    name = "mask_head.cls_convs.1.gn.weight"
    refused(without(whole, name), f"it lacks 1 tensor: {name}", "mask_head.cls_convs.0.gn.weight")
    # A mistyped name is shown beside the one that is missing.
    typed = "mask_head.cls_convs.1.gm.weight"
    state = {**without(whole, name), typed: whole[name]}
    refused(state, f"{name} (nearest in the file: {typed})", f"of other names 1 tensor: {typed}")


def test_a_missing_key_tensor_names_the_nearest(whole: dict[str, Tensor]) -> None:
    name = "mask_head.conv_kernel.weight"
    alike = "nearest in the file: mask_head.conv_cls.weight, mask_head.conv_kernel.bias"
    refused(without(whole, name), f"it lacks 1 tensor: {name} ({alike})")
    typed = "mask_head.conv_kernels.weight"
    state = {**without(whole, name), typed: whole[name]}
    refused(state, f"{name} (nearest in the file: {typed})")


def test_many_missing_are_counted(whole: dict[str, Tensor]) -> None:
    state = {name: values for name, values in whole.items() if not name.startswith("neck.lat")}
    refused(state, "it lacks 8 tensors: neck.lateral_convs.0.conv.weight", "and 5 more")


def test_extra_and_misshapen(whole: dict[str, Tensor]) -> None:
    refused(
        {**whole, "backbone.layer1.0.conv3.bias": torch.zeros(1), "rpn_head.x": torch.zeros(1)},
        "with no place for, 1 tensor: backbone.layer1.0.conv3.bias",
        "of other names 1 tensor: rpn_head.x",
    )
    name = "neck.fpn_convs.2.conv.bias"
    refused({**whole, name: torch.zeros(255)}, name, "[255]", "must be [256]")
    name = "mask_head.conv_cls.weight"
    refused({**whole, name: torch.zeros(3)}, name, "weight of a convolution", "[3]")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(whole: dict[str, Tensor], value: float) -> None:
    broken = whole["backbone.layer4.1.bn2.bias"].clone()
    broken[5] = value
    state = {**whole, "backbone.layer4.1.bn2.bias": broken}
    refused(state, "not finite", "1 tensor: backbone.layer4.1.bn2.bias")


def test_backbone_of_another_kind(whole: dict[str, Tensor]) -> None:
    state = {name: v for name, v in whole.items() if not name.startswith("backbone.layer3.1.")}
    refused(state, "(2, 2, 1, 2) basic blocks", "resnet18", "resnext101_64x4d")


@pytest.mark.parametrize(
    ("drop", "words"),
    [
        (
            "mask_head.cls_convs.2.conv.conv_offset",
            ("no place for", "kernel_convs.2.conv.conv_off"),
        ),
        ("mask_head.kernel_convs.2.conv.conv_offset", ("lacks", "kernel_convs.2.conv.conv_offset")),
        ("backbone.layer3.2.conv2.conv_offset", ("lacks", "layer3.2.conv2.conv_offset.weight")),
        ("backbone.layer4.0.conv2.conv_offset", ("no place for", "layer2.0.conv2.conv_offset")),
    ],
)
def test_deformable_in_parts_only(drop: str, words: tuple[str, ...]) -> None:
    shapes = foreign.mmdetection_shapes(
        (3, 4, 6, 3), width=64, towers=(3, 256), deform=("backbone", "last")
    )
    state = {
        name: torch.zeros(shape) for name, shape in shapes.items() if not name.startswith(drop)
    }
    refused(state, *words)


def test_versions_mixed() -> None:
    shapes = foreign.mmdetection_shapes(towers=(3, 256), deform=("last",))
    for kind in ("weight", "bias"):
        shapes[f"mask_head.kernel_convs.2.conv.conv_offset.{kind}"][0] = 18
    state = {name: torch.zeros(shape) for name, shape in shapes.items()}
    refused(state, "shape does not fit", "kernel_convs.2.conv.conv_offset.weight", "must be [27,")


def test_formats_are_told_apart(whole: dict[str, Tensor]) -> None:
    solo = foreign.from_mmdetection(whole)
    assert convert_weights(solo, source_format="solo").config is not None
    refused(whole, "not of format 'adelaidet' but of 'mmdetection'", source_format="adelaidet")
    refused(whole, "unknown format 'mmdet'", "auto, solo, mmdetection", source_format="mmdet")
    refused({**whole, **solo}, "several formats (solo, mmdetection)")
    looked = ("bbox_head.solo_cate.weight", "mask_head.conv_cls.weight", "ins_head.cate_pred")
    refused({"a.b": torch.ones(1)}, "no known format", "1 tensor: a.b", *looked)
    # Another model of mmdetection.
    refused({"bbox_head.conv_cls.weight": torch.ones(1)}, "no known format")


def test_what_needs_no_conversion() -> None:
    refused(tiny_model().state_dict(), "already a model of this package")
    refused(timm.create_model("resnet18").state_dict(), "model.backbone_weights")


def test_tasks(whole: dict[str, Tensor]) -> None:
    refused(whole, "stuff branch", "'instance'", task="panoptic")
    model = convert_weights(whole, task="detection")
    assert model.config is not None and model.config.task == "detection"
    with pytest.raises(ValueError, match="unknown task 'keypoints'"):
        convert_weights(whole, task="keypoints")


def test_counters_may_be_absent_and_weights_of_half_precision(whole: dict[str, Tensor]) -> None:
    state = {
        name: values.half()
        for name, values in whole.items()
        if not name.endswith("num_batches_tracked")
    }
    model = convert_weights(state)
    expected = convert_weights(whole).state_dict()
    for name, values in model.state_dict().items():
        assert values.dtype == expected[name].dtype
        torch.testing.assert_close(values, expected[name], rtol=1e-3, atol=1e-3)


def save(state: dict[str, Tensor], path: Path, meta: Any) -> Path:
    torch.save({"meta": meta, "state_dict": state}, path)
    return path


COCO_SPELLINGS = [list(COCO_NAMES.values()), [n.replace(" ", "_") for n in COCO_NAMES.values()]]


@pytest.mark.parametrize("names", [*COCO_SPELLINGS, None])
def test_coco_categories_have_cocos_ids(tmp_path: Path, names: Any) -> None:
    state = foreign.drawn(foreign.mmdetection_shapes())
    source = save(state, tmp_path / "weights.pth", {"CLASSES": names})
    report = convert_checkpoint(source, tmp_path / "model.safetensors")
    categories = load_checkpoint(report.path).categories
    assert categories is not None
    assert [(c.id, c.name) for c in categories] == list(COCO_NAMES.items())
    assert report.class_names == ("the file (COCO's)" if names else "COCO, because there are 80")
    assert report.warnings == ()


def test_eighty_classes_with_names_of_their_own_are_not_coco(tmp_path: Path) -> None:
    state = foreign.drawn(foreign.mmdetection_shapes())
    names = [f"part {number}" for number in range(80)]
    source = save(state, tmp_path / "weights.pth", {"dataset_meta": {"classes": names}})
    report = convert_checkpoint(source, tmp_path / "model.safetensors")
    categories = load_checkpoint(report.path).categories
    assert categories is not None
    assert [(c.id, c.name) for c in categories] == list(enumerate(names, start=1))
    assert report.class_names == "the file"


@pytest.mark.parametrize(
    ("meta", "names", "warnings"),
    [
        ({"CLASSES": ("cat", "dog", "cat")}, ["cat", "dog", "cat"], []),
        ({}, ["category 1", "category 2", "category 3"], ["states no names"]),
        (
            {"CLASSES": ("cat", "dog")},
            ["category 1", "category 2", "category 3"],
            ["2 class names for 3 classes", "states no names"],
        ),
    ],
)
def test_other_categories(
    whole: dict[str, Tensor], tmp_path: Path, meta: Any, names: list[str], warnings: list[str]
) -> None:
    source = save(whole, tmp_path / "weights.pth", meta)
    report = convert_checkpoint(source, tmp_path / "model.safetensors")
    categories = load_checkpoint(report.path).categories
    assert categories is not None
    assert [(c.id, c.name) for c in categories] == list(enumerate(names, start=1))
    assert len(report.warnings) == len(warnings)
    for warning, words in zip(report.warnings, warnings, strict=True):
        assert words in warning


def test_given_categories_win(whole: dict[str, Tensor], tmp_path: Path) -> None:
    given = Categories([Category(5, "ant"), Category(9, "bee"), Category(12, "cow")])
    source = save(whole, tmp_path / "weights.pth", {"CLASSES": ("a", "b", "c")})
    report = convert_checkpoint(source, tmp_path / "model.safetensors", categories=given)
    assert load_checkpoint(report.path).categories == given
    assert report.class_names == "given"
    two = Categories([Category(5, "ant"), Category(9, "bee")])
    refused(whole, "has 3 classes, and 2 thing categories", categories=two)


def test_class_names_that_cannot_be_written(whole: dict[str, Tensor], tmp_path: Path) -> None:
    source = save(whole, tmp_path / "weights.pth", {"CLASSES": ("a", "b", "\ud800")})
    with pytest.raises(ConversionError, match=r"class names cannot be used .*give the categories"):
        convert_checkpoint(source, tmp_path / "model.safetensors")


def test_report(whole: dict[str, Tensor], tmp_path: Path) -> None:
    tree = {
        "meta": {"CLASSES": ("a", "b", "c")},
        "state_dict": {**whole, "ema_backbone_conv1_weight": torch.zeros(1)},
        "optimizer": {},
    }
    torch.save(tree, tmp_path / "weights.pth")
    report = convert_checkpoint(tmp_path / "weights.pth", tmp_path / "new" / "model.safetensors")
    assert report.source == tmp_path / "weights.pth"
    assert report.path == tmp_path / "new" / "model.safetensors"
    assert (report.format, report.tensors) == ("mmdetection", 176)
    assert report.variant == "resnet18, 2 x 256 towers, 128 kernel channels, no DCN, 3 classes"
    assert report.ignored == (
        "beside the weights: meta, optimizer",
        "copies of a moving average (ema_*): 1",
    )
    assert report.warnings == ()


def test_a_head_of_no_released_model_is_converted_with_a_warning(tmp_path: Path) -> None:
    state = foreign.drawn(foreign.mmdetection_shapes(towers=(3, 256)))
    source = save(state, tmp_path / "weights.pth", {})
    report = convert_checkpoint(source, tmp_path / "model.safetensors")
    assert "image size and scale ranges are assumed (448 x 768)" in report.warnings[0]


def test_nothing_is_written_on_failure(whole: dict[str, Tensor], tmp_path: Path) -> None:
    source = save(without(whole, "backbone.conv1.weight"), tmp_path / "weights.pth", {})
    out = tmp_path / "model.safetensors"
    out.write_text("what was here")
    with pytest.raises(ConversionError, match=r"weights\.pth.*backbone\.conv1\.weight"):
        convert_checkpoint(source, out)
    assert out.read_text() == "what was here"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", "weights.pth"]


def test_source_is_not_overwritten(whole: dict[str, Tensor], tmp_path: Path) -> None:
    source = save(whole, tmp_path / "weights.pth", {})
    content = source.read_bytes()
    link = tmp_path / "link.safetensors"
    link.symlink_to(source)
    for out in (source, link):
        with pytest.raises(ConversionError, match="is the source itself"):
            convert_checkpoint(source, out)
    assert source.read_bytes() == content


@pytest.mark.parametrize("name", ["model.onnx", "model.pth", ".", "folder"])
def test_a_checkpoint_has_the_ending_it_is_known_by(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConversionError, match=r"must end in \.safetensors"):
        convert_checkpoint(tmp_path / "weights.pth", tmp_path / name)
    assert list(tmp_path.iterdir()) == []
