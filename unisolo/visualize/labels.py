"""Names on pictures: white text on a dark pill that hides no other label and no small thing."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from unisolo.visualize.fonts import Font, font_for
from unisolo.visualize.regions import Box, Bytes, Color

__all__ = ["Label", "anchors", "draw_labels_on", "font_size"]

Boxes: TypeAlias = npt.NDArray[np.int64]

_CELLS = 32
"""A mask is looked at on a raster of at most this many cells a side to find its thick parts."""
_MAX_ANCHORS = 24
_COVERAGE = 0.2
"""Labels cover at most this share of the picture."""
_WIDEST = 0.5
"""A longer text is cut to this share of the picture's width, unless little would remain of it."""
_SHORTEST = 8
"""Letters that a cut text keeps at least."""
_HIDDEN = 0.25
"""A label hides at most this share of the box of a thing that it does not name."""
_PILL = (16, 18, 24)
_PILL_OPACITY = 190
_DARK = 125
_SMOOTH = 4
"""Pills are drawn this many times larger and reduced, which makes their edges soft."""


@dataclass(frozen=True)
class Label:
    """A text and where it may go.

    Attributes:
        text: What to write; a long one is cut short.
        note: What comes after it and stays whole; may be empty.
        color: RGB of the dot in front of the text: that of the region.
        box: (left, top, right, bottom) of the region, half-open, in pixels of the picture.
        spots: (x, y) of good centres inside the region, best first; empty = use the box.
        isthing: Labels of things are placed first.
    """

    text: str
    note: str
    color: Color
    box: Box
    spots: Sequence[tuple[float, float]]
    isthing: bool


def font_size(size: tuple[int, int], count: int = 0) -> int:
    """Return the height of letters, in pixels, for a picture of (width, height).

    Args:
        size: Of the picture.
        count: How many labels there are: in a crowd letters are up to half as high, never less
            than 10 pixels.
    """
    pixels = size[0] * size[1]
    usual = min(max(round(math.sqrt(pixels) * 0.02), 10), 56)
    # A label covers some 10 squares of its letters' height.
    fitting = math.floor(math.sqrt(_COVERAGE * pixels / (10 * max(count, 1))))
    return min(usual, max(fitting, usual // 2, 10))


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

    No label touches a thing smaller than itself, and none hides much of another thing. Where there
    is no such place, and in a crowd, labels are left out: a picture under its labels says nothing.

    Args:
        canvas: The picture; changed.
        labels: By importance.

    Returns:
        How many found a place.
    """
    size = font_size(canvas.size, len(labels))
    room = canvas.width * canvas.height * _COVERAGE
    things = np.array([label.box for label in labels if label.isthing], dtype=np.int64)
    things = things.reshape(-1, 4)
    taken = np.zeros((0, 4), dtype=np.int64)
    for label in sorted(labels, key=lambda item: not item.isthing):
        text, font = _fitted(label, size, canvas.width * _WIDEST)
        width, height = _pill_size(text, font, size)
        if width > canvas.width or height > canvas.height or width * height > room:
            continue
        place = _place(label, (width, height), canvas.size, things, taken)
        if place is None:
            continue
        _draw_pill(canvas, replace(label, text=text, note=""), place, font, size)
        taken = np.concatenate([taken, np.array([place])])
        room -= width * height
    return len(taken)


def _fitted(label: Label, size: int, limit: float) -> tuple[str, Font]:
    """The text to write, cut so that its pill is at most `limit` pixels wide, and its font."""
    note = f" {label.note}" if label.note else ""
    font = font_for(f"{label.text}...{note}", size)
    if font is None:  # given by the caller, so there is no other name to write
        text = label.text.encode("ascii", "replace").decode()
        return _fitted(replace(label, text=text), size, limit)
    text, kept = f"{label.text}{note}", len(label.text)
    while kept > _SHORTEST and _pill_size(text, font, size)[0] > limit:
        kept -= 1
        text = f"{label.text[:kept].rstrip()}...{note}"
    return text, font


def _pill_size(text: str, font: Font, size: int) -> tuple[int, int]:
    return math.ceil(font.getlength(text)) + round(1.55 * size), round(1.5 * size)


def _place(
    label: Label, pill: tuple[int, int], canvas: tuple[int, int], things: Boxes, taken: Boxes
) -> Box | None:
    """The best box of the pill within the picture, of those that hide no thing and no label.

    Inside the region the thickest part is best; beside it, where fewest other things lie under.
    """
    width, height = pill
    left, top, right, bottom = label.box
    x, y = (left + right) / 2, (top + bottom) / 2
    above, below = top - height / 2 - 2, bottom + height / 2 + 2
    before, after = left - width / 2 - 2, right + width / 2 + 2
    beside = [(x, above), (x, below), (after, y), (before, y)]
    beside += [(after, above), (after, below), (before, above), (before, below)]
    inside = list(label.spots) or [(left + width / 2, top + height / 2)]
    sizes = _areas(things)
    small = sizes < width * height
    others = things[~small & (things != label.box).any(axis=1)]
    barred = np.concatenate([taken, things[small]])
    # On a small region the pill would hide what it names.
    fits = width <= right - left and 1.6 * height <= bottom - top
    for centres in (inside, beside) if fits else (beside, inside[:1]):
        corners = np.array(centres) - (width / 2, height / 2)
        corners = np.clip(np.rint(corners), 0, (canvas[0] - width, canvas[1] - height))
        places = np.hstack([corners, corners + np.array([width, height])]).astype(np.int64)
        hidden = _overlaps(places, others)
        open_ones = (hidden <= _HIDDEN * _areas(others)).all(axis=1)
        free = np.logical_and(open_ones, ~_touching(places, barred).any(axis=1))
        if free.any():
            crossed = (hidden > 0).sum(axis=1) * (centres is beside)
            best = places[np.where(free, crossed, len(things) + 1).argmin()]
            first, second, third, last = best.tolist()
            return first, second, third, last
    return None


def _areas(boxes: Boxes) -> npt.NDArray[np.int64]:
    areas: npt.NDArray[np.int64] = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return areas


def _touching(one: Boxes, other: Boxes) -> npt.NDArray[np.bool_]:
    """[N, M]: whether boxes [N, 4] and [M, 4] overlap or touch."""
    a, b = one[:, None], other[None]
    touching = (a[..., :2] <= b[..., 2:]) & (b[..., :2] <= a[..., 2:])
    return touching[..., 0] & touching[..., 1]


def _overlaps(one: Boxes, other: Boxes) -> npt.NDArray[np.int64]:
    """[N, M]: pixels that boxes [N, 4] and [M, 4] share."""
    first = np.maximum(one[:, None, :2], other[None, :, :2])
    last = np.minimum(one[:, None, 2:], other[None, :, 2:])
    shared: npt.NDArray[np.int64] = np.maximum(last - first, 0).prod(axis=-1)
    return shared


def _draw_pill(canvas: Image.Image, label: Label, place: Box, font: Font, size: int) -> None:
    left, top, right, bottom = place
    width, height = right - left, bottom - top
    canvas.paste(_PILL, (left, top), _pill_cover(width, height))
    dot = round(0.6 * size)
    x, y = left + round(0.42 * size), top + (height - dot) // 2
    if max(label.color) < _DARK:  # such a dot would not show on the dark pill without a rim
        canvas.paste("white", (x - 1, y - 1), _round_cover(dot + 2, dot + 2, dot / 2 + 1, 160))
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
