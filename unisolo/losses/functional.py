"""Focal and dice loss, always computed in float32.

Both only use elementwise operations and sums after casting, which autocast leaves in float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["DICE_EPS", "dice_loss", "sigmoid_focal_loss"]

DICE_EPS = 1e-3
"""Keeps the dice loss of an empty mask against an empty target finite."""


def sigmoid_focal_loss(
    logits: Tensor, targets: Tensor, *, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Return the focal loss of each binary decision (Lin et al., arXiv 1708.02002, equation 5).

    Args:
        logits: [...] any float type.
        targets: [...] same shape, bool or 0 / 1.
        alpha: Weight of the positives; negatives weigh `1 - alpha`.
        gamma: How much easy decisions are played down; 0 (not at all) or at least 1.

    Returns:
        [...] float32, not reduced.

    Raises:
        ValueError: If the shapes differ, or `gamma` is neither 0 nor at least 1.
    """
    if logits.shape != targets.shape:
        raise ValueError(
            f"logits and targets must have one shape, got {tuple(logits.shape)} and "
            f"{tuple(targets.shape)}"
        )
    if gamma != 0 and gamma < 1:
        raise ValueError(f"gamma must be 0 or at least 1 (finite gradients), got {gamma}")
    positive = targets.bool()
    # With z = -x for a positive and x for a negative, 1 - p_t = sigmoid(z) and -log(p_t) =
    # softplus(z): no difference of nearly equal numbers and no log(0), whatever the logit.
    z = torch.where(positive, -logits, logits).float()
    weight = torch.where(positive, alpha, 1 - alpha)
    return weight * z.sigmoid() ** gamma * F.softplus(z)


def dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the dice loss of each mask (SOLO, arXiv 1912.04488, equation 6).

    `1 - 2 sum(p t) / ((sum(p^2) + eps) + (sum(t^2) + eps))` with `p = sigmoid(logits)` and
    `eps = 1e-3`, which keeps an empty mask against an empty target finite.

    Args:
        logits: [P, M] any float type, one mask of M pixels per row.
        targets: [P, M] bool, or values in 0..1.

    Returns:
        [P] float32, each between 0 and 1.

    Raises:
        ValueError: If the two are not matrices of one shape.
    """
    if logits.ndim != 2 or logits.shape != targets.shape:
        raise ValueError(
            f"logits and targets must both be [P, M], got {tuple(logits.shape)} and "
            f"{tuple(targets.shape)}"
        )
    probs = logits.float().sigmoid()
    wanted = targets.float()
    overlap = (probs * wanted).sum(dim=1)
    total = probs.square().sum(dim=1) + wanted.square().sum(dim=1) + 2 * DICE_EPS
    return 1 - 2 * overlap / total
