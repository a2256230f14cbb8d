"""Data sets with COCO instance annotations: objects with masks, no stuff."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from unisolo import segmentation as masks
from unisolo.categories import Categories
from unisolo.data.coco_files import (
    CocoLayout,
    DatasetError,
    PackedRecords,
    finite_numbers,
    group_by_image,
    positive_box,
    read_categories,
    read_coco,
    read_sized_image,
    select_images,
    whole_number,
)
from unisolo.data.layers import paint_layers
from unisolo.data.raw import ObjectBoxes, RawSample, RawTarget, Transform, to_sample
from unisolo.reading import short
from unisolo.structures import ImageMeta, Sample

__all__ = ["CocoInstance", "read_instances"]


class CocoInstance(Dataset[Sample]):
    """Images with COCO instance annotations (polygons or RLE); every category is a thing.

    Images without objects are kept. Crowd annotations become the crowd map, never objects.
    Annotations that enclose no pixel are passed over. Overlapping objects lie in different layers
    of the object map, in the order of the file.

    Args:
        annotations: The instances JSON file.
        image_dir: Folder that `file_name` is relative to.
        transform: From `RawSample` to `Sample`; None = the whole image at its own size.
        max_images: Use only the first images by id; None = all.
        with_targets: Give samples their targets; False saves the work where only images are wanted.

    Attributes:
        categories: Categories of the file. Entries that say `isthing: 0` are left out.
        provides: Kinds of ground truth: {"things"}.
        image_ids: Ids of the images, ascending; sample i is image `image_ids[i]`.
        cache: All samples as `read` gives them, or None; see `unisolo.data.cache`.

    Raises:
        DatasetError: If a file or an entry cannot be used.
    """

    provides: frozenset[str] = frozenset({"things"})

    def __init__(
        self,
        annotations: Path,
        image_dir: Path,
        *,
        transform: Transform | None = None,
        max_images: int | None = None,
        with_targets: bool = True,
    ) -> None:
        self.annotations = Path(annotations)
        self.image_dir = Path(image_dir)
        self.transform = transform
        self.with_targets = with_targets
        self.cache: Sequence[RawSample] | None = None
        tree = read_coco(self.annotations)
        self.categories = _things(self.annotations, tree)
        images, all_ids = select_images(self.annotations, tree, self.image_dir, max_images)
        self.image_ids = tuple(int(image["id"]) for image in images)
        groups = group_by_image(self.annotations, tree["annotations"], all_ids)
        records = [
            {**image, "objects": self._objects(image["id"], groups[image["id"]])}
            for image in images
        ]
        entries = tree["annotations"]
        if entries and not any(entry.get("segmentation") for entry in entries):
            raise DatasetError(
                f"{self.annotations}: no annotation has a 'segmentation'; boxes alone cannot "
                "train a mask model"
            )
        self._records = PackedRecords(records)
        self._object_boxes = ObjectBoxes.from_rows(
            [
                [*box, image["height"], image["width"], number]
                for number, image in enumerate(images)
                for entry in groups[image["id"]]
                if not entry.get("iscrowd") and (box := positive_box(entry))
            ]
        )

    @classmethod
    def from_root(
        cls,
        root: str | Path,
        split: str,
        *,
        transform: Transform | None = None,
        max_images: int | None = None,
        with_targets: bool = True,
    ) -> CocoInstance:
        """Open a split of a COCO-layout folder.

        Args:
            root: Folder with `<split>/` (images) and `annotations/instances_<split>.json`.
            split: Name of the split, e.g. "train2017".
            transform: As for the class.
            max_images: As for the class.
            with_targets: As for the class.

        Raises:
            DatasetError: If something is missing (the message gives the layout expected) or
                cannot be used.
        """
        layout = CocoLayout(Path(root), split)
        layout.require(layout.root, layout.instances, layout.images)
        return cls(
            layout.instances,
            layout.images,
            transform=transform,
            max_images=max_images,
            with_targets=with_targets,
        )

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Sample:
        """Return image `image_ids[index]`, transformed; raises what `read` raises."""
        raw = self.read(index) if self.cache is None else self.cache[index]
        return to_sample(raw) if self.transform is None else self.transform(raw)

    def read(self, index: int) -> RawSample:
        """Read image `image_ids[index]` from disk.

        Raises:
            ImageError: If the image file cannot be used.
            DatasetError: If it does not fit its annotations.
        """
        record = self._records[index]
        image = read_sized_image(self.image_dir, record, self.annotations)
        size = (record["height"], record["width"])
        meta = ImageMeta(record["id"], record["file_name"], size, size)
        target = self._target(record) if self.with_targets else None
        return RawSample(image, meta, target)

    def object_boxes(self) -> ObjectBoxes:
        """Boxes of all objects by the file, without reading an image; crowd left out."""
        return self._object_boxes

    def coco_ground_truth(self) -> dict[str, Any]:
        """Return the file's content for the images in use, as COCO evaluators take it."""
        return read_instances(self.annotations, self.image_ids, self.categories)

    def _objects(self, image_id: int, entries: Iterable[Mapping[str, Any]]) -> list[list[Any]]:
        """[label, iscrowd, segmentation, annotation id] of each annotation that has a mask."""
        objects = []
        for entry in entries:
            where = (
                f"{self.annotations}: annotation {short(entry.get('id'))} of image id {image_id}"
            )
            category_id: Any = entry.get("category_id")
            if category_id not in self.categories:
                raise DatasetError(
                    f"{where}: category id {short(category_id)} is not a thing under 'categories'; "
                    "add the category or remove the annotation"
                )
            try:
                segmentation = masks.usable(entry.get("segmentation"))
            except ValueError as error:
                raise DatasetError(f"{where}: {error}") from None
            if segmentation is not None:
                label = self.categories.label(category_id)
                crowd = whole_number(entry.get("iscrowd", 0), f"{where}: 'iscrowd'")
                objects.append([label, crowd, segmentation, entry.get("id")])
        return objects

    def _target(self, record: Mapping[str, Any]) -> RawTarget:
        height, width = record["height"], record["width"]
        crowd_map = np.zeros((height, width), dtype=np.int16)
        objects = [item for item in record["objects"] if not item[1]]
        for item in record["objects"]:
            if item[1]:
                crowd_map[self._mask(record, item)] = item[0] + 1
        object_map, painted = paint_layers(self._object_masks(record, objects), height, width)
        labels = np.array([item[0] for item in objects], dtype=np.int64)
        return RawTarget(labels[painted], object_map, crowd_map)

    def _object_masks(
        self, record: Mapping[str, Any], objects: Iterable[list[Any]]
    ) -> Iterator[npt.NDArray[np.bool_]]:
        for item in objects:
            yield self._mask(record, item)

    def _mask(self, record: Mapping[str, Any], item: list[Any]) -> npt.NDArray[np.bool_]:
        try:
            return masks.decode(item[2], record["height"], record["width"])
        except ValueError as error:
            raise DatasetError(
                f"{self.annotations}: annotation {item[3]!r} of image id {record['id']} "
                f"({record['file_name']}): {error}; correct or remove it"
            ) from None


