"""Ground truth beside prediction, for the images that went worst and best."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from unisolo.categories import Categories
from unisolo.config import SHOWN_SCORE
from unisolo.data.coco_panoptic import read_segment_ids
from unisolo.data.images import read_image
from unisolo.evaluation.base import ImageId, read_json
from unisolo.pages import data_uri
from unisolo.report.figures import ImageScore
from unisolo.results import Result
from unisolo.visualize import draw_annotations, draw_panoptic, draw_result

__all__ = ["Pair", "Pictures", "best_and_worst", "draw_pairs"]

_WORST, _BEST = 6, 4
_LONG_SIDE, _SMALL_SIDE = 640, 320
_MAX_BYTES = 5_000_000
"""Of all pictures together, as they stand in the page."""
_MAX_PIXELS = 50_000_000
"""Larger images are left out: drawing them takes longer than the rest of the report."""


@dataclass(frozen=True)
class Pair:
    """Two pictures of one image, as data addresses.

    Attributes:
        file_name: Of the image.
        score: How it went.
        truth: Ground truth over the image.
        found: Prediction over the image.
    """

    file_name: str
    score: ImageScore
    truth: str
    found: str


@dataclass(frozen=True)
class Pictures:
    """The images on a page.

    Attributes:
        best: Those that went best.
        worst: And worst.
        problems: Sentences about single images that could not be drawn.
        absent: Why there are no pictures at all; empty = there is no reason.
    """

    best: Sequence[Pair] = ()
    worst: Sequence[Pair] = ()
    problems: Sequence[str] = ()
    absent: str = ""


def best_and_worst(scores: Sequence[ImageScore]) -> tuple[list[ImageScore], list[ImageScore]]:
    """Choose the images to show: best first, worst first, none in both.

    By quality; among equals those with more found, or more faults. No image without a fault is
    among the worst, and none with nothing found among the best.
    """
    faulty = [score for score in scores if score.invented + score.missed]
    worst = sorted(faulty, key=lambda s: (s.quality, -(s.invented + s.missed), str(s.image_id)))[
        :_WORST
    ]
    left = [score for score in scores if score.found and score not in worst]
    best = sorted(left, key=lambda s: (-s.quality, -s.found, str(s.image_id)))[:_BEST]
    return best, worst


class _Drawer:
    """Draws images of one data set with what an evaluation folder holds of them."""

    def __init__(
        self, dataset: Any, folder: Path, *, boxes: bool, panoptic: bool, wanted: set[ImageId]
    ) -> None:
        self.dataset = dataset
        self.boxes = boxes
        self.categories: Categories = dataset.categories
        self.folder = folder
        truth = dataset.panoptic_ground_truth() if panoptic else dataset.coco_ground_truth()
        self.records = {entry["id"]: entry for entry in truth["images"]}
        self.truth = _by_image(truth["annotations"], wanted)
        self.panoptic = panoptic
        found = read_json(folder / ("panoptic.json" if panoptic else "results.json"))
        self.found = _by_image(found["annotations"] if panoptic else found, wanted)

    def image(self, image_id: ImageId) -> npt.NDArray[np.uint8]:
        """The picture; raises a ValueError if it cannot be drawn on."""
        record = self.records[image_id]
        height, width = record["height"], record["width"]
        if height * width > _MAX_PIXELS:
            raise ValueError(f"{record['file_name']}: {width} x {height} pixels are too many")
        image = read_image(self.dataset.image_dir / record["file_name"])
        if image.shape[:2] != (height, width):
            raise ValueError(f"{record['file_name']}: has another size than its annotations say")
        return image

    def draw(self, image_id: ImageId) -> tuple[str, str]:
        """(ground truth, prediction) as data addresses."""
        image = self.image(image_id)
        size = (image.shape[0], image.shape[1])
        scale = max(1, -(-_SMALL_SIDE // max(size)))
        if self.panoptic:
            pictures = [
                self._panoptic(image, image_id, self.dataset.panoptic_dir, self.truth, scale),
                self._panoptic(image, image_id, self.folder / "panoptic", self.found, scale),
            ]
        else:
            result = _result(self.found.get(image_id, ()), size, self.categories, self.boxes)
            pictures = [
                draw_annotations(
                    image,
                    self.truth.get(image_id, ()),
                    self.categories,
                    boxes=self.boxes,
                    scale=scale,
                ),
                draw_result(image, result, scale=scale),
            ]
        truth, found = (data_uri(_reduced(picture)) for picture in pictures)
        return truth, found

    def _panoptic(
        self,
        image: npt.NDArray[np.uint8],
        image_id: ImageId,
        folder: Path,
        entries: Mapping[ImageId, list[Any]],
        scale: int,
    ) -> Image.Image:
        (entry,) = entries[image_id]
        # The predictions' PNGs have the names of the truth's, which the data set has checked.
        (named,) = self.truth[image_id]
        ids = read_segment_ids(folder / named["file_name"], self.records[image_id])
        return draw_panoptic(image, ids, entry["segments_info"], self.categories, scale=scale)


def draw_pairs(
    dataset: Any,
    folder: Path,
    best: Sequence[ImageScore],
    worst: Sequence[ImageScore],
    *,
    boxes: bool,
    panoptic: bool,
) -> Pictures:
    """Draw images; where the page would become too large, the best are left out first.

    Args:
        dataset: One of `unisolo.data.DATASETS`.
        folder: Of the evaluation.
        best: Images to draw.
        worst: Likewise.
        boxes: Draw boxes (the detection task) instead of masks.
        panoptic: Draw the panoptic maps instead of the instances.
    """
    wanted = {score.image_id for score in (*best, *worst)}
    if not wanted:
        return Pictures()
    drawer = _Drawer(dataset, folder, boxes=boxes, panoptic=panoptic, wanted=wanted)
    groups: list[list[Pair]] = []
    problems: list[str] = []
    room = _MAX_BYTES
    for group in (worst, best):
        pairs = []
        for score in group:
            try:
                truth, found = drawer.draw(score.image_id)
            except (OSError, ValueError) as error:  # an image was moved since; the rest is shown
                problems.append(f"image {score.image_id} is not shown: {error}")
                continue
            room -= len(truth) + len(found)
            if room < 0:
                problems.append(f"image {score.image_id} is not shown: the page would be too large")
                break
            name = str(drawer.records[score.image_id]["file_name"])
            pairs.append(Pair(name, score, truth, found))
        groups.append(pairs)
    return Pictures(best=groups[1], worst=groups[0], problems=problems)


def _by_image(entries: Iterable[Any], wanted: set[ImageId]) -> dict[ImageId, list[Any]]:
    groups: dict[ImageId, list[Any]] = {image_id: [] for image_id in wanted}
    for entry in entries:
        if entry["image_id"] in wanted:
            groups[entry["image_id"]].append(entry)
    return groups


def _result(
    entries: Iterable[Mapping[str, Any]],
    size: tuple[int, int],
    categories: Categories,
    boxes: bool,
) -> Result:
    """Stored predictions that are scored high enough to be shown."""
    kept = sorted(
        (entry for entry in entries if entry["score"] >= SHOWN_SCORE),
        key=lambda entry: -entry["score"],
    )
    if boxes:
        kept = [{**entry, "segmentation": None} for entry in kept]
    return Result.from_coco(kept, categories, size)


def _reduced(picture: Image.Image) -> Image.Image:
    factor = _LONG_SIDE / max(picture.size)
    if factor >= 1:
        return picture
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return picture.resize(size, Image.Resampling.LANCZOS)
