"""Masks, contours, boxes and labels over an image, and sheets of several pictures.

Stuff is calm (its own colour, paler, half as colourful, no contour), so that the things stand out.
A thing has the colour of its category, in a shade of its own, and a thin contour.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageOps
from torch import Tensor

from unisolo.categories import Categories
from unisolo.results import Result
from unisolo.visualize.labels import Label, anchors, draw_labels_on
from unisolo.visualize.regions import (
    AnySegment,
    Bytes,
    Region,
    instance_regions,
    map_regions,
)

__all__ = ["Picture", "draw_grid", "draw_panoptic", "draw_result"]

Picture: TypeAlias = npt.NDArray[np.uint8] | Image.Image

_STUFF_OPACITY = 0.55
"""Opacity of stuff as a share of that of things."""
_BLUR = 2
"""The contour reads its distance to the edge from a box blur of this radius."""


def draw_result(
    image: Picture,
    result: Result,
    *,
    alpha: float = 0.5,
    draw_boxes: bool = False,
    draw_labels: bool = True,
    draw_scores: bool = True,
    panoptic: bool | Literal["stuff"] | None = None,
    texts: Sequence[str] | None = None,
    shades: Sequence[int] | None = None,
    scale: int = 1,
) -> Image.Image:
    """Draw a result over its image.

    Args:
        image: The original image: [H, W, 3] uint8 RGB, [H, W] uint8 grey, or a PIL image (turned
            upright); of the size `result.image_size`.
        result: From any task. Of a result without masks the boxes are drawn.
        alpha: Opacity of masks, 0 (contours only) to 1.
        draw_boxes: Draw the boxes of the things as well.
        draw_labels: Write name and score of each thing, and the names of stuff. A label that
            would hide another label or a small thing is left out; a long name is cut short; a name
            that no font of this machine can write becomes "category <id>".
        draw_scores: Write the scores in the labels.
        panoptic: True = draw the panoptic map, False = the instances (which may overlap), "stuff" =
            the instances over the map's stuff, None = the map where there is one.
        texts: What to write for each instance in place of its category's name. Instances must be
            drawn: `panoptic` False or "stuff", or no map.
        shades: A number for each instance that picks the shade of its category's colour, such as
            a track id, so that an object keeps its colour through a video; as for `texts`.
        scale: Enlarge the picture by this whole factor, so that lines and letters can be finer
            than the image's pixels.

    Returns:
        A new RGB picture, `scale` times the size of the image.

    Raises:
        ValueError: If the image has another size than the result, or the wrong rank or dtype, if
            `alpha` or `scale` is out of range, if the result has no panoptic map to draw, or if
            `texts` or `shades` are not one for each instance drawn.
    """
    canvas = _canvas(image)
    _check_size(canvas, result.image_size, "the result")
    if panoptic is None:
        panoptic = result.panoptic_seg is not None
    if panoptic is True and (texts is not None or shades is not None):
        raise ValueError(
            "texts and shades are of instances, which a panoptic map does not show: "
            'give panoptic=False or "stuff"'
        )
    regions: list[Region] = []
    if panoptic is not True:
        regions += instance_regions(result, scores=draw_scores, texts=texts, shades=shades)
    if panoptic:
        if result.panoptic_seg is None or result.segments_info is None:
            raise ValueError("this result has no panoptic map: predict with task='panoptic'")
        regions += [
            region
            for region in map_regions(
                result.panoptic_seg, result.segments_info, result.categories, scores=draw_scores
            )
            if panoptic is True or not region.isthing
        ]
    return _paint(canvas, regions, alpha, draw_boxes, draw_labels, scale)


def draw_panoptic(
    image: Picture,
    panoptic_seg: npt.NDArray[np.integer[Any]] | Tensor,
    segments: Sequence[AnySegment],
    categories: Categories,
    *,
    alpha: float = 0.5,
    draw_boxes: bool = False,
    draw_labels: bool = True,
    draw_scores: bool = True,
    scale: int = 1,
) -> Image.Image:
    """Draw a panoptic map over its image: a prediction, or ground truth in the COCO format.

    Args:
        image: As for `draw_result`.
        panoptic_seg: [H, W] integers, the segment of each pixel; 0, and what `segments` does not
            list, is void and stays as it is.
        segments: `Segment`s, or mappings with `id` and `category_id` (entries of COCO's
            `segments_info`; `score` and `iscrowd` are shown where given).
        categories: What the ids of the categories mean.
        alpha: As for `draw_result`.
        draw_boxes: As for `draw_result`.
        draw_labels: As for `draw_result`.
        draw_scores: As for `draw_result`.
        scale: As for `draw_result`.

    Returns:
        A new RGB picture, `scale` times the size of the image.

    Raises:
        ValueError: As `draw_result`, or if an id of a segment is not in 1..256^3 - 1 or a
            category is unknown.
    """
    canvas = _canvas(image)
    _check_size(canvas, tuple(panoptic_seg.shape), "the panoptic map")
    regions = map_regions(panoptic_seg, segments, categories, scores=draw_scores)
    return _paint(canvas, regions, alpha, draw_boxes, draw_labels, scale)


def draw_grid(images: Sequence[Picture], columns: int = 4, gap: int = 8) -> Image.Image:
    """Lay pictures out on one white sheet, row by row.

    Args:
        images: At least one picture; each is centred in a cell of the size of the largest.
        columns: Pictures per row; fewer where there are fewer pictures.
        gap: White pixels between cells and around the sheet.

    Returns:
        The sheet, RGB.

    Raises:
        ValueError: If there is no picture, or `columns` or `gap` is out of range.
    """
    if not len(images):
        raise ValueError("draw_grid needs at least one picture")
    if columns < 1 or gap < 0:
        raise ValueError(f"columns must be at least 1 and gap at least 0, got {columns}, {gap}")
    pictures = [_canvas(image) for image in images]
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    width = max(picture.width for picture in pictures)
    height = max(picture.height for picture in pictures)
    size = (columns * (width + gap) + gap, rows * (height + gap) + gap)
    sheet = Image.new("RGB", size, "white")
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        left = gap + column * (width + gap) + (width - picture.width) // 2
        top = gap + row * (height + gap) + (height - picture.height) // 2
        sheet.paste(picture, (left, top))
    return sheet


def _canvas(image: Picture) -> Image.Image:
    """Return a new RGB picture of the image."""
    if isinstance(image, Image.Image):
        upright = ImageOps.exif_transpose(image)
        return upright.copy() if upright.mode == "RGB" else upright.convert("RGB")
    array = np.asarray(image)
    if array.dtype != np.uint8 or not (array.ndim == 2 or array.ndim == 3 == array.shape[-1]):
        raise ValueError(
            "image must be uint8, [H, W, 3] RGB or [H, W] grey, or a PIL image, got "
            f"{array.dtype} {list(array.shape)}"
        )
    if array.size == 0:
        raise ValueError(f"the image has no pixels: shape {list(array.shape)}")
    return Image.fromarray(np.ascontiguousarray(array)).convert("RGB")


def _check_size(canvas: Image.Image, size: tuple[int, ...], what: str) -> None:
    if (canvas.height, canvas.width) != size:
        raise ValueError(
            f"the image is {canvas.height} x {canvas.width} (H x W) and {what} "
            f"{' x '.join(map(str, size))}; draw on the original, upright image"
        )


def _paint(
    canvas: Image.Image,
    regions: Sequence[Region],
    alpha: float,
    draw_boxes: bool,
    draw_labels: bool,
    scale: int,
) -> Image.Image:
    """Paint regions given by importance: the larger first, so that it hides nothing."""
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in 0..1, got {alpha}")
    if scale < 1:
        raise ValueError(f"scale must be a whole number of at least 1, got {scale}")
    if scale > 1:
        size = (canvas.width * scale, canvas.height * scale)
        canvas = canvas.resize(size, Image.Resampling.BICUBIC)
    line = _line_width(canvas.size)
    labels: list[Label | None] = [None] * len(regions)
    # Stuff lies below: a thing over it may be the larger one.
    for index in sorted(range(len(regions)), key=lambda n: (regions[n].isthing, -regions[n].area)):
        region = regions[index]
        spots: list[tuple[float, float]] = []
        if region.mask is not None:
            mask = _enlarged(region.mask(), scale)
            corner = (region.window[0] * scale, region.window[1] * scale)
            _fill(canvas, mask, corner, region, alpha, line)
            if draw_labels:
                spots = anchors(mask, corner)
        left, top, right, bottom = (side * scale for side in region.box)
        if region.isthing and (draw_boxes or region.mask is None):
            edges = (left, top, right - 1, bottom - 1)  # Pillow draws both ends
            ImageDraw.Draw(canvas).rectangle(edges, outline=region.color, width=round(line))
        labels[index] = Label(
            region.text,
            region.note,
            region.color,
            (left, top, right, bottom),
            spots,
            region.isthing,
        )
    if draw_labels:
        draw_labels_on(canvas, [label for label in labels if label is not None])
    return canvas


def _line_width(size: tuple[int, int]) -> float:
    """1 to 2 pixels, by the size of the picture."""
    return float(np.clip(min(size) / 300, 1.0, 2.0))


def _fill(
    canvas: Image.Image,
    mask: Bytes,
    corner: tuple[int, int],
    region: Region,
    alpha: float,
    line: float,
) -> None:
    """Paint one mask (0 or 255) with its upper left corner at `corner`, and its contour."""
    opacity = alpha if region.isthing else alpha * _STUFF_OPACITY
    cover = Image.fromarray(mask).point([0] * 255 + [round(255 * opacity)])
    canvas.paste(region.color, corner, cover)
    if region.isthing:
        canvas.paste(region.color, corner, Image.fromarray(_contour(mask, line)))


def _contour(mask: Bytes, width: float) -> Bytes:
    """Opacity of a line along the inner side of a mask's edge, with soft stairs.

    Near an edge the box blur grows by one step per pixel, so it tells the distance to the edge.
    Inside, pixels are held to be at least half a pixel in: single pixels and thin parts, where the
    blur is low, are all line.

    Args:
        mask: [h, w] uint8, 0 or 255; beyond its border it goes on as at the border.
        width: In pixels, at most 2.

    Returns:
        [h, w] uint8, 0..255.
    """
    blurred = np.asarray(Image.fromarray(mask).filter(ImageFilter.BoxBlur(_BLUR)))
    distance = (np.arange(256) / 255 - 0.5) * (2 * _BLUR + 1)
    inner = np.clip(width + 0.5 - np.maximum(distance, 0.5), 0, 1)
    outer = np.clip(distance + 0.5, 0, 1)
    tables = (np.stack([outer, inner]) * 255).round().astype(np.uint8)
    line: Bytes = np.where(mask > 0, tables[1][blurred], tables[0][blurred])
    return line


def _enlarged(mask: Bytes, scale: int) -> Bytes:
    """A mask with sides `scale` times as long and round corners."""
    if scale == 1:
        return mask
    height, width = mask.shape
    soft = Image.fromarray(mask).resize((width * scale, height * scale), Image.Resampling.BICUBIC)
    return np.asarray(soft.point([0] * 128 + [255] * 128))
