"""How far two answers to the same image are apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unisolo.ops.masks import popcount
from unisolo.results import Result

__all__ = ["Difference", "compare"]

NEAR_TIE = {"fp32": 1e-4, "fp16": 0.02, "int8": 0.05}
"""Scores this close may change places, as far as scores may differ at all: rounding differs between
runtimes."""


@dataclass(frozen=True)
class Difference:
    """How far a graph's results are from the model's.

    Attributes:
        images: Results compared; an image may be compared alone and in a batch.
        instances: Instances of the model in them.
        unmatched: Instances of either side without a partner of the same label, covering the same
            place, at the same position in the order. Near ties may change places; where both sides
            have as many instances, those that nearly tie with the last may be cut differently.
        score: Largest difference of scores.
        box: Largest difference of a side of a box, in pixels of the frame compared.
        mask: Largest share of the frame's pixels by which a mask differs.
        panoptic: Largest share of pixels of a panoptic map that belong to another segment; None
            where there is no map.
    """

    images: int = 0
    instances: int = 0
    unmatched: int = 0
    score: float = 0.0
    box: float = 0.0
    mask: float = 0.0
    panoptic: float | None = None

    def join(self, other: Difference) -> Difference:
        """Return the difference over both sets of images."""
        maps = [value for value in (self.panoptic, other.panoptic) if value is not None]
        return Difference(
            self.images + other.images,
            self.instances + other.instances,
            self.unmatched + other.unmatched,
            max(self.score, other.score),
            max(self.box, other.box),
            max(self.mask, other.mask),
            max(maps, default=None),
        )

    def within(self, limits: Difference) -> bool:
        """Whether no figure is above its limit; boxes follow from masks and have none."""
        return (
            self.unmatched <= limits.unmatched
            and self.score <= limits.score
            and self.mask <= limits.mask
            and (self.panoptic or 0.0) <= (limits.panoptic or 0.0)
        )

    def __str__(self) -> str:
        text = (
            f"{self.instances} instances in {self.images} results: {self.unmatched} without "
            f"partner, scores within {self.score:.1e}, boxes within {self.box:g} px, masks within "
            f"{100 * self.mask:.4f} % of the pixels"
        )
        if self.panoptic is not None:
            text += f", panoptic maps within {100 * self.panoptic:.4f} %"
        return text


def compare(ours: Result, theirs: Result, *, precision: str = "fp32") -> Difference:
    """Compare two results for one image, on the CPU.

    Args:
        ours: The model's.
        theirs: The graph's, in the same frame.
        precision: The graph's; a key of `NEAR_TIE`.
    """
    near = NEAR_TIE[precision]
    pairs = _pairs(ours, theirs, near)
    alone = _alone(ours, [i for i, _ in pairs]), _alone(theirs, [j for _, j in pairs])
    if len(ours) == len(theirs) and len(ours):
        cut = min(float(ours.scores.min()), float(theirs.scores.min())) + near
        alone = alone[0][alone[0] > cut], alone[1][alone[1] > cut]
    left = [i for i, _ in pairs]
    right = [j for _, j in pairs]
    score = (ours.scores[left] - theirs.scores[right]).abs()
    box = (ours.boxes[left] - theirs.boxes[right]).abs()
    mask = 0.0
    if ours.packed_masks is not None and theirs.packed_masks is not None and pairs:
        apart = (ours.packed_masks[left] ^ theirs.packed_masks[right]).flatten(1)
        mask = int(popcount(apart).max()) / (ours.image_size[0] * ours.image_size[1])
    return Difference(
        images=1,
        instances=len(ours),
        unmatched=len(alone[0]) + len(alone[1]),
        score=float(score.max()) if pairs else 0.0,
        box=float(box.max()) if pairs else 0.0,
        mask=mask,
        panoptic=_panoptic_share(ours, theirs),
    )


def _pairs(ours: Result, theirs: Result, near_tie: float) -> list[tuple[int, int]]:
    """Partners: of the instances with nearly the same score the one that covers the same place."""
    free = torch.ones(len(theirs), dtype=torch.bool)
    pairs = []
    for i in range(len(ours)):
        near = (theirs.scores - ours.scores[i]).abs() <= near_tie
        places = (free & near & (theirs.labels == ours.labels[i])).nonzero().flatten()
        if len(places) == 0:
            continue
        overlaps = _overlaps(ours, i, theirs, places)
        best = int(overlaps.argmax())
        if overlaps[best] > 0.5:
            j = int(places[best])
            pairs.append((i, j))
            free[j] = False
    return pairs


def _alone(result: Result, paired: list[int]) -> Tensor:
    """Scores of the instances that have no partner."""
    alone = torch.ones(len(result), dtype=torch.bool)
    alone[paired] = False
    return result.scores[alone]


def _overlaps(ours: Result, i: int, theirs: Result, places: Tensor) -> Tensor:
    """[m] IoU of instance i with several others: of masks, or of boxes where there are none."""
    if ours.packed_masks is not None and theirs.packed_masks is not None:
        one, others = ours.packed_masks[i].flatten(), theirs.packed_masks[places].flatten(1)
        return popcount(one & others) / popcount(one | others).clamp_min(1)
    box, boxes = ours.boxes[i], theirs.boxes[places]
    sides = torch.minimum(box[2:], boxes[:, 2:]) - torch.maximum(box[:2], boxes[:, :2])
    shared = sides.clamp_min(0).prod(-1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(-1) + (box[2:] - box[:2]).prod()
    return shared / (areas - shared).clamp_min(1)


def _panoptic_share(ours: Result, theirs: Result) -> float | None:
    """Share of pixels that belong to another segment.

    Segments are numbered by score, so near ties can change numbers: each of their segments is first
    given the number of the segment of ours of the same label that it covers most.
    """
    if ours.panoptic_seg is None or theirs.panoptic_seg is None:
        return None
    left, right = ours.panoptic_seg.numpy(), theirs.panoptic_seg.numpy()
    labels = {segment.id: segment.label for segment in ours.segments_info or ()}
    renamed: NDArray[np.int64] = np.zeros(int(right.max(initial=0)) + 1, dtype=np.int64)
    for segment in theirs.segments_info or ():
        covered, counts = np.unique(left[right == segment.id], return_counts=True)
        alike = [
            (int(count), int(number))
            for number, count in zip(covered, counts, strict=True)
            if labels.get(int(number)) == segment.label
        ]
        renamed[segment.id] = max(alike)[1] if alike else -segment.id  # no number of ours
    return float((renamed[right] != left).mean()) if left.size else 0.0
