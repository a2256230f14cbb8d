"""Instances as a LabelMe file.

An object without holes is polygons along the edges of its pixels, tied by `group_id` where it has
several parts. Polygons of LabelMe have no holes, so an object with holes is a shape of type "mask"
(LabelMe 5.1 and later): a PNG of its box, exact to the pixel.
"""

from __future__ import annotations

import base64
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unisolo.encoding import encode_png
from unisolo.interop.outlines import trace_mask
from unisolo.results import Result

__all__ = ["to_labelme"]

_VERSION = "5.5.0"
"""Of LabelMe, whose fields these are."""


def to_labelme(result: Result, image_path: str | PurePath) -> dict[str, Any]:
    """Return the content of a LabelMe file; see `Result.to_labelme`."""
    host = result.cpu()
    shapes = [shape for number, one in enumerate(host, start=1) for shape in _shapes(one, number)]
    height, width = host.image_size
    return {
        "version": _VERSION,
        "flags": {},
        "shapes": shapes,
        "imagePath": PurePath(image_path).as_posix(),  # read on every system
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }


def _shapes(one: Result, number: int) -> list[dict[str, Any]]:
    """The shapes of one instance; `number` ties its parts together."""
    common = {
        "label": one.categories[int(one.labels[0])].name,
        "group_id": None,
        "description": "",
        "flags": {},
        "mask": None,
        "score": float(one.scores[0]),
    }
    masks = one.masks
    if masks is None:
        left, top, right, bottom = one.boxes[0].tolist()
        corners = [[left, top], [right, bottom]]
        return [{**common, "shape_type": "rectangle", "points": corners}]
    mask = masks[0].numpy()
    parts = trace_mask(mask)
    if any(part.holes for part in parts):
        return [{**common, "shape_type": "mask", **_cut_mask(mask)}]
    return [
        {
            **common,
            "group_id": number if len(parts) > 1 else None,
            "shape_type": "polygon",
            "points": part.outer.astype(float).tolist(),
        }
        for part in parts
    ]


def _cut_mask(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """`points` (first and last pixel, both inside) and `mask` (base64 PNG of 0 and 1)."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, bottom, left, right = (int(v) for v in (rows[0], rows[-1], columns[0], columns[-1]))
    cut = mask[top : bottom + 1, left : right + 1].astype(np.uint8)
    return {
        "points": [[float(left), float(top)], [float(right), float(bottom)]],
        "mask": base64.b64encode(encode_png(cut)).decode("ascii"),
    }
