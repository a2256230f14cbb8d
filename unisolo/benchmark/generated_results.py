"""Ground truth and predictions of images that never existed, to measure evaluation with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from unisolo.categories import Categories, Category
from unisolo.encoding import encode_png, ids_to_rgb
from unisolo.files import write_bytes

__all__ = ["GeneratedResults", "generate_results"]

NUM_THINGS, NUM_STUFF = 80, 53
"""As in COCO panoptic."""

OBJECTS, BANDS, CORNERS = 10, 4, 24
"""Objects and stuff bands of an image; corners of an object's outline."""


@dataclass(frozen=True)
class GeneratedResults:
    """What evaluators are given.

    Attributes:
        categories: 80 things and 53 stuff categories.
        instances: A COCO instances file as a dict.
        panoptic: A COCO panoptic file as a dict.
        panoptic_dir: Folder of its PNG files.
        detections: (image id, COCO result dicts with `bbox` and RLE) of every image.
        maps: (image id, (PNG bytes, segments)) of every image.
    """

    categories: Categories
    instances: dict[str, Any]
    panoptic: dict[str, Any]
    panoptic_dir: Path
    detections: list[tuple[int, list[dict[str, Any]]]]
    maps: list[tuple[int, tuple[bytes, list[dict[str, Any]]]]]


@dataclass(frozen=True)
class _Blob:
    """An ellipse with a wavy outline: category id, centre, radii and phase, in pixels."""

    category_id: int
    x: float
    y: float
    rx: float
    ry: float
    phase: float

    def outline(self) -> list[float]:
        """Its corners x1, y1, x2, y2, ..."""
        angles = 2 * math.pi * np.arange(CORNERS) / CORNERS
        wave = 1 + 0.15 * np.sin(3 * angles + self.phase)
        x, y = self.x + self.rx * wave * np.cos(angles), self.y + self.ry * wave * np.sin(angles)
        return [float(value) for value in np.stack([x, y], axis=1).ravel()]


