"""Ground truth beside prediction: the work of the `compare` command."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from unisolo.data import CocoInstance, CocoPanoptic
from unisolo.data.coco_panoptic import read_segment_ids
from unisolo.data.images import read_image
from unisolo.predictor import Predictor
from unisolo.tasks import get_task
from unisolo.visualize import draw_annotations, draw_grid, draw_panoptic, draw_result

__all__ = ["comparison_data", "comparison_sheet"]

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
