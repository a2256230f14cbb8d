"""Whether a fast post-process answers what the slow one does, told by the run that times both."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unisolo.benchmark.postprocess_ways import Answer

__all__ = ["Agreement", "compare_answers", "count_wrong"]


@dataclass(frozen=True)
class Agreement:
    """How far an answer is from the reference-style chain's in float32, on the same inputs.

    Attributes:
        kept: Instances that the chain kept.
        same_order: Whether the same (cell, label) pairs were kept, in the same order.
        score_difference: The largest; None where the pairs are not the same.
        different_pixels: Of all masks at the image's size; None likewise.
        pixels: How many pixels these masks have.
    """

    kept: int
    same_order: bool
    score_difference: float | None
    different_pixels: int | None
    pixels: int


def compare_answers(reference: Answer, answer: Answer, width: int) -> Agreement:
    """Compare two answers to one problem; waits for the device.

    Args:
        reference: The chain's, with bool masks.
        answer: The other, with bool or packed masks.
        width: Of the image.

    Returns:
        What was found.
    """
    answer = answer.filled(width)
    kept, pixels = len(reference.scores), reference.masks.numel()
    same = len(answer.scores) == kept and bool(
        ((answer.labels == reference.labels) & (answer.cells == reference.cells)).all()
    )
    if not same:
        return Agreement(kept, False, None, None, pixels)
    differences = (answer.scores - reference.scores).abs()
    return Agreement(
        kept=kept,
        same_order=True,
        score_difference=float(differences.max()) if kept else 0.0,
        different_pixels=int((answer.masks != reference.masks).sum()),
        pixels=pixels,
    )


def count_wrong(intersections: Tensor, masks: Tensor, labels: Tensor) -> int:
    """Count the pairs of one label whose shared pixels are not what 64-bit counting gives.

    Args:
        intersections: [N, N], shared pixels; any type.
        masks: [N, P] bool.
        labels: [N] int64.

    Returns:
        Wrong pairs, each counted once per order.
    """
    # float64 counts exactly up to 2**53 and has a matrix product on every device.
    flat = masks.double()
    counts = (flat @ flat.t()).to(torch.int64)
    alike = labels.unsqueeze(0) == labels.unsqueeze(1)
    return int(((intersections.to(torch.int64) != counts) & alike).sum())
