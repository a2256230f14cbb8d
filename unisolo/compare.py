"""Ground truth beside prediction: the work of the `compare` command."""

from __future__ import annotations

import numpy as np
from PIL import Image

from unisolo.data.coco_panoptic import CocoPanoptic, read_segment_ids
from unisolo.data.images import read_image
from unisolo.predictor import Predictor
from unisolo.visualize import draw_grid, draw_panoptic, draw_result

__all__ = ["comparison_sheet"]

_PIXELS_WIDE = 360
"""Least width of each picture on the sheet: labels need room."""


def comparison_sheet(
    predictor: Predictor, dataset: CocoPanoptic, *, limit: int = 6, columns: int = 2
) -> Image.Image:
    """Draw image, ground truth and prediction side by side.

    Args:
        predictor: Answers the panoptic task.
        dataset: Images with ground truth.
        limit: How many images, spread evenly over the data set.
        columns: Groups of three pictures in a row.

    Returns:
        One RGB picture.

    Raises:
        ValueError: If an image or a PNG cannot be read, or the task is not panoptic.
    """
    truth = dataset.panoptic_ground_truth()
    records = {entry["id"]: entry for entry in truth["images"]}
    annotations = truth["annotations"]
    chosen = np.linspace(0, len(annotations) - 1, min(limit, len(annotations))).round().astype(int)
    pictures: list[Image.Image] = []
    for number in chosen:
        annotation = annotations[number]
        record = records[annotation["image_id"]]
        image = read_image(dataset.image_dir / record["file_name"])
        scale = max(1, -(-_PIXELS_WIDE // image.shape[1]))
        result = predictor.predict(image)
        if result.panoptic_seg is None:
            raise ValueError("a comparison needs the panoptic task: give --task panoptic")
        ids = read_segment_ids(dataset.panoptic_dir / annotation["file_name"], record)
        plain = Image.fromarray(image)
        size = (image.shape[1] * scale, image.shape[0] * scale)
        pictures += [
            plain.resize(size, Image.Resampling.LANCZOS),
            draw_panoptic(image, ids, annotation["segments_info"], dataset.categories, scale=scale),
            draw_result(image, result, scale=scale),
        ]
    return draw_grid(pictures, columns=3 * columns)
