"""Whether a fast post-process answers what the slow one does, told by the run that times both."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unisolo.benchmark.postprocess.ways import Answer

__all__ = ["Agreement", "compare_answers", "count_wrong"]


@dataclass(frozen=True)
class Agreement:
    """How far an answer is from the reference-style chain's in float32, on the same inputs.

    Attributes:
        kept: Instances that the chain kept.
        same_set: Whether the same (cell, label) pairs were kept, in any order: two scores that are
            equal but for rounding may change places.
        same_order: Whether they came in the same order too.
        score_difference: The largest of one pair; None where the pairs are not the same.
        different_pixels: Of all masks at the image's size, pair by pair; None likewise.
        pixels: How many pixels these masks have.
    """

    kept: int
    same_set: bool
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
    first, second = _by_pair(reference), _by_pair(answer)
    same_set = len(answer.scores) == kept and bool(
        (
            (reference.labels[first] == answer.labels[second])
            & (reference.cells[first] == answer.cells[second])
        ).all()
    )
    if not same_set:
        return Agreement(kept, False, False, None, None, pixels)
    differences = (answer.scores[second] - reference.scores[first]).abs()
    return Agreement(
        kept=kept,
        same_set=True,
        same_order=torch.equal(first, second),
        score_difference=float(differences.max()) if kept else 0.0,
        different_pixels=int((answer.masks[second] != reference.masks[first]).sum()),
        pixels=pixels,
    )


def _by_pair(answer: Answer) -> Tensor:
    """Positions by cell, then label; no pair comes twice."""
    labels = answer.labels.argsort(stable=True)
    return labels[answer.cells[labels].argsort(stable=True)]


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
