"""Data sets: from files on disk to `Sample` and `Batch`."""

from __future__ import annotations

from unisolo.data.coco_instance import CocoInstance
from unisolo.data.coco_panoptic import CocoPanoptic

__all__ = ["DATASETS", "CocoInstance", "CocoPanoptic"]

DATASETS: dict[str, type[CocoInstance] | type[CocoPanoptic]] = {
    "coco_instance": CocoInstance,
    "coco_panoptic": CocoPanoptic,
}
"""Data set classes by the name used in `data.dataset`; a new one is one line here."""
