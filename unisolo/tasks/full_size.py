"""Instances at the size of their images, on the device, and the results made of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from unisolo.categories import Categories
from unisolo.explain import Explanation
from unisolo.ops.backend import backend_for
from unisolo.ops.masks import CHUNK_PIXELS, UpsampledMasks, upsample_masks
from unisolo.ops.transfer import to_host
from unisolo.results import Result
from unisolo.structures import ImageMeta, Instances

__all__ = ["FullSize", "make_full_size", "make_result"]


class FullSize(NamedTuple):
    """Instances of a batch at the size of their images.

    Attributes:
        wanted: [B, K] bool; filled places of a high enough score, which come first.
        masks: Those of the first places of each image: at least of all that are wanted.
    """

    wanted: Tensor
    masks: list[UpsampledMasks]


def make_full_size(
    instances: Instances,
    metas: Sequence[ImageMeta],
    *,
    padded_size: tuple[int, int],
    score_threshold: float,
    mask_threshold: float,
    chunk_pixels: int = CHUNK_PIXELS,
) -> FullSize:
    """Make the masks of a batch at original size, as packed bits, and their boxes and areas.

    The Triton kernels make the masks of all K places, and pass over empty ones, so that nothing is
    asked of the device. Elsewhere a resize of an empty place costs as much as any other, and the
    number of wanted places is read first: on a CPU that costs nothing, on another device one wait
    per batch.

    Args:
        instances: From `select_instances`.
        metas: One per image.
        padded_size: (H, W) of the model's input.
        score_threshold: Instances below are not wanted.
        mask_threshold: Probability above which a pixel belongs to a mask (strict).
        chunk_pixels: See `upsample_masks`.
    """
    wanted = instances.valid & (instances.scores >= score_threshold)
    if backend_for(wanted.device) == "triton":
        counts = [wanted.shape[1]] * len(wanted)
    else:
        (read,) = to_host([wanted.sum(dim=1)])
        counts = read.tolist()
    masks = [
        upsample_masks(
            instances.mask_probs[index, :count],
            padded_size=padded_size,
            input_size=meta.input_size,
            orig_size=meta.orig_size,
            threshold=mask_threshold,
            chunk_pixels=chunk_pixels,
        )
        for index, (meta, count) in enumerate(zip(metas, counts, strict=True))
    ]
    return FullSize(wanted, masks)


def make_result(
    instances: Instances,
    full_size: FullSize,
    index: int,
    places: Sequence[int],
    *,
    image_size: tuple[int, int],
    categories: Categories,
    with_masks: bool,
    explanation: Explanation,
) -> Result:
    """Make the result of one image from some of its places, without asking the device anything.

    Args:
        instances: From `select_instances`.
        full_size: Their masks.
        index: Which image of the batch.
        places: Rising places that become instances.
        image_size: (H, W) of the original image.
        categories: The model's.
        with_masks: Whether the result carries masks.
        explanation: Of the image.
    """
    masks = full_size.masks[index]
    rows = _rows(places, masks.areas.device)
    return Result(
        image_size=image_size,
        categories=categories,
        scores=instances.scores[index][rows],
        labels=instances.labels[index][rows],
        boxes=masks.boxes[rows],
        packed_masks=masks.packed[rows] if with_masks else None,
        explanation=explanation,
    )


def _rows(places: Sequence[int], device: torch.device) -> slice | Tensor:
    """An index for places: a slice where they are the first ones, which needs no copy."""
    if list(places) == list(range(len(places))):
        return slice(len(places))
    index = torch.tensor(places)
    if device.type == "cuda":  # from page-locked memory a copy does not wait
        index = index.pin_memory()
    return index.to(device, non_blocking=True)
