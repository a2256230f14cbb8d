"""Textures and outlines of the generated scenes: plain functions from a random generator to arrays.

Colours are RGB, 0..255. Coordinates are in pixels, `v` and `y` downwards.
Outlines are signed distances (negative inside), so that one field gives the exact mask, the
antialiased edge, the rim and the shadow, without supersampling.
"""

from __future__ import annotations

import colorsys
import math
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

__all__ = [
    "FloatArray",
    "IntArray",
    "outline",
    "paint_object",
    "paint_stuff",
    "random_color",
    "smooth_noise",
]

FloatArray: TypeAlias = npt.NDArray[np.floating[Any]]
IntArray: TypeAlias = npt.NDArray[np.int64]


def smooth_noise(
    rng: np.random.Generator, size: tuple[int, int], cells: tuple[float, float]
) -> FloatArray:
    """Random field, bicubic between random values on a coarse grid.

    Args:
        rng: Source of randomness.
        size: (H, W) of the result.
        cells: (vertical, horizontal) length of a grid cell in pixels.

    Returns:
        Field [H, W], about -1..1.
    """
    height, width = size
    grid = (max(2, math.ceil(height / cells[0])), max(2, math.ceil(width / cells[1])))
    values = rng.random(grid, dtype=np.float32) * 2 - 1
    field = Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(field, dtype=np.float32)


_HUES = {"ball": 0.0, "box": 0.6, "triangle": 0.8, "star": 0.13, "ring": 0.45}
_TYPICAL = 0.95  # share of the things in their kind's colours
_HUE_SPREAD = 0.03


def random_color(rng: np.random.Generator, kind: str | None = None) -> FloatArray:
    """A lively colour [3].

    Args:
        rng: Source of randomness.
        kind: Category name. As with real things, most of a kind have its colours and some have
            any: colour is a hint, shape decides. None = any colour.
    """
    hue = rng.random()
    if kind is not None and rng.random() < _TYPICAL:
        hue = (_HUES[kind] + _HUE_SPREAD * rng.standard_normal()) % 1.0
    saturation, value = rng.uniform(0.45, 0.95), rng.uniform(0.55, 1.0)
    return np.array(colorsys.hsv_to_rgb(hue, saturation, value), dtype=np.float32) * 255


# --- things ---------------------------------------------------------------------------------------


def outline(
    kind: str, u: FloatArray, v: FloatArray, radius: float, aspect: float, detail: float
) -> FloatArray:
    """Signed distance of a thing's outline in its own frame (origin at its centre, unrotated).

    Args:
        kind: "ball", "box", "triangle", "star" or "ring".
        u: Coordinates along the object's first axis, any shape.
        v: Coordinates along its second axis, same shape.
        radius: Radius of the enclosing circle.
        aspect: Extent along `v` over extent along `u`, at most 1.
        detail: 0..1, what varies within a kind: thickness of a ring, depth of a star.

    Returns:
        Distance to the edge in pixels (near the edge; farther off only its sign is exact), same
        shape, negative inside.

    Raises:
        ValueError: If the kind has no outline.
    """
    if kind == "box":
        half = radius / math.hypot(1.0, aspect)
        box: FloatArray = np.maximum(np.abs(u) - half, np.abs(v) - half * aspect)
        return box
    v = v / np.float32(aspect)
    distance: FloatArray = np.hypot(u, v)
    field: FloatArray
    if kind == "ball":
        field = distance - radius
    elif kind == "ring":
        half_width = radius * (0.17 + 0.07 * detail)
        field = np.abs(distance - (radius - half_width)) - half_width
    elif kind == "triangle":
        field = _star(u, v, distance, points=3, radius=radius, inner=0.5 * radius)
    elif kind == "star":
        inner = radius * (0.42 + 0.1 * detail)
        field = _star(u, v, distance, points=5, radius=radius, inner=inner)
    else:
        raise ValueError(f"no outline for kind {kind!r}; known: ball, box, triangle, star, ring")
    field = field * np.float32(aspect)  # back from the stretched frame, near enough
    return field


