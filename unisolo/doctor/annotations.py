"""Annotations of an instances file: each is checked, and returned as it should be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unisolo import segmentation as masks
from unisolo.data.coco_files import finite_numbers
from unisolo.doctor.entries import Images, is_id
from unisolo.doctor.findings import Evidence, Findings, short

__all__ = [
    "BOX_TOLERANCE",
    "area_is_off",
    "box_distance",
    "check_annotations",
    "is_crowd_flag",
]

BOX_TOLERANCE = 2.0
"""Pixels that a side of a box may lie beside the mask's. Polygon corners lie anywhere inside a
pixel and rasterising rounds them, and tools differ on whether the last pixel counts."""

AREA_TOLERANCE = 0.05
"""Share that an area may be off: COCO's own areas are those of the polygons, not of pixels."""

_HUGE = 1e9
"""No picture has sides or areas beyond this."""


@dataclass(frozen=True)
class _Mask:
    """A usable mask: its spelling as it should be, its pixels and its box."""

    segmentation: Any
    area: int
    box: tuple[float, ...]
    exact: bool


def is_crowd_flag(value: Any) -> bool:
    """Whether a JSON value is what `iscrowd` may be."""
    return isinstance(value, int) and value in (0, 1)


def box_distance(one: Any, other: Any) -> float:
    """Return how far apart the farthest sides of two boxes [x, y, width, height] lie."""
    edges = [(box[0], box[1], box[0] + box[2], box[1] + box[3]) for box in (one, other)]
    return float(max(abs(a - b) for a, b in zip(*edges, strict=True)))


def area_is_off(area: Any, pixels: int, box: Any, *, exact: bool) -> bool:
    """Whether an area disagrees with the number of pixels of its mask.

    Args:
        area: As in the JSON file.
        pixels: Of the mask.
        box: [x, y, width, height] of the mask.
        exact: The mask came as RLE or PNG. A polygon's border runs through pixels, each of which
            is in or out as a whole, so its area may be off by half a pixel along the border too.
    """
    if not isinstance(area, (int, float)) or not abs(area) < _HUGE:
        return True
    slack = max(2.0, AREA_TOLERANCE * pixels) + (0 if exact else box[2] + box[3])
    return abs(area - pixels) > slack


def check_annotations(
    file: Path,
    entries: list[Any],
    images: Images,
    things: Mapping[int, Any],
    log: Findings,
    *,
    pixels: bool,
) -> tuple[list[dict[str, Any]], set[int]]:
    """Check the annotations of an instances file.

    Args:
        file: The JSON file.
        entries: Its 'annotations'.
        images: Its images; annotations of images that cannot be used are passed over.
        things: Its thing categories by id.
        log: Receives what is wrong.
        pixels: Whether to look at the masks as well.

    Returns:
        The usable annotations as they should be, and the category ids in use.
    """
    kept: list[dict[str, Any]] = []
    used: set[int] = set()
    ids: set[int] = set()
    renumber: list[int] = []
    for number, entry in enumerate(entries):
        checker = _Checker(file, number, entry, images, log)
        mended = checker.check(things, pixels)
        if isinstance(entry, dict) and is_id(entry.get("category_id")):
            used.add(entry["category_id"])
        if mended is None:
            continue
        if not checker.check_id(ids):
            renumber.append(len(kept))
        kept.append(mended)
    for new_id, index in enumerate(renumber, start=max(ids, default=0) + 1):
        kept[index] = {**kept[index], "id": new_id}
    boxes_only = [entry for entry in entries if isinstance(entry, dict)]
    if boxes_only and not any(entry.get("segmentation") for entry in boxes_only):
        log.add("masks-none", file, f"{len(boxes_only)} annotations without a mask")
    return kept, used


