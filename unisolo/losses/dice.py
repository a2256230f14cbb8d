"""The dice loss of dynamic masks, without ever holding the masks of more than a chunk of cells.

Cells x pixels is by far the largest tensor of training: 900 cells of a crowded 512 x 512 image are
59 MB in float32, sixteen images of them 0.9 GB, and automatic differentiation would keep several
such tensors until the backward pass. Here the forward pass keeps two numbers per cell, and the
backward pass computes the masks again: one more matrix product, for the rest of the memory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unisolo.losses.assign import masks_from_blocks
from unisolo.losses.functional import DICE_EPS

__all__ = ["dynamic_dice_sum"]


def dynamic_dice_sum(
    kernels: Tensor, feature: Tensor, blocks: Tensor, objects: Tensor, *, max_pixels: int
) -> Tensor:
    """Return the sum of `dice_loss` over the masks that kernels draw on one image.

    Always computed in float32, the dynamic convolution included: dice's gradient on one pixel is
    about 1 / (pixels x cells), which half precision flushes to zero.

    Args:
        kernels: [P, E] any float type.
        feature: [E, h, w] any float type.
        blocks: [2 D, h, w] from `block_objects`.
        objects: [P] int64, the object each kernel should draw.
        max_pixels: Cells x pixels that are held at a time (at least one cell).

    Returns:
        Float32 scalar, 0 where P = 0. Can be differentiated once, for `kernels` and `feature`.
    """
    chunk = max(1, max_pixels // feature[0].numel())
    result: Tensor = _DiceSum.apply(kernels, feature, blocks, objects, chunk)
    return result


class _DiceSum(torch.autograd.Function):
    """Sum over cells of 1 - 2 o / T, o = sum(p t), T = sum(p^2) + sum(t^2) + 2 eps, p = sigmoid."""

    @staticmethod
    def forward(
        ctx: Any, kernels: Tensor, feature: Tensor, blocks: Tensor, objects: Tensor, chunk: int
    ) -> Tensor:
        pixels = _pixels(feature)
        overlaps, totals = [], []
        for rows, numbers in zip(
            torch.split(kernels, chunk), torch.split(objects, chunk), strict=True
        ):
            probs = _probs(rows, pixels)
            wanted = masks_from_blocks(blocks, numbers).flatten(1)
            squares = torch.linalg.vector_norm(probs, dim=1).square()
            totals.append(squares + wanted.sum(dim=1) + 2 * DICE_EPS)
            overlaps.append(probs.mul_(wanted).sum(dim=1))
        overlap, total = torch.cat(overlaps), torch.cat(totals)
        ctx.save_for_backward(kernels, feature, blocks, objects, overlap, total)
        ctx.chunk = chunk
        return (1 - 2 * overlap / total).sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        kernels, feature, blocks, objects, overlap, total = ctx.saved_tensors
        pixels = _pixels(feature)
        # d(1 - 2 o / T) / dp = -2 t / T + 4 o p / T^2
        of_target = grad * -2 / total
        of_prob = grad * 4 * overlap / total.square()
        kernel_grads = []
        feature_grad = torch.zeros_like(pixels)
        parts = (kernels, objects, of_target, of_prob)
        for rows, numbers, at_target, at_prob in zip(
            *(torch.split(part, ctx.chunk) for part in parts), strict=True
        ):
            probs = _probs(rows, pixels)
            wanted = masks_from_blocks(blocks, numbers).flatten(1)
            slope = torch.where(wanted, at_target[:, None], 0.0)
            slope.addcmul_(probs, at_prob[:, None])
            slope.mul_(probs).addcmul_(slope, probs, value=-1)  # times p (1 - p): to the logits
            with _float32(pixels.device):
                kernel_grads.append(slope @ pixels.T)
                feature_grad.addmm_(rows.float().T, slope)
        return (
            torch.cat(kernel_grads).to(kernels.dtype),
            feature_grad.reshape(feature.shape).to(feature.dtype),
            None,
            None,
            None,
        )


def _pixels(feature: Tensor) -> Tensor:
    """[E, h, w] -> [E, h * w] float32."""
    return feature.float().flatten(1)


def _probs(kernels: Tensor, pixels: Tensor) -> Tensor:
    """Return [P, h * w] float32, the soft masks of kernels [P, E]."""
    with _float32(pixels.device):
        return (kernels.float() @ pixels).sigmoid_()


def _float32(device: torch.device) -> torch.autocast:
    """Keep autocast from rounding a product to half precision."""
    return torch.autocast(device.type, enabled=False)