def _star(
    u: FloatArray, v: FloatArray, distance: FloatArray, *, points: int, radius: float, inner: float
) -> FloatArray:
    """Star with tips at `radius` and notches at `inner`: fold into one wedge, then one edge."""
    wedge = math.pi / points
    angle = np.abs((np.arctan2(u, -v) + wedge) % (2 * wedge) - wedge)
    x, y = distance * np.cos(angle), distance * np.sin(angle)
    edge_x, edge_y = inner * math.cos(wedge) - radius, inner * math.sin(wedge)
    field: FloatArray = ((x - radius) * edge_y - y * edge_x) / np.float32(
        math.hypot(edge_x, edge_y)
    )
    return field


def paint_object(
    rng: np.random.Generator,
    kind: str,
    u: FloatArray,
    v: FloatArray,
    field: FloatArray,
    radius: float,
    color: FloatArray,
) -> FloatArray:
    """Colour of every pixel of an object's window.

    Args:
        rng: Source of randomness.
        kind: Category name; only decides between round and flat shading.
        u: Window coordinates [h, w] in the object's frame.
        v: As `u`, second axis.
        field: Signed distance [h, w] from `outline`.
        radius: Radius of the enclosing circle.
        color: Base colour [3].

    Returns:
        Colours [h, w, 3].
    """
    second = color * np.float32(rng.uniform(0.4, 0.7))
    if rng.random() < 0.5:
        second = random_color(rng, kind)
    mix = _pattern(rng, u, v, radius)[..., None]
    colors = color * (1 - mix) + second * mix
    # Light from the upper left in the object's frame: balls bulge, the others are nearly flat.
    slope = (u + v) / np.float32(radius)
    light = 1.0 - 0.12 * slope
    if kind == "ball":
        bulge = np.clip(1 - (u * u + v * v) / np.float32(radius * radius), 0, 1)
        light = 0.55 + 0.5 * np.sqrt(bulge) - 0.2 * slope
    # A dark rim keeps touching objects of one colour apart.
    rim = np.clip(0.5 - (field + min(2.2, max(0.7, 0.11 * radius))), 0, 1)
    light = light * (0.5 + 0.5 * rim)
    lit: FloatArray = np.clip(colors * light[..., None], 0, 255).astype(np.float32)
    return lit


def _pattern(rng: np.random.Generator, u: FloatArray, v: FloatArray, radius: float) -> FloatArray:
    """Share of the second colour [h, w], 0..1; small objects are plain or shaded."""
    choice = int(rng.integers(6)) if radius >= 9 else int(rng.integers(2))
    period = max(5.0, radius * rng.uniform(0.35, 0.8))
    if choice == 0:
        share = np.zeros_like(u)
    elif choice == 1:
        share = v / (2 * radius) + 0.5
    elif choice == 2:
        share = 0.5 + period / 4 * np.sin(u * (2 * math.pi / period))
    elif choice == 3:
        centred_u, centred_v = u % period - period / 2, v % period - period / 2
        share = 0.5 + 0.3 * period - np.hypot(centred_u, centred_v)
    elif choice == 4:
        waves = np.sin(u * (math.pi / period)) * np.sin(v * (math.pi / period))
        share = 0.5 + period / 2 * waves
    else:
        share = 0.5 + 0.8 * smooth_noise(rng, (u.shape[0], u.shape[1]), (period / 2, period / 2))
    return np.clip(share, 0, 1).astype(np.float32)


# --- stuff ----------------------------------------------------------------------------------------


def paint_stuff(rng: np.random.Generator, name: str, size: tuple[int, int]) -> FloatArray:
    """A whole image of one stuff texture.

    Args:
        rng: Source of randomness: tint, scale and phase differ from image to image.
        name: "sky", "grass", "water", "brick wall" or "sand".
        size: (H, W) of the result.

    Returns:
        Colours [H, W, 3], not clipped.

    Raises:
        ValueError: If the name has no texture.
    """
    painters = {
        "sky": _sky,
        "grass": _grass,
        "water": _water,
        "brick wall": _brick_wall,
        "sand": _sand,
    }
    if name not in painters:
        raise ValueError(f"no texture for {name!r}; known: {', '.join(painters)}")
    tint = rng.uniform(-12, 12, 3).astype(np.float32)
    return painters[name](rng, size, min(size)) + tint


def _rgb(*channels: float) -> FloatArray:
    return np.array(channels, dtype=np.float32)


