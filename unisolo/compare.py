"""Ground truth beside prediction: the work of the `compare` command."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from unisolo.categories import Categories
from unisolo.data import CocoInstance, CocoPanoptic
from unisolo.data.coco_panoptic import read_segment_ids
from unisolo.data.images import read_image
from unisolo.data.segmentation import decode
from unisolo.predictor import Predictor
from unisolo.results import Result
from unisolo.tasks import get_task
from unisolo.visualize import draw_grid, draw_panoptic, draw_result
from unisolo.visualize.fonts import category_name

__all__ = ["comparison_data", "comparison_sheet", "draw_annotations"]

_PIXELS_WIDE = 360
"""Least width of each picture on the sheet: labels need room."""


def comparison_data(predictor: Predictor, root: Path, split: str) -> CocoPanoptic | CocoInstance:
    """Open the ground truth that a predictor's task is compared with.

    Args:
        predictor: Answers the task.
        root: COCO-layout folder.
        split: Name of the split.

    Returns:
        Panoptic data where the task has stuff, else instance data.

    Raises:
        DatasetError: If the folder lacks the annotations or they cannot be used.
    """
    stuff = "stuff" in get_task(predictor.task).requires
    source = CocoPanoptic if stuff else CocoInstance
    return source.from_root(root, split, with_targets=False)


def comparison_sheet(
    predictor: Predictor,
    dataset: CocoPanoptic | CocoInstance,
    *,
    limit: int = 6,
    columns: int = 2,
) -> Image.Image:
    """Draw image, ground truth and prediction side by side.

    Args:
        predictor: Answers a task. Ground truth is drawn as the task answers: the panoptic map,
            masks, or boxes.
        dataset: Images with ground truth, see `comparison_data`.
        limit: How many images, spread evenly over the data set.
        columns: Groups of three pictures in a row.

    Returns:
        One RGB picture.

    Raises:
        ValueError: If an image or a PNG cannot be read, or the data set has no image.
    """
    draw_truth, records = _truth_of(dataset, boxes=predictor.task == "detection")
    chosen = np.linspace(0, len(records) - 1, min(limit, len(records))).round().astype(int)
    pictures: list[Image.Image] = []
    for number in chosen:
        record = records[number]
        image = read_image(dataset.image_dir / record["file_name"])
        scale = max(1, -(-_PIXELS_WIDE // image.shape[1]))
        size = (image.shape[1] * scale, image.shape[0] * scale)
        pictures += [
            Image.fromarray(image).resize(size, Image.Resampling.LANCZOS),
            draw_truth(image, record, scale),
            draw_result(image, predictor.predict(image), scale=scale),
        ]
    return draw_grid(pictures, columns=3 * columns)


def draw_annotations(
    image: npt.NDArray[np.uint8],
    annotations: Sequence[Mapping[str, Any]],
    categories: Categories,
    *,
    boxes: bool = False,
    scale: int = 1,
) -> Image.Image:
    """Draw COCO instance annotations over their image, as a prediction would be drawn.

    Args:
        image: [H, W, 3] uint8 RGB.
        annotations: Entries of one image with `category_id`, `segmentation` and `bbox`; those
            with `iscrowd` are named so.
        categories: What the ids of the categories mean.
        boxes: Draw the boxes of the annotations instead of their masks.
        scale: As for `draw_result`.

    Returns:
        A new RGB picture, `scale` times the size of the image.

    Raises:
        ValueError: If a segmentation cannot be used.
    """
    height, width = image.shape[:2]
    labels = [categories.label(entry["category_id"]) for entry in annotations]
    names = [category_name(categories[label]) for label in labels]
    count = len(annotations)
    packed = np.zeros((count, height, -(-width // 8)), dtype=np.uint8)
    sides = np.zeros((count, 4), dtype=np.float32)
    for number, entry in enumerate(annotations):
        left, top, wide, high = entry["bbox"]
        sides[number] = left, top, left + wide, top + high
        if not boxes:
            packed[number] = np.packbits(decode(entry["segmentation"], height, width), axis=-1)
    truth = Result(
        image_size=(height, width),
        categories=categories,
        scores=torch.ones(count),
        labels=torch.tensor(labels, dtype=torch.int64),
        boxes=torch.from_numpy(sides),
        packed_masks=None if boxes else torch.from_numpy(packed),
    )
    texts = [
        f"{name} (crowd)" if entry.get("iscrowd") else name
        for name, entry in zip(names, annotations, strict=True)
    ]
    return draw_result(image, truth, draw_scores=False, texts=texts, scale=scale)


def _truth_of(
    dataset: CocoPanoptic | CocoInstance, *, boxes: bool
) -> tuple[Callable[[npt.NDArray[np.uint8], Mapping[str, Any], int], Image.Image], list[Any]]:
    """What draws the ground truth of (image, record, scale), and the records of the images."""
    if isinstance(dataset, CocoPanoptic):
        tree = dataset.panoptic_ground_truth()
        maps = {entry["image_id"]: entry for entry in tree["annotations"]}

        def draw_map(
            image: npt.NDArray[np.uint8], record: Mapping[str, Any], scale: int
        ) -> Image.Image:
            entry = maps[record["id"]]
            ids = read_segment_ids(dataset.panoptic_dir / entry["file_name"], record)
            return draw_panoptic(
                image, ids, entry["segments_info"], dataset.categories, scale=scale
            )

        return draw_map, tree["images"]
    tree = dataset.coco_ground_truth()
    entries: dict[Any, list[Any]] = {record["id"]: [] for record in tree["images"]}
    for entry in tree["annotations"]:
        entries[entry["image_id"]].append(entry)

    def draw_objects(
        image: npt.NDArray[np.uint8], record: Mapping[str, Any], scale: int
    ) -> Image.Image:
        found = entries[record["id"]]
        return draw_annotations(image, found, dataset.categories, boxes=boxes, scale=scale)

    return draw_objects, tree["images"]