def generate_results(
    folder: Path,
    *,
    images: int,
    predictions: int,
    size: tuple[int, int] = (480, 640),
    seed: int = 0,
) -> GeneratedResults:
    """Generate scenes of wavy ellipses over bands of stuff, and predictions that nearly fit.

    A third of the predictions are the objects with their outline moved, some of another category;
    the others lie anywhere. One image in ten has a crowd, and each has a strip of void.

    Args:
        folder: Where the PNG files of the ground truth go.
        images: How many images.
        predictions: Detections of each.
        size: (H, W) of each.
        seed: Another gives other scenes.

    Raises:
        ValueError: If a number is below 1.
    """
    if min(images, predictions, *size) < 1:
        raise ValueError("images, predictions and sides must be at least 1")
    ids = range(1, NUM_THINGS + NUM_STUFF + 1)
    categories = Categories([Category(n, f"category {n}", n <= NUM_THINGS) for n in ids])
    truth: list[dict[str, Any]] = []
    panoptic: list[dict[str, Any]] = []
    detections, maps = [], []
    for number in range(1, images + 1):
        rng = np.random.default_rng((seed, number))
        objects = [_any_blob(rng, size) for _ in range(OBJECTS)]
        bands = [int(n) for n in rng.choice(np.arange(NUM_STUFF), BANDS, False) + NUM_THINGS + 1]
        crowd = rng.random() < 0.1
        for place, blob in enumerate(objects):
            shape = _shape(blob, size)
            truth.append(
                {"id": len(truth) + 1, "image_id": number, "iscrowd": int(crowd and place == 0)}
                | {"category_id": blob.category_id, **shape}
            )
        name = f"{number:06d}.png"
        png, segments = _map(objects, bands, size, void=size[1] // 16, crowd=crowd)
        write_bytes(folder / name, png)
        panoptic.append({"image_id": number, "file_name": name, "segments_info": segments})
        guesses = [_near(objects[n % OBJECTS], rng) for n in range(math.ceil(predictions / 3))]
        found = (guesses + [_any_blob(rng, size) for _ in range(predictions)])[:predictions]
        detections.append((number, [_detection(blob, number, rng, size) for blob in found]))
        shifted = bands if rng.random() < 0.5 else [*bands[1:], bands[0]]
        maps.append((number, _map(guesses[:OBJECTS], shifted, size, void=0, crowd=False)))
    entries = [
        {"id": n, "height": size[0], "width": size[1], "file_name": f"{n:06d}.jpg"}
        for n in range(1, images + 1)
    ]
    listed = categories.to_coco()
    return GeneratedResults(
        categories,
        {"images": entries, "annotations": truth, "categories": listed},
        {"images": entries, "annotations": panoptic, "categories": listed},
        folder,
        detections,
        maps,
    )


def _any_blob(rng: np.random.Generator, size: tuple[int, int]) -> _Blob:
    height, width = size
    # Sides over two decades, as photographs have them.
    rx, ry = min(size) * 0.3 * 10 ** -rng.uniform(0, 1.5, 2)
    return _Blob(
        int(rng.integers(1, NUM_THINGS + 1)),
        float(rng.uniform(0, width)),
        float(rng.uniform(0, height)),
        float(rx),
        float(ry),
        float(rng.uniform(0, 2 * math.pi)),
    )


def _near(blob: _Blob, rng: np.random.Generator) -> _Blob:
    """The same object as a model would find it."""
    dx, dy, wider, higher, turn = rng.normal(0, (0.1, 0.1, 0.08, 0.08, 0.3))
    other = int(rng.integers(1, NUM_THINGS + 1))
    return _Blob(
        blob.category_id if rng.random() < 0.9 else other,
        blob.x + dx * blob.rx,
        blob.y + dy * blob.ry,
        blob.rx * (1 + wider),
        blob.ry * (1 + higher),
        blob.phase + turn,
    )


def _shape(blob: _Blob, size: tuple[int, int]) -> dict[str, Any]:
    """`segmentation`, `bbox` and `area` of a COCO file."""
    from pycocotools import mask as rle_ops

    rle = rle_ops.frPyObjects([blob.outline()], *size)[0]
    bbox, area = rle_ops.toBbox(rle).tolist(), float(rle_ops.area(rle))
    return {
        "segmentation": {"size": list(size), "counts": rle["counts"].decode("ascii")},
        "bbox": bbox,
        "area": area,
    }


def _detection(
    blob: _Blob, image_id: int, rng: np.random.Generator, size: tuple[int, int]
) -> dict[str, Any]:
    shape = _shape(blob, size)
    return {
        "image_id": image_id,
        "category_id": blob.category_id,
        "score": float(rng.random()),
        "bbox": shape["bbox"],
        "segmentation": shape["segmentation"],
    }


def _map(
    objects: list[_Blob], bands: list[int], size: tuple[int, int], *, void: int, crowd: bool
) -> tuple[bytes, list[dict[str, Any]]]:
    """A panoptic PNG and its segments: bands of stuff, objects over them, a strip of void."""
    height, width = size
    picture = Image.new("I", (width, height))
    draw = ImageDraw.Draw(picture)
    owners = [*bands, *(blob.category_id for blob in objects)]
    for place in range(len(bands)):
        top, bottom = (round(n * height / len(bands)) for n in (place, place + 1))
        draw.rectangle((0, top, width - 1, bottom - 1), fill=place + 1)
    for place, blob in enumerate(objects, start=len(bands)):
        draw.polygon(blob.outline(), fill=place + 1)
    if void:
        draw.rectangle((0, 0, void - 1, height - 1), fill=0)
    ids: NDArray[np.int32] = np.asarray(picture, dtype=np.int32)
    areas = np.bincount(ids.ravel(), minlength=len(owners) + 1)
    segments = [
        {"id": n, "category_id": owner, "area": int(areas[n])}
        | {"iscrowd": int(crowd and n == len(bands) + 1)}
        for n, owner in enumerate(owners, start=1)
        if areas[n]
    ]
    return encode_png(ids_to_rgb(ids)), segments
