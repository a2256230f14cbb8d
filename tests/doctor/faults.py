"""Faults to plant in a copy of the generated data set, each with the finding it must lead to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SPLIT = "train2017"


class Copy:
    """A data set whose JSON files can be changed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.instances = self._read("instances")
        self.panoptic = self._read("panoptic")

    def _read(self, kind: str) -> dict[str, Any]:
        return json.loads((self.root / "annotations" / f"{kind}_{SPLIT}.json").read_text())

    def save(self) -> None:
        for kind in ("instances", "panoptic"):
            path = self.root / "annotations" / f"{kind}_{SPLIT}.json"
            path.write_text(json.dumps(getattr(self, kind)))

    def image(self, index: int) -> Path:
        return self.root / SPLIT / self.panoptic["images"][index]["file_name"]

    def id(self, index: int) -> int:
        return self.panoptic["images"][index]["id"]

    def png(self, index: int) -> Path:
        name = self.panoptic["annotations"][index]["file_name"]
        return self.root / "annotations" / f"panoptic_{SPLIT}" / name

    def objects(self, index: int, spelling: type | None = None) -> list[dict[str, Any]]:
        """Annotations of an image that are no crowd, with masks of one spelling."""
        return [
            entry
            for entry in self.instances["annotations"]
            if entry.get("image_id") == self.id(index)
            and not entry["iscrowd"]
            and (spelling is None or isinstance(entry["segmentation"], spelling))
        ]

    def segments(self, index: int) -> list[dict[str, Any]]:
        return self.panoptic["annotations"][index]["segments_info"]


@dataclass(frozen=True)
class Fault:
    """A fault and its finding: what it is called, where it is."""

    code: str
    plant: Callable[[Copy], tuple[str, str]]
    """Makes the fault; returns the file that must be named, and the entry (or a part of it)."""


INSTANCES = f"annotations/instances_{SPLIT}.json"
PANOPTIC = f"annotations/panoptic_{SPLIT}.json"


def shown(copy: Copy, path: Path) -> str:
    return path.relative_to(copy.root).as_posix()


# --- images: each fault has an image of its own, so that all can be planted together --------------


def missing(copy: Copy) -> tuple[str, str]:
    copy.image(0).unlink()
    return shown(copy, copy.image(0)), f"image id {copy.id(0)}"


def empty(copy: Copy) -> tuple[str, str]:
    copy.image(1).write_bytes(b"")
    return shown(copy, copy.image(1)), f"image id {copy.id(1)}"


