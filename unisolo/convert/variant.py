"""What model a set of weights is of: read from names and shapes, never asked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from unisolo.config import Config, load_config
from unisolo.convert.names import Renamed
from unisolo.convert.reading import ConversionError

__all__ = ["Variant", "read_variant", "variant_config"]

KEY_TENSORS = (
    "backbone.net.layer1.0.conv2.weight",
    "neck.outputs.0.weight",
    "solo_head.category_out.weight",
    "solo_head.kernel_out.weight",
    "mask_head.levels.0.0.conv.weight",
)
"""Convolutions whose shapes decide the sizes of all others."""

GRID_SIZES = (40, 36, 24, 16, 12)

# (blocks per stage, whether bottlenecks, channels and channels per group of the first 3 x 3)
BACKBONES: dict[tuple[tuple[int, ...], bool, tuple[int, int]], str] = {
    ((2, 2, 2, 2), False, (64, 64)): "resnet18",
    ((3, 4, 6, 3), False, (64, 64)): "resnet34",
    ((3, 4, 6, 3), True, (64, 64)): "resnet50",
    ((3, 4, 23, 3), True, (64, 64)): "resnet101",
    ((3, 8, 36, 3), True, (64, 64)): "resnet152",
    ((3, 4, 6, 3), True, (128, 4)): "resnext50_32x4d",
    ((3, 4, 23, 3), True, (128, 4)): "resnext101_32x4d",
    ((3, 4, 23, 3), True, (256, 4)): "resnext101_64x4d",
}
"""timm's names; the parameters inside have the same names in torchvision, mmdetection and timm."""


@dataclass(frozen=True)
class _Size:
    """Image size and scale ranges that a family of released models was trained at."""

    short: int
    long: int
    ranges: tuple[tuple[int, int], ...]


_FULL = _Size(800, 1333, ((1, 96), (48, 192), (96, 384), (192, 768), (384, 2048)))
_LIGHT_448 = _Size(448, 768, ((1, 56), (28, 112), (56, 224), (112, 448), (224, 896)))
_LIGHT_512 = _Size(512, 852, ((1, 64), (32, 128), (64, 256), (128, 512), (256, 2048)))


@dataclass(frozen=True)
class Variant:
    """A model, as its weights tell it.

    Attributes:
        backbone: timm's name.
        bottlenecks: Whether its blocks are bottlenecks.
        num_classes: Channels of the category branch.
        head_channels: Width of the towers.
        head_convs: Convolutions in each tower.
        kernel_channels: Channels of the dynamic kernels.
        fpn_channels: Channels of the pyramid.
        mask_channels: Width of the mask branch.
        backbone_deform: As in `ModelConfig`, like the next two.
        head_deform: See above.
        mask_deform: See above.
    """

    backbone: str
    bottlenecks: bool
    num_classes: int
    head_channels: int
    head_convs: int
    kernel_channels: int
    fpn_channels: int
    mask_channels: int
    backbone_deform: str
    head_deform: str
    mask_deform: str

    def __str__(self) -> str:
        versions = {
            deform.rpartition("-")[2]
            for deform in (self.backbone_deform, self.head_deform, self.mask_deform)
        } - {"none"}
        deform = f"DCN {' and '.join(sorted(versions))}" if versions else "no DCN"
        return (
            f"{self.backbone}, {self.head_convs} x {self.head_channels} towers, "
            f"{self.kernel_channels} kernel channels, {deform}, {self.num_classes} classes"
        )

    @property
    def is_released(self) -> bool:
        """Whether the head is that of a released model."""
        which = self.head_deform.partition("-")[0]
        return (self.head_convs, self.head_channels, self.kernel_channels, which) in {
            (4, 512, 256, "none"),
            (4, 512, 256, "all"),
            (2, 256, 128, "none"),
            (3, 256, 128, "last"),
        }


def read_variant(renamed: Renamed, where: str) -> Variant:
    """Read the architecture from weights under our names.

    Only what decides sizes is read here; that all other tensors fit is for the caller to compare
    with the model that is built from the answer.

    Args:
        renamed: The weights.
        where: Where they are from, for messages.

    Raises:
        ConversionError: If a tensor that is needed is missing or odd, or the backbone is unknown.
    """
    weights = renamed.weights
    shapes = _shapes(renamed, where)
    towers = _count(weights, r"solo_head\.category_convs\.(\d+)\.conv\.weight")
    moved = [_deform(weights, f"solo_head.category_convs.{conv}.conv") for conv in range(towers)]
    head_deform = "none"
    if moved and moved[-1] != "none":
        # Whether the rest agrees is seen when names are compared.
        head_deform = f"{'all' if moved[0] != 'none' else 'last'}-{moved[-1]}"
    num_classes, head_channels = shapes["solo_head.category_out.weight"][:2]
    bottlenecks = "backbone.net.layer1.0.conv3.weight" in weights
    return Variant(
        backbone=_backbone(
            weights, bottlenecks, shapes["backbone.net.layer1.0.conv2.weight"], where
        ),
        bottlenecks=bottlenecks,
        num_classes=num_classes,
        head_channels=head_channels,
        head_convs=max(towers, 1),
        kernel_channels=shapes["solo_head.kernel_out.weight"][0],
        fpn_channels=shapes["neck.outputs.0.weight"][0],
        mask_channels=shapes["mask_head.levels.0.0.conv.weight"][0],
        backbone_deform=_deform(weights, "backbone.net.layer4.0.conv2"),
        head_deform=head_deform,
        mask_deform=_deform(weights, "mask_head.levels.0.0.conv"),
    )


