"""Random small scenes with everything awkward in them: crowds, overlaps, ties, single pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from twin import Thing

from unisolo import Categories, Category
from unisolo.evaluation.coco import CocoEvaluator
from unisolo.ops.masks import pack_bits
from unisolo.results import Result
from unisolo.structures import ImageMeta

SIDE = 24


def rectangle(rng: np.random.Generator, least: int = 1) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    height, width = rng.integers(least, 13, 2)
    top, left = rng.integers(0, SIDE - height + 1), rng.integers(0, SIDE - width + 1)
    mask[top : top + height, left : left + width] = True
    return mask


def random_scene(rng: np.random.Generator, categories: int) -> tuple[list[Thing], list[Thing]]:
    """(objects, predictions) of one image; scores repeat, some predictions are objects moved."""
    truth = [
        Thing(int(rng.integers(categories)), rectangle(rng), crowd=bool(rng.random() < 0.15))
        for _ in range(rng.integers(0, 6))
    ]
    found = [
        Thing(
            other.category if rng.random() < 0.7 else int(rng.integers(categories)),
            np.roll(other.mask, rng.integers(-2, 3, 2), (0, 1)),
            score=round(float(rng.uniform(0.05, 1)), 1),
        )
        for other in truth
        if rng.random() < 0.8
    ]
    for _ in range(rng.integers(0, 3)):
        found.append(
            Thing(int(rng.integers(categories)), rectangle(rng), score=float(rng.uniform(0.05, 1)))
        )
    return truth, found


def evaluator_of(
    scenes: list[tuple[list[Thing], list[Thing]]],
    categories: int,
    *,
    iou_types: tuple[str, ...] = ("bbox", "segm"),
) -> CocoEvaluator:
    """An evaluator that holds the scenes as images 10, 20, ..."""
    known = Categories(Category(7 * n + 3, f"kind {n}") for n in range(categories))
    images, annotations = [], []
    for place, (truth, _) in enumerate(scenes, start=1):
        images.append({"id": 10 * place, "height": SIDE, "width": SIDE})
        for other in truth:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": 10 * place,
                    "category_id": known.id(other.category),
                    "iscrowd": int(other.crowd),
                    "segmentation": plain_rle(other.mask),
                }
            )
    evaluator = CocoEvaluator(
        {"images": images, "annotations": annotations}, known, iou_types=iou_types
    )
    for place, (_, found) in enumerate(scenes, start=1):
        meta = ImageMeta(10 * place, "x.png", (SIDE, SIDE), (SIDE, SIDE))
        evaluator.update([result_of(found, known)], [meta])
    return evaluator


def result_of(found: list[Thing], categories: Categories) -> Result:
    masks = torch.from_numpy(np.array([entry.mask for entry in found]).reshape(-1, SIDE, SIDE))
    boxes = [box_of(entry.mask) for entry in found]
    return Result(
        (SIDE, SIDE),
        categories,
        torch.tensor([entry.score for entry in found], dtype=torch.float32),
        torch.tensor([entry.category for entry in found], dtype=torch.int64),
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        pack_bits(masks.bool()),
    )


def box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.nonzero(mask)
    if not len(rows):
        return 0, 0, 0, 0
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def plain_rle(mask: np.ndarray) -> dict[str, Any]:
    flat = np.concatenate([[False], mask.ravel(order="F")])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    runs = np.diff(np.concatenate([[0], changes, [mask.size]]))
    return {"size": list(mask.shape), "counts": [int(run) for run in runs]}
