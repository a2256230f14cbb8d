"""A folder of images and a folder of PNGs that hold the class of every pixel.

`images/` and `masks/` hold files of the same names, in the same subfolders (`train/` and `val/`
are splits); the n-th line of the names file, from 0, is the class of pixels that say n; 255 is
void, and so is 0 where its name is "background". A class is objects, one for every connected
region, unless it is named as stuff; with stuff, every pixel has its place and panoptic files are
written.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unisolo.categories import Categories
from unisolo.convert_data.pixels import VOID, read_numbers
from unisolo.convert_data.source import (
    Content,
    Item,
    Log,
    Options,
    Panoptic,
    Shape,
    Source,
    find_names,
    split_of_folder,
)
from unisolo.convert_data.voc import BACKGROUND_NAMES
from unisolo.data.coco_files import DatasetError
from unisolo.data.images import image_files
from unisolo.reading import short
from unisolo.segmentation import encode

__all__ = ["read_masks"]


def read_masks(src: Path, options: Options, log: Log) -> Source:
    """Read a folder of class masks.

    Args:
        src: Folder with `images/`, `masks/` and `names.txt` (or `classes.txt`, `labels.txt`).
        options: `names` and `stuff` are read.
        log: Gets remarks.

    Raises:
        DatasetError: If a folder or the names are missing, or a name given as stuff is unknown.
    """
    for folder in ("images", "masks"):
        if not (src / folder).is_dir():
            raise DatasetError(f"{src / folder}: no such folder; masks need images/ and masks/")
    names = find_names(src, options, ("names.txt", "classes.txt", "labels.txt"))
    if names is None:
        raise DatasetError(
            f"{src}: no names.txt with one class name a line; write it, or give --names"
        )
    unknown = set(options.stuff) - set(names)
    if unknown:
        raise DatasetError(f"stuff {short(sorted(unknown))} is not among the names {short(names)}")
    Categories.from_names(names)  # twice the same name is told
    first = 1 if names[0].lower() in BACKGROUND_NAMES else 0
    categories = Categories.from_coco(
        {"id": number + 1 - first, "name": name, "isthing": int(name not in options.stuff)}
        for number, name in enumerate(names)
        if number >= first
    )
    if not categories.num_things:
        raise DatasetError(f"{src}: every class is stuff; leave at least one that has objects")
    items = []
    for image in image_files(src / "images"):
        relative = image.relative_to(src / "images")
        mask = (src / "masks" / relative).with_suffix(".png")
        read = partial(_read, mask, categories, first, log)
        items.append(Item(image, split_of_folder(relative), read))
    if not items:
        raise DatasetError(f"{src / 'images'}: no image in it")
    return Source(categories, items, panoptic=bool(options.stuff))


def _read(
    file: Path, categories: Categories, first: int, log: Log, size: tuple[int, int]
) -> Content:
    numbers = read_numbers(file, size, None)
    ids = np.zeros(size, dtype=np.int32)
    segments: dict[int, int] = {}
    shapes: list[Shape] = []
    for number in np.unique(numbers).tolist():
        category_id = number + 1 - first
        if number == VOID or (first and number == 0):
            continue
        if category_id not in categories:
            raise DatasetError(
                f"{file}: has pixels of class {number}, and the names are those of 0 to "
                f"{len(categories) - 1 + first}; add a name, or write {VOID} for void"
            )
        region = numbers == number
        label = categories.label(category_id)
        for part in _components(region) if categories[label].isthing else (region,):
            segment_id = len(segments) + 1
            segments[segment_id] = category_id
            ids[part] = segment_id
            if categories[label].isthing:
                where = f"{file}: region {segment_id} of class {number}"
                shapes.append(Shape(category_id, encode(part), where))
                log.note("connected regions of a class taken for one object each")
    panoptic = Panoptic(ids, segments) if categories.num_stuff else None
    return Content(shapes, panoptic)


def _components(region: NDArray[np.bool_]) -> Iterator[NDArray[np.bool_]]:
    """The parts of a region, one at a time; pixels that touch at a corner are connected."""
    import cv2

    count, parts = cv2.connectedComponents(region.astype(np.uint8), connectivity=8)
    for number in range(1, count):
        yield np.asarray(parts == number)
