"""torchvision's Mask R-CNN on a timm backbone, to measure against."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from unisolo.models import TimmBackbone
from unisolo.structures import Batch, Target

__all__ = ["build_mask_rcnn", "mask_rcnn_inputs"]

CHANNELS = 256
"""Of FPN and heads, as torchvision has them."""

REFERENCE_SIZE = 800
"""Short side that torchvision's anchors (32 to 512 pixels) are meant for."""


def build_mask_rcnn(backbone: TimmBackbone, num_things: int, image_size: int) -> nn.Module:
    """Build Mask R-CNN with the FPN and heads of torchvision's `maskrcnn_resnet50_fpn`.

    They are torchvision's defaults: no norms, two linear layers for boxes, four convolutions for
    masks, one in the RPN. (The heads of `maskrcnn_resnet50_fpn_v2` take longer: a baseline that is
    easier to beat.) Images are taken as they come, since the loader has resized them. Anchors and
    box decoding stay float32 under autocast: in half precision torchvision rounds coordinates to
    whole pixels and worse.

    Args:
        backbone: Its features and normalisation.
        num_things: Categories, background not counted.
        image_size: Short side of the images; anchors are in proportion to it.

    Returns:
        A module that takes (images, targets) of `mask_rcnn_inputs` and returns its losses in
        training mode.
    """
    from torchvision.models.detection.mask_rcnn import MaskRCNN

    levels = len(backbone.channels) + 1
    smallest = 512 * image_size / REFERENCE_SIZE / 2 ** (levels - 1)
    anchors = _anchors([smallest * 2**level for level in range(levels)])
    names = [str(level) for level in range(levels - 1)]
    model = MaskRCNN(
        _Features(backbone),
        num_classes=num_things + 1,
        image_mean=list(backbone.mean),
        image_std=list(backbone.std),
        rpn_anchor_generator=anchors,
        box_roi_pool=_pooler(names, 7),
        mask_roi_pool=_pooler(names, 14),
        _skip_resize=True,
    )
    for part in (model.rpn, model.roi_heads):
        part.box_coder = _box_coder(part.box_coder.weights)
    module: nn.Module = model
    return module


def mask_rcnn_inputs(batch: Batch) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Turn a batch on its device into what torchvision's detection models take.

    One mask per object is made here, on the device: shipped from the loader's processes, the masks
    of a crowded batch would be gigabytes.

    Args:
        batch: With targets.

    Returns:
        Images [3, H, W] float in 0..255, without their padding, and for each the targets "boxes",
        "labels" (0 is background) and "masks" [N, H, W] uint8.
    """
    images, targets = [], []
    for image, meta, target in zip(batch.images, batch.metas, batch.targets, strict=True):
        height, width = meta.input_size
        images.append(image[:, :height, :width].float())
        targets.append(
            {
                "boxes": target.boxes,
                "labels": target.labels + 1,
                "masks": _masks(target)[:, :height, :width],
            }
        )
    return images, targets


def _masks(target: Target) -> Tensor:
    numbers = torch.arange(1, len(target) + 1, dtype=torch.int16, device=target.labels.device)
    masks = torch.zeros(
        len(target), *target.crowd_map.shape, dtype=torch.bool, device=target.labels.device
    )
    for layer in target.object_map:
        masks |= layer == numbers[:, None, None]
    return masks.to(torch.uint8)


class _Features(nn.Module):
    """Backbone and torchvision's FPN, under the names that its detection models use."""

    def __init__(self, backbone: TimmBackbone) -> None:
        super().__init__()
        from torchvision.ops.feature_pyramid_network import (
            FeaturePyramidNetwork,
            LastLevelMaxPool,
        )

        self.body = backbone
        self.fpn = FeaturePyramidNetwork(
            list(backbone.channels), CHANNELS, extra_blocks=LastLevelMaxPool()
        )
        self.out_channels = CHANNELS

    def forward(self, images: Tensor) -> Any:
        features = self.body(images.contiguous(memory_format=torch.channels_last))
        return self.fpn(OrderedDict((str(level), value) for level, value in enumerate(features)))


def _pooler(names: Sequence[str], size: int) -> nn.Module:
    from torchvision.ops import MultiScaleRoIAlign

    pooler: nn.Module = MultiScaleRoIAlign(list(names), output_size=size, sampling_ratio=2)
    return pooler


def _anchors(sizes: Sequence[float]) -> Any:
    """Anchors in float32, whatever the features' precision."""
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    class Anchors(AnchorGenerator):  # type: ignore[misc]
        def forward(self, image_list: Any, feature_maps: list[Tensor]) -> list[Tensor]:
            # Only shape, type and device of the features are read.
            stand_ins = [
                feature.new_empty((), dtype=torch.float32).expand(feature.shape)
                for feature in feature_maps
            ]
            found: list[Tensor] = super().forward(image_list, stand_ins)
            return found

    return Anchors(tuple((size,) for size in sizes), ((0.5, 1.0, 2.0),) * len(sizes))


def _box_coder(weights: tuple[float, float, float, float]) -> Any:
    """Box decoding in float32."""
    from torchvision.models.detection._utils import BoxCoder

    class Coder(BoxCoder):  # type: ignore[misc]
        def decode_single(self, rel_codes: Tensor, boxes: Tensor) -> Tensor:
            found: Tensor = super().decode_single(rel_codes.float(), boxes)
            return found

    return Coder(weights)
