"""Pruning alone: Matrix NMS beside the classic ways, on the masks of one scene."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from unisolo.benchmark.gpu_timing import tf32
from unisolo.benchmark.postprocess.classic_nms import (
    IOU_THRESHOLD,
    fast_nms,
    greedy_nms,
    greedy_nms_by_iou,
    mask_iou,
    soft_nms,
)
from unisolo.benchmark.postprocess.reference_chain import reference_nms
from unisolo.benchmark.postprocess.scenes import Scene
from unisolo.ops.backend import use_kernels
from unisolo.ops.boxes import masks_to_boxes
from unisolo.ops.matrix_nms import matrix_nms
from unisolo.ops.select import candidate_masks

__all__ = ["OUR_NMS", "WITHOUT_WAITING", "PruningInputs", "pruning_calls", "pruning_inputs"]

OUR_NMS = "Matrix NMS, ours"

WITHOUT_WAITING = (
    OUR_NMS,
    "Matrix NMS, reference style",
    "IoU matrix alone, float product",
    "fast NMS",
)
"""Those that a CUDA graph can hold."""


@dataclass(frozen=True)
class PruningInputs:
    """Masks as they enter pruning, by falling score.

    Attributes:
        masks: [N, h, w] bool, each above the least area of its level.
        labels: [N] int64.
        scores: [N] float32, probability times maskness.
        boxes: [N, 4] float32, xyxy, of the masks.
    """

    masks: Tensor
    labels: Tensor
    scores: Tensor
    boxes: Tensor


def pruning_inputs(scene: Scene) -> PruningInputs:
    """Make a scene's masks with the definition; waits for the device."""
    candidates = scene.candidates
    with use_kernels("torch"):
        made = candidate_masks(
            candidates.kernels, scene.outputs.mask_features[0], mask_threshold=0.5
        )
    large = made.areas > candidates.min_areas
    scores = (candidates.scores * made.maskness)[large]
    order = scores.argsort(descending=True, stable=True)
    masks = made.masks[large][order]
    return PruningInputs(
        masks, candidates.labels[large][order], scores[order], masks_to_boxes(masks)
    )


def pruning_calls(inputs: PruningInputs) -> dict[str, Callable[[], object]]:
    """Return every way as a call, overlaps included; boxes alone are given.

    Products of zeros and ones are exact in TF32, so on a GPU the others use it.
    """
    from torchvision.ops import batched_nms

    masks, labels, scores, boxes = inputs.masks, inputs.labels, inputs.scores, inputs.boxes
    flat = masks.flatten(1)
    areas = flat.sum(1).float()

    def iou() -> Tensor:
        with tf32(True):
            return mask_iou(flat)

    def reference() -> Tensor:
        with tf32(True):
            return reference_nms(masks.float(), labels, scores, areas)

    return {
        OUR_NMS: lambda: matrix_nms(masks, labels, scores),
        "Matrix NMS, reference style": reference,
        "IoU matrix alone, float product": iou,
        "fast NMS": lambda: fast_nms(iou(), labels, scores),
        "NMS from the IoU matrix, on the host": lambda: greedy_nms_by_iou(iou(), labels, scores),
        "soft-NMS from the IoU matrix, on the host": lambda: soft_nms(iou(), labels, scores),
        "NMS mask by mask": lambda: greedy_nms(flat, labels, scores),
        "torchvision batched_nms, boxes given": lambda: batched_nms(
            boxes, scores, labels, IOU_THRESHOLD
        ),
    }
