"""Things of the generated scenes: where they lie and how they cover one another.

A thing is accepted only while every thing below keeps a visible part worth a label, so nothing that
can be seen goes unlabelled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from unisolo.data.shapes_paint import (
    FloatArray,
    outline,
    paint_object,
    random_color,
)

__all__ = [
    "KINDS",
    "MIN_VISIBLE",
    "MIN_VISIBLE_PIXELS",
    "Canvas",
    "add_crowd",
    "add_row",
    "add_single",
]

MIN_VISIBLE = 0.3  # share of a thing's full area that stays visible
MIN_VISIBLE_PIXELS = 20
KINDS = ("ball", "box", "triangle", "star", "ring")
_MIN_VISIBLE_CROWD = 0.6
_MIN_RADIUS = 4.0  # pixels: below, a star and a ball are the same blot

_Window: TypeAlias = tuple[int, int, int, int]  # y0, x0, y1, x1; may reach out of the image


@dataclass(frozen=True)
class Shape:
    """Where and how a thing lies; pixels, angle in radians."""

    kind: str
    x: float
    y: float
    radius: float
    angle: float
    aspect: float
    detail: float


class Canvas:
    """Picture and owner map that grow together, from back to front.

    Attributes:
        image: float32 [H, W, 3], 0..255.
        size: (H, W).
        owner: int64 [H, W]: 0 where no thing is, else 1 + index into `segments`.
        segments: (kind, iscrowd) of every thing.
    """

    def __init__(self, image: FloatArray) -> None:
        self.image = image
        self.size: tuple[int, int] = (image.shape[0], image.shape[1])
        self.owner = np.zeros(self.size, dtype=np.int64)
        self.segments: list[tuple[str, bool]] = []
        self._needed: list[float] = [0.0]  # visible pixels that each owner must keep

    def add(self, rng: np.random.Generator, shape: Shape, color: FloatArray | None) -> bool:
        """Paint a thing on top, unless it or a thing below would be too hidden to label.

        Args:
            rng: Source of the texture.
            shape: What and where.
            color: Base colour [3]; None takes one that stands out from what lies below.

        Returns:
            Whether the thing was painted.
        """
        window, u, v, field = self._place(shape)
        full = int((field <= 0).sum())
        inside = self._crop(field, window) <= 0
        rows, columns = self._clip(window)
        needed = max(MIN_VISIBLE_PIXELS, MIN_VISIBLE * full)
        if inside.sum() < max(needed, 0.5 * full):
            return False
        owner = self.owner[rows, columns]
        hidden = np.bincount(owner[inside], minlength=len(self._needed))
        visible = np.bincount(self.owner.ravel(), minlength=len(self._needed)) - hidden
        if (visible < self._needed).any():
            return False
        self._paint(rng, shape, window, u, v, field, color)
        self.segments.append((shape.kind, False))
        self._needed.append(needed)
        owner[inside] = len(self.segments)
        return True

    def add_crowd(
        self, rng: np.random.Generator, shapes: Sequence[Shape], colors: Sequence[FloatArray]
    ) -> None:
        """Paint things of one category on top, as one crowd segment, whatever they cover."""
        number = len(self.segments) + 1
        for shape, color in zip(shapes, colors, strict=True):
            window, u, v, field = self._place(shape)
            self._paint(rng, shape, window, u, v, field, color)
            rows, columns = self._clip(window)
            self.owner[rows, columns][self._crop(field, window) <= 0] = number
        self.segments.append((shapes[0].kind, True))
        self._needed.append(_MIN_VISIBLE_CROWD * int((self.owner == number).sum()))

    def _place(self, shape: Shape) -> tuple[_Window, FloatArray, FloatArray, FloatArray]:
        """Window (y0, x0, y1, x1), not clipped, and there the object's frame and outline."""
        reach = shape.radius * 1.1 + 3  # room for the shadow
        x0, y0 = math.floor(shape.x - reach), math.floor(shape.y - reach)
        x1, y1 = math.ceil(shape.x + reach), math.ceil(shape.y + reach)
        # Pixel centres lie at + 0.5.
        dx = np.arange(x0, x1, dtype=np.float32)[None] + np.float32(0.5 - shape.x)
        dy = np.arange(y0, y1, dtype=np.float32)[:, None] + np.float32(0.5 - shape.y)
        cos, sin = np.float32(math.cos(shape.angle)), np.float32(math.sin(shape.angle))
        u, v = cos * dx + sin * dy, cos * dy - sin * dx
        field = outline(shape.kind, u, v, shape.radius, shape.aspect, shape.detail)
        return (y0, x0, y1, x1), u, v, field

    def _clip(self, window: _Window) -> tuple[slice, slice]:
        y0, x0, y1, x1 = window
        height, width = self.size
        rows = slice(min(max(y0, 0), height), min(max(y1, 0), height))
        return rows, slice(min(max(x0, 0), width), min(max(x1, 0), width))

    def _crop(self, array: FloatArray, window: _Window) -> FloatArray:
        rows, columns = self._clip(window)
        y0, x0 = window[:2]
        return array[rows.start - y0 : rows.stop - y0, columns.start - x0 : columns.stop - x0]

    def _paint(
        self,
        rng: np.random.Generator,
        shape: Shape,
        window: _Window,
        u: FloatArray,
        v: FloatArray,
        field: FloatArray,
        color: FloatArray | None,
    ) -> None:
        """Shadow, then the object, with antialiased edges."""
        rows, columns = self._clip(window)
        below = self.image[rows, columns]
        if color is None:
            around = below.reshape(-1, 3).mean(axis=0)
            choices = [random_color(rng, shape.kind) for _ in range(3)]
            color = max(choices, key=lambda c: float(np.abs(c - around).sum()))
        colors = paint_object(rng, shape.kind, u, v, field, shape.radius, color)
        shift = 1 + int(0.08 * shape.radius)
        shade = np.pad(field, ((shift, 0), (shift, 0)), mode="edge")[:-shift, :-shift]
        softness = 1 + 0.12 * shape.radius
        shadow = 1 - 0.35 * np.clip(0.5 - self._crop(shade, window) / softness, 0, 1)[..., None]
        alpha = np.clip(0.5 - self._crop(field, window), 0, 1)[..., None]
        self.image[rows, columns] = (
            below * shadow * (1 - alpha) + self._crop(colors, window) * alpha
        )


