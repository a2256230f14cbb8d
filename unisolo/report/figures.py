"""The numbers of a report, taken from hotcoco's evaluation of the stored predictions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from unisolo.categories import Categories, Category
from unisolo.config import SHOWN_SCORE
from unisolo.evaluation.base import ImageId
from unisolo.evaluation.coco import CocoEvaluator
from unisolo.evaluation.panoptic import CategoryQuality, PanopticEvaluator
from unisolo.report.confusions import Confusion, count_confusions
from unisolo.visualize.regions import category_color

__all__ = [
    "Bin",
    "Calibration",
    "CategoryRow",
    "Figures",
    "ImageScore",
    "PrecisionRecall",
    "SizeRow",
    "measure",
]

_ALL, _LARGEST = 0, -1
"""Places of "all sizes" and "most detections" in the back end's arrays."""
_BINS = 10


@dataclass(frozen=True)
class CategoryRow:
    """One category; figures are percent, NaN where undefined (no ground truth).

    Attributes:
        category: Which.
        color: RGB, as in the pictures.
        truth: Objects of the ground truth without crowds; of stuff its segments.
        predicted: Predictions scored at least `SHOWN_SCORE`; of stuff its segments.
        ap: AP of things; NaN for stuff.
        ap50: Likewise at IoU 0.5.
        quality: PQ, SQ, RQ; None where the task is not panoptic.
    """

    category: Category
    color: tuple[int, int, int]
    truth: int
    predicted: int
    ap: float
    ap50: float
    quality: tuple[float, float, float] | None


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision (0..1) at the 101 recalls 0, 0.01, ... 1, empty where there is no ground truth.

    Attributes:
        name: Of the category, or "all categories".
        at50: For matches at IoU 0.5.
        at75: At 0.75.
    """

    name: str
    at50: list[float]
    at75: list[float]


@dataclass(frozen=True)
class SizeRow:
    """Objects of one range of sizes: name, their sides in words, AP in percent, counts."""

    name: str
    words: str
    ap: float
    truth: int
    predicted: int


@dataclass(frozen=True)
class Bin:
    """Predictions scored from `low` to `high`: how many, mean score, share that is right."""

    low: float
    high: float
    count: int
    score: float
    right: float


@dataclass(frozen=True)
class Calibration:
    """How far scores can be read as probabilities.

    Attributes:
        error: Expected calibration error: the mean gap between score and share that is right,
            each bin weighed by its predictions, 0..1.
        bins: Equal ranges of scores from 0 to 1.
    """

    error: float
    bins: list[Bin]

    @property
    def count(self) -> int:
        """Number of predictions."""
        return sum(entry.count for entry in self.bins)


@dataclass(frozen=True)
class ImageScore:
    """How one image went.

    Attributes:
        image_id: Which.
        quality: 0..1: of a panoptic map the panoptic quality of all its segments together, else
            F1 of the objects at IoU 0.5.
        found: Segments or objects that were found.
        invented: Predictions of nothing there is.
        missed: Segments or objects that were not found.
    """

    image_id: ImageId
    quality: float
    found: int
    invented: int
    missed: int


@dataclass(frozen=True)
class Figures:
    """All numbers of a report but the headline metrics.

    Attributes:
        iou_type: "segm" (masks) or "bbox": what matches are made by.
        categories: One row each, things first.
        curves: Precision and recall: of all categories together, then of each thing.
        sizes: Small, medium and large objects.
        calibration: None where there is no prediction.
        confusion: Predictions scored at least `SHOWN_SCORE`.
        images: Every image with a segment, an object or a prediction, in no order.
    """

    iou_type: str
    categories: list[CategoryRow]
    curves: list[PrecisionRecall]
    sizes: list[SizeRow]
    calibration: Calibration | None
    confusion: Confusion
    images: list[ImageScore]


def measure(coco: CocoEvaluator, panoptic: PanopticEvaluator | None) -> Figures:
    """Compute the figures from evaluators that hold their predictions.

    Args:
        coco: With back end "hotcoco".
        panoptic: None where the task is not panoptic.
    """
    iou_type = "segm" if "segm" in coco.iou_types else "bbox"
    every = coco.run(iou_type)
    kept = coco.run(iou_type, min_score=SHOWN_SCORE)
    things = [category.id for category in coco.categories.things]
    positions = {number: place for place, number in enumerate(every.params.cat_ids)}
    order = [positions[number] for number in things]
    # [10 IoUs, 101 recalls, categories], -1 where a category has no ground truth
    precision = np.asarray(every.eval["precision"])[:, :, order, _ALL, _LARGEST]
    qualities = None if panoptic is None else panoptic.compute_categories()
    return Figures(
        iou_type=iou_type,
        categories=_rows(coco, precision, qualities),
        curves=_curves(coco.categories.things, precision),
        sizes=_sizes(coco, every, kept),
        calibration=_calibration(every),
        confusion=count_confusions(coco.categories.things, iou_type, kept),
        images=_objects(coco, kept) if panoptic is None else _maps(panoptic),
    )


def _rows(
    coco: CocoEvaluator,
    precision: npt.NDArray[np.float64],
    qualities: dict[int, CategoryQuality] | None,
) -> list[CategoryRow]:
    truth = Counter(entry["category_id"] for entry in coco.truth() if not entry["iscrowd"])
    found = Counter(entry["category_id"] for entry in coco.found(min_score=SHOWN_SCORE))
    rows = []
    for label, category in enumerate(_shown(coco.categories, qualities is not None)):
        ap = ap50 = math.nan
        quality = None
        counts = truth[category.id], found[category.id]
        if category.isthing:
            ap, ap50 = _mean(precision[:, :, label]), _mean(precision[0, :, label])
        if qualities is not None:
            counted = qualities[category.id]
            pq, sq, rq = counted.quality()
            quality = (100 * pq, 100 * sq, 100 * rq)
            if not category.isthing:
                counts = counted.tp + counted.fn, counted.tp + counted.fp
        color = category_color(coco.categories, label)
        rows.append(CategoryRow(category, color, *counts, ap, ap50, quality))
    return rows


def _shown(categories: Categories, with_stuff: bool) -> Sequence[Category]:
    return tuple(categories) if with_stuff else categories.things


def _mean(precision: npt.NDArray[np.float64]) -> float:
    """Percent; NaN where there is no ground truth."""
    return math.nan if (precision < 0).any() else 100 * float(precision.mean())


def _curves(
    things: Sequence[Category], precision: npt.NDArray[np.float64]
) -> list[PrecisionRecall]:
    known: npt.NDArray[np.bool_] = np.all(precision >= 0, axis=(0, 1))
    at50, at75 = precision[0], precision[5]
    curves = []
    if known.any():
        mean50, mean75 = at50[:, known].mean(axis=1), at75[:, known].mean(axis=1)
        curves.append(PrecisionRecall("all categories", mean50.tolist(), mean75.tolist()))
    for label, category in enumerate(things):
        if known[label]:
            curves.append(
                PrecisionRecall(category.name, at50[:, label].tolist(), at75[:, label].tolist())
            )
    return curves


def _sizes(coco: CocoEvaluator, every: Any, kept: Any) -> list[SizeRow]:
    """By COCO's borders: the area of ground truth and predictions, in pixels."""
    small, large = 32**2, 96**2
    words = ("up to 32 x 32 pixels", "32 x 32 to 96 x 96", "above 96 x 96")
    borders = ((0, small), (small, large), (large, math.inf))
    truth = [entry["area"] for entry in coco.truth() if not entry["iscrowd"]]
    found = [entry["area"] for entry in kept.coco_dt.dataset["annotations"]]
    rows = []
    for place, (name, (low, high)) in enumerate(
        zip(("small", "medium", "large"), borders, strict=True)
    ):
        ap = float(every.stats[3 + place])
        counts = [sum(low <= area < high for area in areas) for areas in (truth, found)]
        rows.append(SizeRow(name, words[place], math.nan if ap < 0 else 100 * ap, *counts))
    return rows


