"""Real ground truth, written as `Result`s, must score 100: nothing is lost on the way."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle_ops

from unisolo.categories import Categories
from unisolo.evaluation import CocoEvaluator, PanopticEvaluator
from unisolo.ops.boxes import masks_to_boxes
from unisolo.ops.masks import pack_bits
from unisolo.results import Result, Segment
from unisolo.structures import ImageMeta

pytestmark = pytest.mark.filterwarnings(
    # pycocotools' own, under numpy 2
    "ignore:.*__array__.*:DeprecationWarning"
)


def perfect_result(
    ids: np.ndarray,
    segments_info: list[dict[str, Any]],
    annotations: list[dict[str, Any]],
    categories: Categories,
) -> Result:
    """What a perfect model says: all but the crowd. Instances may overlap, segments do not."""
    panoptic = np.zeros(ids.shape, dtype=np.int32)
    segments = []
    for number, entry in enumerate(segments_info, start=1):
        if not entry["iscrowd"]:
            mask = ids == entry["id"]
            panoptic[mask] = number
            label = categories.label(entry["category_id"])
            thing = categories[label].isthing
            area = int(mask.sum())
            segments.append(Segment(number, entry["category_id"], label, thing, 1.0, area))
    objects = [entry for entry in annotations if not entry["iscrowd"]]
    masks = np.zeros((len(objects), *ids.shape), dtype=bool)
    for mask, entry in zip(masks, objects, strict=True):
        mask[:] = rle_ops.decode(entry["segmentation"])
    tensor = torch.from_numpy(masks)
    return Result(
        image_size=ids.shape,
        categories=categories,
        scores=torch.ones(len(objects)),
        labels=torch.tensor([categories.label(entry["category_id"]) for entry in objects]).long(),
        boxes=masks_to_boxes(tensor),
        packed_masks=pack_bits(tensor),
        panoptic_seg=torch.from_numpy(panoptic),
        segments_info=tuple(segments),
    )


def first(truth: dict[str, Any], count: int) -> dict[str, Any]:
    """The file cut to its first images."""
    images = truth["images"][:count]
    kept = {image["id"] for image in images}
    annotations = [entry for entry in truth["annotations"] if entry["image_id"] in kept]
    return {**truth, "images": images, "annotations": annotations}


@pytest.mark.parametrize(
    ("name", "official_images"),
    [
        ("coco-mini", 50),
        ("idd-lite", 102),
        ("animals7", 210),
        ("dsb2018", 20),  # a hundred objects an image take pycocotools 0.1 s each
    ],
)
def test_ground_truth_scores_100(
    shared_data: Callable[[str], Path], name: str, official_images: int
) -> None:
    pytest.importorskip("panopticapi", reason="pip install --no-deps panopticapi-lite")
    folder = shared_data(name) / "annotations"
    panoptic = json.loads((folder / "panoptic_val2017.json").read_text())
    instances = json.loads((folder / "instances_val2017.json").read_text())
    categories = Categories.from_coco(panoptic["categories"])
    png_dir = folder / "panoptic_val2017"
    evaluators = [
        CocoEvaluator(instances, categories),
        CocoEvaluator(first(instances, official_images), categories, backend="official"),
        PanopticEvaluator(panoptic, png_dir, categories),
        PanopticEvaluator(panoptic, png_dir, categories, backend="official"),
    ]
    by_image = defaultdict(list)
    for entry in instances["annotations"]:
        by_image[entry["image_id"]].append(entry)
    for annotation in panoptic["annotations"]:
        rgb = np.array(Image.open(png_dir / annotation["file_name"]).convert("RGB"))
        ids = rgb @ np.array([1, 256, 65536])
        image_id = annotation["image_id"]
        objects = by_image[image_id]
        result = perfect_result(ids, annotation["segments_info"], objects, categories)
        meta = ImageMeta(image_id, "", result.image_size, result.image_size)
        evaluators[0].update([result], [meta])
        evaluators[2].update([result], [meta])
    some = {image["id"] for image in instances["images"][:official_images]}
    evaluators[1].merge([[entry for entry in evaluators[0].state() if entry[0] in some]])
    evaluators[3].merge([evaluators[2].state()])
    for evaluator in evaluators:
        for metric, value in evaluator.compute().items():
            assert math.isnan(value) or value == pytest.approx(100, abs=1e-9), metric
            assert not math.isnan(value) or metric.endswith(("APs", "APm", "APl")), metric