def _random_shape(rng: np.random.Generator, kind: str, x: float, y: float, radius: float) -> Shape:
    """A thing of a given kind, place and size; the rest is drawn."""
    angle = rng.uniform(0, 2 * math.pi)
    aspect = rng.uniform(0.85, 1.0)
    if kind == "box":
        aspect = rng.uniform(0.6, 1.0)
        if rng.random() < 0.35:
            angle = 0.0 if rng.random() < 0.5 else math.pi / 2
    elif kind in ("ball", "ring"):
        # Light comes from one side for all round things; only rings may be ovals.
        angle, aspect = rng.uniform(-0.3, 0.3), 1.0 if kind == "ball" else aspect
    return Shape(kind, x, y, radius, angle, aspect, rng.random())


def _random_radius(rng: np.random.Generator, side: int) -> float:
    """Half of a size from tiny to half the image, mostly about a third of it."""
    if rng.random() < 0.04:
        size = rng.uniform(0.042, 0.09)
    else:
        size = float(np.clip(rng.lognormal(math.log(0.36), 0.32), 0.07, 0.5))
    return max(_MIN_RADIUS, side * size / 2)


def add_single(rng: np.random.Generator, canvas: Canvas) -> None:
    """Add one thing somewhere; gives up after a few places."""
    height, width = canvas.size
    kind = KINDS[int(rng.integers(len(KINDS)))]
    radius = _random_radius(rng, min(canvas.size))
    for _ in range(4):
        x, y = width * rng.uniform(0.03, 0.97), height * rng.uniform(0.03, 0.97)
        if canvas.add(rng, _random_shape(rng, kind, x, y, radius), None):
            return


def add_row(rng: np.random.Generator, canvas: Canvas) -> None:
    """Add two to five things of one category that touch, often of one colour."""
    height, width = canvas.size
    side = min(canvas.size)
    kind = KINDS[int(rng.integers(len(KINDS)))]
    radius = max(_MIN_RADIUS, side * rng.uniform(0.08, 0.14))
    color = random_color(rng, kind) if rng.random() < 0.5 else None
    x, y = width * rng.uniform(0.15, 0.5), height * rng.uniform(0.2, 0.85)
    slope = rng.uniform(-0.5, 0.5)
    for _ in range(int(rng.integers(2, 6))):
        canvas.add(rng, _random_shape(rng, kind, x, y, radius), color)
        step = radius * (1.95 if kind in ("ball", "ring") else 1.6)
        x, y = x + step * math.cos(slope), y + step * math.sin(slope)


def add_crowd(rng: np.random.Generator, canvas: Canvas) -> None:
    """Add a dense cluster of small things of one category; call it before other things."""
    height, width = canvas.size
    side = min(canvas.size)
    kind = KINDS[int(rng.integers(len(KINDS)))]
    x, y = width * rng.uniform(0.25, 0.75), height * rng.uniform(0.3, 0.75)
    spread = side * rng.uniform(0.055, 0.08)
    shapes = []
    for _ in range(int(rng.integers(18, 33))):
        dx, dy = np.clip(rng.standard_normal(2), -1.8, 1.8) * spread
        radius = max(2.5, side * rng.uniform(0.022, 0.034))
        shapes.append(_random_shape(rng, kind, x + 1.4 * dx, y + 0.8 * dy, radius))
    canvas.add_crowd(rng, shapes, [random_color(rng, kind) for _ in shapes])
