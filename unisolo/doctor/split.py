"""One split of a data set: its files are read, checked, and kept as they should be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unisolo.data.coco_files import CocoLayout, DatasetError, read_lists
from unisolo.data.images import ImageError, image_files
from unisolo.doctor.annotations import check_annotations
from unisolo.doctor.entries import (
    ImageEntry,
    Images,
    check_categories,
    check_category_use,
    check_images,
    is_id,
)
from unisolo.doctor.findings import Evidence, Findings, bare
from unisolo.doctor.pictures import Picture, look_at
from unisolo.doctor.segments import Panoptic, check_panoptic

__all__ = ["JsonFile", "Split", "check_split"]


@dataclass
class JsonFile:
    """One annotation file, as it should be.

    Attributes:
        path: The file.
        tree: Its content as read.
        images: Its usable images.
        categories: Its usable categories by id.
        annotations: Its usable annotations; of a panoptic file, one per image.
    """

    path: Path
    tree: dict[str, Any]
    images: Images
    categories: dict[int, dict[str, Any]]
    annotations: list[dict[str, Any]] = field(default_factory=list)

    def drop_images(self, image_ids: Iterable[int]) -> None:
        """Leave images out, with their annotations."""
        gone = set(image_ids)
        for image_id in gone:
            self.images.usable.pop(image_id, None)
        self.annotations = [entry for entry in self.annotations if entry["image_id"] not in gone]


@dataclass
class Split:
    """A split as it should be; what is missing or unreadable is None.

    Attributes:
        layout: Where its files are.
        instances: The instances file.
        panoptic: The panoptic file.
        segments: PNGs of the panoptic file.
        pictures: What was found in the image files, by path.
    """

    layout: CocoLayout
    instances: JsonFile | None = None
    panoptic: JsonFile | None = None
    segments: Panoptic = field(default_factory=Panoptic)
    pictures: dict[Path, Picture] = field(default_factory=dict)

    @property
    def files(self) -> list[JsonFile]:
        """The annotation files that could be read; the one that trains first."""
        return [file for file in (self.panoptic, self.instances) if file is not None]


def check_split(
    layout: CocoLayout,
    log: Findings,
    *,
    panoptic: bool,
    pixels: bool = True,
    on_start: Callable[[int], Any] = lambda count: None,
    on_image: Callable[[], Any] = lambda: None,
) -> Split:
    """Check a split without stopping at the first fault.

    Args:
        layout: Where its files are.
        log: Receives what is wrong.
        panoptic: Whether the panoptic file is wanted; the instances file is then checked if there.
        pixels: Whether to read images, PNGs and masks; else only the JSON files and file names.
        on_start: Called with the number of images before they are read.
        on_image: Called after each image.
    """
    log.split = layout.split
    split = Split(layout)
    if not layout.images.is_dir():
        log.add("folder-missing", layout.images, "folder of the images")
    if panoptic and not layout.panoptic_dir.is_dir():
        log.add("folder-missing", layout.panoptic_dir, "folder of the panoptic PNGs")
    trees: dict[Path, dict[str, Any]] = {}
    if panoptic:
        _read(layout.panoptic, trees, log)
    if not panoptic or layout.instances.exists():
        _read(layout.instances, trees, log)
    for path, tree in trees.items():
        guess = _isthing_guess(trees, layout) if path == layout.panoptic else None
        file = JsonFile(
            path,
            tree,
            check_images(path, tree["images"], layout.images, log),
            check_categories(path, tree["categories"], log, guess_isthing=guess),
        )
        if path == layout.panoptic:
            split.panoptic = file
        else:
            split.instances = file
    _check_image_files(split, log, pixels=pixels, on_start=on_start, on_image=on_image)
    _check_objects(split, log, pixels=pixels)
    if split.panoptic is not None and split.instances is not None:
        _compare_files(split.panoptic, split.instances, log)
    return split


def _read(path: Path, trees: dict[Path, dict[str, Any]], log: Findings) -> None:
    try:
        trees[path] = read_lists(path)
    except DatasetError as error:
        log.add("json-unusable", path, bare(error, path))


def _isthing_guess(trees: dict[Path, dict[str, Any]], layout: CocoLayout) -> Callable[[int], bool]:
    """Tell things from stuff where a panoptic file does not: its instances file knows.

    Without one, what occurs twice in an image is a thing: stuff is one segment an image.
    """
    instances = trees.get(layout.instances)
    if instances is not None:
        known = [entry.get("id") for entry in instances["categories"] if isinstance(entry, dict)]
        return lambda category_id: category_id in known
    twice: set[Any] = set()
    for entry in trees[layout.panoptic]["annotations"]:
        segments = entry.get("segments_info") if isinstance(entry, dict) else None
        segments = segments if isinstance(segments, list) else []
        counts = Counter(
            segment["category_id"]
            for segment in segments
            if isinstance(segment, dict) and is_id(segment.get("category_id"))
        )
        twice |= {category_id for category_id, count in counts.items() if count > 1}
    return lambda category_id: category_id in twice


def _check_image_files(
    split: Split,
    log: Findings,
    *,
    pixels: bool,
    on_start: Callable[[int], Any],
    on_image: Callable[[], Any],
) -> None:
    """Look at every image file once, and hold each JSON file's sizes against it."""
    folder = split.layout.images
    listed: dict[Path, int] = {}
    for file in split.files:
        for image in file.images.usable.values():
            listed.setdefault(image.path, image.id)
    there = image_files(folder) if folder.is_dir() else []
    if split.files:
        for path in there:
            if path not in listed:
                log.add("image-unlisted", path, "no entry of this file")
    broken: set[Path] = set()
    if pixels:
        on_start(len(listed))
        for (path, image_id), found in zip(
            listed.items(), look_at(list(listed), on_image), strict=True
        ):
            if isinstance(found, ImageError):
                log.add(found.code, path, bare(found, path), image_id=image_id)
                broken.add(path)
            else:
                split.pictures[path] = found
    else:
        # Names of a folder in one go: a question per file takes seconds on a network drive.
        broken = {path for path in listed if not path.is_file()}
        for path in sorted(broken):
            log.add("image-missing", path, "no such image file", image_id=listed[path])
    for file in split.files:
        for image in list(file.images.usable.values()):
            if image.path in broken:
                del file.images.usable[image.id]
            elif image.path in split.pictures:
                _check_size(file.path, image, split.pictures[image.path].size, log)


