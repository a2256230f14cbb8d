from __future__ import annotations

from pathlib import Path
from typing import Any

import golden_tools
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from unisolo.models import TimmBackbone

TINY = ["test_resnet", "test_convnext", "test_efficientnet", "test_vit"]
PYRAMID = (4, 8, 16, 32)


@pytest.mark.parametrize(
    ("name", "strides"),
    [
        ("test_resnet", PYRAMID),  # a stride-2 stem is dropped
        ("test_convnext", PYRAMID),
        ("test_efficientnet", PYRAMID),
        ("test_vit", (16, 16, 16)),  # equal strides are kept
        ("swin_tiny_patch4_window7_224", PYRAMID),  # channels last, native size 224
        ("xcit_nano_12_p8_224", (8, 8, 8)),
    ],
)
@pytest.mark.parametrize("size", [(32, 32), (64, 160)])
def test_features_have_the_announced_shapes(
    name: str, strides: tuple[int, ...], size: tuple[int, int]
) -> None:
    backbone = TimmBackbone(name).eval()
    with torch.no_grad():
        features = backbone(torch.randn(2, 3, *size))
    assert backbone.strides == strides
    assert [tuple(feature.shape) for feature in features] == [
        (2, channels, size[0] // stride, size[1] // stride)
        for channels, stride in zip(backbone.channels, strides, strict=True)
    ]


def test_channels_last_features_are_turned_not_reshaped() -> None:
    backbone = TimmBackbone("swin_tiny_patch4_window7_224").eval()
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        feature, raw = backbone(images)[1], backbone.net(images)[1]
    assert torch.equal(feature[0, :, 3, 5], raw[0, 3, 5, :])


def test_normalisation_is_timms_own_in_pixels() -> None:
    assert TimmBackbone("test_resnet").mean == (127.5, 127.5, 127.5)
    assert TimmBackbone("resnet18").mean == pytest.approx((123.675, 116.28, 103.53))
    assert TimmBackbone("resnet18").std == pytest.approx((58.395, 57.12, 57.375))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hiera_tiny_224", ["hiera_tiny_224", "free image size"]),
        ("maxvit_tiny_tf_224", ["window"]),
        ("vit_small_patch14_dinov2", ["patch size"]),
        ("crossvit_tiny_240", ["crossvit_tiny_240", "regular grid"]),
        ("resnet5o", ["unknown backbone 'resnet5o'", "did you mean", "resnet50"]),
        ("qqqqqqqq", ["unknown backbone", "timm.list_models()"]),
        ("resnet18.no_such_tag", ["resnet18.no_such_tag", "no_such_tag"]),
    ],
)
def test_what_cannot_work_is_refused_with_a_reason(name: str, words: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        TimmBackbone(name)
    for word in words:
        assert word in str(error.value)


def test_failed_download_names_the_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def offline(*args: Any, pretrained: bool = False, **kwargs: Any) -> nn.Module:
        if pretrained:
            raise OSError("no route to host")
        return create(*args, **kwargs)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ValueError, match=r"no route to host.*model\.backbone_weights"):
        TimmBackbone("test_resnet", pretrained=True)
    TimmBackbone("test_resnet", pretrained=False)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_file_gives_the_features_of_the_model_it_came_from(
    name: str, suffix: str, tmp_path: Path
) -> None:
    source = timm.create_model(name)  # with its classifier, as published files are
    for parameter in source.parameters():
        nn.init.normal_(parameter, std=0.1)
    path = tmp_path / f"weights{suffix}"
    state = source.state_dict()
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, path)

    # A download must not be tried where there is a file.
    backbone = TimmBackbone(name, pretrained=True, weights_file=path).eval()
    images = torch.randn(1, 3, 160, 160)
    with torch.no_grad():
        expected = source.eval().forward_intermediates(images, intermediates_only=True)
        features = backbone(images)
    torch.testing.assert_close(features[-1], expected[-1], rtol=1e-4, atol=1e-4)


