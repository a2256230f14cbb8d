"""Changes to timm's ResNets that published checkpoints need."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from timm.models.resnet import BasicBlock, Bottleneck
from torch import nn

from unisolo.models.deform import Deform, DeformConv2d

__all__ = ["make_deformable", "stride_first"]

STAGES = ("layer2", "layer3", "layer4")


def make_deformable(net: Any, name: str, version: Deform) -> None:
    """Make the 3 x 3 convolution of every block of the last three stages deformable.

    Their weights stay. (A basic block has two; its second is taken.)

    Args:
        net: A timm model, features-only.
        name: Its name, for messages.
        version: "v1" or "v2".

    Raises:
        ValueError: If it is no ResNet or ResNeXt with such convolutions.
    """
    for block in _blocks(net, name, "deformable convolutions (backbone_deform)"):
        conv = block.conv2
        if type(conv) is not nn.Conv2d or conv.kernel_size != (3, 3) or conv.bias is not None:
            raise ValueError(
                f"backbone {name!r} cannot have deformable convolutions (backbone_deform): its "
                f"blocks' conv2 is {type(conv).__name__}, not a plain 3 x 3 convolution; choose a "
                "ResNet or ResNeXt, e.g. resnet50"
            )
        block.conv2 = DeformConv2d.from_conv(conv, version)


def stride_first(net: Any, name: str) -> None:
    """Move the stride of a bottleneck from its 3 x 3 to its first 1 x 1 convolution.

    The first ResNets (MSRA's, in Caffe) have it there; weights of the one form run in the other,
    and give wrong numbers.

    Args:
        net: A timm model, features-only.
        name: Its name, for messages.

    Raises:
        ValueError: If it is no ResNet or ResNeXt of bottlenecks, or has its strides elsewhere.
    """
    option = "the stride in its first 1 x 1 convolutions (stride_in_1x1)"
    for block in _blocks(net, name, option):
        if not isinstance(block, Bottleneck):
            raise ValueError(
                f"backbone {name!r} cannot have {option}: its blocks have none; choose one of "
                "bottlenecks, e.g. resnet50"
            )
        if block.stride == 1:
            continue
        if block.conv2.stride != (block.stride, block.stride):
            raise ValueError(
                f"backbone {name!r} cannot have {option}: its blocks shrink by "
                f"{type(block.aa).__name__}, not by a convolution; choose e.g. resnet50"
            )
        block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride


def _blocks(net: Any, name: str, option: str) -> Iterator[Any]:
    for stage in STAGES:
        blocks = getattr(net, stage, None)
        if not isinstance(blocks, nn.Sequential) or not all(
            isinstance(block, (BasicBlock, Bottleneck)) for block in blocks
        ):
            raise ValueError(
                f"backbone {name!r} cannot have {option}: it is no ResNet; choose a ResNet or "
                "ResNeXt, e.g. resnet50"
            )
        yield from blocks
