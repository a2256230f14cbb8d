"""YOLO segmentation: `data.yaml`, images, and one text file of normalised polygons an image.

A label file is at the image's place with `images` in its path replaced by `labels`. A line is the
class and x, y of the outline, divided by the width and height of the upright image. Four numbers
are a box (centre, size), which says nothing of an outline.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from unisolo.categories import Categories
from unisolo.convert_data.source import (
    Content,
    Item,
    Log,
    Options,
    Shape,
    Source,
    read_lines,
)
from unisolo.data.coco_files import DatasetError
from unisolo.data.images import IMAGE_ENDINGS, image_files
from unisolo.reading import read_yaml, short

__all__ = ["find_data_yaml", "read_yolo"]

_SLACK = 0.01
"""Coordinates may leave 0..1 by this much: rounding. They are moved to the border."""


def find_data_yaml(src: Path) -> Path | None:
    """Return the YAML file of a YOLO data set: `src` itself, or the one in it with `names`."""
    if src.suffix in (".yaml", ".yml"):
        return src
    if (src / "data.yaml").is_file():
        return src / "data.yaml"
    for path in (*sorted(src.glob("*.yaml")), *sorted(src.glob("*.yml"))):
        try:
            if "names" in read_yaml(path):
                return path
        except ValueError:  # of something else
            continue
    return None


def read_yolo(src: Path, options: Options, log: Log) -> Source:
    """Read a YOLO data set.

    Args:
        src: Its folder or its `data.yaml`.
        options: `boxes_as_masks` is read.
        log: Gets faults and remarks.

    Raises:
        DatasetError: If there is no usable `data.yaml` or it leads to no image.
    """
    file = find_data_yaml(src)
    if file is None:
        raise DatasetError(f"{src}: no data.yaml with 'names'; a YOLO data set needs one")
    tree = read_yaml(file)
    categories = Categories.from_yolo(file)
    root = file.parent / str(tree.get("path") or "")
    if not root.is_dir():  # `path` is often that of another machine
        root = file.parent
    items: list[Item] = []
    for split in ("train", "val", "test"):
        if tree.get(split):
            for image in _images(tree[split], root, file, split):
                read = partial(_read, image, categories, options, log)
                items.append(Item(image, split, read))
    if not items:
        raise DatasetError(f"{file}: 'train' and 'val' lead to no image; correct the paths")
    return Source(categories, items)


def _images(places: Any, root: Path, file: Path, split: str) -> Iterator[Path]:
    """Image files of one split: a folder, a list of paths in a text file, or several of them."""
    for place in places if isinstance(places, list) else [places]:
        if not isinstance(place, str) or not place:
            raise DatasetError(f"{file}: {split!r} is {short(place)}; write a path")
        path = root / place
        if not path.exists():
            path = next((tail for tail in _tails(place, root) if tail.exists()), path)
        if path.is_dir():
            yield from image_files(path)
        elif path.suffix == ".txt":
            for _, line in read_lines(path, "list of images"):
                yield path.parent / line if line.startswith("./") else root / line
        elif path.suffix.lower() in IMAGE_ENDINGS:
            yield path
        else:
            raise DatasetError(
                f"{file}: {split!r} leads to {path}, which does not exist; correct it"
            )


def _tails(place: str, root: Path) -> list[Path]:
    """Ends of a path under the data set's folder, the longest first.

    Exports write `../train/images` for folders that are beside data.yaml, and training scripts the
    whole path on their own machine. A last folder alone (`images`) would say too little.
    """
    whole = PurePosixPath(place.replace("\\", "/"))
    parts = [part for part in whole.parts if part not in ("..", whole.anchor)]
    last = len(parts) - 1 if whole.anchor else max(1, len(parts) - 1)
    return [root.joinpath(*parts[n:]) for n in range(last)]


def _label_file(image: Path) -> Path:
    """The image's path with its last folder `images` called `labels`, and .txt."""
    parts = list(image.parts)
    for place in range(len(parts) - 2, -1, -1):
        if parts[place] == "images":
            parts[place] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _read(
    image: Path, categories: Categories, options: Options, log: Log, size: tuple[int, int]
) -> Content:
    file = _label_file(image)
    if not file.exists():
        log.note("images without a label file: taken as images without objects")
        return Content([])
    shapes = []
    for number, line in read_lines(file, "label file"):
        where = f"{file}: line {number}"
        try:
            category_id, polygon = _parse(line, categories, options, log, size)
        except ValueError as error:
            log.fault(f"{where}: {error}")
        else:
            shapes.append(Shape(category_id, [polygon], where))
    return Content(shapes)


def _parse(
    line: str, categories: Categories, options: Options, log: Log, size: tuple[int, int]
) -> tuple[int, list[float]]:
    """Category id and polygon in pixels of one line."""
    words = line.split()
    try:
        number, *values = (float(word) for word in words)
    except ValueError:
        raise ValueError(f"{short(line)} holds what is no number; correct the line") from None
    if number not in range(len(categories)):
        raise ValueError(f"class {words[0]} is not one of 0 to {len(categories) - 1}; correct it")
    if not all(math.isfinite(value) for value in values):
        raise ValueError("has coordinates that are not finite; redraw the object")
    if len(values) == 4:
        if not options.boxes_as_masks:
            raise ValueError(
                "is a box, and a mask model learns outlines; draw it, or take boxes for masks "
                "with --boxes-as-masks"
            )
        log.note("boxes taken for masks: the model will learn rectangles")
        x, y, wide, high = values
        left, top, right, bottom = x - wide / 2, y - high / 2, x + wide / 2, y + high / 2
        values = [left, top, right, top, right, bottom, left, bottom]
    if len(values) < 6 or len(values) % 2:
        raise ValueError(
            f"has {len(values)} coordinates; an outline is x, y of at least three points"
        )
    if min(values) < -_SLACK or max(values) > 1 + _SLACK:
        raise ValueError(
            f"has coordinates from {min(values):g} to {max(values):g}; divide x by the width and "
            "y by the height of the image"
        )
    height, width = size
    inside = [min(max(value, 0.0), 1.0) for value in values]
    polygon = [
        round(value * (height if place % 2 else width), 4) for place, value in enumerate(inside)
    ]
    return categories.id(int(number)), polygon
