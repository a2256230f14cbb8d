"""LabelMe: one JSON file an image, with polygons, rectangles, circles and masks.

Shapes of one label and one `group_id` are one object. Points are in pixels of the upright image; a
"mask" is a PNG between two corner pixels, both inside.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unisolo.categories import Categories
from unisolo.convert_data.source import (
    Content,
    Embedded,
    Item,
    Log,
    Options,
    Shape,
    Source,
    split_of_folder,
)
from unisolo.data.coco_files import DatasetError
from unisolo.reading import file_problem, parse_json, short
from unisolo.segmentation import decode, encode

__all__ = ["has_labelme", "read_labelme"]


def has_labelme(src: Path) -> bool:
    """Whether a JSON file under a folder has shapes."""
    return any("shapes" in (_tree(path) or {}) for path in src.rglob("*.json"))


def read_labelme(src: Path, options: Options, log: Log) -> Source:
    """Read a folder of LabelMe files.

    Args:
        src: The folder; subfolders are searched, and give the split where they are called so.
        options: Nothing of it is read.
        log: Gets faults and remarks.

    Raises:
        DatasetError: If there is no LabelMe file, or no label.
    """
    items: list[Item] = []
    labels: set[str] = set()
    categories: dict[str, int] = {}
    annotated: dict[Path, Path] = {}
    for path in sorted(src.rglob("*.json")):
        tree = _tree(path)
        if tree is None or not isinstance(tree.get("shapes"), list):
            log.fault(f"{path}: not a LabelMe file (JSON with a list 'shapes'); move it elsewhere")
            continue
        labels.update(str(shape.get("label")) for shape in tree["shapes"] if _is_shape(shape))
        try:
            image = _image(path, tree, src)
        except DatasetError as error:
            log.fault(error)
            continue
        if isinstance(image, Path) and annotated.setdefault(image.resolve(), path) != path:
            log.fault(
                f"{path}: names the image {image.name} that {annotated[image.resolve()].name} "
                "names too; keep one file an image"
            )
            continue
        read = partial(_read, path, categories, log)
        items.append(Item(image, split_of_folder(path.relative_to(src)), read))
    if not items and not log.faults:
        raise DatasetError(f"{src}: no LabelMe file (JSON with 'shapes') in it")
    if not labels:
        raise DatasetError(f"{src}: no LabelMe file has a shape with a label; annotate something")
    found = Categories.from_names(sorted(labels))
    categories.update({category.name: category.id for category in found})
    return Source(found, items)


def _tree(path: Path) -> dict[str, Any] | None:
    """The content of a JSON file; None where it is no mapping."""
    if file_problem(path, "LabelMe file") is not None:
        return None
    try:
        tree = parse_json(path.read_bytes())
    except ValueError:
        return None
    return tree if isinstance(tree, dict) else None


def _is_shape(shape: Any) -> bool:
    return isinstance(shape, dict) and isinstance(shape.get("label"), str) and bool(shape["label"])


def _image(path: Path, tree: dict[str, Any], src: Path) -> Path | Embedded:
    """The file that `imagePath` names, else the picture inside the JSON file."""
    named = tree.get("imagePath")
    if isinstance(named, str) and named and "\0" not in named:
        image = path.parent / named.replace("\\", "/")
        if not image.resolve().is_relative_to(src.resolve()):
            raise DatasetError(f"{path}: imagePath {short(named)} points outside {src}")
        if image.is_file():
            return image
    if isinstance(tree.get("imageData"), str) and tree["imageData"]:
        digest = hashlib.blake2b(_image_data(path, tree)).digest()
        load = partial(_image_data, path, None)
        return Embedded(digest, path.stem + ".png", load)
    raise DatasetError(
        f"{path}: imagePath {short(named)} names no file and there is no imageData; "
        "copy the image there"
    )


def _image_data(path: Path, tree: dict[str, Any] | None) -> bytes:
    """The bytes of the picture inside a JSON file; `tree` is its content, None = to be read."""
    tree = _tree(path) if tree is None else tree
    try:
        return base64.b64decode(str((tree or {}).get("imageData")), validate=True)
    except binascii.Error:
        raise DatasetError(f"{path}: imageData is damaged; save the file again") from None


def _read(path: Path, categories: dict[str, int], log: Log, size: tuple[int, int]) -> Content:
    tree = _tree(path) or {}
    said = tree.get("imageHeight") or size[0], tree.get("imageWidth") or size[1]
    if said != size:
        raise DatasetError(
            f"{path}: says the image is {said[0]} x {said[1]} (height x width), but it is "
            f"{size[0]} x {size[1]}; annotate this image, or put the other one back"
        )
    groups: dict[Any, list[tuple[str, Any]]] = {}
    for number, shape in enumerate(tree.get("shapes", ())):
        where = f"{path}: shape {number}"
        if not _is_shape(shape):
            log.fault(f"{where}: has no label; give it one or remove it")
            continue
        try:
            segmentation = _segmentation(shape, size)
        except ValueError as error:
            log.fault(f"{where} ({short(shape['label'])}): {error}")
            continue
        if segmentation is None:
            log.note(f"shapes of type {short(shape.get('shape_type'))} have no area: left out")
            continue
        group = shape.get("group_id")
        key = (shape["label"], ("alone", number) if group is None else repr(group))
        groups.setdefault(key, []).append((where, segmentation))
    return Content(
        [
            Shape(categories[label], _joined([part for _, part in parts], size), parts[0][0])
            for (label, _), parts in groups.items()
        ]
    )


def _joined(parts: list[Any], size: tuple[int, int]) -> Any:
    """Parts of one object: polygons stay polygons, with a mask among them all become one mask."""
    if all(isinstance(part, list) for part in parts):
        return [polygon for part in parts for polygon in part]
    masks = [decode(part, *size) for part in parts]
    return encode(np.logical_or.reduce(masks))


def _segmentation(shape: dict[str, Any], size: tuple[int, int]) -> Any:
    """A shape as COCO polygons or RLE; None where its kind has no area."""
    kind = shape.get("shape_type") or "polygon"  # early versions knew polygons only
    if kind not in ("polygon", "oriented_rectangle", "rectangle", "circle", "mask"):
        return None
    points = _points(shape)
    if kind in ("polygon", "oriented_rectangle"):
        if len(points) < 3:
            raise ValueError(f"a polygon of {len(points)} points encloses nothing; redraw it")
        return [[value for point in points for value in point]]
    if len(points) < 2:
        raise ValueError(f"a {kind} needs two points, this one has {len(points)}; redraw it")
    if kind == "circle":
        return _disc(points, size)
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    top, bottom = min(y for _, y in points), max(y for _, y in points)
    if kind == "rectangle":
        return [[left, top, right, top, right, bottom, left, bottom]]
    return _cut_mask(shape, (int(left), int(top), int(right) + 1, int(bottom) + 1), size)


def _points(shape: dict[str, Any]) -> list[list[float]]:
    points = shape.get("points")
    if not isinstance(points, list):
        raise ValueError("has no list of points; redraw it")
    for point in points:
        good = isinstance(point, list) and len(point) == 2
        if not good or not all(isinstance(v, (int, float)) and math.isfinite(v) for v in point):
            raise ValueError(f"point {short(point)} is not two finite numbers; redraw it")
    return points


def _disc(points: list[list[float]], size: tuple[int, int]) -> dict[str, Any]:
    """The pixels whose centre is in the circle around the first point through the second."""
    (x, y), (edge_x, edge_y) = points[:2]
    rows, columns = np.ogrid[: size[0], : size[1]]
    inside = np.hypot(columns + 0.5 - x, rows + 0.5 - y) <= math.hypot(edge_x - x, edge_y - y)
    return encode(inside)


def _cut_mask(
    shape: dict[str, Any], box: tuple[int, int, int, int], size: tuple[int, int]
) -> dict[str, Any]:
    left, top, right, bottom = box
    if left < 0 or top < 0 or right > size[1] or bottom > size[0]:
        raise ValueError("its mask leaves the image; redraw it")
    expected, cut = (right - left, bottom - top), np.zeros((0, 0), dtype=bool)
    try:
        data = base64.b64decode(str(shape.get("mask")), validate=True)
        with Image.open(io.BytesIO(data)) as png:
            found = png.size
            if found == expected:  # before the pixels are decoded: they may be very many
                cut = np.asarray(png.convert("L")) > 0
    # Decoders fail in many ways on damaged data; the person needs the name of the shape.
    except Exception as error:
        raise ValueError(f"its mask is no PNG in base64 ({error}); redraw it") from None
    if found != expected:
        raise ValueError(
            f"its mask is {found[1]} x {found[0]} (height x width) but its points span "
            f"{expected[1]} x {expected[0]}; redraw it"
        )
    mask = np.zeros(size, dtype=bool)
    mask[top:bottom, left:right] = cut
    return encode(mask)
