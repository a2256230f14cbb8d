"""Panoptic annotations and their PNGs: each is checked, and returned as it should be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from unisolo.data.coco_files import DatasetError, finite_numbers, path_inside
from unisolo.data.coco_panoptic import read_segment_ids
from unisolo.data.raw import MAX_OBJECTS, areas_and_boxes
from unisolo.doctor.annotations import (
    BOX_TOLERANCE,
    area_is_off,
    box_distance,
    is_crowd_flag,
)
from unisolo.doctor.entries import ImageEntry, Images, is_id
from unisolo.doctor.findings import Evidence, Findings, bare, short

__all__ = ["Panoptic", "check_panoptic"]

_MAX_ID = 2**24 - 1


@dataclass
class Panoptic:
    """The usable part of a panoptic file.

    Attributes:
        annotations: By image id, as they should be.
        pngs: The PNG of each.
        rewrite: Image ids whose PNG has pixels that must become void.
        used: Category ids in use.
    """

    annotations: dict[int, dict[str, Any]] = field(default_factory=dict)
    pngs: dict[int, Path] = field(default_factory=dict)
    rewrite: set[int] = field(default_factory=set)
    used: set[int] = field(default_factory=set)


def check_panoptic(
    file: Path,
    entries: list[Any],
    images: Images,
    categories: Mapping[int, Any],
    panoptic_dir: Path,
    log: Findings,
    *,
    pixels: bool,
) -> Panoptic:
    """Check the annotations of a panoptic file.

    Args:
        file: The JSON file.
        entries: Its 'annotations'.
        images: Its images.
        categories: Its categories by id.
        panoptic_dir: Folder of the PNGs.
        log: Receives what is wrong.
        pixels: Whether to read the PNGs as well.
    """
    panoptic = Panoptic()
    seen: set[int] = set()
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or not is_id(entry.get("image_id")):
            log.add("panoptic-entry", file, f"entry {number} has no whole number as image_id")
            continue
        image_id = entry["image_id"]
        if image_id not in images.named:
            log.add("annotation-image-unknown", file, f"image_id {image_id}", image_id=image_id)
            continue
        if image_id in seen:
            message = f"a second one, of {entry.get('file_name')!r}"
            log.add("panoptic-entry-twice", file, message, image_id=image_id)
            continue
        seen.add(image_id)
        image = images.usable.get(image_id)
        checker = _Checker(file, entry, image, categories, log)
        checked = checker.check(image_id, panoptic_dir, pixels)
        panoptic.used |= checker.used
        if checked is not None:
            panoptic.annotations[image_id], panoptic.pngs[image_id], void = checked
            if void:
                panoptic.rewrite.add(image_id)
    for image_id in sorted(set(images.usable) - seen):
        name = images.usable[image_id].entry["file_name"]
        log.add("panoptic-entry-missing", file, f"image {name!r}", image_id=image_id)
    return panoptic


class _Checker:
    """The checks of one image's panoptic annotation."""

    def __init__(
        self,
        file: Path,
        entry: dict[str, Any],
        image: ImageEntry | None,
        categories: Mapping[int, Any],
        log: Findings,
    ) -> None:
        self._file = file
        self._entry = entry
        self._image = image
        self._categories = categories
        self._log = log
        self._png: Path | None = None
        self.used: set[int] = set()

    def say(
        self,
        code: str,
        message: str,
        *,
        segment: Any = None,
        file: Path | None = None,
        weight: float = 0.0,
        **shown: Any,
    ) -> None:
        evidence = None
        if self._image is not None and (shown or segment is not None):
            number = segment if is_id(segment) else None
            evidence = Evidence(self._image.path, png=self._png, segment_id=number, **shown)
        self._log.add(
            code,
            self._file if file is None else file,
            message,
            image_id=self._entry["image_id"],
            segment_id=segment,
            weight=weight,
            evidence=evidence,
        )

    def check(
        self, image_id: int, panoptic_dir: Path, pixels: bool
    ) -> tuple[dict[str, Any], Path, bool] | None:
        """Return the annotation as it should be, its PNG, and whether pixels must become void."""
        entry, name = self._entry, self._entry.get("file_name")
        if not isinstance(name, str) or not isinstance(entry.get("segments_info"), list):
            self.say("panoptic-entry", "it needs a file_name and a list segments_info")
            return None
        try:
            self._png = path_inside(panoptic_dir, name, str(self._file))
        except DatasetError:
            self.say("png-outside", f"file_name {name!r}")
            return None
        segments = self._check_segments(entry["segments_info"])
        if self._image is None or self._image.size is None:
            return None
        if not pixels:
            if not self._png.is_file():
                self.say("png-missing", f"file_name {name!r}", file=self._png)
                return None
            return {**entry, "segments_info": list(segments.values())}, self._png, False
        height, width = self._image.size
        record = {"id": image_id, "height": height, "width": width}
        try:
            ids = read_segment_ids(self._png, record)
        except DatasetError as error:
            self.say(error.code, bare(error, self._png), file=self._png)
            return None
        segments, void = self._compare(segments, ids)
        return {**entry, "segments_info": list(segments.values())}, self._png, void

    def _check_segments(self, entries: list[Any]) -> dict[int, dict[str, Any]]:
        """Check the list of segments by itself; return the usable ones by id."""
        usable: dict[int, dict[str, Any]] = {}
        for number, entry in enumerate(entries):
            if not isinstance(entry, dict) or "id" not in entry or "category_id" not in entry:
                self.say("segment-entry", f"entry {number} of segments_info")
                continue
            segment_id, category_id = entry["id"], entry["category_id"]
            if not is_id(segment_id) or not 0 < segment_id <= _MAX_ID:
                self.say("segment-id", f"id {short(segment_id)}", segment=segment_id)
            elif segment_id in usable:
                self.say("segment-id-twice", f"id {segment_id}", segment=segment_id)
            elif not is_id(category_id) or category_id not in self._categories:
                message = f"category_id {short(category_id)}"
                self.say("category-unknown", message, segment=segment_id)
            elif not is_crowd_flag(entry.get("iscrowd", 0)):
                message = f"iscrowd {short(entry['iscrowd'])}"
                self.say("crowd-kind", message, segment=segment_id)
            else:
                self.used.add(category_id)
                usable[segment_id] = entry
        return dict(list(usable.items())[:MAX_OBJECTS])

    def _compare(
        self, segments: dict[int, dict[str, Any]], ids: Any
    ) -> tuple[dict[int, dict[str, Any]], bool]:
        """Hold the segments against the PNG's pixels."""
        known = np.array([0, *sorted(segments)], dtype=np.int32)
        numbers = np.searchsorted(known, ids).clip(max=len(known) - 1)
        strange = known[numbers] != ids
        # What the JSON file lists and this doctor refuses has its own finding.
        listed = {
            entry["id"]
            for entry in self._entry["segments_info"]
            if isinstance(entry, dict) and is_id(entry.get("id"))
        }
        for segment_id, count in zip(*np.unique(ids[strange], return_counts=True), strict=True):
            if int(segment_id) not in listed:
                message = f"{count} pixels of segment id {segment_id}"
                weight = float(count)
                self.say(
                    "png-id-unknown",
                    message,
                    segment=int(segment_id),
                    file=self._png,
                    weight=weight,
                )
        if not ids.any():
            self.say("png-all-void", "every pixel is 0", file=self._png)
        numbers[strange] = 0
        areas, boxes = areas_and_boxes(numbers[None].astype(np.int16), len(segments))
        kept: dict[int, dict[str, Any]] = {}
        rank = {segment_id: number for number, segment_id in enumerate(sorted(segments))}
        for segment_id, entry in segments.items():
            number = rank[segment_id]
            if not areas[number]:
                self.say("segment-no-pixels", f"id {segment_id}", segment=segment_id)
                continue
            left, top, right, bottom = (int(side) for side in boxes[number])
            box = (left, top, right - left, bottom - top)
            kept[segment_id] = self._measured(entry, int(areas[number]), box)
        return kept, bool(strange.any())

    def _measured(
        self, entry: dict[str, Any], area: int, box: tuple[int, int, int, int]
    ) -> dict[str, Any]:
        """Return a segment with box and area as they should be; report them where they are off."""
        said: Any = entry.get("bbox")
        given = entry.get("area")
        far = box_distance(said, box) if finite_numbers(said, 4) else float("inf")
        if far > BOX_TOLERANCE:
            message = f"bbox {short(said)}, but its pixels' is {list(box)}"
            shown: dict[str, Any] = {"box": tuple(said)} if finite_numbers(said, 4) else {}
            weight = far if finite_numbers(said, 4) else 0.0
            self.say(
                "segment-box-off",
                message,
                segment=entry["id"],
                weight=weight,
                mask_box=box,
                **shown,
            )
            entry = {**entry, "bbox": list(box)}
        if area_is_off(given, area, box, exact=True):
            message = f"area {short(given)}, but it has {area} pixels"
            self.say("segment-area-off", message, segment=entry["id"])
            entry = {**entry, "area": area}
        return entry