def read_instances(path: Path, image_ids: Iterable[int], categories: Categories) -> dict[str, Any]:
    """Read an instances JSON file for evaluation, restricted to some images.

    What evaluators rely on is filled in where the file leaves it out (`iscrowd`, `area`, `bbox`);
    annotations without a mask go; ids are numbered anew if one is 0, missing or repeated.

    Args:
        path: The file.
        image_ids: Images to keep.
        categories: Categories whose things the file must have.

    Returns:
        The COCO instances dict.

    Raises:
        DatasetError: If an image or a thing category is missing in the file, or an annotation
            cannot be used.
    """
    tree = read_coco(path)
    select_images(path, tree, path.parent, None)  # checks the entries
    images = {image["id"]: image for image in tree["images"]}
    missing = [image_id for image_id in image_ids if image_id not in images]
    if missing:
        raise DatasetError(
            f"{path}: lacks {len(missing)} images in use (the first is image id {missing[0]}); "
            "it must belong to the same split"
        )
    things = {category.id for category in categories.things}
    entries = [entry for entry in tree["categories"] if entry.get("id") in things]
    if len(entries) != len(things):
        known = {entry["id"] for entry in entries}
        raise DatasetError(
            f"{path}: lacks the thing categories with ids {sorted(things - known)}; "
            "its categories must be those of the panoptic file"
        )
    wanted = set(image_ids)
    annotations = []
    for entry in tree["annotations"]:
        if entry.get("image_id") in wanted and entry.get("category_id") in things:
            try:
                complete = _complete(entry, images[entry["image_id"]])
            except ValueError as error:
                raise DatasetError(
                    f"{path}: annotation {short(entry.get('id'))} of image id "
                    f"{entry['image_id']}: "
                    f"{error}; correct or remove it"
                ) from None
            if complete is not None:
                annotations.append(complete)
    # Evaluators match by id, and pycocotools takes id 0 for "no match".
    if len({entry.get("id") or 0 for entry in annotations} - {0}) < len(annotations):
        for number, entry in enumerate(annotations, start=1):
            entry["id"] = number
    return {
        "info": tree.get("info", {}),
        "images": [images[image_id] for image_id in image_ids],
        "annotations": annotations,
        "categories": entries,
    }


def _complete(entry: Mapping[str, Any], image: Mapping[str, Any]) -> dict[str, Any] | None:
    segmentation = masks.usable(entry.get("segmentation"))
    if segmentation is None:
        return None
    complete = {"iscrowd": 0, **entry, "segmentation": segmentation}
    complete["iscrowd"] = int(whole_number(complete["iscrowd"], "'iscrowd'") != 0)
    # Always measured: evaluators in C and Rust are not given runs or points that do not fit.
    area, (left, top, right, bottom) = masks.area_and_box(
        segmentation, int(image["height"]), int(image["width"])
    )
    if not finite_numbers([complete.get("area")], 1):
        complete["area"] = float(area)
    if not finite_numbers(complete.get("bbox"), 4):
        complete["bbox"] = [float(side) for side in (left, top, right - left, bottom - top)]
    return complete


def _things(path: Path, tree: Mapping[str, Any]) -> Categories:
    """The file's categories; stuff that a shared list names has no place in instance data."""
    return read_categories(path, [entry for entry in tree["categories"] if entry.get("isthing", 1)])
