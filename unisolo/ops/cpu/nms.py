"""Matrix NMS on packed masks; the CPU's twin of `unisolo.ops.matrix_nms.matrix_nms`."""

from __future__ import annotations

import torch
from torch import Tensor

from unisolo.ops.cpu.packed import count_bits, intersections, pack_words
from unisolo.ops.masks import CHUNK_PIXELS
from unisolo.ops.matrix_nms import NmsKernel, decay_factors

__all__ = ["matrix_nms"]


def matrix_nms(
    masks: Tensor,
    labels: Tensor,
    scores: Tensor,
    *,
    kernel: NmsKernel = "gaussian",
    sigma: float = 2.0,
    chunk_pixels: int | None = CHUNK_PIXELS,
) -> Tensor:
    """Lower the score of masks that overlap better masks of the same label.

    The masks are packed to an eighth of their size and compared as words; the decay itself is the
    definition's, on equal integers, so the results are equal bit for bit.

    Args:
        masks: [N, H, W] or [B, N, H, W] bool.
        labels: [N] or [B, N] integer.
        scores: Likewise, floating.
        kernel: "gaussian" or "linear".
        sigma: Strength of the gaussian kernel.
        chunk_pixels: Of no meaning here: nothing becomes float.

    Returns:
        [N] or [B, N] float32, decayed scores.

    Raises:
        ValueError: As the definition.
    """
    del chunk_pixels
    if labels.shape != masks.shape[:-2]:
        # No label can be looked up; the definition's check names the shapes.
        shared = torch.zeros(*masks.shape[:-2], masks.shape[-3])
    else:
        shared = _shared(masks.detach().flatten(-2), labels)
    return scores.float() * decay_factors(shared, labels, scores, kernel=kernel, sigma=sigma)


def _shared(masks: Tensor, labels: Tensor) -> Tensor:
    """[..., N, N] float32 of masks [..., N, P] and labels [..., N]."""
    if masks.ndim == 3:
        images = [_shared(*image) for image in zip(masks, labels, strict=True)]
        return torch.stack(images) if images else masks.new_zeros(0, *[masks.shape[1]] * 2).float()
    words = pack_words(masks)
    areas = torch.from_numpy(count_bits(words).sum(1, dtype="int64"))
    return intersections(words, areas, labels)
