"""Pictures of findings: the image with the box and the mask in question."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from PIL import Image, ImageDraw

from unisolo import segmentation as masks
from unisolo.data.coco_panoptic import read_segment_ids
from unisolo.data.images import ImageError, read_image
from unisolo.doctor.findings import Evidence
from unisolo.visualize import draw_grid

__all__ = ["draw_evidence"]

_LONG_SIDE = 480
_SMALL_SIDE = 240
_MASK, _MASK_BOX, _FILE_BOX = (0, 114, 178), (86, 180, 233), (213, 94, 0)
_OPACITY = 0.5


def draw_evidence(evidence: Evidence) -> Image.Image | None:
    """Draw a finding: the mask and its box in blue, the file's box in orange.

    Returns:
        An RGB picture of at most 480 pixels a side (two of them where two images are compared), or
        None where there is nothing that can be drawn.
    """
    try:
        picture = Image.fromarray(_painted(evidence))
        if evidence.other is not None:
            return draw_grid([_scaled(picture)[0], _scaled(_open(evidence.other))[0]], columns=2)
    except ImageError:
        return None
    frame = picture.size
    picture, scale = _scaled(picture)
    # A box that leaves the image is the finding: show where it goes, up to half a picture away.
    boxes = [box for box in (evidence.mask_box, evidence.box) if box is not None]
    edges = [(box[0], box[1], box[0] + box[2], box[1] + box[3]) for box in boxes]
    margin = round(scale * _beyond(edges, frame))
    canvas = Image.new(
        "RGB", (picture.width + 2 * margin, picture.height + 2 * margin), (128, 128, 128)
    )
    canvas.paste(picture, (margin, margin))
    draw = ImageDraw.Draw(canvas)
    colors = [
        color
        for color, box in ((_MASK_BOX, evidence.mask_box), (_FILE_BOX, evidence.box))
        if box is not None
    ]
    for color, (left, top, right, bottom) in zip(colors, edges, strict=True):
        x0, x1 = sorted((left * scale + margin, right * scale + margin))
        y0, y1 = sorted((top * scale + margin, bottom * scale + margin))
        draw.rectangle((x0, y0, max(x1 - 1, x0), max(y1 - 1, y0)), outline=color, width=2)
    return canvas


def _painted(evidence: Evidence) -> np.ndarray:
    """The image with the mask laid over it, where there is one that can be read."""
    image = read_image(evidence.image)
    height, width = image.shape[:2]
    mask = None
    try:
        if evidence.png is not None and evidence.segment_id is not None:
            record = {"id": 0, "height": height, "width": width}
            mask = read_segment_ids(evidence.png, record) == evidence.segment_id
        elif evidence.segmentation is not None:
            mask = masks.decode(evidence.segmentation, height, width)
    except ValueError:
        pass  # the mask itself is what is wrong
    if mask is not None:
        blend = image[mask] * (1 - _OPACITY) + np.array(_MASK) * _OPACITY
        image[mask] = blend.astype(np.uint8)
    return image


def _open(path: object) -> Image.Image:
    return Image.fromarray(read_image(str(path)))


def _scaled(picture: Image.Image) -> tuple[Image.Image, float]:
    """Bring the long side to at most 480 pixels, and to at least 240."""
    scale = min(_LONG_SIDE / max(picture.size), max(1.0, _SMALL_SIDE / max(picture.size)))
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.BICUBIC), scale


def _beyond(edges: Iterable[tuple[float, ...]], size: tuple[int, int]) -> float:
    """How far boxes leave the frame (W, H), at most half its long side."""
    width, height = size
    far = [
        max(-left, -top, right - width, bottom - height, 0) for left, top, right, bottom in edges
    ]
    return min(max(far, default=0), max(size) / 2)
