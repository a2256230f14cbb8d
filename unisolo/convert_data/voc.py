"""Pascal VOC segmentation: an object PNG and a class PNG for every image.

`SegmentationObject` numbers the objects, `SegmentationClass` says what they are; 0 is background,
255 (or VOC's pale colour) void. Files may be palette, grey or RGB. The background is not labelled,
so no panoptic files come of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from unisolo.categories import Categories
from unisolo.convert_data.pixels import VOID, VOID_COLOR, read_numbers, voc_palette
from unisolo.convert_data.source import (
    Content,
    Item,
    Log,
    Options,
    Shape,
    Source,
    find_image,
    find_names,
    read_lines,
)
from unisolo.data.coco_files import DatasetError
from unisolo.encoding import rgb_to_ids
from unisolo.reading import relative_name, short
from unisolo.segmentation import encode

__all__ = ["BACKGROUND_NAMES", "read_voc"]

BACKGROUND_NAMES = ("background", "_background_", "__background__")

# fmt: off
_VOC_NAMES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat",
    "chair", "cow", "diningtable", "dog", "horse", "motorbike", "person",
    "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)
# fmt: on


def read_voc(src: Path, options: Options, log: Log) -> Source:
    """Read a VOC folder.

    Class names come from `options.names`, `labelmap.txt` (name:r,g,b:...) or `classes.txt`; where
    there is none they are VOC's twenty.

    Args:
        src: Folder with JPEGImages, SegmentationClass, SegmentationObject and, for splits,
            ImageSets/Segmentation.
        options: `names` is read.
        log: Gets faults.

    Raises:
        DatasetError: If a folder is missing or there is no mask.
    """
    for folder in ("SegmentationClass", "SegmentationObject"):
        if not (src / folder).is_dir():
            raise DatasetError(f"{src / folder}: no such folder; a VOC data set needs it")
    names, colors = _names(src, options)
    categories = Categories.from_names(names)
    splits: dict[str, str | None] = {}
    for split in ("train", "val", "test"):
        listed = src / "ImageSets" / "Segmentation" / f"{split}.txt"
        if listed.is_file():
            splits.update((stem, split) for _, stem in read_lines(listed, "list of images"))
    if not splits:
        masks = sorted((src / "SegmentationObject").glob("*.png"))
        splits = {path.stem: None for path in masks}
    items = []
    for stem, own_split in splits.items():
        image = find_image(src / "JPEGImages", stem) if relative_name(stem) else None
        if image is None:
            log.fault(f"{src / 'JPEGImages'}: no image called {short(stem)}; copy it there")
            continue
        read = partial(_read, src, stem, categories, colors, log)
        items.append(Item(image, own_split, read))
    if not items and not log.faults:
        raise DatasetError(f"{src}: no PNG in SegmentationObject; there is nothing to convert")
    return Source(categories, items)


def _names(src: Path, options: Options) -> tuple[list[str], dict[int, int]]:
    """Names of classes 1, 2, ..., and the class number of every colour."""
    lines = find_names(src, options, ("labelmap.txt", "classes.txt", "names.txt"))
    lines = [line for line in (lines or _VOC_NAMES) if not line.startswith("#")]
    names = [line.split(":")[0] for line in lines]
    palette = voc_palette(len(lines) + 1)
    first = 0 if names and names[0].lower() in BACKGROUND_NAMES else 1
    colors = {int(rgb_to_ids(color)): number for number, color in enumerate(palette)}
    for number, line in enumerate(lines, start=first):
        fields = line.split(":")
        if len(fields) > 1 and fields[1]:
            try:
                color = np.array([int(v) for v in fields[1].split(",")], np.uint8).reshape(3)
            except (ValueError, OverflowError):
                raise DatasetError(f"{src}: {short(line)} must be name:red,green,blue") from None
            colors[int(rgb_to_ids(color))] = number
    colors[int(rgb_to_ids(np.array(VOID_COLOR, np.uint8)))] = VOID
    return names[1 - first :], colors


def _read(
    src: Path,
    stem: str,
    categories: Categories,
    colors: Mapping[int, int],
    log: Log,
    size: tuple[int, int],
) -> Content:
    class_file = src / "SegmentationClass" / f"{stem}.png"
    file = src / "SegmentationObject" / f"{stem}.png"
    classes = read_numbers(class_file, size, colors)
    objects = read_numbers(file, size, None)
    void = (classes == VOID) | (objects == rgb_to_ids(np.array(VOID_COLOR, np.uint8)))
    objects[void] = 0
    lost = int(((classes > 0) & ~void & (objects == 0)).sum())
    if lost:
        raise DatasetError(
            f"{class_file}: {lost} pixels have a class but no object in {file}; number the objects"
        )
    shapes = []
    for number in np.unique(objects[objects > 0]).tolist():
        mask = objects == number
        kinds = np.unique(classes[mask]).tolist()
        where = f"{file}: object {number}"
        if len(kinds) != 1 or not 1 <= kinds[0] <= len(categories):
            log.fault(
                f"{where}: has the classes {short(kinds)} in {class_file.name}; an object is of "
                f"one class from 1 to {len(categories)}"
            )
            continue
        shapes.append(Shape(categories.id(kinds[0] - 1), encode(mask), where))
    return Content(shapes)
