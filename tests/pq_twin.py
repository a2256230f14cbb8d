"""Panoptic quality written out plainly, one image at a time: the twin the evaluator must equal."""

from __future__ import annotations

import numpy as np


def pq_counts(
    truth: np.ndarray,
    truth_segments: list[tuple[int, int, bool]],
    found: np.ndarray,
    found_segments: list[tuple[int, int]],
) -> dict[int, np.ndarray]:
    """[sum of IoU, TP, FP, FN] by category id, of one image.

    Maps are [H, W] with 0 = void; segments are (id, category id, is crowd) and (id, category id).
    """
    counts: dict[int, np.ndarray] = {}

    def count(category: int, *values: float) -> None:
        counts[category] = counts.get(category, np.zeros(4)) + values

    found_matched = set()
    crowd_of = {}
    for truth_id, category, crowd in truth_segments:
        if crowd:
            crowd_of[category] = truth_id  # of several, the last
            continue
        here = truth == truth_id
        for found_id, found_category in found_segments:
            there = found == found_id
            inter = (here & there).sum()
            union = here.sum() + there.sum() - inter - (there & (truth == 0)).sum()
            if found_category == category and inter / union > 0.5:
                count(category, inter / union, 1, 0, 0)
                found_matched.add(found_id)
                break
        else:
            count(category, 0, 0, 0, 1)
    for found_id, category in found_segments:
        there = found == found_id
        free = truth == 0
        if category in crowd_of:
            free = free | (truth == crowd_of[category])
        if found_id not in found_matched and (there & free).sum() / there.sum() <= 0.5:
            count(category, 0, 0, 1, 0)
    return counts
