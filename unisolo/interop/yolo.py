"""Instances as lines of a YOLO label file."""

from __future__ import annotations

import numpy as np

from unisolo.interop.outlines import join_rings, trace_mask
from unisolo.results import Result

__all__ = ["to_yolo"]


def to_yolo(result: Result) -> list[str]:
    """Return one line an instance; see `Result.to_yolo`."""
    host = result.cpu()
    height, width = host.image_size
    lines = []
    for one in host:
        masks = one.masks
        if masks is None:
            left, top, right, bottom = one.boxes[0].tolist()
            middle = [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]
            values = np.array(middle) / [width, height, width, height]
        else:
            parts = trace_mask(masks[0].numpy())
            if not parts:
                continue
            values = (join_rings(parts) / [width, height]).reshape(-1)
        # Nine digits: a corner comes back to a thousandth of a pixel of any image.
        lines.append(" ".join([str(one.labels.item()), *(f"{value:.9g}" for value in values)]))
    return lines
