"""What the selection of instances saw and left at each step, in fixed shapes and without a sync."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["NUM_TOP", "STAGES", "stage_counts", "top_pairs"]

STAGES = (
    "candidate_threshold",
    "max_candidates",
    "area",
    "pre_nms",
    "update_threshold",
    "max_instances",
)
"""The steps of `select_instances` that remove candidates, in order; the last axis of
`Instances.stage_counts`."""

NUM_TOP = 5
"""Places of `Instances.top_probs` and `top_labels`."""


def stage_counts(
    probs: Tensor,
    *,
    score_threshold: float,
    candidates: Tensor,
    large: Tensor,
    entered: Tensor,
    decayed: Tensor,
    update_threshold: float,
    valid: Tensor,
) -> Tensor:
    """Count what each step left, for each image of a batch.

    Args:
        probs: [B, L, C] probabilities of all pairs.
        score_threshold: The candidates' threshold (strict).
        candidates: [B, n] scores of the candidates, 0 = empty place.
        large: [B, n] bool, masks above the least area.
        entered: [B, m] scores as they entered Matrix NMS, 0 = empty place.
        decayed: [B, m] scores after it.
        update_threshold: Their threshold (inclusive).
        valid: [B, K] bool, filled places.

    Returns:
        [B, 6] int64, in the order of `STAGES`.
    """
    left = (
        (probs > score_threshold).flatten(1),
        candidates > 0,
        large & (candidates > 0),
        entered > 0,
        (entered > 0) & (decayed >= update_threshold),
        valid,
    )
    return torch.stack([flags.sum(-1) for flags in left], dim=-1)


def top_pairs(probs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Give the first `NUM_TOP` of sorted pairs; where there are fewer, probability 0 and label 0.

    Args:
        probs: [..., n] float32, falling.
        labels: [..., n] int64.

    Returns:
        [..., 5] float32 and int64.
    """
    missing = (0, max(0, NUM_TOP - probs.shape[-1]))
    return F.pad(probs[..., :NUM_TOP], missing), F.pad(labels[..., :NUM_TOP], missing)
