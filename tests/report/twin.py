"""Matching as COCO's rules say, on plain masks: what the figures of a report must equal."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class Thing:
    """An object or a prediction; crowds only among the former, scores only among the latter."""

    category: int
    mask: np.ndarray
    crowd: bool = False
    score: float = 0.0


def iou(found: Thing, truth: Thing) -> float:
    """Of a crowd the share of the prediction that lies in it."""
    common = np.logical_and(found.mask, truth.mask).sum()
    whole = found.mask.sum() if truth.crowd else np.logical_or(found.mask, truth.mask).sum()
    return float(common / whole) if whole else 0.0


def by_score(found: list[Thing]) -> list[Thing]:
    return sorted(found, key=lambda entry: -entry.score)  # stable: ties keep their order


def right_or_wrong(truth: list[Thing], found: list[Thing]) -> list[tuple[float, bool | None]]:
    """(score, right) of each prediction of an image; None = it lies in a crowd and does not count.

    The surest first takes the object of its category it overlaps most, by at least 0.5.
    """
    taken: set[int] = set()
    verdicts: list[tuple[float, bool | None]] = []
    for entry in by_score(found):
        options = [
            (iou(entry, other), place)
            for place, other in enumerate(truth)
            if other.category == entry.category and not other.crowd and place not in taken
        ]
        best = max(options, default=(0.0, -1), key=lambda option: option[0])
        if best[0] >= 0.5:
            taken.add(best[1])
            verdicts.append((entry.score, True))
        elif any(o.crowd and o.category == entry.category and iou(entry, o) >= 0.5 for o in truth):
            verdicts.append((entry.score, None))
        else:
            verdicts.append((entry.score, False))
    return verdicts


def confusion(truth: list[Thing], found: list[Thing], size: int) -> np.ndarray:
    """[size + 1, size + 1] counts of one image: as `unisolo.report.figures.Confusion.counts`."""
    counts = np.zeros((size + 1, size + 1), dtype=int)
    taken: set[int] = set()
    for entry in by_score(found):
        options = [
            (iou(entry, other), place)
            for place, other in enumerate(truth)
            if not other.crowd and place not in taken
        ]
        best = max(options, default=(0.0, -1), key=lambda option: option[0])
        if best[0] >= 0.5:
            taken.add(best[1])
            counts[truth[best[1]].category, entry.category] += 1
        elif not any(other.crowd and iou(entry, other) >= 0.5 for other in truth):
            counts[size, entry.category] += 1
    for place, other in enumerate(truth):
        if not other.crowd and place not in taken:
            counts[other.category, size] += 1
    return counts
