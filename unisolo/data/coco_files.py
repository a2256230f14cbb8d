"""What the two COCO readers share: finding the files, reading and checking JSON, a light index."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unisolo.categories import Categories
from unisolo.data.images import read_image
from unisolo.reading import file_problem, parse_json, relative_name, short

__all__ = [
    "CocoLayout",
    "DatasetError",
    "PackedRecords",
    "finite_numbers",
    "group_by_image",
    "path_inside",
    "positive_box",
    "read_categories",
    "read_coco",
    "read_lists",
    "read_sized_image",
    "select_images",
    "whole_number",
]


_LISTS = ("images", "annotations", "categories")


class DatasetError(ValueError):
    """Data set files that cannot be used; the message names the file, the entry and the fix.

    Attributes:
        code: What kind of fault, where the doctor tells kinds apart; otherwise empty.
    """

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class CocoLayout:
    """Where the files of one split are, in the layout of COCO's own downloads.

    Attributes:
        root: Folder of the data set.
        split: Name of the split, e.g. "train2017".
    """

    root: Path
    split: str

    @property
    def images(self) -> Path:
        """Folder of the images."""
        return self.root / self.split

    @property
    def instances(self) -> Path:
        """Instance annotations."""
        return self.root / "annotations" / f"instances_{self.split}.json"

    @property
    def panoptic(self) -> Path:
        """Panoptic annotations."""
        return self.root / "annotations" / f"panoptic_{self.split}.json"

    @property
    def panoptic_dir(self) -> Path:
        """Folder of the panoptic PNGs."""
        return self.root / "annotations" / f"panoptic_{self.split}"

    def require(self, *paths: Path) -> None:
        """Check that paths of this layout exist.

        Raises:
            DatasetError: If one does not; the message names it, the layout and the splits found.
        """
        for path in paths:
            if path.exists():
                continue
            found = sorted(
                {
                    file.stem.removeprefix("instances_").removeprefix("panoptic_")
                    for pattern in ("instances_*.json", "panoptic_*.json")
                    for file in (self.root / "annotations").glob(pattern)
                }
            )
            hint = f"splits with annotations here: {', '.join(found)}" if found else "none found"
            raise DatasetError(
                f"{path} does not exist. Expected layout of {self.root}: {self.split}/ (images), "
                f"annotations/instances_{self.split}.json, and for panoptic data "
                f"annotations/panoptic_{self.split}.json with "
                f"annotations/panoptic_{self.split}/*.png ({hint})"
            )


class PackedRecords(Sequence[Any]):
    """A read-only list of JSON values kept as one block of bytes.

    A list of many small Python objects is copied into every loader process bit by bit, because
    reading an object writes its reference count; one numpy buffer stays shared.

    Args:
        records: Values that JSON can hold.
    """

    def __init__(self, records: Iterable[Any]) -> None:
        texts = [json.dumps(record, separators=(",", ":")).encode() for record in records]
        self._ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
        self._bytes = np.frombuffer(b"".join(texts), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: Any) -> Any:
        index = range(len(self))[index]  # negative and out-of-range indices as in a list
        start = int(self._ends[index - 1]) if index else 0
        return json.loads(self._bytes[start : int(self._ends[index])].tobytes())


def read_coco(path: Path) -> dict[str, Any]:
    """Read a COCO JSON file and check its three lists.

    Raises:
        DatasetError: If the file is missing, not JSON, or lacks a list; or an entry of a list is
            no mapping, or has an id that is no plain value.
    """
    tree = read_lists(path)
    for key in _LISTS:
        for number, entry in enumerate(tree[key]):
            if not isinstance(entry, dict):
                raise DatasetError(
                    f"{path}: entry {number} of {key!r} is {short(entry)}, not a mapping"
                )
            for name in ("id", "image_id", "category_id"):
                if isinstance(entry.get(name), (dict, list)):
                    raise DatasetError(
                        f"{path}: entry {number} of {key!r} has {name} {short(entry[name])}; "
                        "write a number"
                    )
    return tree


def read_lists(path: Path) -> dict[str, Any]:
    """Read a COCO JSON file and check that its three lists are there, not what they hold.

    Raises:
        DatasetError: If the file is missing, not JSON, or lacks a list.
    """
    problem = file_problem(path, "annotation file")
    if problem is not None:
        raise DatasetError(f"{path}: {problem}; check the path")
    try:
        tree = parse_json(path.read_bytes())
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    except ValueError as error:
        raise DatasetError(f"{path}: not valid JSON ({error}); copy or write it again") from None
    for key in _LISTS:
        if not isinstance(tree, dict) or not isinstance(tree.get(key), list):
            raise DatasetError(
                f"{path}: not a COCO annotation file: it needs a list {key!r} at the top level"
            )
    return dict(tree)


def whole_number(value: Any, where: str, *, limit: int = 2**63) -> int:
    """Check a number of a JSON file; `4.0` passes for 4, text and null do not.

    Args:
        value: The value.
        where: What it is, for the message.
        limit: Its size must be below this.

    Raises:
        DatasetError: If it is not a whole number below the limit.
    """
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if not whole or abs(value) >= limit:
        raise DatasetError(f"{where} is {short(value)}; write a whole number")
    return int(value)


def positive_box(entry: Mapping[str, Any]) -> list[float] | None:
    """Return the `bbox` (x, y, width, height) of an entry, or None where it has no usable one."""
    box: Any = entry.get("bbox")
    return box if finite_numbers(box, 4) and min(box[2:]) > 0 else None


def finite_numbers(values: Any, count: int) -> bool:
    """Whether a value of a JSON file is a list of this many numbers of a sane size."""
    return (
        isinstance(values, list)
        and len(values) == count
        and all(isinstance(value, (int, float)) and abs(value) < 1e9 for value in values)
    )


def read_categories(path: Path, entries: Sequence[Mapping[str, Any]]) -> Categories:
    """`Categories.from_coco` with the file's name in its errors.

    Raises:
        DatasetError: If the categories cannot be used.
    """
    try:
        return Categories.from_coco(entries)
    except ValueError as error:
        raise DatasetError(f"{path}: {error}") from None


def select_images(
    path: Path, tree: Mapping[str, Any], image_dir: Path, max_images: int | None
) -> tuple[list[dict[str, Any]], set[int]]:
    """Check the image entries and choose those to use.

    Args:
        path: The JSON file, for messages.
        tree: Its content.
        image_dir: Folder that every `file_name` must stay inside.
        max_images: Use only the first images by id; None = all.

    Returns:
        The chosen entries (`id`, `file_name`, `height`, `width`) by ascending id, and the ids of
        all images in the file.

    Raises:
        DatasetError: If an entry is incomplete, an id repeats, or a file name leaves `image_dir`.
        ValueError: If `max_images` is less than 1.
    """
    if max_images is not None and max_images < 1:
        raise ValueError(f"max_images must be at least 1 or None, got {max_images}")
    chosen: dict[int, dict[str, Any]] = {}
    for entry in tree["images"]:
        missing = [key for key in ("id", "file_name", "height", "width") if key not in entry]
        if missing:
            raise DatasetError(
                f"{path}: image entry {short(entry)} lacks {', '.join(missing)}; add it"
            )
        image_id = entry["id"]
        if not isinstance(image_id, int) or isinstance(image_id, bool) or abs(image_id) >= 2**63:
            raise DatasetError(f"{path}: image id {short(image_id)} must be an integer")
        if image_id in chosen:
            raise DatasetError(f"{path}: image id {image_id} appears twice; ids must be unique")
        height, width = (
            whole_number(entry[side], f"{path}: the {side} of image id {image_id}", limit=2**24)
            for side in ("height", "width")
        )
        if height < 1 or width < 1:
            raise DatasetError(
                f"{path}: image id {image_id} has height {height} and width {width}; "
                "write the size of the image file"
            )
        file_name = entry["file_name"]
        path_inside(image_dir, file_name, f"{path}: image id {image_id}")
        chosen[image_id] = {
            "id": image_id,
            "file_name": file_name,
            "height": height,
            "width": width,
        }
    ids = sorted(chosen)
    return [chosen[image_id] for image_id in ids[:max_images]], set(ids)


def path_inside(folder: Path, file_name: str, where: str) -> Path:
    """Join a file name from a JSON file to its folder.

    Symbolic links inside the folder are followed (see `relative_name`).

    Args:
        folder: The folder.
        file_name: A relative path; subfolders are fine.
        where: The place of the name, for the message.

    Returns:
        The path.

    Raises:
        DatasetError: If the name is empty, no text or points outside the folder.
    """
    relative = relative_name(file_name)
    if relative is None:
        raise DatasetError(
            f"{where}: file_name {short(file_name)} points outside {folder}; "
            "write a path relative to that folder"
        )
    return folder / relative


def group_by_image(
    path: Path, entries: Sequence[Mapping[str, Any]], image_ids: Iterable[int]
) -> dict[int, list[Mapping[str, Any]]]:
    """Sort annotations to their images.

    Args:
        path: The JSON file, for messages.
        entries: Its annotations.
        image_ids: Ids of all images in the file.

    Returns:
        Annotations of every image id, in the order of the file; empty lists included.

    Raises:
        DatasetError: If an annotation belongs to no image.
    """
    groups: dict[int, list[Mapping[str, Any]]] = {image_id: [] for image_id in image_ids}
    for entry in entries:
        try:
            groups[entry["image_id"]].append(entry)
        except KeyError:
            raise DatasetError(
                f"{path}: annotation {short(entry.get('id', entry.get('file_name')))} has image_id "
                f"{short(entry.get('image_id'))}, which is not under 'images'; "
                "add the image or remove the annotation"
            ) from None
    return groups


def read_sized_image(
    image_dir: Path, record: Mapping[str, Any], annotations: Path
) -> npt.NDArray[np.uint8]:
    """Read the image of a record and check its size.

    Returns:
        [H, W, 3] uint8 RGB.

    Raises:
        ImageError: If the file cannot be used.
        DatasetError: If its size is not the one the JSON file gives.
    """
    path = path_inside(image_dir, record["file_name"], str(annotations))
    image = read_image(path)
    expected = (record["height"], record["width"])
    if image.shape[:2] != expected:
        raise DatasetError(
            f"{path}: the upright image is {image.shape[0]} x {image.shape[1]} (height x width) "
            f"but {annotations} says {expected[0]} x {expected[1]} for image id {record['id']}; "
            "correct the file that is wrong (annotations belong to the image after its EXIF "
            "orientation)"
        )
    return image
