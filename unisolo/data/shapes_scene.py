"""One generated scene: stuff regions, void, things over one another, and where everything is.

Stuff is laid out either as a landscape (sky over ground) or as patches of ground seen from above.
Nothing that can be seen goes unlabelled except what is void on purpose: a thin seam between two
regions, a rock, a frame around the picture, a scrap of stuff too small to be worth a label.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from unisolo.categories import Categories, Category
from unisolo.data.shapes_paint import FloatArray, IntArray, paint_stuff, smooth_noise
from unisolo.data.shapes_things import Canvas, add_crowd, add_row, add_single

__all__ = ["CATEGORIES", "Scene", "draw_scene"]

# Ids are sparse on purpose, as in COCO: code that takes an id for an index fails at once.
CATEGORIES = Categories(
    [
        Category(3, "ball", True, (226, 62, 87), "toy"),
        Category(7, "box", True, (247, 163, 37), "toy"),
        Category(11, "triangle", True, (148, 87, 235), "toy"),
        Category(18, "star", True, (255, 222, 60), "toy"),
        Category(25, "ring", True, (0, 200, 190), "toy"),
        Category(92, "sky", False, (120, 180, 240), "nature"),
        Category(107, "grass", False, (96, 160, 70), "nature"),
        Category(140, "water", False, (30, 90, 170), "nature"),
        Category(158, "brick wall", False, (160, 84, 66), "building"),
        Category(171, "sand", False, (222, 196, 148), "nature"),
    ]
)
_IDS = {category.name: category.id for category in CATEGORIES}

_MIN_STUFF = 0.005  # share of the image; a smaller region is void


@dataclass(frozen=True)
class Scene:
    """A drawn scene and its panoptic truth.

    Attributes:
        image: RGB uint8 [H, W, 3].
        index_map: int64 [H, W]: 0 is void, `k` is `segments[k - 1]`. Every segment has pixels.
        segments: (category id, iscrowd) of every segment: things from back to front, then stuff.
    """

    image: npt.NDArray[np.uint8]
    index_map: IntArray
    segments: tuple[tuple[int, bool], ...]


def draw_scene(
    rng: np.random.Generator,
    image_size: tuple[int, int],
    *,
    things: bool = True,
    crowd: bool = False,
) -> Scene:
    """Draw one scene.

    Args:
        rng: The only source of randomness.
        image_size: (H, W), each at least 32.
        things: False leaves the scene without things (and without a crowd).
        crowd: Adds a cluster of many small things of one category as one crowd segment.

    Returns:
        The scene.
    """
    height, width = image_size
    # An unlabelled frame in some images. The scene is drawn inside it, so it cuts no mask.
    frame = int(rng.integers(2, 3 + min(image_size) // 48)) if rng.random() < 0.15 else 0
    inner = (height - 2 * frame, width - 2 * frame)
    canvas, stuff = _draw_background(rng, inner)
    if things:
        if crowd:
            add_crowd(rng, canvas)
        if rng.random() < 0.25:
            add_row(rng, canvas)
        for _ in range(int(rng.integers(1, 6))):
            add_single(rng, canvas)
    index_map, segments = _merge(canvas, stuff)
    border = ((frame, frame), (frame, frame))
    image = np.pad(canvas.image, (*border, (0, 0)), constant_values=rng.uniform(15, 60))
    return Scene(_photograph(rng, image), np.pad(index_map, border), segments)


# --- stuff and void -------------------------------------------------------------------------------


def _draw_background(rng: np.random.Generator, size: tuple[int, int]) -> tuple[Canvas, IntArray]:
    """Paint the stuff regions and unlabelled patches: a canvas and category ids [H, W], 0 void."""
    names, regions = _landscape(rng, size) if rng.random() < 0.65 else _patches(rng, size)
    image = np.zeros((*size, 3), dtype=np.float32)
    stuff = np.zeros(size, dtype=np.int64)
    for number, name in enumerate(names):
        region = regions == number
        image[region] = paint_stuff(rng, name, size)[region]
        stuff[region] = _IDS[name]
    if rng.random() < 0.3:  # nobody labels the exact border: a thin unlabelled seam
        stuff[_seam(regions, int(rng.integers(1, 3)))] = 0
    if rng.random() < 0.15:  # a rock: to be seen, and in no category
        side = min(size)
        radius = side * rng.uniform(0.06, 0.12)
        x, y = rng.uniform(0.1, 0.9) * size[1], rng.uniform(0.5, 0.9) * size[0]
        rock = _blob(rng, size, (x, y), (radius * 1.4, radius))
        grain = smooth_noise(rng, size, (side * 0.04, side * 0.04)) * 26
        rows = np.arange(size[0], dtype=np.float32)[:, None]
        shade = (104 + grain - (rows - y) / radius * 26)[..., None] * np.array([1.0, 0.97, 0.93])
        alpha = np.clip(0.5 - rock, 0, 1)[..., None]
        image = image * (1 - alpha) + shade * alpha
        stuff[rock < 0.5] = 0
    return Canvas(image), stuff


def _landscape(rng: np.random.Generator, size: tuple[int, int]) -> tuple[list[str], IntArray]:
    """Sky over one or two kinds of ground, at times with a pond or a wall.

    Returns:
        Names of the regions and region number [H, W].
    """
    height, width = size
    rows = np.arange(height, dtype=np.float32)[:, None]
    bands = 2 if rng.random() < 0.6 else 3
    names = ["sky", *rng.permutation(["grass", "sand", "water"])[: bands - 1].tolist()]
    lines = (
        [rng.uniform(0.25, 0.5)] if bands == 2 else [rng.uniform(0.2, 0.4), rng.uniform(0.55, 0.8)]
    )
    regions = np.zeros(size, dtype=np.int64)
    for line in lines:
        wave = smooth_noise(rng, (2, width), (2, width * rng.uniform(0.15, 0.4)))[0]
        regions += rows >= line * height + wave * height * rng.uniform(0.01, 0.06)
    extra = rng.random()
    if extra < 0.25:  # a pond, or a sandy or grassy spot, in the lowest ground
        axes = (width * rng.uniform(0.18, 0.35), height * rng.uniform(0.1, 0.17))
        centre = (width * rng.uniform(0.2, 0.8), height * (lines[-1] + 1) / 2)
        patch = _blob(rng, size, centre, axes)
        kinds = [name for name in ("water", "sand", "grass") if name not in names]
        names.append(kinds[int(rng.integers(len(kinds)))])
    elif extra < 0.55:  # a wall that stands on the ground
        half = width * rng.uniform(0.15, 0.3)
        top, bottom = lines[0] - rng.uniform(0.1, 0.2), lines[0] + rng.uniform(0.06, 0.2)
        columns = np.arange(width, dtype=np.float32) - width * rng.uniform(0.0, 1.0)
        middle, tall = (top + bottom) / 2 * height, (bottom - top) / 2 * height
        patch = np.maximum(np.abs(columns)[None] - half, np.abs(rows - middle) - tall)
        names.append("brick wall")
    else:
        return names, regions
    return names, np.where(patch < 0, len(names) - 1, regions)


def _patches(rng: np.random.Generator, size: tuple[int, int]) -> tuple[list[str], IntArray]:
    """Ground seen from above: a Voronoi diagram with wavy borders. Returns as `_landscape`."""
    height, width = size
    count = int(rng.integers(2, 5))
    names = rng.permutation(["grass", "water", "brick wall", "sand"])[:count].tolist()
    cell = min(size) * rng.uniform(0.15, 0.35)
    bend = cell * 0.35
    rows = (
        np.arange(height, dtype=np.float32)[:, None] + smooth_noise(rng, size, (cell, cell)) * bend
    )
    columns = np.arange(width, dtype=np.float32) + smooth_noise(rng, size, (cell, cell)) * bend
    # Sites spread around the centre: each region reaches from the middle to the border.
    turns = (np.arange(count) + rng.random() + rng.uniform(-0.25, 0.25, count)) * (
        2 * math.pi / count
    )
    sites = np.stack(
        [height * (0.5 + 0.32 * np.sin(turns)), width * (0.5 + 0.32 * np.cos(turns))], axis=1
    ).astype(np.float32)
    distances = np.stack([np.hypot(rows - y, columns - x) for y, x in sites])
    return names, distances.argmin(axis=0)


def _seam(regions: IntArray, width: int) -> npt.NDArray[np.bool_]:
    """Pixels [H, W] within `width` of another region, on either side of the border."""
    seam = np.zeros(regions.shape, dtype=bool)
    across = regions[:, width:] != regions[:, :-width]
    down = regions[width:] != regions[:-width]
    seam[:, width:] |= across
    seam[:, :-width] |= across
    seam[width:] |= down
    seam[:-width] |= down
    return seam


def _blob(
    rng: np.random.Generator,
    size: tuple[int, int],
    centre: tuple[float, float],
    axes: tuple[float, float],
) -> FloatArray:
    """Approximate signed distance [H, W] of an ellipse (x, y) with an uneven border."""
    rows = (np.arange(size[0], dtype=np.float32)[:, None] - centre[1]) / axes[1]
    columns = (np.arange(size[1], dtype=np.float32) - centre[0]) / axes[0]
    uneven = smooth_noise(rng, size, (axes[1] * 0.6, axes[1] * 0.6)) * 0.22
    field: FloatArray = ((np.hypot(rows, columns) - 1 + uneven) * min(axes)).astype(np.float32)
    return field


# --- finish ---------------------------------------------------------------------------------------


def _merge(canvas: Canvas, stuff: IntArray) -> tuple[IntArray, tuple[tuple[int, bool], ...]]:
    """Things over stuff as one index map; stuff too small to be worth a label becomes void."""
    index_map = canvas.owner.copy()
    segments = [(_IDS[kind], iscrowd) for kind, iscrowd in canvas.segments]
    free = index_map == 0
    for category in CATEGORIES.stuff:
        region = free & (stuff == category.id)
        if region.sum() >= _MIN_STUFF * region.size:
            segments.append((category.id, False))
            index_map[region] = len(segments)
    return index_map, tuple(segments)


def _photograph(rng: np.random.Generator, image: FloatArray) -> npt.NDArray[np.uint8]:
    """Exposure, white balance, a little blur and sensor noise: float [H, W, 3] to uint8."""
    image = image * (rng.uniform(0.8, 1.12) * rng.uniform(0.95, 1.05, 3)).astype(np.float32)
    if rng.random() < 0.3:
        picture = Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.9)))
        image = np.asarray(picture, dtype=np.float32)
    noise = rng.standard_normal(image.shape, dtype=np.float32) * np.float32(rng.uniform(1, 6))
    pixels: npt.NDArray[np.uint8] = np.clip(image + noise + 0.5, 0, 255).astype(np.uint8)
    return pixels