def variant_config(variant: Variant, *, task: str, adelaidet: bool) -> Config:
    """Return the configuration: architecture, and how the released models were trained and run.

    Args:
        variant: The architecture.
        task: "instance" or "detection".
        adelaidet: Whether the weights are AdelaiDet's: no standard deviation, Caffe's strides, and
            images resized by PIL, whose antialiased bilinear is nearest to torch's.
    """
    size = _size(variant)
    model: dict[str, Any] = {
        "backbone": variant.backbone,
        "pretrained": False,
        # As they were trained: the stem and the first stage fixed, and all batch statistics.
        "frozen_stages": 2,
        "frozen_bn": True,
        "fpn_channels": variant.fpn_channels,
        "head_channels": variant.head_channels,
        "head_convs": variant.head_convs,
        "kernel_channels": variant.kernel_channels,
        "mask_channels": variant.mask_channels,
        "backbone_deform": variant.backbone_deform,
        "head_deform": variant.head_deform,
        "mask_deform": variant.mask_deform,
        "grid_sizes": list(GRID_SIZES),
        "scale_ranges": [list(pair) for pair in size.ranges],
        # The same in all of the codes, whatever timm states for the backbone's newest weights.
        "mean": [123.675, 116.28, 103.53],
        "std": [1.0, 1.0, 1.0] if adelaidet else [58.395, 57.12, 57.375],
        "stride_in_1x1": adelaidet and variant.bottlenecks,
    }
    data = {
        "image_size": size.short,
        "max_size": size.long,
        "resize": "torch" if adelaidet else "opencv",
    }
    inference = {
        "score_threshold": 0.1,
        "mask_threshold": 0.5,
        "update_threshold": 0.05,
        "pre_nms": 500,
        "max_instances": 100,
        "nms_kernel": "gaussian",
        "nms_sigma": 2.0,
    }
    values = {"task": task, "model": model, "data": data, "inference": inference}
    return load_config(values=values)


def _size(variant: Variant) -> _Size:
    if variant.head_channels >= 512:
        return _FULL
    return _LIGHT_448 if variant.head_deform == "none" else _LIGHT_512


def _backbone(
    weights: Mapping[str, Tensor], bottlenecks: bool, shape: tuple[int, ...], where: str
) -> str:
    blocks = tuple(
        _count(weights, rf"backbone\.net\.layer{stage}\.(\d+)\.conv1\.weight")
        for stage in range(1, 5)
    )
    name = BACKBONES.get((blocks, bottlenecks, (shape[0], shape[1])))
    if name is None:
        raise ConversionError(
            f"{where}: its backbone is none that can be read: stages of {blocks} "
            f"{'bottleneck' if bottlenecks else 'basic'} blocks, a first 3 x 3 convolution of "
            f"{shape[0]} channels with {shape[1]} per group; known are "
            f"{', '.join(BACKBONES.values())}"
        )
    return name


def _count(weights: Mapping[str, Tensor], pattern: str) -> int:
    return len({match[1] for name in weights if (match := re.fullmatch(pattern, name))})


def _deform(weights: Mapping[str, Tensor], conv: str) -> str:
    """Which deformable convolution a layer is, by the channels of its offsets."""
    offset, weight = weights.get(f"{conv}.conv_offset.weight"), weights.get(f"{conv}.weight")
    if offset is None or weight is None or weight.ndim != 4 or offset.ndim != 4:
        return "none"
    return "v1" if offset.shape[0] == 2 * weight.shape[-1] ** 2 else "v2"


def _shapes(renamed: Renamed, where: str) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors that decide the model's sizes."""
    missing = [name for name in KEY_TENSORS if name not in renamed.weights]
    if missing:
        raise ConversionError(f"{where}: it lacks {renamed.listed(missing, near=True)}")
    shapes = {name: tuple(renamed.weights[name].shape) for name in KEY_TENSORS}
    odd = [name for name, shape in shapes.items() if len(shape) != 4 or 0 in shape]
    if odd:
        raise ConversionError(
            f"{where}: {renamed.listed(odd)} must be the weight of a convolution, but its shape is "
            f"{list(shapes[odd[0]])}"
        )
    return shapes
