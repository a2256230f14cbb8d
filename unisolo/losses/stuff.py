"""Loss of the stuff branch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from unisolo.structures import STUFF_IGNORE, Target

__all__ = ["scored_pixels", "stuff_loss"]

_STRIDE = 4


def scored_pixels(targets: Sequence[Target], image_size: tuple[int, int]) -> Tensor:
    """Return the number of pixels of the stride-4 maps that `stuff_loss` averages over, int64.

    Args:
        targets: B targets, stuff maps padded to `image_size`.
        image_size: (H, W) of the padded batch.

    Raises:
        ValueError: If a target has no stuff map or one of another size.
    """
    height, width = image_size[0] // _STRIDE, image_size[1] // _STRIDE
    wanted = torch.stack([_sampled(target, height, width) for target in targets])
    return (wanted != STUFF_IGNORE).sum()


def stuff_loss(
    stuff_logits: Tensor, targets: Sequence[Target], *, count: Tensor | None = None
) -> Tensor:
    """Return the mean cross-entropy over the scored pixels of the stride-4 map.

    Args:
        stuff_logits: [B, S + 1, h, w], S stuff categories and "any thing" last.
        targets: B targets on the same device, stuff maps padded to (4 h, 4 w).
        count: What the sum is divided by, where the batch is a part of a larger one; None = its
            own scored pixels.

    Returns:
        Float32 scalar; 0 (with a gradient of 0) when no pixel of the batch is scored.

    Raises:
        ValueError: If a target has no stuff map or one of another size.
    """
    batch, _, height, width = stuff_logits.shape
    if len(targets) != batch:
        raise ValueError(f"{batch} images need {batch} targets, got {len(targets)}")
    wanted = torch.stack([_sampled(target, height, width) for target in targets])
    # Float32 logits stay float32 under autocast: cross-entropy is not cast down.
    losses = F.cross_entropy(
        stuff_logits.float(), wanted, ignore_index=STUFF_IGNORE, reduction="none"
    )
    if count is None:
        count = (wanted != STUFF_IGNORE).sum()
    # Summed here: on a GPU torch's own sum adds in any order, and `train.deterministic` refuses it.
    return losses.sum() / count.clamp(min=1)


def _sampled(target: Target, height: int, width: int) -> Tensor:
    """Return [h, w] int64, the stuff index at the centre of each 4 x 4 block."""
    if target.stuff_map is None:
        raise ValueError(
            "a target has no stuff map; the stuff loss needs a data set that provides stuff "
            "(coco_panoptic)"
        )
    shape = tuple(target.stuff_map.shape)
    if shape != (_STRIDE * height, _STRIDE * width):
        raise ValueError(
            f"stuff_map is {shape}, stuff_logits need {(_STRIDE * height, _STRIDE * width)}; "
            "pad the maps with the images (unisolo.data.loader.collate does)"
        )
    # Logit i stands for pixels 4i .. 4i + 3, whose centre in the half-pixel convention of the
    # upsampling that follows is the edge at 4i + 2: pixel 4i + 2 touches it. Indices cannot be
    # averaged, and a vote over the block would cost more than it tells.
    return target.stuff_map[2::_STRIDE, 2::_STRIDE].long()
