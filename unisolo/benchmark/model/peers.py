"""Models of others to measure against: random weights, made to give about 100 instances."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from unisolo.devices import autocast_for

__all__ = ["mask2former_call", "mask_rcnn_call"]

ENTER_NMS = 1000
"""Boxes of an image that enter the peer's NMS; random ones overlap little, so that 100 are left."""


def mask_rcnn_call(images: Tensor, dtype: torch.dtype) -> Callable[[], int]:
    """Prepare torchvision's `maskrcnn_resnet50_fpn`, from images to masks at their size.

    With random weights no class scores above its threshold of 0.05, and almost nothing would be
    left to do after the network. The threshold is therefore set to the score that `ENTER_NMS` boxes
    of one image exceed.

    Args:
        images: [B, 3, H, W] uint8 on the device; taken at this size.
        dtype: Compute dtype (autocast).

    Returns:
        A call that runs it once and returns how many instances the first image has.
    """
    from torchvision.models.detection import maskrcnn_resnet50_fpn

    height, width = images.shape[-2:]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = maskrcnn_resnet50_fpn(
            weights=None,
            weights_backbone=None,
            min_size=min(height, width),
            max_size=max(height, width),
        )
    model = model.eval().to(images.device)
    inputs = [image.float() / 255 for image in images]
    with autocast_for(dtype, images.device):
        model.roi_heads.score_thresh = _score_of_rank(model, inputs[:1])

    def call() -> int:
        with autocast_for(dtype, images.device):
            found = model(inputs)
        return len(found[0]["scores"])

    return call


def _score_of_rank(model: Any, inputs: list[Tensor]) -> float:
    """The class score that `ENTER_NMS` boxes of an image exceed."""
    seen: list[Tensor] = []
    hook = model.roi_heads.box_predictor.register_forward_hook(
        lambda module, arguments, result: seen.append(result[0])
    )
    threshold = model.roi_heads.score_thresh
    model.roi_heads.score_thresh = 2.0  # nothing passes
    try:
        model(inputs)
    finally:
        hook.remove()
        model.roi_heads.score_thresh = threshold
    scores = seen[0].float().softmax(-1)[:, 1:].flatten()
    ranked = scores.sort(descending=True).values
    return float(ranked[min(ENTER_NMS, len(ranked) - 1)])


def mask2former_call(images: Tensor, dtype: torch.dtype) -> Callable[[], int] | None:
    """Prepare Hugging Face's Mask2Former with a ResNet-50 and 100 queries; its forward pass alone.

    Args:
        images: [B, 3, H, W] uint8 on the device.
        dtype: Compute dtype (autocast).

    Returns:
        A call that runs it once and returns the number of its queries; None where transformers is
        not installed.
    """
    if importlib.util.find_spec("transformers") is None:
        return None
    transformers: Any = importlib.import_module("transformers")
    stages = [f"stage{number}" for number in range(1, 5)]
    config = transformers.Mask2FormerConfig(
        backbone_config=transformers.ResNetConfig(out_features=stages), num_labels=133
    )
    model = transformers.Mask2FormerForUniversalSegmentation(config).eval().to(images.device)
    inputs = (images.float() / 255 - 0.45) / 0.23

    def call() -> int:
        with autocast_for(dtype, images.device):
            found = model(pixel_values=inputs)
        return int(found.class_queries_logits.shape[1])

    return call
