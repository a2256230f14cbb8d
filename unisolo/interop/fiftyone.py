"""Instances and the panoptic map as FiftyOne labels.

FiftyOne has no panoptic label: its `Segmentation` knows one category a pixel and no objects. So the
map is given as categories, and the objects are the detections.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from unisolo.categories import Categories
from unisolo.ops.boxes import masks_to_boxes
from unisolo.results import Result

__all__ = ["mask_targets", "to_fiftyone"]

_NUDGE = 1e-6
"""FiftyOne cuts fractions of pixels off, so 53 * (2 / 53) = 1.9999... would cost one."""


def mask_targets(categories: Categories) -> dict[int, str]:
    """Return the names of a `Segmentation`'s values, for `dataset.default_mask_targets`.

    Args:
        categories: Those of the results.

    Returns:
        Names by value, which is label + 1; 0 is void and has none.
    """
    return {label + 1: category.name for label, category in enumerate(categories)}


def to_fiftyone(result: Result) -> dict[str, Any]:
    """Return FiftyOne labels by field name; see `Result.to_fiftyone`."""
    try:
        from fiftyone import Detection, Detections, Segmentation
    except ImportError as error:
        raise ImportError("to_fiftyone needs fiftyone: pip install fiftyone") from error
    host = result.cpu()
    height, width = host.image_size
    detections = []
    for one in host:
        masks, mask = one.masks, None
        # FiftyOne stretches a mask over its box, so the box must be the mask's own.
        left, top, right, bottom = (one.boxes if masks is None else masks_to_boxes(masks))[
            0
        ].tolist()
        if masks is not None and right > left:
            mask = masks[0, int(top) : int(bottom), int(left) : int(right)].numpy()
        detections.append(
            Detection(
                label=one.categories[int(one.labels[0])].name,
                bounding_box=[
                    (left + _NUDGE) / width,
                    (top + _NUDGE) / height,
                    (right - left) / width,
                    (bottom - top) / height,
                ],
                mask=mask,
                confidence=float(one.scores[0]),
            )
        )
    labels = {"instances": Detections(detections=detections)}
    if host.panoptic_seg is not None and host.segments_info is not None:
        ids = host.panoptic_seg.numpy()
        # Category by segment number, so that the map is walked once for any number of segments.
        values, places = np.unique(ids, return_inverse=True)
        known = {segment.id: segment.label + 1 for segment in host.segments_info}
        table = np.array([known.get(value, 0) for value in values.tolist()], dtype=np.int32)
        kind = np.uint8 if len(host.categories) < 256 else np.uint16
        mask = table[places.reshape(ids.shape)].astype(kind)
        labels["panoptic"] = Segmentation(mask=mask)
    return labels
