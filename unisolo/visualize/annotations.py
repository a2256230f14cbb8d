"""Ground truth, drawn as a prediction would be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from unisolo.categories import Categories
from unisolo.results import Result
from unisolo.visualize.draw import draw_result
from unisolo.visualize.fonts import category_name

__all__ = ["draw_annotations"]


def draw_annotations(
    image: npt.NDArray[np.uint8],
    annotations: Iterable[Mapping[str, Any]],
    categories: Categories,
    *,
    boxes: bool = False,
    scale: int = 1,
) -> Image.Image:
    """Draw COCO instance annotations over their image.

    Args:
        image: [H, W, 3] uint8 RGB.
        annotations: Entries of one image with `category_id` and `segmentation` or `bbox`; those
            with `iscrowd` are named so.
        categories: What the ids of the categories mean.
        boxes: Draw the boxes of the annotations instead of their masks. Entries without what is
            to be drawn are left out.
        scale: As for `draw_result`.

    Returns:
        A new RGB picture, `scale` times the size of the image.

    Raises:
        ValueError: If an entry cannot be used.
    """
    shape = "bbox" if boxes else "segmentation"
    kept = [entry for entry in annotations if entry.get(shape)]
    # Crowds are no instances, but here they are to be seen.
    entries = [
        {**entry, "iscrowd": 0, **({"segmentation": None} if boxes else {})} for entry in kept
    ]
    truth = Result.from_coco(entries, categories, (image.shape[0], image.shape[1]))
    texts = []
    for entry, label in zip(kept, truth.labels.tolist(), strict=True):
        name = category_name(categories[label])
        texts.append(f"{name} (crowd)" if entry.get("iscrowd") else name)
    return draw_result(image, truth, draw_scores=False, texts=texts, scale=scale)
