from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_model import tiny_config, tiny_model
from torch import Tensor, nn

from unisolo.checkpoint import load_checkpoint, save_model
from unisolo.config import ConfigError, config_to_dict, load_config
from unisolo.models import MaskHead, SoloHead, TimmBackbone
from unisolo.models.deform import DeformConv2d, sample_and_multiply
from unisolo.models.layers import init_normal

sys.path.insert(0, str(Path(__file__).parent))
import deform_twin

SETTINGS = [
    {"kernel_size": 3},
    {"kernel_size": 3, "stride": 2},
    {"kernel_size": 3, "dilation": 2},
    {"kernel_size": 3, "stride": 2, "dilation": 2, "groups": 2},
    {"kernel_size": 1},
    {"kernel_size": 1, "stride": 2},
    {"kernel_size": 5, "groups": 2},
]


def lively(version: str, spread: float = 2.0, **options: int) -> DeformConv2d:
    conv = DeformConv2d(4, 6, version=version, **options)
    nn.init.normal_(conv.conv_offset.weight, std=0.3)
    nn.init.normal_(conv.conv_offset.bias, std=spread)
    return conv


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_equals_plain_loops(version: str, options: dict[str, int]) -> None:
    conv = lively(version, 5.0, **options)
    features = torch.randn(2, 4, 6, 7)
    with torch.no_grad():
        found = conv(features)
        moves = conv.conv_offset(features).numpy()
    taps = options["kernel_size"] ** 2
    assert moves.shape[1] == taps * (2 if version == "v1" else 3)
    # Some taps must leave the image for the padding to be tested.
    assert abs(moves[:, : 2 * taps]).max() > 3
    for item in range(2):
        mask = 1 / (1 + np.exp(-moves[item, 2 * taps :])) if version == "v2" else None
        expected = deform_twin.deformable(
            features[item].numpy(),
            moves[item, : 2 * taps],
            mask,
            conv.weight.detach().numpy(),
            stride=options.get("stride", 1),
            padding=options.get("dilation", 1) * (options["kernel_size"] // 2),
            dilation=options.get("dilation", 1),
        )
        np.testing.assert_allclose(found[item].numpy(), expected, atol=1e-5)


def both_forms(conv: DeformConv2d, features: Tensor) -> tuple[Tensor, Tensor]:
    moves = conv.conv_offset(features)
    taps = conv.weight.shape[-1] ** 2
    made = sample_and_multiply(
        features,
        moves[:, : 2 * taps],
        conv.weight,
        moves[:, 2 * taps :].sigmoid() if conv.version == "v2" else None,
        stride=conv.stride,
        padding=conv.padding,
        dilation=conv.dilation,
    )
    return conv(features), made


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("options", SETTINGS, ids=str)
@pytest.mark.parametrize("size", [(13, 8), (1, 1), (1, 9), (40, 56)])
def test_the_form_for_export_is_equal(
    version: str, options: dict[str, int], size: tuple[int, int]
) -> None:
    for spread in (0.0, 3.0, 100.0):  # 100: most taps are outside
        run, exported = both_forms(lively(version, spread, **options), torch.randn(2, 4, *size))
        torch.testing.assert_close(exported, run, atol=2e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_export_contains_no_foreign_operator() -> None:
    model = nn.Sequential(lively("v2", stride=2), nn.ReLU()).eval()
    features = torch.randn(1, 4, 9, 12)
    program = torch.export.export(model, (features,))
    operators = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert any("grid_sampler" in name for name in operators)
    assert not any("torchvision" in name for name in operators)
    torch.testing.assert_close(program.module()(features), model(features), atol=2e-5, rtol=1e-4)
    # One program for every size.
    dynamic = torch.export.Dim.DYNAMIC
    sizes = ({0: dynamic, 2: dynamic, 3: dynamic},)
    free = torch.export.export(model, (torch.randn(2, 4, 9, 12),), dynamic_shapes=sizes).module()
    other = torch.randn(3, 4, 17, 8)
    torch.testing.assert_close(free(other), model(other), atol=2e-5, rtol=1e-4)
    traced = torch.jit.trace(model, features)
    assert "torchvision" not in str(traced.inlined_graph)


def test_starts_as_a_plain_convolution() -> None:
    conv = DeformConv2d(4, 6, version="v1")
    features = torch.randn(2, 4, 5, 6)
    plain = F.conv2d(features, conv.weight, padding=1)
    torch.testing.assert_close(conv(features), plain, atol=1e-5, rtol=1e-5)
    # The mask of version 2 is a sigmoid of 0.
    halved = DeformConv2d(4, 6, version="v2")
    halved.weight = conv.weight
    torch.testing.assert_close(halved(features), plain / 2, atol=1e-5, rtol=1e-5)
    assert [name for name, _ in conv.named_parameters()] == [
        "weight",
        "conv_offset.weight",
        "conv_offset.bias",
    ]


def test_initialisation_of_heads_leaves_offsets_at_zero() -> None:
    head = MaskHead(8, 8, 8, deform="v2")
    init_normal(head)
    convs = [module for module in head.modules() if isinstance(module, DeformConv2d)]
    assert len(convs) == 8  # 1 + 1 + 2 + 3 and the last 1 x 1
    for conv in convs:
        assert not conv.conv_offset.weight.any() and not conv.conv_offset.bias.any()
        assert 0.005 < conv.weight.std() < 0.02


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_gradients_reach_weight_and_offsets(version: str) -> None:
    conv = lively(version)
    conv(torch.randn(2, 4, 5, 6)).square().sum().backward()
    for parameter in conv.parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0


def test_half_precision_on_cpu() -> None:
    conv = lively("v2").eval()
    features = torch.randn(1, 4, 9, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = conv(features)
        again = conv(found[:, :4])  # from half-precision features
    torch.testing.assert_close(found.float(), conv(features), atol=0.5, rtol=0.1)
    assert again.isfinite().all()


@pytest.mark.parametrize(
    ("deform", "expected"),
    [
        ("none", []),
        ("last-v1", [(2, "v1")]),
        ("last-v2", [(2, "v2")]),
        ("all-v2", [(0, "v2"), (1, "v2"), (2, "v2")]),
    ],
)
def test_which_convolutions_of_the_towers(deform: str, expected: list[tuple[int, str]]) -> None:
    head = SoloHead(
        4, 3, channels=8, num_convs=3, kernel_channels=6, grid_sizes=(5, 4, 3, 2, 1), deform=deform
    )
    for tower in (head.category_convs, head.kernel_convs):
        found = [
            (place, block.conv.version)
            for place, block in enumerate(tower)
            if isinstance(block.conv, DeformConv2d)
        ]
        assert found == expected
    pyramid = [torch.randn(1, 4, 32 // 2**n, 64 // 2**n) for n in range(5)]
    assert head(pyramid)[0].shape == (1, 55, 3)


def no_zero_branch(backbone: TimmBackbone) -> None:
    """Undo timm's start, where each block's own branch is multiplied by zero."""
    for key, value in backbone.named_parameters():
        if "bn" in key and key.endswith("weight"):
            nn.init.constant_(value, 0.7)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_backbone_stages_two_to_four(name: str) -> None:
    plain = TimmBackbone(name).eval()
    no_zero_branch(plain)
    backbone = TimmBackbone(name, deform="v1", frozen_stages=2).eval()
    deformable = {
        key.removesuffix(".conv_offset.bias")
        for key in backbone.state_dict()
        if key.endswith("conv_offset.bias")
    }
    assert len(deformable) == sum(len(plain.net[stage]) for stage in ("layer2", "layer3", "layer4"))
    assert all(key.startswith(("net.layer2", "net.layer3", "net.layer4")) for key in deformable)
    # Offsets of zero: the same features; and only the named parts are frozen.
    backbone.load_state_dict(plain.state_dict(), strict=False)
    images = torch.randn(1, 3, 64, 96)
    for found, expected in zip(backbone(images), plain(images), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    frozen = {key for key, value in backbone.named_parameters() if not value.requires_grad}
    assert frozen and not any("conv_offset" in key for key in frozen)
    late = TimmBackbone(name, deform="v1", frozen_stages=3)
    frozen = {key for key, value in late.named_parameters() if not value.requires_grad}
    assert {key.split(".")[1] for key in frozen if "conv_offset" in key} == {"layer2"}


def test_stride_moves_to_the_first_convolution() -> None:
    plain, moved = TimmBackbone("resnet50").eval(), TimmBackbone("resnet50", stride_in_1x1=True)
    no_zero_branch(plain)
    moved.load_state_dict(plain.state_dict())
    moved.eval()
    block = moved.net.layer3[0]
    inputs = torch.randn(1, 512, 8, 10)
    middle = F.relu(block.bn1(F.conv2d(inputs, block.conv1.weight, stride=2)))
    middle = F.relu(block.bn2(F.conv2d(middle, block.conv2.weight, padding=1)))
    shortcut = block.downsample[1](F.conv2d(inputs, block.downsample[0].weight, stride=2))
    expected = F.relu(block.bn3(F.conv2d(middle, block.conv3.weight)) + shortcut)
    torch.testing.assert_close(block(inputs), expected, atol=1e-4, rtol=1e-4)
    assert (block(inputs) - plain.net.layer3[0](inputs)).abs().max() > 1e-2
    assert moved.net.layer1[0].conv1.stride == (1, 1)
    assert [feature.shape for feature in moved(torch.zeros(1, 3, 64, 64))] == [
        feature.shape for feature in plain(torch.zeros(1, 3, 64, 64))
    ]


def test_deformable_with_the_stride_in_the_first_convolution() -> None:
    backbone = TimmBackbone("resnet50", deform="v2", stride_in_1x1=True)
    assert backbone.net.layer2[0].conv2.stride == 1
    assert backbone.net.layer2[0].conv2.conv_offset.stride == (1, 1)
    assert TimmBackbone("resnet50", deform="v2").net.layer2[0].conv2.stride == 2


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("test_convnext", {"deform": "v2"}, ["test_convnext", "backbone_deform", "no ResNet"]),
        ("test_convnext", {"stride_in_1x1": True}, ["stride_in_1x1", "no ResNet"]),
        ("resnet18", {"stride_in_1x1": True}, ["resnet18", "stride_in_1x1", "resnet50"]),
        ("skresnet18", {"deform": "v1"}, ["skresnet18", "ResNet"]),
        ("resnetblur50", {"stride_in_1x1": True}, ["resnetblur50", "BlurPool2d"]),
    ],
)
def test_what_a_backbone_cannot_have(name: str, options: dict, words: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        TimmBackbone(name, **options)
    for word in words:
        assert word in str(error.value)


def test_a_version_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match="'v3'"):
        DeformConv2d(4, 4, version="v3")


def test_normalisation_can_be_given() -> None:
    backbone = TimmBackbone("test_resnet", mean=(1.0, 2.0, 3.0), std=(1.0, 1.0, 1.0))
    assert backbone.mean == (1.0, 2.0, 3.0)
    assert backbone.std == (1.0, 1.0, 1.0)
    assert math.isclose(TimmBackbone("test_resnet", mean=(1.0, 2.0, 3.0)).std[0], 127.5)


DEFORMABLE = ("model.backbone_deform=v2", "model.head_deform=all-v1", "model.mask_deform=v2")


def test_settings_reach_the_model_and_its_file(tmp_path: Path) -> None:
    model = tiny_model(*DEFORMABLE, "model.mean=[1, 2, 3]", "model.std=[4, 5, 6]")
    assert model.mean.flatten().tolist() == [1, 2, 3]
    assert model.std.flatten().tolist() == [4, 5, 6]
    versions = {
        name: [conv.version for conv in part.modules() if isinstance(conv, DeformConv2d)]
        for name, part in model.named_children()
    }
    assert set(versions["backbone"]) == set(versions["mask_head"]) == {"v2"}
    assert versions["solo_head"] == ["v1", "v1"]  # one convolution in each of two towers
    assert versions["neck"] == versions["heads"] == []
    for module in model.modules():
        if isinstance(module, DeformConv2d):
            nn.init.normal_(module.conv_offset.bias)
    loaded = load_checkpoint(save_model(model, tmp_path / "model.safetensors"))
    images = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    with torch.no_grad():
        for found, expected in zip(loaded(images)[:3], model.eval()(images)[:3], strict=True):
            assert torch.equal(found, expected)


def test_every_parameter_of_a_deformable_model_learns() -> None:
    model = tiny_model(*DEFORMABLE)
    for module in model.modules():
        if isinstance(module, DeformConv2d):
            nn.init.normal_(module.conv_offset.bias)
    outputs = model(torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8))
    parts = (outputs.category_logits, outputs.kernels, outputs.mask_features)
    sum(part.square().mean() for part in (*parts, *outputs.extras.values())).backward()
    still = [name for name, value in model.named_parameters() if value.grad is None]
    assert still == []


def test_configurations_from_before_these_settings_are_read() -> None:
    values = config_to_dict(tiny_config())
    for key in ("backbone_deform", "head_deform", "mask_deform", "stride_in_1x1", "mean", "std"):
        del values["model"][key]
    assert load_config(values=values) == tiny_config()


@pytest.mark.parametrize(
    "setting",
    [
        "backbone_deform=v3",
        "head_deform=v2",
        "mask_deform=all-v1",
        "mean=[1, 2]",
        "mean=[1, 2, 256]",
        "std=[1, 0, 1]",
        "std=[1, .nan, 1]",
        "stride_in_1x1=maybe",
    ],
)
def test_wrong_settings_are_named(setting: str) -> None:
    with pytest.raises(ConfigError, match=rf"model\.{setting.partition('=')[0]}"):
        tiny_config(f"model.{setting}")
