"""What a split holds, in numbers, and how the grids fit its objects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from unisolo.build import build_grid
from unisolo.config import Config
from unisolo.data.coco_files import positive_box
from unisolo.data.raw import ObjectBoxes
from unisolo.doctor.coverage import (
    FEW,
    Coverage,
    Trial,
    measure_coverage,
    object_sides,
    try_settings,
)
from unisolo.doctor.split import Split
from unisolo.structures import GridSpec

__all__ = ["SplitBoxes", "Statistics", "measure_split"]

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
"""Of sqrt(box area)."""
_SMALL, _MEDIUM = 32**2, 96**2  # COCO's borders, areas in pixels of the image file


@dataclass(frozen=True)
class Statistics:
    """Numbers of one split.

    Attributes:
        images: Usable images.
        objects: Objects that train (crowd left out).
        crowd: Crowd regions.
        empty_images: Images without an object.
        most_objects: Objects of the fullest image.
        categories: Objects per category name; of stuff, segments.
        sizes: Objects by COCO's small, medium and large (area in pixels of the file).
        sides: Quantiles of sqrt(box area) at the training size, see `QUANTILES`.
        grid: Grids and scale ranges in effect; None without objects.
        coverage: How they fit the objects; None without objects.
        trials: What other settings would come to; the first is the settings as they are.
    """

    images: int
    objects: int
    crowd: int
    empty_images: int
    most_objects: int
    categories: dict[str, int]
    sizes: dict[str, int]
    sides: tuple[float, ...]
    grid: GridSpec | None = None
    coverage: Coverage | None = None
    trials: tuple[Trial, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "sides": dict(zip(map(str, QUANTILES), self.sides, strict=False))}

    @property
    def advice(self) -> str:
        """A sentence on the settings; empty where there is nothing to say."""
        if not self.trials or not self.trials[0].lost:
            return ""
        now, best = self.trials[0], min(self.trials, key=lambda trial: trial.lost)
        share = f"{now.lost} of {now.looked_at} objects get no cell"
        if now.lost <= FEW * now.looked_at:
            return f"{share}, which is little: the grids fit these objects"
        if not best.settings:
            return f"{share}; no setting tried leaves fewer: they overlap too much for any grid"
        return f"{share}; with {' '.join(best.settings)} it would be {best.lost}"


class SplitBoxes:
    """The objects of a split as it should be, as the readers would give them."""

    def __init__(self, split: Split) -> None:
        rows = []
        file = split.files[0]
        numbers = {image_id: number for number, image_id in enumerate(sorted(file.images.usable))}
        for entry in objects_of(split):
            size = file.images.usable[entry["image_id"]].size
            box = positive_box(entry)
            if size is not None and not entry.get("iscrowd") and box is not None:
                rows.append([*box, *size, numbers[entry["image_id"]]])
        rows.sort(key=lambda row: row[-1])
        self._boxes = ObjectBoxes.from_rows(rows)

    def object_boxes(self) -> ObjectBoxes:
        """Boxes of all objects, crowd left out."""
        return self._boxes


def objects_of(split: Split) -> Iterator[dict[str, Any]]:
    """Yield annotations of things, crowd included: of the file that trains."""
    file = split.files[0]
    for entry in file.annotations:
        if file is not split.panoptic:
            yield entry
            continue
        for segment in entry["segments_info"]:
            if file.categories[segment["category_id"]].get("isthing"):
                yield {**segment, "image_id": entry["image_id"]}


def _histogram(
    categories: Mapping[int, Mapping[str, Any]], counts: Mapping[int, int]
) -> dict[str, int]:
    """Counts by name, the largest first; names that repeat are told apart by their ids."""
    names = Counter(str(entry["name"]) for entry in categories.values())
    histogram: dict[str, int] = {}
    for category_id in sorted(categories, key=lambda category_id: -counts[category_id]):
        name = str(categories[category_id]["name"])
        unique = name if names[name] == 1 else f"{name} (id {category_id})"
        histogram[unique] = counts[category_id]
    return histogram


def measure_split(split: Split, config: Config, *, advise: bool) -> Statistics:
    """Count what a split holds.

    Args:
        split: It must have a file that could be read.
        config: Says how images are resized and what the grids are.
        advise: Whether to try other settings, too: for the split that trains.
    """
    file = split.files[0]
    objects = list(objects_of(split))
    mine = [entry for entry in objects if not entry.get("iscrowd")]
    per_image = Counter(entry["image_id"] for entry in mine)
    counts = Counter(entry["category_id"] for entry in mine)
    if file is split.panoptic:
        for entry in file.annotations:
            counts.update(
                segment["category_id"]
                for segment in entry["segments_info"]
                if not file.categories[segment["category_id"]].get("isthing")
            )
    areas = np.array([entry.get("area") or 0 for entry in mine], dtype=np.float64)
    boxes = SplitBoxes(split)
    sides = object_sides(boxes, config).numpy()
    quantiles = np.quantile(sides, QUANTILES).tolist() if len(sides) else []
    grid = coverage = None
    trials: list[Trial] = []
    if (sides > 0).any():
        grid = build_grid(config, object_sides(boxes, config))
        coverage = measure_coverage(boxes, config, grid)
        trials = try_settings(boxes, config) if advise else []
    return Statistics(
        images=len(file.images.usable),
        objects=len(mine),
        crowd=len(objects) - len(mine),
        empty_images=len(file.images.usable) - len(per_image),
        most_objects=max(per_image.values(), default=0),
        categories=_histogram(file.categories, counts),
        sizes={
            "small": int((areas < _SMALL).sum()),
            "medium": int(((areas >= _SMALL) & (areas < _MEDIUM)).sum()),
            "large": int((areas >= _MEDIUM).sum()),
        },
        sides=tuple(quantiles),
        grid=grid,
        coverage=coverage,
        trials=tuple(trials),
    )