def test_weights_file_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    good = timm.create_model("test_resnet").state_dict()
    name = "layer2.0.conv1.weight"
    short = {key: value for key, value in good.items() if key != name}
    cases = {
        "other model": (timm.create_model("test_convnext").state_dict(), "missing"),
        "one missing": (short, name),
        "one of another shape": ({**good, name: torch.zeros(1, 2)}, r"is \(1, 2\) and must be"),
    }
    for case, (state, words) in cases.items():
        path = tmp_path / f"{case}.safetensors"
        save_file(state, path)
        with pytest.raises(ValueError, match=words) as error:
            TimmBackbone("test_resnet", weights_file=path)
        assert str(path) in str(error.value)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_unreadable_weights_file_is_refused(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    with pytest.raises(ValueError, match="no such backbone weights file"):
        TimmBackbone("test_resnet", weights_file=path)
    path.write_bytes(b"not weights")
    with pytest.raises(ValueError, match="cannot be read as weights"):
        TimmBackbone("test_resnet", weights_file=path)


def test_weights_file_runs_no_code(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": Path("x")}, path)  # any class that is not plain data
    with pytest.raises(ValueError, match="cannot be read as weights"):
        TimmBackbone("test_resnet", weights_file=path)


def test_real_imagenet_weights_load_as_timm_loads_them() -> None:
    path = golden_tools.SHARED / "weights" / "tf_efficientnet_lite0_imagenet.safetensors"
    if not path.is_file():
        pytest.skip(f"ImageNet weights not on this machine: {path}")
    backbone = TimmBackbone("tf_efficientnet_lite0", weights_file=path).eval()
    reference = timm.create_model(
        "tf_efficientnet_lite0",
        features_only=True,
        pretrained=True,
        pretrained_cfg_overlay={"file": str(path)},
    ).eval()
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for feature, expected in zip(backbone(images), reference(images)[1:], strict=True):
            assert torch.equal(feature, expected)


def frozen_names(backbone: TimmBackbone) -> set[str]:
    return {name for name, p in backbone.net.named_parameters() if not p.requires_grad}


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("test_resnet", ("conv1", "bn1"), ("layer1",)),
        ("test_convnext", ("stem_0", "stem_1"), ("stages_0",)),
        ("test_efficientnet", ("conv_stem", "bn1"), ("blocks.0",)),
        (
            "test_vit",
            ("model.patch_embed", "model.pos_embed", "model.cls_token"),
            ("model.blocks.0",),
        ),
        ("hrnet_w18_small", ("conv1", "bn1", "conv2", "bn2"), ("layer1",)),
    ],
)
def test_frozen_stages_count_from_the_stem(
    name: str, first: tuple[str, ...], second: tuple[str, ...]
) -> None:
    assert frozen_names(TimmBackbone(name)) == set()
    stem = frozen_names(TimmBackbone(name, frozen_stages=1))
    more = frozen_names(TimmBackbone(name, frozen_stages=2)) - stem
    assert stem
    assert all(parameter.startswith(first) for parameter in stem)
    assert any(parameter.startswith(second) for parameter in more)
    assert not any(parameter.startswith(first) for parameter in more)


def test_frozen_stages_may_freeze_all_and_no_more() -> None:
    backbone = TimmBackbone("test_resnet", frozen_stages=5)
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    for wrong in (6, -1):
        with pytest.raises(ValueError, match="has 5 parts"):
            TimmBackbone("test_resnet", frozen_stages=wrong)


@pytest.mark.parametrize(
    ("options", "frozen", "moving"),
    [
        ({}, [], ["bn1", "layer1.0.bn1", "layer4.0.bn1"]),
        ({"frozen_stages": 2}, ["bn1", "layer1.0.bn1"], ["layer2.0.bn1", "layer4.0.bn1"]),
        ({"frozen_bn": True}, ["bn1", "layer1.0.bn1", "layer4.0.bn1"], []),
    ],
)
def test_frozen_batch_norms_keep_their_statistics(
    options: dict[str, Any], frozen: list[str], moving: list[str]
) -> None:
    backbone = TimmBackbone("test_resnet", **options)
    backbone.eval()
    backbone.train()
    before = {name: value.clone() for name, value in backbone.net.named_buffers()}
    backbone(torch.randn(2, 3, 64, 64))
    after = dict(backbone.net.named_buffers())
    for name in frozen:
        assert torch.equal(before[f"{name}.running_mean"], after[f"{name}.running_mean"])
    for name in moving:
        assert not torch.equal(before[f"{name}.running_mean"], after[f"{name}.running_mean"])


def test_frozen_bn_still_trains_scale_and_bias() -> None:
    backbone = TimmBackbone("test_resnet", frozen_bn=True)
    assert all(parameter.requires_grad for parameter in backbone.parameters())


def test_building_leaves_batch_norm_statistics_untouched() -> None:
    backbone = TimmBackbone("test_resnet")
    assert backbone.training
    assert int(backbone.net.bn1.num_batches_tracked) == 0
    assert torch.count_nonzero(backbone.net.bn1.running_mean) == 0