def _rows_columns(size: tuple[int, int]) -> tuple[FloatArray, FloatArray]:
    rows = np.arange(size[0], dtype=np.float32)[:, None]
    return rows, np.arange(size[1], dtype=np.float32)[None, :]


def _sky(rng: np.random.Generator, size: tuple[int, int], side: int) -> FloatArray:
    """Gradient from zenith to horizon with soft clouds; day or evening."""
    high, low = (
        (_rgb(88, 152, 226), _rgb(196, 224, 244))
        if rng.random() < 0.7
        else (_rgb(112, 128, 196), _rgb(250, 206, 170))
    )
    rows, _ = _rows_columns(size)
    down = (rows / (0.6 * size[0])).clip(0, 1)[..., None]
    big = smooth_noise(rng, size, (side * 0.12, side * 0.3))
    small = smooth_noise(rng, size, (side * 0.05, side * 0.1))
    cloud = np.clip((big + 0.45 * small - rng.uniform(0.0, 0.6)) * 1.6, 0, 0.85)[..., None]
    blue = high * (1 - down) + low * down
    sky: FloatArray = blue * (1 - cloud) + _rgb(248, 248, 250) * cloud
    return sky


def _grass(rng: np.random.Generator, size: tuple[int, int], side: int) -> FloatArray:
    """Green patches with upright blades."""
    patches = smooth_noise(rng, size, (side * 0.15, side * 0.2))[..., None]
    blades = smooth_noise(rng, size, (max(3, side * 0.03), max(1.2, side * 0.008)))[..., None]
    return _rgb(92, 150, 58) + patches * _rgb(22, 18, 10) + blades * _rgb(34, 38, 22)


def _water(rng: np.random.Generator, size: tuple[int, int], side: int) -> FloatArray:
    """Horizontal waves, bent a little, with light crests."""
    rows, _ = _rows_columns(size)
    period = max(5.0, side * rng.uniform(0.035, 0.055))
    bend = smooth_noise(rng, size, (side * 0.08, side * 0.14)) * (0.8 * period)
    wave = np.sin((rows + bend) * (2 * math.pi / period))
    depth = smooth_noise(rng, size, (side * 0.3, side * 0.4))[..., None]
    crest = np.clip(wave - 0.55, 0, 1)[..., None] * 2
    base = _rgb(38, 112, 160) + depth * _rgb(8, 22, 16)
    return base + wave[..., None] * _rgb(10, 14, 14) + crest * _rgb(70, 60, 46)


def _brick_wall(rng: np.random.Generator, size: tuple[int, int], side: int) -> FloatArray:
    """Staggered bricks, each of its own shade, with light joints."""
    height = max(5.0, side * rng.uniform(0.045, 0.07))
    width = height * 2.2
    rows, columns = _rows_columns(size)
    course = np.floor(rows / height).astype(np.int64)
    shifted = columns + (course % 2) * (width / 2)
    number = np.floor(shifted / width).astype(np.int64)
    shades = rng.uniform(-1, 1, (int(course.max()) + 1, int(number.max()) + 1)).astype(np.float32)
    joint = max(1.0, 0.16 * height)
    bricks = _rgb(166, 88, 68) + shades[course, number][..., None] * _rgb(22, 16, 14)
    in_joint = ((rows % height) < joint) | ((shifted % width) < joint)
    colors = np.where(in_joint[..., None], _rgb(206, 196, 184), bricks)
    grain = smooth_noise(rng, size, (1.5, 1.5))[..., None]
    return (colors + grain * 8).astype(np.float32)


def _sand(rng: np.random.Generator, size: tuple[int, int], side: int) -> FloatArray:
    """Pale dunes: fine grain and faint slanted ripples."""
    rows, columns = _rows_columns(size)
    bend = smooth_noise(rng, size, (side * 0.2, side * 0.2)) * (side * 0.05)
    ripple = np.sin((rows + 0.35 * columns + bend) * (2 * math.pi / max(8.0, side * 0.08)))
    grain = rng.standard_normal(size, dtype=np.float32)
    dunes = smooth_noise(rng, size, (side * 0.3, side * 0.4))
    tone = (7 * ripple + 9 * grain + 10 * dunes)[..., None]
    sand: FloatArray = _rgb(222, 194, 142) + tone
    return sand