class _Checker:
    """The checks of one annotation."""

    def __init__(self, file: Path, number: int, entry: Any, images: Images, log: Findings) -> None:
        self._file = file
        self._number = number
        self._entry = entry
        self._images = images
        self._log = log

    def say(self, code: str, message: str, *, weight: float = 0.0, **shown: Any) -> None:
        image_id = self._entry.get("image_id")
        image = self._images.usable.get(image_id) if is_id(image_id) else None
        evidence = None if image is None or not shown else Evidence(image.path, **shown)
        annotation_id = self._entry.get("id")
        if annotation_id is None:
            message = f"entry {self._number} under 'annotations': {message}"
        self._log.add(
            code,
            self._file,
            message,
            image_id=image_id,
            annotation_id=annotation_id,
            weight=weight,
            evidence=evidence,
        )

    def check(self, things: Mapping[int, Any], pixels: bool) -> dict[str, Any] | None:
        """Return the annotation as it should be; None = it is of no use."""
        entry = self._entry
        if not isinstance(entry, dict):
            message = f"entry {self._number} under 'annotations' is no mapping"
            self._log.add("annotation-entry", self._file, message)
            return None
        image_id, category_id = entry.get("image_id"), entry.get("category_id")
        if not is_id(image_id) or category_id is None:
            self.say("annotation-entry", "it needs a whole-number image_id and a category_id")
            return None
        if image_id not in self._images.named:
            self.say("annotation-image-unknown", f"image_id {image_id}")
            return None
        image = self._images.usable.get(image_id)
        known = is_id(category_id) and category_id in things
        if not known:
            box: Any = entry.get("bbox")
            shown: dict[str, Any] = {"box": tuple(box)} if finite_numbers(box, 4) else {}
            self.say("category-unknown", f"category_id {short(category_id)}", **shown)
        if not is_crowd_flag(entry.get("iscrowd", 0)):
            self.say("crowd-kind", f"iscrowd {short(entry['iscrowd'])}")
            return None
        if image is None or not known:
            return None
        if image.size is None:
            return None
        if not pixels:
            self._check_box_in_frame(entry.get("bbox"), image.size)
            return entry
        mask = self._check_mask(image.size)
        if mask is None:
            return None
        mended = {**entry, "segmentation": mask.segmentation}
        if self._box_is_off(mask, image.size):
            mended["bbox"] = list(mask.box)
        if area_is_off(entry.get("area"), mask.area, mask.box, exact=mask.exact):
            off = entry.get("area")
            message = f"area {short(off)}, but its mask has {mask.area} pixels"
            far = abs(off - mask.area) if isinstance(off, (int, float)) else 0
            weight = float(far) if far < _HUGE else 0.0
            self.say("area-off", message, weight=weight, segmentation=mask.segmentation)
            mended["area"] = mask.area
        return mended

    def check_id(self, seen: set[int]) -> bool:
        """Whether the annotation's id can stay; it is then among those seen."""
        annotation_id = self._entry.get("id")
        if not is_id(annotation_id) or annotation_id < 1:
            self.say("annotation-id", f"id {short(annotation_id)}")
            return False
        if annotation_id in seen:
            self.say("annotation-id-twice", f"id {annotation_id} was used before")
            return False
        seen.add(annotation_id)
        return True

    def _check_mask(self, size: tuple[int, int]) -> _Mask | None:
        segmentation = self._entry.get("segmentation")
        box = self._entry.get("bbox")
        shown: dict[str, Any] = {"box": tuple(box)} if finite_numbers(box, 4) else {}
        try:
            usable = masks.usable(segmentation)
            if usable is None:
                code = "mask-empty" if segmentation else "mask-missing"
                self.say(code, "fewer than three points" if segmentation else "no mask", **shown)
                return None
            area, (left, top, right, bottom) = masks.area_and_box(usable, *size)
        except masks.SegmentationError as error:
            self.say(error.code, str(error), **shown)
            return None
        if isinstance(usable, list):
            if len(usable) < len(segmentation):
                self.say("polygon-short", f"{len(segmentation) - len(usable)} of its polygons")
            usable = self._check_polygons(usable, size, shown)
            if usable is None:
                return None
        if area == 0:
            self.say("mask-empty", "it covers the middle of no pixel", **shown)
            return None
        exact = isinstance(segmentation, dict)
        return _Mask(usable, area, (left, top, right - left, bottom - top), exact)

    def _check_polygons(
        self, polygons: list[Any], size: tuple[int, int], shown: dict[str, Any]
    ) -> Any:
        """Check where polygons lie; return them, or RLE where they must change; None = outside."""
        xs = [x for polygon in polygons for x in polygon[::2]]
        ys = [y for polygon in polygons for y in polygon[1::2]]
        height, width = size
        extent = f"x {min(xs):g} to {max(xs):g}, y {min(ys):g} to {max(ys):g}"
        message = f"{extent} in an image of {width} x {height} (width x height)"
        if max(xs) <= 0 or max(ys) <= 0 or min(xs) >= width or min(ys) >= height:
            self.say("mask-outside", message, **shown)
            return None
        beyond = max(-min(xs), -min(ys), max(xs) - width, max(ys) - height)
        crowd = bool(self._entry.get("iscrowd"))
        if beyond > BOX_TOLERANCE:
            self.say("mask-partly-outside", message, weight=beyond, segmentation=polygons)
        if crowd:
            self.say("crowd-polygon", f"{len(polygons)} polygons", segmentation=polygons)
        return _as_rle(polygons, size) if crowd or beyond > BOX_TOLERANCE else polygons

    def _box_is_off(self, mask: _Mask, size: tuple[int, int]) -> bool:
        """Report a box that is missing, malformed, or not that of the mask."""
        box = self._entry.get("bbox")
        if box is None:
            self.say("box-missing", "no bbox", mask_box=mask.box)
            return True
        if not finite_numbers(box, 4):
            self.say("box-kind", f"bbox {short(box)}", mask_box=mask.box)
            return True
        far = box_distance(box, mask.box)
        if far <= BOX_TOLERANCE and min(box[2:]) > 0:
            return False
        self.say(
            "box-off",
            f"bbox {_numbers(box)}, but its mask's is {_numbers(mask.box)} ({far:.0f} px off)",
            weight=far,
            box=tuple(box),
            mask_box=mask.box,
            segmentation=mask.segmentation,
        )
        return True

    def _check_box_in_frame(self, box: Any, size: tuple[int, int]) -> None:
        """What can be said of a box without its mask."""
        if box is None:
            self.say("box-missing", "no bbox")
        elif not finite_numbers(box, 4):
            self.say("box-kind", f"bbox {short(box)}")
        else:
            beyond = max(-box[0], -box[1], box[0] + box[2] - size[1], box[1] + box[3] - size[0])
            if beyond > BOX_TOLERANCE or min(box[2:]) <= 0:
                self.say("box-off", f"bbox {_numbers(box)} in an image of {size[1]} x {size[0]}")


def _as_rle(segmentation: Any, size: tuple[int, int]) -> dict[str, Any]:
    rle = masks.to_rle(segmentation, *size)
    return {"size": list(size), "counts": rle["counts"].decode("ascii")}


def _numbers(box: Any) -> str:
    return "[" + ", ".join(f"{side:g}" for side in box) + "]"
