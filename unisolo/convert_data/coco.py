"""COCO files that do not lie as COCO's own do: exports of annotation tools.

CVAT writes `annotations/instances_default.json` beside `images/`, Label Studio `result.json` with
names of its own disk, Roboflow `train/_annotations.coco.json` among the images. Every JSON file
with COCO's three lists is read; an image is looked for near it, and at last by its bare name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from unisolo.categories import Categories
from unisolo.convert_data.source import (
    SPLITS,
    Content,
    Item,
    Log,
    Options,
    Shape,
    Source,
)
from unisolo.data.coco_files import (
    DatasetError,
    positive_box,
    read_categories,
    read_coco,
    read_lists,
)
from unisolo.data.images import image_files
from unisolo.reading import relative_name, short

__all__ = ["has_coco", "read_coco_files"]


def has_coco(src: Path) -> bool:
    """Whether a JSON file under a folder has COCO's three lists."""
    return any(_is_coco(path) for path in src.rglob("*.json"))


def read_coco_files(src: Path, options: Options, log: Log) -> Source:
    """Read COCO files and the images they name.

    Args:
        src: The folder. The name of a file or of its folder gives the split
            (`instances_train.json`, `valid/_annotations.coco.json`).
        options: `boxes_as_masks` is read.
        log: Gets faults and remarks.

    Raises:
        DatasetError: If there is no COCO file, one is damaged or panoptic, or two have different
            categories.
    """
    trees = {}
    for path in sorted(src.rglob("*.json")):
        if _is_coco(path):
            trees[path] = read_coco(path)
        else:
            log.note("JSON files that are not COCO's: passed over")
    if not trees:
        raise DatasetError(f"{src}: no COCO file (JSON with images, annotations, categories) in it")
    categories = _categories(trees, log)
    images = _Images(src)
    items: list[Item] = []
    for path, tree in trees.items():
        objects = _objects_by_image(path, tree, log)
        for entry in tree["images"]:
            mine = objects.pop(entry.get("id"), None)
            if mine is None:
                log.fault(f"{path}: image {short(entry)} has no id, or one that comes twice")
                continue
            try:
                image = images.find(path, entry.get("file_name"))
            except DatasetError as error:
                log.fault(error)
                continue
            read = partial(_read, path, entry, mine, categories, options, log)
            items.append(Item(image, _split_of(path.relative_to(src)), read))
    left = images.count - len({item.image for item in items})
    if left > 0:
        log.notes["images that no COCO file names: left out"] += left
    return Source(categories, items)


def _is_coco(path: Path) -> bool:
    try:
        read_lists(path)
    except DatasetError:
        return False
    return True


def _categories(trees: Mapping[Path, dict[str, Any]], log: Log) -> Categories:
    """The categories, which all files must share, as things."""
    first: Path | None = None
    found: list[dict[str, Any]] = []
    used: set[Any] = set()
    for path, tree in trees.items():
        if any("segments_info" in entry for entry in tree["annotations"]):
            raise DatasetError(
                f"{path}: panoptic annotations are not brought over; put the files in COCO's own "
                "layout, which is read as it is"
            )
        entries = [
            {key: entry[key] for key in ("id", "name") if key in entry}
            for entry in tree["categories"]
        ]
        if first is None:
            first, found = path, entries
        elif entries != found:
            raise DatasetError(
                f"{path}: other categories than {first}; export both with the same list"
            )
        used.update(entry.get("category_id") for entry in tree["annotations"])
    # Roboflow lists the data set itself first, as the parent of all.
    # A list, not a set: in a foreign file a name may be anything, also what has no hash.
    parents = [c.get("supercategory") for tree in trees.values() for c in tree["categories"]]
    kept = [entry for entry in found if entry.get("id") in used or entry.get("name") not in parents]
    if kept and len(kept) < len(found):
        log.note("a category that is only the parent of others, without objects: left out")
        found = kept
    return read_categories(first or Path(), found)


def _objects_by_image(path: Path, tree: dict[str, Any], log: Log) -> dict[Any, list[Any]]:
    """Annotations of every image id that is there."""
    groups: dict[Any, list[Any]] = {
        entry["id"]: [] for entry in tree["images"] if entry.get("id") is not None
    }
    for entry in tree["annotations"]:
        try:
            groups[entry.get("image_id")].append(entry)
        except KeyError:
            log.fault(
                f"{path}: annotation {short(entry.get('id'))} has image_id "
                f"{short(entry.get('image_id'))}, which is not under 'images'; remove it"
            )
    return groups


class _Images:
    """Finds the file that an entry means.

    Args:
        src: The folder of the data set; no image outside it is taken.

    Attributes:
        count: How many image files there are.
    """

    def __init__(self, src: Path) -> None:
        self._src = src
        self._by_name: dict[str, list[Path]] = {}
        files = image_files(src)
        self.count = len(files)
        for file in files:
            self._by_name.setdefault(file.name, []).append(file)

    def find(self, path: Path, file_name: Any) -> Path:
        """Return the image of an entry of a COCO file.

        Raises:
            DatasetError: If it is nowhere, or its bare name is in several folders.
        """
        relative = relative_name(file_name)
        split = path.stem.removeprefix("instances_")
        folders = (path.parent, self._src / split, self._src / "images" / split, self._src)
        for folder in (*folders, path.parent / "images", self._src / "images"):
            if relative is not None and (folder / relative).is_file():
                return folder / relative
        name = PurePosixPath(str(file_name).replace("\\", "/")).name
        same = self._by_name.get(name, [])
        if len(same) != 1:
            what = "is not there" if not same else f"is in {len(same)} folders"
            raise DatasetError(
                f"{path}: image {short(file_name)} {what}; copy it beside the file, to where "
                "file_name says"
            )
        return same[0]


def _split_of(relative: Path) -> str | None:
    """The split that a file or, before it, its folder is called after."""
    for part in (*relative.parts[:-1], relative.stem):
        for word in re.split(r"[\W_]+", part.lower()):
            for split, pattern in SPLITS.items():
                if pattern.fullmatch(word):
                    return split
    return None


def _read(
    path: Path,
    entry: dict[str, Any],
    objects: list[dict[str, Any]],
    categories: Categories,
    options: Options,
    log: Log,
    size: tuple[int, int],
) -> Content:
    said = entry.get("height") or size[0], entry.get("width") or size[1]
    if said != size:
        raise DatasetError(
            f"{path}: says {short(entry.get('file_name'))} is {said[0]} x {said[1]} (height x "
            f"width), but it is {size[0]} x {size[1]}; put the image back that was annotated"
        )
    shapes = []
    for one in objects:
        where = f"{path}: annotation {short(one.get('id'))}"
        if one.get("category_id") not in categories:
            log.fault(f"{where}: category {short(one.get('category_id'))} is not in the list")
            continue
        segmentation = one.get("segmentation") or _rectangle(one, options)
        if segmentation is None:
            log.fault(
                f"{where}: has no outline; draw it, or take boxes for masks with --boxes-as-masks"
            )
            continue
        crowd = bool(one.get("iscrowd"))
        shapes.append(Shape(one["category_id"], segmentation, where, crowd))
    return Content(shapes)


def _rectangle(annotation: dict[str, Any], options: Options) -> list[list[float]] | None:
    box = positive_box(annotation)
    if box is None or not options.boxes_as_masks:
        return None
    x, y, wide, high = box
    return [[x, y, x + wide, y, x + wide, y + high, x, y + high]]