def _check_size(file: Path, image: ImageEntry, size: tuple[int, int], log: Findings) -> None:
    """Take the size from the image; report it where the entry says another."""
    if image.size is not None and image.size != size:
        turned = " (turned: EXIF orientation?)" if image.size == size[::-1] else ""
        log.add(
            "image-size",
            file,
            f"{image.entry['file_name']!r} is {size[0]} x {size[1]} (height x width), the file "
            f"says {image.size[0]} x {image.size[1]}{turned}",
            image_id=image.id,
            evidence=Evidence(image.path, box=(0, 0, image.size[1], image.size[0])),
        )
    image.size = size
    image.entry["height"], image.entry["width"] = size


def _check_objects(split: Split, log: Findings, *, pixels: bool) -> None:
    """Check annotations and segments, and what categories they use."""
    file = split.panoptic
    if file is not None:
        split.segments = check_panoptic(
            file.path,
            file.tree["annotations"],
            file.images,
            file.categories,
            split.layout.panoptic_dir,
            log,
            pixels=pixels,
        )
        file.annotations = list(split.segments.annotations.values())
        if pixels:
            file.drop_images(set(file.images.usable) - set(split.segments.annotations))
        check_category_use(file.path, file.categories, split.segments.used, log)
    file = split.instances
    if file is not None:
        things = {
            category_id: entry
            for category_id, entry in file.categories.items()
            if entry.get("isthing", 1)
        }
        file.annotations, used = check_annotations(
            file.path, file.tree["annotations"], file.images, things, log, pixels=pixels
        )
        if split.panoptic is None:
            check_category_use(file.path, file.categories, used, log)


def _compare_files(panoptic: JsonFile, instances: JsonFile, log: Findings) -> None:
    """Hold the two files of a split against each other, and bring them in line."""
    gone = []
    for image_id, image in sorted(panoptic.images.usable.items()):
        twin = instances.images.usable.get(image_id)
        if twin is None or twin.path != image.path:
            name = image.entry["file_name"]
            other = "nothing" if twin is None else repr(twin.entry["file_name"])
            message = f"{name!r} here, {other} in {instances.path.name}"
            log.add("instances-lack-image", panoptic.path, message, image_id=image_id)
            gone.append(image_id)
    known = panoptic.images.named
    for image_id, image in sorted(instances.images.usable.items()):
        if image_id not in known:
            name = image.entry["file_name"]
            log.add("panoptic-lacks-image", instances.path, f"{name!r}", image_id=image_id)
    panoptic.drop_images(gone)
    for category_id, entry in sorted(panoptic.categories.items()):
        twin_entry = instances.categories.get(category_id)
        name = str(entry["name"])
        if twin_entry is None and entry.get("isthing"):
            message = f"thing {name!r} of {panoptic.path.name}"
            log.add("instances-lack-category", instances.path, message, category_id=category_id)
            wanted = ("id", "name", "supercategory")
            copied = {key: value for key, value in entry.items() if key in wanted}
            instances.categories[category_id] = copied
        elif twin_entry is not None and (
            str(twin_entry["name"]) != name
            or bool(twin_entry.get("isthing", 1)) != bool(entry.get("isthing"))
        ):
            message = f"{name!r} in {panoptic.path.name}, {str(twin_entry['name'])!r} here"
            log.add("categories-disagree", instances.path, message, category_id=category_id)
    for category_id in sorted(set(instances.categories) - set(panoptic.categories)):
        name = str(instances.categories[category_id]["name"])
        message = f"{name!r} here, nothing in {panoptic.path.name}"
        log.add("categories-disagree", instances.path, message, category_id=category_id)
