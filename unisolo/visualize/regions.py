"""What is to be painted: instances or segments, each with its colour, text and place."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

from unisolo.categories import Categories
from unisolo.ops.masks import popcount
from unisolo.results import Result, Segment
from unisolo.visualize.fonts import category_name

__all__ = [
    "AnySegment",
    "Box",
    "Bytes",
    "Color",
    "Region",
    "category_color",
    "instance_regions",
    "map_regions",
    "stuff_color",
    "thing_color",
]

Color: TypeAlias = tuple[int, int, int]
Bytes: TypeAlias = npt.NDArray[np.uint8]
Box: TypeAlias = tuple[int, int, int, int]
AnySegment: TypeAlias = Segment | Mapping[str, Any]

# The first seven are those of Okabe and Ito, "Color Universal Design" (2008). The others were added
# one by one, each the farthest from all before it: the least CIELAB distance over full colour
# vision, protanopia, deuteranopia and tritanopia (matrices of Machado et al. 2009). Any two of the
# first 12 are at least 16 apart to all of these eyes, any two of all 21 at least 15.
_PALETTE: tuple[Color, ...] = (
    (230, 159, 0),
    (0, 114, 178),
    (204, 121, 167),
    (0, 158, 115),
    (213, 94, 0),
    (86, 180, 233),
    (240, 228, 66),
    (136, 0, 255),
    (102, 51, 17),
    (170, 221, 136),
    (68, 34, 170),
    (85, 51, 102),
    (187, 85, 255),
    (238, 0, 85),
    (0, 238, 187),
    (119, 17, 51),
    (136, 85, 119),
    (136, 238, 102),
    (170, 170, 85),
    (221, 187, 221),
    (170, 17, 153),
)
_AGAIN = (0.5, -0.45)
"""Lightness, by turns, of further categories, which take the same hues again twice."""
_SHADES = (0.0, 0.35, -0.3, 0.18, -0.15)
"""Lightness of the instances of one category."""
_STUFF_COLOR = 0.5
"""Share of its colourfulness that stuff keeps."""
_HALO = 3
"""Pixels around a mask that its contour may touch."""
_MAX_ID = 256**3 - 1


@dataclass(frozen=True)
class Region:
    """Something to paint.

    Attributes:
        box: (left, top, right, bottom), half-open, in pixels of the image.
        window: Where `mask` lies: its extent and a halo, within the image.
        mask: Makes the mask, [h, w] uint8, 0 or 255; None where there is none. A function, so that
            one mask at a time is in memory.
        color: RGB.
        text: The label.
        note: What is written after it and never cut short, such as the score.
        isthing: Things are painted strongly and have a contour.
        area: Pixels of the mask, or of the box; decides which is painted first.
    """

    box: Box
    window: Box
    mask: Callable[[], Bytes] | None
    color: Color
    text: str
    note: str
    isthing: bool
    area: int


def thing_color(label: int, instance: int) -> Color:
    """Return the colour of the n-th instance of a thing category.

    Args:
        label: Of the category; the colour follows from it alone, so it is the same in every
            picture of a data set.
        instance: n, from 0; further instances of a category are lighter or darker.

    Returns:
        RGB.
    """
    count = len(_PALETTE)  # odd, so that in the second round again light and dark are exchanged
    color, place = _PALETTE[label % count], label % (3 * count)
    if place >= count:
        color = _shaded(color, _AGAIN[place % 2])
    return _shaded(color, _SHADES[instance % len(_SHADES)])


def stuff_color(color: Color) -> Color:
    """Return a calm version of a stuff category's colour, as bright and half as colourful."""
    grey = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
    red, green, blue = (round(grey + (value - grey) * _STUFF_COLOR) for value in color)
    return red, green, blue


def category_color(categories: Categories, label: int, instance: int = 0) -> Color:
    """Return the colour that a category is drawn in.

    Args:
        categories: Of the picture.
        label: Of the category.
        instance: As for `thing_color`; stuff has one colour.
    """
    category = categories[label]
    return thing_color(label, instance) if category.isthing else stuff_color(category.color)


def _shaded(color: Color, shade: float) -> Color:
    """Mix with white (shade > 0) or black (shade < 0)."""
    end = 255 if shade > 0 else 0
    red, green, blue = (round(value + (end - value) * abs(shade)) for value in color)
    return red, green, blue


def map_regions(
    panoptic_seg: npt.NDArray[np.integer[Any]] | Tensor,
    segments: Sequence[AnySegment],
    categories: Categories,
    *,
    scores: bool = True,
) -> list[Region]:
    """Return the segments of a panoptic map that have pixels, things first.

    Args:
        panoptic_seg: [H, W] integers, 0 = void.
        segments: See `draw_panoptic`.
        categories: Of the map.
        scores: Write the scores of things.

    Raises:
        ValueError: If an id of a segment is out of range or a category is unknown.
    """
    ids = np.asarray(panoptic_seg.cpu() if isinstance(panoptic_seg, Tensor) else panoptic_seg)
    facts = [_segment_facts(segment, categories) for segment in segments]
    values = np.array([number for number, _, _, _ in facts], dtype=np.int64)
    if (values < 1).any() or (values > _MAX_ID).any() or ids.min() < 0 or ids.max() > _MAX_ID:
        raise ValueError(f"ids of segments must be in 1..{_MAX_ID}, and 0 for void in the map")
    # 1, 2, ... in the place of ids, which may lie anywhere.
    table = np.zeros(max(values.max(initial=0), int(ids.max())) + 1, dtype=np.int32)
    table[values] = np.arange(1, len(values) + 1)
    numbers = table[ids]
    areas = np.bincount(numbers.ravel(), minlength=len(facts) + 1)
    seen: Counter[int] = Counter()
    regions = []
    boxes = _extents(numbers, len(facts))
    for number, ((_, label, text, score), box) in enumerate(
        zip(facts, boxes, strict=True), start=1
    ):
        if not areas[number]:
            continue
        window = _grown(box, ids.shape)
        regions.append(
            Region(
                box=box,
                window=window,
                mask=functools.partial(_map_mask, numbers, number, window),
                color=category_color(categories, label, seen[label]),
                text=text,
                note=score if scores else "",
                isthing=categories[label].isthing,
                area=int(areas[number]),
            )
        )
        seen[label] += 1
    return sorted(regions, key=lambda region: not region.isthing)


