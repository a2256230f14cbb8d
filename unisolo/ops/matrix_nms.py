"""Matrix NMS (SOLOv2, "Matrix NMS"): every mask decays by its overlap with better ones, at once."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from unisolo.ops.backend import backend_for
from unisolo.ops.masks import CHUNK_PIXELS, mask_intersections

__all__ = ["NmsKernel", "check_instances", "decay_factors", "matrix_nms"]

NmsKernel = Literal["gaussian", "linear"]


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

    Nothing is removed: the caller cuts by score. The order of the instances does not matter; of two
    equal scores the earlier index counts as the higher one. Empty masks neither decay nor make
    others decay, and no input makes NaN out of finite scores.

    Args:
        masks: [N, H, W] bool; any resolution, the same for all. A leading dimension, here and of
            the others, makes a batch of images.
        labels: [N] integer.
        scores: [N] floating, at least 0.
        kernel: "gaussian" or "linear".
        sigma: Strength of the gaussian kernel: exp(-sigma * iou**2). It multiplies, as in the
            reference implementation. Not used by the linear kernel.
        chunk_pixels: Mask pixels in float at a time; changes memory, never the result. None = all.

    Returns:
        [N] float32, decayed scores in the caller's order; never above `scores`.

    Raises:
        ValueError: On a wrong rank, dtype, length, kernel or sigma; the message names the shape.
    """
    if masks.ndim not in (3, 4) or masks.dtype != torch.bool:
        raise ValueError(
            f"matrix_nms needs bool masks [N, H, W], got {masks.dtype} {list(masks.shape)}; "
            "threshold soft masks first"
        )
    backend = backend_for(masks.device)
    if backend == "triton":
        from unisolo.ops.kernels.nms import matrix_nms as twin

        return twin(masks, labels, scores, kernel=kernel, sigma=sigma, chunk_pixels=chunk_pixels)
    if backend == "cpu":
        from unisolo.ops.cpu.nms import matrix_nms as cpu_twin

        return cpu_twin(
            masks, labels, scores, kernel=kernel, sigma=sigma, chunk_pixels=chunk_pixels
        )
    intersections = mask_intersections(masks.flatten(-2), chunk_pixels=chunk_pixels)
    factors = decay_factors(intersections, labels, scores, kernel=kernel, sigma=sigma)
    return scores.float() * factors


def decay_factors(
    intersections: Tensor,
    labels: Tensor,
    scores: Tensor,
    *,
    kernel: NmsKernel = "gaussian",
    sigma: float = 2.0,
) -> Tensor:
    """Return the factors of Matrix NMS from counted intersections.

    With f(x) = exp(-sigma x**2) or 1 - x, and i better than j where its score is higher and its
    label equal: `decay_j = min_i f(iou_ij) / f(max_k iou_ki)`, k better than i. The division
    pays back what i itself has lost: a suppressed mask suppresses less.

    Args:
        intersections: [..., N, N] float, pixels shared by each two masks, areas on the diagonal.
        labels: [..., N] integer.
        scores: [..., N] floating, any order.
        kernel: "gaussian" or "linear".
        sigma: Strength of the gaussian kernel, above 0.

    Returns:
        [..., N] float32 in 0..1.

    Raises:
        ValueError: On a wrong rank, dtype, length, kernel or sigma.
    """
    check_instances(intersections.shape, labels, scores, kernel, sigma)
    if scores.shape[-1] == 0:  # a maximum over nothing is undefined
        return scores.float()
    areas = _diagonal(intersections)
    unions = areas.unsqueeze(-1) + areas.unsqueeze(-2) - intersections
    better = _precedes(scores) & (labels.unsqueeze(-1) == labels.unsqueeze(-2))
    iou = torch.where(better, intersections / unions.clamp_min(1), 0)  # rows decay columns
    compensation = iou.amax(-2).unsqueeze(-1)
    if kernel == "gaussian":
        # The quotient of two exponentials as one: exp(-sigma) / exp(-sigma) is 0 / 0 at large sigma
        decay = torch.exp(sigma * (compensation**2 - iou**2))
    else:
        # 0 / 0 (a third copy of one mask) becomes 0, what the first copy says about it anyway.
        decay = (1 - iou) / (1 - compensation).clamp_min(torch.finfo(torch.float32).tiny)
    return decay.amin(-2)


def _diagonal(square: Tensor) -> Tensor:
    """[..., N] of [..., N, N]; `Tensor.diagonal` exports as an operator that TensorRT lacks."""
    size = square.shape[-1]
    # In rows of N + 1 every diagonal value comes first.
    rows = F.pad(square.flatten(-2), (0, size)).reshape(*square.shape[:-1], size + 1)
    return rows[..., 0]


def _precedes(scores: Tensor) -> Tensor:
    """[..., N, N] bool: row has the higher score, or the same one and the smaller index."""
    rows, columns = scores.unsqueeze(-1), scores.unsqueeze(-2)
    index = torch.arange(scores.shape[-1], device=scores.device)
    earlier = index.unsqueeze(-1) < index
    return (rows > columns) | ((rows == columns) & earlier)


def check_instances(
    shape: torch.Size | tuple[int, ...], labels: Tensor, scores: Tensor, kernel: str, sigma: float
) -> None:
    """Refuse what Matrix NMS cannot work on.

    Args:
        shape: Of the intersections, [..., N, N].
        labels: [..., N] integer.
        scores: [..., N] floating.
        kernel: "gaussian" or "linear".
        sigma: Above 0.

    Raises:
        ValueError: On a wrong rank, dtype, length, kernel or sigma.
    """
    if kernel not in ("gaussian", "linear"):
        raise ValueError(f"unknown Matrix NMS kernel {kernel!r}: use 'gaussian' or 'linear'")
    if not sigma > 0:
        raise ValueError(f"sigma of Matrix NMS must be above 0, got {sigma}")
    if scores.ndim < 1 or not scores.is_floating_point():
        raise ValueError(
            f"Matrix NMS needs floating scores [N], got {scores.dtype} {list(scores.shape)}"
        )
    if labels.shape != scores.shape or labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(
            f"Matrix NMS needs integer labels of the scores' shape {list(scores.shape)}, "
            f"got {labels.dtype} {list(labels.shape)}"
        )
    if shape != (*scores.shape, scores.shape[-1]):
        raise ValueError(
            f"Matrix NMS got {list(scores.shape)} scores for masks with "
            f"{list(shape)} intersections: one score and label per mask"
        )