def _calibration(every: Any) -> Calibration | None:
    found = every.calibration(n_bins=_BINS, iou_threshold=0.5)
    if not found["num_detections"]:
        return None
    return Calibration(
        float(found["ece"]),
        [
            Bin(
                float(entry["bin_lower"]),
                float(entry["bin_upper"]),
                int(entry["count"]),
                float(entry["avg_confidence"]),
                float(entry["avg_accuracy"]),
            )
            for entry in found["bins"]
        ],
    )


def _objects(coco: CocoEvaluator, kept: Any) -> list[ImageScore]:
    ids = coco.image_ids()
    summaries = kept.image_diagnostics(iou_thr=0.5)["img_summary"]
    scores = []
    for number, entry in sorted(summaries.items()):
        found, invented, missed = (int(entry[name]) for name in ("tp", "fp", "fn"))
        if found + invented + missed:
            f1 = 2 * found / (2 * found + invented + missed)
            scores.append(ImageScore(ids[number], f1, found, invented, missed))
    return scores


def _maps(panoptic: PanopticEvaluator) -> list[ImageScore]:
    return [
        ImageScore(image_id, counted.quality()[0], counted.tp, counted.fp, counted.fn)
        for image_id, counted in panoptic.compute_images().items()
        if counted.tp + counted.fp + counted.fn
    ]
