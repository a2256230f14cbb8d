"""Image entries and categories of a COCO file, checked without stopping at the first fault."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from unisolo.categories import Categories
from unisolo.data.coco_files import DatasetError, path_inside
from unisolo.doctor.findings import Findings, short

__all__ = [
    "ImageEntry",
    "Images",
    "check_categories",
    "check_category_use",
    "check_images",
    "is_id",
]


_MAX_SIDE = 2**24
"""No picture has longer sides."""


@dataclass
class ImageEntry:
    """A usable entry under 'images'.

    Attributes:
        entry: The entry, as it should be.
        id: Its id.
        path: Its file.
        size: (H, W): by the entry, and once the file has been read, of the upright image. None =
            the entry does not say.
    """

    entry: dict[str, Any]
    id: int
    path: Path
    size: tuple[int, int] | None


@dataclass
class Images:
    """The image entries of one JSON file.

    Attributes:
        usable: By id; entries go when their file turns out to be unusable.
        named: Every id that some entry has, usable or not.
    """

    usable: dict[int, ImageEntry] = field(default_factory=dict)
    named: set[int] = field(default_factory=set)


def is_id(value: Any) -> TypeGuard[int]:
    """Whether a JSON value is a whole number (and not true or false)."""
    return type(value) is int and -(2**63) < value < 2**63


def check_images(file: Path, entries: list[Any], image_dir: Path, log: Findings) -> Images:
    """Check the entries themselves; their files are looked at elsewhere.

    Args:
        file: The JSON file.
        entries: Its 'images'.
        image_dir: Folder of the images.
        log: Receives what is wrong.
    """
    images = Images()
    names: dict[Path, int] = {}
    unclear: set[int] = set()
    for number, entry in enumerate(entries):
        checked = _check_image(file, number, entry, image_dir, log)
        if isinstance(entry, dict) and is_id(entry.get("id")):
            images.named.add(entry["id"])
        if checked is None:
            continue
        known = images.usable.get(checked.id)
        if known is not None:
            same = known.path == checked.path
            log.add(
                "image-id-twice",
                file,
                f"image id {checked.id} is {known.entry['file_name']!r} and "
                f"{checked.entry['file_name']!r}",
                image_id=checked.id,
            )
            if not same:
                unclear.add(checked.id)
            continue
        if checked.path in names:
            log.add(
                "image-file-twice",
                file,
                f"{checked.entry['file_name']!r} is image id {names[checked.path]} and "
                f"{checked.id}",
                image_id=checked.id,
            )
        names[checked.path] = checked.id
        images.usable[checked.id] = checked
    for image_id in unclear:
        del images.usable[image_id]
    return images


def _check_image(
    file: Path, number: int, entry: Any, image_dir: Path, log: Findings
) -> ImageEntry | None:
    if not isinstance(entry, dict):
        log.add("image-entry", file, f"entry {number} under 'images' is no mapping")
        return None
    image_id, name = entry.get("id"), entry.get("file_name")
    lacks = [] if is_id(image_id) else ["a whole number as id"]
    lacks += [] if isinstance(name, str) and name else ["a file_name"]
    sides = (entry.get("height"), entry.get("width"))
    size = None
    if all(is_id(side) and 0 < side < _MAX_SIDE for side in sides):
        size = (int(entry["height"]), int(entry["width"]))
    else:
        lacks.append(
            f"a height and width above 0 (they are {short(sides[0])} and {short(sides[1])})"
        )
    if lacks:
        log.add(
            "image-entry",
            file,
            f"entry {number} under 'images' ({short(name)}) needs {' and '.join(lacks)}",
            image_id=image_id,
        )
    if not is_id(image_id) or not isinstance(name, str) or not name:
        return None
    try:
        path = path_inside(image_dir, name, str(file))
    except DatasetError:
        log.add("image-outside", file, f"file_name {name!r}", image_id=image_id)
        return None
    return ImageEntry(dict(entry), image_id, path, size)


def check_categories(
    file: Path,
    entries: list[Any],
    log: Findings,
    *,
    guess_isthing: Callable[[int], bool] | None = None,
) -> dict[int, dict[str, Any]]:
    """Check the list of categories.

    Args:
        file: The JSON file.
        entries: Its 'categories'.
        log: Receives what is wrong.
        guess_isthing: For panoptic files, where each category must say `isthing`: stands in for
            what is not said. None = an instances file.

    Returns:
        The usable categories by id, as they should be.
    """
    usable: dict[int, dict[str, Any]] = {}
    for number, entry in enumerate(entries):
        entry = _usable_category(file, number, entry, log)
        if entry is None:
            continue
        category_id, name = entry["id"], str(entry["name"])
        if category_id in usable:
            first = usable[category_id]["name"]
            message = f"category id {category_id} is {str(first)!r} and {name!r}"
            log.add("category-id-twice", file, message, category_id=category_id)
            continue
        usable[category_id] = dict(entry)
        if guess_isthing is not None and "isthing" not in entry:
            log.add("category-isthing", file, f"category {name!r}", category_id=category_id)
            usable[category_id]["isthing"] = int(guess_isthing(category_id))
    for name, count in Counter(str(entry["name"]) for entry in usable.values()).items():
        if count > 1:
            log.add("category-name-twice", file, f"{count} categories are called {name!r}")
    if not any(entry.get("isthing", 1) for entry in usable.values()):
        log.add("category-none", file, "no thing among the categories")
    return usable


def _usable_category(file: Path, number: int, entry: Any, log: Findings) -> Any:
    """Return a category as it should be, or None; the reader itself says whether it takes it."""
    where = f"entry {number} under 'categories'"
    if not isinstance(entry, dict) or not is_id(entry.get("id")) or "name" not in entry:
        log.add("category-entry", file, where)
        return None
    plain = {key: entry[key] for key in ("id", "name", "isthing") if key in entry}
    for candidate in (entry, plain):
        try:
            Categories.from_coco([candidate])
        except (ValueError, TypeError, LookupError) as error:
            if candidate is entry:
                log.add("category-entry", file, f"{where}: {error}", category_id=entry["id"])
        else:
            return candidate
    return None


def check_category_use(
    file: Path, categories: Mapping[int, Mapping[str, Any]], used: set[int], log: Findings
) -> None:
    """Note categories that nothing uses, and ids with gaps."""
    for category_id in sorted(set(categories) - used):
        name = str(categories[category_id]["name"])
        log.add("category-unused", file, f"category {name!r}", category_id=category_id)
    if categories and sorted(categories) != list(range(1, len(categories) + 1)):
        log.add(
            "category-ids-gaps",
            file,
            f"{len(categories)} ids from {min(categories)} to {max(categories)}",
        )
