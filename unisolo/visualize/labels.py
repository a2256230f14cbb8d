"""Names on pictures: white text on a dark pill, placed where it hides no other label."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from unisolo.visualize.regions import Box, Bytes, Color

__all__ = ["Label", "anchors", "draw_labels_on", "font_size"]

Font = Any  # Pillow has two classes, by whether it was built with FreeType

_CELLS = 32
"""A mask is looked at on a raster of at most this many cells a side to find its thick parts."""
_MAX_ANCHORS = 24
_COVERAGE = 0.2
"""Labels cover at most this share of the picture."""
_PILL = (16, 18, 24)
_PILL_OPACITY = 190
_SMOOTH = 4
"""Pills are drawn this many times larger and reduced, which makes their edges soft."""


@dataclass(frozen=True)
class Label:
    """A text and where it may go.

    Attributes:
        text: What to write.
        color: RGB of the dot in front of the text: that of the region.
        box: (left, top, right, bottom) of the region, half-open, in pixels of the picture.
        spots: (x, y) of good centres inside the region, best first; empty = use the box.
        isthing: Labels of things are placed first.
    """

    text: str
    color: Color
    box: Box
    spots: Sequence[tuple[float, float]]
    isthing: bool


def font_size(size: tuple[int, int]) -> int:
    """Return the height of letters, in pixels, for a picture of (width, height)."""
    return int(np.clip(round(math.sqrt(size[0] * size[1]) * 0.02), 10, 56))


def anchors(mask: Bytes, corner: tuple[int, int]) -> list[tuple[float, float]]:
    """Find places for a label inside a mask: where it is thickest, then nearest to its middle.

    Args:
        mask: [h, w] uint8, 0 or 255.
        corner: (x, y) of its upper left corner in the picture.

    Returns:
        (x, y) in the picture, best first, spread over the mask; empty for an empty mask.
    """
    height, width = mask.shape
    columns, rows = min(width, _CELLS), min(height, _CELLS)
    small = Image.fromarray(mask).resize((columns, rows), Image.Resampling.BOX)
    # An empty frame: a label should keep away from the border of the image as well.
    framed = Image.new("L", (columns + 2, rows + 2))
    framed.paste(small.point([0] * 128 + [255] * 128), (1, 1))
    depth = np.zeros((rows + 2, columns + 2), dtype=np.int32)
    layer = np.asarray(framed) > 0
    while layer.any():
        depth += layer
        framed = framed.filter(ImageFilter.MinFilter(3))
        layer = np.asarray(framed) > 0
    ys, xs = np.nonzero(depth)
    if not len(ys):
        return []
    off_centre = (xs - xs.mean()) ** 2 + (ys - ys.mean()) ** 2
    order = np.lexsort((off_centre, -depth[ys, xs]))
    # The best one, and others evenly through the ranking.
    order = order[np.unique(np.linspace(0, len(order) - 1, _MAX_ANCHORS).round().astype(int))]
    left, top = corner
    return [
        (left + (x - 0.5) * width / columns, top + (y - 0.5) * height / rows)
        for x, y in zip(xs[order].tolist(), ys[order].tolist(), strict=True)
    ]


def draw_labels_on(canvas: Image.Image, labels: Sequence[Label]) -> int:
    """Draw labels, those of things first, each where it overlaps none drawn before.

    Places that would hide other, small things are taken only where there is none better. In a
    crowd the last labels are left out: a picture under its labels says nothing.

    Args:
        canvas: The picture; changed.
        labels: By importance.

    Returns:
        How many found a place.
    """
    size = font_size(canvas.size)
    font = ImageFont.load_default(size)
    room = canvas.width * canvas.height * _COVERAGE
    taken: list[Box] = []
    for label in sorted(labels, key=lambda item: not item.isthing):
        width, height = pill = _pill_size(label.text, font, size)
        if width > canvas.width or height > canvas.height or width * height > room:
            continue
        small = [
            other.box
            for other in labels
            if other is not label and other.isthing and _area(other.box) < 2 * width * height
        ]
        free = [
            place
            for place in _places(label, pill, canvas.size)
            if not any(_overlap(place, other) for other in taken)
        ]
        if not free:
            continue
        place = min(free, key=lambda box: sum(_overlap(box, other) for other in small))
        _draw_pill(canvas, label, place, font, size)
        taken.append(place)
        room -= width * height
    return len(taken)


def _pill_size(text: str, font: Font, size: int) -> tuple[int, int]:
    return math.ceil(font.getlength(text)) + round(1.55 * size), round(1.5 * size)


def _places(label: Label, pill: tuple[int, int], canvas: tuple[int, int]) -> Iterator[Box]:
    """Yield candidate boxes of the pill, within the picture, best first."""
    width, height = pill
    left, top, right, bottom = label.box
    x, y = (left + right) / 2, (top + bottom) / 2
    beside = [
        (x, top - height / 2 - 1),
        (x, bottom + height / 2 + 1),
        (right + width / 2 + 1, y),
        (left - width / 2 - 1, y),
    ]
    inside = list(label.spots) or [(left + width / 2, top + height / 2)]
    # On a small region the pill would hide what it names.
    fits = width <= right - left and 1.6 * height <= bottom - top
    for x, y in [*inside, *beside] if fits else [*beside, *inside[:1]]:
        place_left = min(max(round(x - width / 2), 0), canvas[0] - width)
        place_top = min(max(round(y - height / 2), 0), canvas[1] - height)
        yield place_left, place_top, place_left + width, place_top + height


def _area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def _overlap(a: Box, b: Box) -> bool:
    """Whether two boxes overlap or touch."""
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]


def _draw_pill(canvas: Image.Image, label: Label, place: Box, font: Font, size: int) -> None:
    left, top, right, bottom = place
    width, height = right - left, bottom - top
    canvas.paste(_PILL, (left, top), _pill_cover(width, height))
    dot = round(0.6 * size)
    x, y = left + round(0.42 * size), top + (height - dot) // 2
    canvas.paste(label.color, (x, y), _round_cover(dot, dot, dot / 2, 255))
    # The baseline is set from the letters' own height, so texts with and without tails line up.
    capital = font.getbbox("H", anchor="ls")
    baseline = top + (height - capital[1] - capital[3]) / 2
    draw = ImageDraw.Draw(canvas)
    draw.text((x + dot + round(0.25 * size), baseline), label.text, "white", font, anchor="ls")


def _pill_cover(width: int, height: int) -> Image.Image:
    return _round_cover(width, height, height * 0.32, _PILL_OPACITY)


@functools.lru_cache(maxsize=256)
def _round_cover(width: int, height: int, radius: float, opacity: int) -> Image.Image:
    """Opacity of a rectangle with round corners and soft edges."""
    large = Image.new("L", (width * _SMOOTH, height * _SMOOTH))
    box = (0, 0, width * _SMOOTH - 1, height * _SMOOTH - 1)
    ImageDraw.Draw(large).rounded_rectangle(box, radius * _SMOOTH, fill=opacity)
    return large.resize((width, height), Image.Resampling.BOX)
