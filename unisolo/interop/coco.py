"""Instances in the COCO results format, there and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from unisolo.categories import Categories
from unisolo.encoding import encode_rle
from unisolo.ops.boxes import masks_to_boxes, xyxy_to_xywh
from unisolo.reading import short
from unisolo.results import Result
from unisolo.segmentation import decode, usable

__all__ = ["from_coco", "to_coco"]


def to_coco(result: Result, image_id: int | str) -> list[dict[str, Any]]:
    """Write the instances as COCO results; see `Result.to_coco`."""
    host = result.cpu()
    entries = [
        {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}
        for category_id, box, score in zip(
            host.category_ids.tolist(),
            # In doubles, so that adding the width again gives the same side.
            xyxy_to_xywh(host.boxes.double()).tolist(),
            host.scores.tolist(),
            strict=True,
        )
    ]
    if host.packed_masks is not None:
        rles = encode_rle(host.packed_masks.numpy(), result.image_size[1])
        for entry, rle in zip(entries, rles, strict=True):
            entry["segmentation"] = rle
    return entries


def from_coco(
    entries: Iterable[Mapping[str, Any]], categories: Categories, image_size: tuple[int, int]
) -> Result:
    """Read the instances of one image; see `Result.from_coco`."""
    objects = [entry for entry in entries if not entry.get("iscrowd")]
    images = list(dict.fromkeys(entry.get("image_id") for entry in objects))
    if len(images) > 1:
        raise ValueError(
            f"the entries are of {len(images)} images ({short(images)}); give those of one image"
        )
    with_masks = [bool(entry.get("segmentation")) for entry in objects]
    if any(with_masks) and not all(with_masks):
        raise ValueError(
            f"entry {with_masks.index(False)} has no 'segmentation' and others have one; "
            "give all of them masks or none"
        )
    labels, scores, boxes, masks = [], [], [], []
    for number, entry in enumerate(objects):
        try:
            labels.append(_label(entry, categories))
            scores.append(float(entry.get("score", 1.0)))
            if any(with_masks):
                masks.append(_mask(entry["segmentation"], image_size))
            boxes.append(_box(entry, masks))
        except (TypeError, ValueError) as error:
            raise ValueError(f"entry {number}: {error}") from None
    height, width = image_size
    packed = np.stack(masks) if masks else np.zeros((0, height, (width + 7) // 8), np.uint8)
    boxes_only = bool(objects) and not masks
    return Result(
        image_size=(height, width),
        categories=categories,
        scores=torch.tensor(scores, dtype=torch.float32),
        labels=torch.tensor(labels, dtype=torch.int64),
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        packed_masks=None if boxes_only else torch.from_numpy(packed),
    )


def _label(entry: Mapping[str, Any], categories: Categories) -> int:
    category_id: Any = entry.get("category_id")
    if category_id not in categories:
        raise ValueError(f"category id {short(category_id)} is not one of the categories")
    label: int = categories.label(category_id)
    if not categories[label].isthing:
        raise ValueError(f"category id {category_id} is stuff; instances are of things")
    return label


def _box(entry: Mapping[str, Any], masks: Sequence[NDArray[np.uint8]]) -> list[float]:
    """The entry's box as xyxy; where it has none, that of its mask."""
    box = entry.get("bbox")
    if box is None and masks:
        width = masks[-1].shape[1] * 8
        mask = np.unpackbits(masks[-1], axis=-1).reshape(1, -1, width).astype(bool)
        return list(masks_to_boxes(torch.from_numpy(mask))[0].tolist())
    if not isinstance(box, Sequence) or len(box) != 4:
        raise ValueError(f"'bbox' is {short(box)}; give x, y, width, height")
    left, top, width, height = map(float, box)
    return [left, top, left + width, top + height]


def _mask(segmentation: Any, image_size: tuple[int, int]) -> NDArray[np.uint8]:
    """A COCO segmentation (RLE or polygons) as [H, ceil(W / 8)] packed bits."""
    height, width = image_size
    if isinstance(segmentation, Mapping):
        segmentation = dict(segmentation)
    elif isinstance(segmentation, Sequence) and not isinstance(segmentation, str):
        segmentation = [[float(value) for value in polygon] for polygon in segmentation]
    kept = usable(segmentation)
    if kept is None:
        return np.zeros((height, (width + 7) // 8), dtype=np.uint8)
    return np.packbits(decode(kept, height, width), axis=-1)
