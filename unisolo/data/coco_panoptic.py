"""Data sets with COCO panoptic annotations: a JSON file and one PNG per image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch.utils.data import Dataset

from unisolo.categories import Categories
from unisolo.data.coco_files import (
    CocoLayout,
    DatasetError,
    PackedRecords,
    finite_numbers,
    group_by_image,
    path_inside,
    positive_box,
    read_categories,
    read_coco,
    read_sized_image,
    select_images,
    whole_number,
)
from unisolo.data.coco_instance import read_instances
from unisolo.data.raw import MAX_OBJECTS, ObjectBoxes, RawSample, RawTarget, Transform, to_sample
from unisolo.encoding import rgb_to_ids
from unisolo.reading import file_problem, short
from unisolo.segmentation import encode
from unisolo.structures import STUFF_IGNORE, ImageMeta, Sample

__all__ = ["CocoPanoptic", "read_segment_ids"]


class CocoPanoptic(Dataset[Sample]):
    """Images with COCO panoptic annotations: things and stuff.

    Segment ids are the PNG's R + 256 G + 65536 B. Thing segments become objects, crowd segments
    the crowd map; stuff and "some thing" become the stuff map, where void (id 0) and crowd are
    STUFF_IGNORE. Images without objects are kept. A segment of the JSON file that has no pixel in
    the PNG is passed over.

    Args:
        annotations: The panoptic JSON file.
        image_dir: Folder that the images' `file_name` is relative to.
        panoptic_dir: Folder that the annotations' `file_name` (PNG) is relative to.
        instances: The instances JSON file of the same images; None = there is none.
        transform: From `RawSample` to `Sample`; None = the whole image at its own size.
        max_images: Use only the first images by id; None = all.
        with_targets: Give samples their targets; False saves the work where only images are wanted.

    Attributes:
        categories: Categories of the file.
        provides: Kinds of ground truth: {"things", "stuff"}.
        image_ids: Ids of the images, ascending; sample i is image `image_ids[i]`.
        panoptic_dir: As given.
        cache: All samples as `read` gives them, or None; see `unisolo.data.cache`.

    Raises:
        DatasetError: If a file or an entry cannot be used.
    """

    provides: frozenset[str] = frozenset({"things", "stuff"})

    def __init__(
        self,
        annotations: Path,
        image_dir: Path,
        panoptic_dir: Path,
        *,
        instances: Path | None = None,
        transform: Transform | None = None,
        max_images: int | None = None,
        with_targets: bool = True,
    ) -> None:
        self.annotations = Path(annotations)
        self.image_dir = Path(image_dir)
        self.panoptic_dir = Path(panoptic_dir)
        self.instances = instances
        self.transform = transform
        self.with_targets = with_targets
        self.cache: Sequence[RawSample] | None = None
        tree = read_coco(self.annotations)
        self.categories = self._read_categories(tree["categories"])
        images, all_ids = select_images(self.annotations, tree, self.image_dir, max_images)
        self.image_ids = tuple(int(image["id"]) for image in images)
        groups = group_by_image(self.annotations, tree["annotations"], all_ids)
        boxes: list[list[float]] = []
        self._records = PackedRecords(
            self._record(image, groups[image["id"]], number, boxes)
            for number, image in enumerate(images)
        )
        self._object_boxes = ObjectBoxes.from_rows(boxes)

    @classmethod
    def from_root(
        cls,
        root: str | Path,
        split: str,
        *,
        transform: Transform | None = None,
        max_images: int | None = None,
        with_targets: bool = True,
    ) -> CocoPanoptic:
        """Open a split of a COCO-layout folder.

        Args:
            root: Folder with `<split>/` (images), `annotations/panoptic_<split>.json` and
                `annotations/panoptic_<split>/*.png`; `annotations/instances_<split>.json` is
                used by `coco_ground_truth` when there.
            split: Name of the split, e.g. "train2017".
            transform: As for the class.
            max_images: As for the class.
            with_targets: As for the class.

        Raises:
            DatasetError: If something is missing (the message gives the layout expected) or
                cannot be used.
        """
        layout = CocoLayout(Path(root), split)
        layout.require(layout.root, layout.panoptic, layout.panoptic_dir, layout.images)
        return cls(
            layout.panoptic,
            layout.images,
            layout.panoptic_dir,
            instances=layout.instances if layout.instances.exists() else None,
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
            DatasetError: If image, PNG and JSON do not fit each other.
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
        """Return ground truth of the images in use as COCO instance evaluators take it.

        It comes from the instances JSON file when there is one; else thing segments (crowd
        included) are read from the PNGs, as RLE with ASCII counts.

        Raises:
            DatasetError: If the instances file does not belong to these images and categories,
                or a PNG cannot be used.
        """
        if self.instances is not None:
            return read_instances(self.instances, self.image_ids, self.categories)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for record in self._records:
            images.append({key: record[key] for key in ("id", "file_name", "height", "width")})
            for entry in self._instances_of(record):
                annotations.append({"id": len(annotations) + 1, **entry})
        things = [entry for entry in self.categories.to_coco() if entry["isthing"]]
        return {"info": {}, "images": images, "annotations": annotations, "categories": things}

    def panoptic_ground_truth(self) -> dict[str, Any]:
        """Return the panoptic JSON file's content for the images in use.

        Its PNGs are in `panoptic_dir`. Segments without a usable area get it from them: evaluators
        count with it.

        Raises:
            DatasetError: If such a PNG cannot be used.
        """
        tree = read_coco(self.annotations)
        wanted = set(self.image_ids)
        for key, name in (("images", "id"), ("annotations", "image_id")):
            tree[key] = sorted(
                (entry for entry in tree[key] if entry[name] in wanted), key=lambda e: e[name]
            )
        records = {record["id"]: record for record in self._records}
        for annotation in tree["annotations"]:
            segments = annotation["segments_info"]
            for segment in segments:
                segment["iscrowd"] = int(segment.get("iscrowd", 0))
            if not all(_has_area(segment) for segment in segments):
                record = records[annotation["image_id"]]
                ids = read_segment_ids(self.panoptic_dir / record["png"], record)
                for segment in segments:
                    segment["area"] = int((ids == segment["id"]).sum())
        return tree

    def _read_categories(self, entries: list[dict[str, Any]]) -> Categories:
        unsaid = [entry.get("name") for entry in entries if "isthing" not in entry]
        if unsaid:
            raise DatasetError(
                f"{self.annotations}: categories {unsaid} lack 'isthing' (1 = thing, 0 = stuff); "
                "a panoptic file must say it for each"
            )
        return read_categories(self.annotations, entries)

    def _record(
        self,
        image: Mapping[str, Any],
        entries: list[Mapping[str, Any]],
        number: int,
        boxes: list[list[float]],
    ) -> dict[str, Any]:
        """The index entry of one image; appends its objects' boxes to `boxes`."""
        where = f"{self.annotations}: image id {image['id']} ({image['file_name']})"
        if len(entries) != 1:
            raise DatasetError(
                f"{where} has {len(entries)} entries under 'annotations'; each image needs one "
                "(with an empty 'segments_info' where nothing is labelled)"
            )
        entry = entries[0]
        if "file_name" not in entry or not isinstance(entry.get("segments_info"), list):
            raise DatasetError(f"{where}: its annotation needs 'file_name' and 'segments_info'")
        png = entry["file_name"]
        path_inside(self.panoptic_dir, png, where)
        segments: dict[int, list[int]] = {}
        for segment in entry["segments_info"]:
            if not isinstance(segment, dict):
                raise DatasetError(f"{where}: segment {short(segment)} is not a mapping")
            segment_id = segment.get("id")
            category_id: Any = segment.get("category_id")
            if category_id not in self.categories:
                raise DatasetError(
                    f"{where}: segment {short(segment_id)} has category id {short(category_id)}, "
                    "which is not under 'categories'; add the category or remove the segment"
                )
            if not isinstance(segment_id, int) or not 0 < segment_id < 2**24:
                raise DatasetError(
                    f"{where}: segment id {short(segment_id)} must be an integer from 1 to "
                    "2**24 - 1 (0 is void)"
                )
            if segment_id in segments:
                raise DatasetError(f"{where}: segment id {segment_id} appears twice; renumber one")
            label = self.categories.label(category_id)
            crowd = whole_number(segment.get("iscrowd", 0), f"{where}: 'iscrowd' of {segment_id}")
            segments[segment_id] = [segment_id, label, crowd]
            box = positive_box(segment)
            if label < self.categories.num_things and not crowd and box is not None:
                boxes.append([*box, image["height"], image["width"], number])
        if len(segments) > MAX_OBJECTS:
            raise DatasetError(f"{where} has more than {MAX_OBJECTS} segments")
        return {**image, "png": png, "segments": [segments[key] for key in sorted(segments)]}

    def _segment_map(self, record: Mapping[str, Any]) -> npt.NDArray[np.int64]:
        """[H, W]: 0 = void, n + 1 = n-th of `record["segments"]` (which are sorted by id)."""
        path = path_inside(self.panoptic_dir, record["png"], str(self.annotations))
        ids = read_segment_ids(path, record)
        known = np.array([0, *(segment[0] for segment in record["segments"])], dtype=np.int32)
        segment_map = np.searchsorted(known, ids)
        found = known[np.minimum(segment_map, len(known) - 1)] == ids
        if not found.all():
            strange = np.unique(ids[~found])
            raise DatasetError(
                f"{path}: has pixels of segment ids {strange[:5].tolist()} that "
                f"{self.annotations} does not list under image id {record['id']}; add them to "
                "'segments_info' or set the pixels to 0 (void)"
            )
        return segment_map

    def _target(self, record: Mapping[str, Any]) -> RawTarget:
        num_things, num_stuff = self.categories.num_things, self.categories.num_stuff
        labels: list[int] = []
        objects, crowds, stuff = [0], [0], [STUFF_IGNORE]  # by segment number; 0 is void
        for _, label, crowd in record["segments"]:
            thing = label < num_things
            if thing and not crowd:
                labels.append(label)
            objects.append(len(labels) if thing and not crowd else 0)
            crowds.append(label + 1 if thing and crowd else 0)
            index = num_stuff if thing else label - num_things
            stuff.append(STUFF_IGNORE if crowd else index)
        tables = np.array([objects, crowds, stuff], dtype=np.int16)
        object_map, crowd_map, stuff_map = tables[:, self._segment_map(record)]
        return RawTarget(np.array(labels, dtype=np.int64), object_map[None], crowd_map, stuff_map)

    def _instances_of(self, record: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
        """COCO annotations (without id) of the thing segments of one image."""
        segment_map = self._segment_map(record)
        for number, (_, label, crowd) in enumerate(record["segments"], start=1):
            mask = segment_map == number
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            if label >= self.categories.num_things or not len(rows):
                continue
            left, top = int(columns[0]), int(rows[0])
            yield {
                "image_id": record["id"],
                "category_id": self.categories.id(label),
                "iscrowd": crowd,
                "area": int(mask.sum()),
                "bbox": [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1],
                "segmentation": encode(mask),
            }


def _has_area(segment: Mapping[str, Any]) -> bool:
    area = segment.get("area")
    return finite_numbers([area], 1) and area is not None and area >= 0


def read_segment_ids(path: Path, record: Mapping[str, Any]) -> npt.NDArray[np.int32]:
    """Read the segment ids of a panoptic PNG.

    Args:
        path: The PNG; id = R + 256 G + 65536 B, 0 is void.
        record: `id`, `height` and `width` of its image.

    Returns:
        [H, W] int32.

    Raises:
        DatasetError: If the file is missing, damaged, not RGB, or of another size than its image;
            its `code` says which.
    """
    problem = file_problem(path, "panoptic PNG")
    if problem is not None:
        raise DatasetError(
            f"{path}: {problem}, but image id {record['id']} names it; "
            "copy it there or remove the image from the JSON file",
            "png-missing",
        )
    try:
        with Image.open(path) as image:
            _check_header(image, path, record)  # before the pixels: they may be very many
            colors = np.asarray(image)
    except DatasetError:
        raise
    # Decoders fail in many ways on damaged files; the person needs the name of the file.
    except Exception as error:
        raise DatasetError(
            f"{path}: damaged panoptic PNG of image id {record['id']} ({error}); copy it again",
            "png-damaged",
        ) from error
    return rgb_to_ids(colors)


def _check_header(image: Image.Image, path: Path, record: Mapping[str, Any]) -> None:
    if image.mode != "RGB":
        raise DatasetError(
            f"{path}: a panoptic PNG must be RGB (id = R + 256 G + 65536 B), this one is "
            f"{image.mode}; write it again as RGB",
            "png-mode",
        )
    width, height = image.size
    expected = (record["height"], record["width"])
    if (height, width) != expected:
        raise DatasetError(
            f"{path}: the panoptic PNG is {height} x {width} (height x width) "
            f"but image id {record['id']} is {expected[0]} x {expected[1]}; write it at that size",
            "png-size",
        )