def instance_regions(
    result: Result,
    *,
    scores: bool = True,
    texts: Sequence[str] | None = None,
    shades: Sequence[int] | None = None,
) -> list[Region]:
    """Return the instances of a result in its order; those with an empty mask are left out.

    Args:
        result: From any task.
        scores: Write the scores.
        texts: As for `draw_result`.
        shades: As for `draw_result`.

    Raises:
        ValueError: If `texts` or `shades` are not one for each instance.
    """
    host = result.cpu()
    for name, values in (("texts", texts), ("shades", shades)):
        if values is not None and len(values) != len(host):
            raise ValueError(f"{len(values)} {name} for {len(host)} instances; give one each")
    packed, areas = None, [0] * len(host)
    if host.packed_masks is not None:
        packed, areas = host.packed_masks.numpy(), popcount(host.packed_masks.flatten(1)).tolist()
    seen: Counter[int] = Counter()
    regions = []
    rows = zip(host.labels.tolist(), host.scores.tolist(), host.boxes.tolist(), strict=True)
    for index, (label, score, sides) in enumerate(rows):
        left, top, right, bottom = (round(side) for side in sides)
        box, mask = (left, top, max(right, left + 1), max(bottom, top + 1)), None
        window, area = box, (right - left) * (bottom - top)
        if packed is not None:
            extent = _packed_extent(packed[index], host.image_size[1])
            if extent is None:
                continue
            window = _grown(extent, host.image_size)
            mask = functools.partial(_packed_mask, packed[index], window)
            area = areas[index]
        color = thing_color(label, seen[label] if shades is None else shades[index])
        text = category_name(result.categories[label]) if texts is None else texts[index]
        note = f"{score:.2f}" if scores else ""
        regions.append(Region(box, window, mask, color, text, note, True, area))
        seen[label] += 1
    return regions


def _segment_facts(segment: AnySegment, categories: Categories) -> tuple[int, int, str, str]:
    """(id, label, text, score as text) of a segment of either kind."""
    score: float | None
    if isinstance(segment, Segment):
        number, category_id, score, crowd = segment.id, segment.category_id, segment.score, False
    else:
        number, category_id = int(segment["id"]), int(segment["category_id"])
        score, crowd = segment.get("score"), bool(segment.get("iscrowd", 0))
    try:
        label = categories.label(category_id)
    except KeyError as error:
        raise ValueError(f"segment {number}: {error.args[0]}") from None
    name = category_name(categories[label])
    has_score = score is not None and categories[label].isthing  # stuff has none of its own
    return number, label, f"{name} (crowd)" if crowd else name, f"{score:.2f}" if has_score else ""


def _extents(numbers: npt.NDArray[np.int32], count: int) -> list[Box]:
    """The half-open box of each number 1..count of a map, all in one pass; zeros if absent."""
    height, width = numbers.shape
    in_row = np.zeros((count + 1, height), dtype=bool)
    in_column = np.zeros((count + 1, width), dtype=bool)
    in_row[numbers, np.arange(height)[:, None]] = True
    in_column[numbers, np.arange(width)] = True
    return [_extent(in_row[n], in_column[n]) or (0, 0, 0, 0) for n in range(1, count + 1)]


def _extent(in_row: npt.NDArray[Any], in_column: npt.NDArray[Any]) -> Box | None:
    rows, columns = np.flatnonzero(in_row), np.flatnonzero(in_column)
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _packed_extent(packed: Bytes, width: int) -> Box | None:
    """The box of a packed mask [H, ceil(W / 8)], to the byte: up to 7 columns too wide."""
    extent = _extent(np.bitwise_or.reduce(packed, axis=1), np.bitwise_or.reduce(packed, axis=0))
    if extent is None:
        return None
    left, top, right, bottom = extent
    return left * 8, top, min(right * 8, width), bottom


def _grown(box: Box, shape: tuple[int, ...]) -> Box:
    """The box and the halo around it, within the image."""
    left, top, right, bottom = box
    return (
        max(left - _HALO, 0),
        max(top - _HALO, 0),
        min(right + _HALO, shape[1]),
        min(bottom + _HALO, shape[0]),
    )


def _map_mask(numbers: npt.NDArray[np.int32], number: int, window: Box) -> Bytes:
    left, top, right, bottom = window
    mask: Bytes = (numbers[top:bottom, left:right] == number).astype(np.uint8)
    mask *= 255
    return mask


def _packed_mask(packed: Bytes, window: Box) -> Bytes:
    left, top, right, bottom = window
    first = left // 8
    bits = np.unpackbits(packed[top:bottom, first : -(-right // 8)], axis=1)
    mask: Bytes = bits[:, left - first * 8 : right - first * 8] * np.uint8(255)
    return mask