def truncated(copy: Copy) -> tuple[str, str]:
    data = copy.image(3).read_bytes()
    copy.image(3).write_bytes(data[: len(data) // 2])
    return shown(copy, copy.image(3)), f"image id {copy.id(3)}"


def no_image(copy: Copy) -> tuple[str, str]:
    copy.image(5).write_text("<html>not found</html>")
    return shown(copy, copy.image(5)), f"image id {copy.id(5)}"


def float_pixels(copy: Copy) -> tuple[str, str]:
    Image.fromarray(np.zeros((64, 64), np.float32)).save(copy.image(6), format="TIFF")
    return shown(copy, copy.image(6)), f"image id {copy.id(6)}"


def other_size(copy: Copy) -> tuple[str, str]:
    for tree in (copy.instances, copy.panoptic):
        tree["images"][7].update(height=60)
    return INSTANCES, f"image id {copy.id(7)}"


def unlisted(copy: Copy) -> tuple[str, str]:
    Image.new("RGB", (9, 9)).save(copy.root / SPLIT / "extra.png")
    return f"{SPLIT}/extra.png", ""


def outside(copy: Copy) -> tuple[str, str]:
    for tree in (copy.instances, copy.panoptic):
        tree["images"][8]["file_name"] = "../../etc/passwd.png"
    return PANOPTIC, f"image id {copy.id(8)}"


def entry_without_name(copy: Copy) -> tuple[str, str]:
    for tree in (copy.instances, copy.panoptic):
        tree["images"][9].pop("file_name")
    return PANOPTIC, f"image id {copy.id(9)}"


def image_id_twice(copy: Copy) -> tuple[str, str]:
    for tree in (copy.instances, copy.panoptic):
        tree["images"].append({**tree["images"][10], "file_name": tree["images"][11]["file_name"]})
    return PANOPTIC, f"image id {copy.id(10)}"


def one_file_twice(copy: Copy) -> tuple[str, str]:
    for tree in (copy.instances, copy.panoptic):
        tree["images"].append({**tree["images"][11], "id": 99999})
    entry = {**copy.panoptic["annotations"][11], "image_id": 99999}
    copy.panoptic["annotations"].append(entry)
    return INSTANCES, "image id 99999"


# --- categories -----------------------------------------------------------------------------------


def category_id_twice(copy: Copy) -> tuple[str, str]:
    copy.instances["categories"].append({"id": 3, "name": "other"})
    return INSTANCES, "category id 3"


def category_name_twice(copy: Copy) -> tuple[str, str]:
    copy.panoptic["categories"].append({"id": 900, "name": "ball", "isthing": 0})
    return PANOPTIC, ""


def category_unused(copy: Copy) -> tuple[str, str]:
    copy.panoptic["categories"].append({"id": 901, "name": "nobody", "isthing": 0})
    return PANOPTIC, "category id 901"


def category_broken(copy: Copy) -> tuple[str, str]:
    copy.instances["categories"].append({"name": "no id"})
    return INSTANCES, ""


def category_without_isthing(copy: Copy) -> tuple[str, str]:
    del copy.panoptic["categories"][0]["isthing"]
    return PANOPTIC, f"category id {copy.panoptic['categories'][0]['id']}"


def category_unknown(copy: Copy) -> tuple[str, str]:
    entry = copy.objects(15)[0]
    entry["category_id"] = 777
    return INSTANCES, f"annotation {entry['id']}"


# --- annotations: objects of images 15, 17, 20 and 22, one each -----------------------------------


def changed(
    index: int, number: int, change: Callable[[dict[str, Any]], Any]
) -> Callable[[Copy], tuple[str, str]]:
    def plant(copy: Copy) -> tuple[str, str]:
        entry = copy.objects(index)[number]
        change(entry)
        names = {"annotation": entry.get("id"), "image id": entry.get("image_id")}
        return INSTANCES, ", ".join(f"{key} {value}" for key, value in names.items() if value)

    return plant


def id_twice(copy: Copy) -> tuple[str, str]:
    first, second = copy.objects(15)[:2][1], copy.objects(15)[2]
    second["id"] = first["id"]
    return INSTANCES, f"annotation {first['id']}"


def box_moved(entry: dict[str, Any]) -> None:
    entry["bbox"] = [entry["bbox"][0] - 7, *entry["bbox"][1:]]


def polygons(*polygon: list[Any]) -> Callable[[dict[str, Any]], None]:
    def change(entry: dict[str, Any]) -> None:
        entry["segmentation"] = list(polygon)

    return change


SQUARE = [10, 10, 30, 10, 30, 30, 10, 30]


def with_square(**more: Any) -> Callable[[dict[str, Any]], None]:
    """A polygon that is right but for what is given."""

    def change(entry: dict[str, Any]) -> None:
        entry.update(segmentation=[SQUARE], bbox=[10, 10, 20, 20], area=400)
        entry.update(more)

    return change


def instances_lack_image(copy: Copy) -> tuple[str, str]:
    gone = copy.id(12)
    copy.instances["images"] = [e for e in copy.instances["images"] if e["id"] != gone]
    copy.instances["annotations"] = [
        e for e in copy.instances["annotations"] if e.get("image_id") != gone
    ]
    return PANOPTIC, f"image id {gone}"


def panoptic_lacks_image(copy: Copy) -> tuple[str, str]:
    copy.instances["images"].append(
        {"id": 88888, "file_name": "copy.png", "height": 64, "width": 64}
    )
    rng = np.random.default_rng(5)
    pixels = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(copy.root / SPLIT / "copy.png")
    return INSTANCES, "image id 88888"


def instances_lack_category(copy: Copy) -> tuple[str, str]:
    copy.panoptic["categories"].append({"id": 950, "name": "new thing", "isthing": 1})
    return INSTANCES, "category id 950"


def categories_disagree(copy: Copy) -> tuple[str, str]:
    copy.instances["categories"].append({"id": 960, "name": "only here"})
    return INSTANCES, "category id 960"


# --- panoptic: images 13, 14, 16, 18, 19, 21, 23, 25 to 29 ----------------------------------------


def png_missing(copy: Copy) -> tuple[str, str]:
    copy.png(13).unlink()
    return shown(copy, copy.png(13)), f"image id {copy.id(13)}"


def png_damaged(copy: Copy) -> tuple[str, str]:
    copy.png(14).write_bytes(copy.png(14).read_bytes()[:60])
    return shown(copy, copy.png(14)), f"image id {copy.id(14)}"


def png_mode(copy: Copy) -> tuple[str, str]:
    Image.new("L", (64, 64)).save(copy.png(16))
    return shown(copy, copy.png(16)), f"image id {copy.id(16)}"


def png_size(copy: Copy) -> tuple[str, str]:
    Image.open(copy.png(18)).crop((0, 0, 64, 50)).save(copy.png(18))
    return shown(copy, copy.png(18)), f"image id {copy.id(18)}"


def png_id_unknown(copy: Copy) -> tuple[str, str]:
    gone = copy.segments(19).pop()
    return shown(copy, copy.png(19)), f"segment {gone['id']}, image id {copy.id(19)}"


def png_void(copy: Copy) -> tuple[str, str]:
    Image.new("RGB", (64, 64)).save(copy.png(21))
    copy.panoptic["annotations"][21]["segments_info"] = []
    return shown(copy, copy.png(21)), f"image id {copy.id(21)}"


def png_outside(copy: Copy) -> tuple[str, str]:
    copy.panoptic["annotations"][23]["file_name"] = "/etc/passwd"
    return PANOPTIC, f"image id {copy.id(23)}"


def segment_changed(index: int, number: int, **values: Any) -> Callable[[Copy], tuple[str, str]]:
    def plant(copy: Copy) -> tuple[str, str]:
        segment = copy.segments(index)[number]
        segment.update(values)
        return PANOPTIC, f"segment {segment['id']}, image id {copy.id(index)}"

    return plant


def segment_id_twice(copy: Copy) -> tuple[str, str]:
    segments = copy.segments(25)
    segments.append(dict(segments[0]))
    return PANOPTIC, f"segment {segments[0]['id']}, image id {copy.id(25)}"


def segment_without_pixels(copy: Copy) -> tuple[str, str]:
    copy.segments(26).append({**copy.segments(26)[0], "id": 4242})
    return PANOPTIC, f"segment 4242, image id {copy.id(26)}"


def segment_no_mapping(copy: Copy) -> tuple[str, str]:
    copy.segments(26).append("segment")
    return PANOPTIC, f"image id {copy.id(26)}"


def entry_missing(copy: Copy) -> tuple[str, str]:
    gone = copy.id(27)
    kept = [e for e in copy.panoptic["annotations"] if e.get("image_id") != gone]
    copy.panoptic["annotations"] = kept
    return PANOPTIC, f"image id {gone}"


def entry_twice(copy: Copy) -> tuple[str, str]:
    copy.panoptic["annotations"].append(copy.panoptic["annotations"][26])
    return PANOPTIC, f"image id {copy.id(26)}"


def entry_without_segments(copy: Copy) -> tuple[str, str]:
    del copy.panoptic["annotations"][28]["segments_info"]
    return PANOPTIC, f"image id {copy.id(28)}"


def image_unknown(copy: Copy) -> tuple[str, str]:
    entry = {**copy.objects(22)[0], "id": 5_000_000, "image_id": 123456}
    copy.instances["annotations"].append(entry)
    return INSTANCES, "annotation 5000000, image id 123456"


# --- splits ---------------------------------------------------------------------------------------


def other_split(copy: Copy) -> list[Path]:
    return sorted((copy.root / "val2017").iterdir())


def same_in_val(copy: Copy) -> tuple[str, str]:
    shutil.copyfile(other_split(copy)[0], copy.image(24))
    return shown(copy, copy.image(24)), ""


def split_categories(copy: Copy) -> tuple[str, str]:
    copy.panoptic["categories"].append({"id": 970, "name": "only in train", "isthing": 0})
    return PANOPTIC, ""


def similar_in_val(copy: Copy) -> tuple[str, str]:
    Image.open(other_split(copy)[2]).convert("RGB").save(copy.image(2), quality=60)
    return shown(copy, copy.image(2)), ""


FAULTS = [
    Fault("image-missing", missing),
    Fault("image-empty", empty),
    Fault("image-damaged", truncated),
    Fault("image-unreadable", no_image),
    Fault("image-pixels", float_pixels),
    Fault("image-size", other_size),
    Fault("image-unlisted", unlisted),
    Fault("image-outside", outside),
    Fault("image-entry", entry_without_name),
    Fault("image-id-twice", image_id_twice),
    Fault("image-file-twice", one_file_twice),
    Fault("category-id-twice", category_id_twice),
    Fault("category-name-twice", category_name_twice),
    Fault("category-unused", category_unused),
    Fault("category-entry", category_broken),
    Fault("category-isthing", category_without_isthing),
    Fault("category-unknown", category_unknown),
    Fault("annotation-id-twice", id_twice),
    Fault("annotation-id", changed(15, 3, lambda entry: entry.pop("id"))),
    Fault("annotation-entry", changed(15, 4, lambda entry: entry.pop("image_id"))),
    Fault("crowd-kind", changed(20, 0, lambda entry: entry.update(iscrowd="no"))),
    Fault("mask-missing", changed(15, 4, lambda entry: entry.pop("segmentation"))),
    Fault("mask-kind", changed(15, 5, lambda entry: entry.update(segmentation="mask"))),
    Fault("mask-empty", changed(15, 6, polygons([5.1, 5.1, 5.2, 5.1, 5.2, 5.2]))),
    Fault("mask-outside", changed(17, 0, polygons([90, 10, 99, 10, 99, 20]))),
    Fault(
        "mask-partly-outside",
        changed(17, 1, with_square(segmentation=[[50, 50, 80, 50, 80, 80, 50, 80]])),
    ),
    Fault(
        "rle-size",
        changed(17, 2, lambda e: e.update(segmentation={"size": [9, 9], "counts": "11"})),
    ),
    Fault(
        "rle-damaged",
        changed(17, 3, lambda e: e.update(segmentation={"size": [64, 64], "counts": "1a2?"})),
    ),
    Fault("polygon-odd", changed(17, 4, polygons([1, 1, 9, 1, 9, 9, 4]))),
    Fault("polygon-number", changed(17, 5, polygons([1, 1, float("nan"), 1, 9, 9]))),
    Fault("polygon-far", changed(17, 6, polygons([1, 1, 1e8, 1, 9, 9]))),
    Fault("polygon-short", changed(22, 0, with_square(segmentation=[SQUARE, [1, 2, 3, 4]]))),
    Fault("crowd-polygon", changed(22, 1, with_square(iscrowd=1))),
    Fault("box-missing", changed(22, 2, lambda entry: entry.pop("bbox"))),
    Fault("box-kind", changed(22, 3, lambda entry: entry.update(bbox=[1, 2, None, 4]))),
    Fault("box-off", changed(22, 4, box_moved)),
    Fault("area-off", changed(22, 5, lambda entry: entry.update(area=entry["area"] * 2 + 9))),
    Fault("annotation-image-unknown", image_unknown),
    Fault("instances-lack-image", instances_lack_image),
    Fault("panoptic-lacks-image", panoptic_lacks_image),
    Fault("instances-lack-category", instances_lack_category),
    Fault("categories-disagree", categories_disagree),
    Fault("png-missing", png_missing),
    Fault("png-damaged", png_damaged),
    Fault("png-mode", png_mode),
    Fault("png-size", png_size),
    Fault("png-id-unknown", png_id_unknown),
    Fault("png-all-void", png_void),
    Fault("png-outside", png_outside),
    Fault("segment-id", segment_changed(22, 0, id=0)),
    Fault("segment-id-twice", segment_id_twice),
    Fault("segment-no-pixels", segment_without_pixels),
    Fault("segment-entry", segment_no_mapping),
    Fault("segment-box-off", segment_changed(26, 0, bbox=[0, 0, 3, 3])),
    Fault("segment-area-off", segment_changed(26, 1, area=1)),
    Fault("panoptic-entry", entry_without_segments),
    Fault("panoptic-entry-missing", entry_missing),
    Fault("panoptic-entry-twice", entry_twice),
    Fault("split-same-image", same_in_val),
    Fault("split-similar-image", similar_in_val),
    Fault("split-categories", split_categories),
]
"""Faults that do not get in each other's way, in an order in which all can be planted."""
