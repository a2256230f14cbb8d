"""Generated clips: the embedded data set's shapes, moving, with the truth of every frame.

Things have fixed identities, cross in front of and behind one another, enter and leave.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from unisolo import Result
from unisolo.data.shapes_paint import outline, paint_object, paint_stuff, random_color
from unisolo.data.shapes_scene import CATEGORIES
from unisolo.ops.boxes import masks_to_boxes
from unisolo.ops.masks import pack_bits

KINDS = ("ball", "box", "triangle", "star", "ring")
MIN_PIXELS = 20


@dataclass(frozen=True)
class Mover:
    """A thing with its path: where it is at frame t, while it exists."""

    label: int
    x: float
    y: float
    dx: float
    dy: float
    radius: float
    spin: float
    texture: int
    first: int

    def at(self, frame: int) -> tuple[float, float, float]:
        t = frame - self.first
        return self.x + self.dx * t, self.y + self.dy * t, 0.3 + self.spin * t


@dataclass(frozen=True)
class Frame:
    """image: [H, W, 3] uint8 RGB; masks: visible pixels [H, W] bool by identity; labels by it."""

    image: np.ndarray
    masks: dict[int, np.ndarray]
    labels: dict[int, int]


def movers(seed: int, frames: int, size: tuple[int, int], lanes: int = 5) -> list[Mover]:
    """Things on horizontal and vertical lanes that enter at one side and leave at the other.

    Lanes cross, and the two directions of a lane overlap, so things pass one another in front
    and behind; a new one enters a lane when the last has left.
    """
    rng = np.random.default_rng(seed)
    height, width = size
    things = []
    for lane in range(lanes):
        frame = int(rng.integers(0, 20))
        while frame < frames:
            radius = rng.uniform(0.09, 0.15) * min(size)
            speed = rng.uniform(0.008, 0.02) * min(size)
            along = lane % 2 == 0
            length, breadth = (width, height) if along else (height, width)
            place = breadth * (lane + 1) / (lanes + 1) + rng.uniform(-0.04, 0.04) * breadth
            forward = rng.random() < 0.5
            start, step = (-radius, speed) if forward else (length + radius, -speed)
            x, y, dx, dy = (start, place, step, 0.0) if along else (place, start, 0.0, step)
            drift = rng.uniform(-0.1, 0.1) * speed
            dx, dy = (dx, drift) if along else (drift, dy)
            label = int(rng.integers(len(KINDS)))
            spin, texture = rng.uniform(-0.03, 0.03), int(rng.integers(2**31))
            things.append(Mover(label, x, y, dx, dy, radius, spin, texture, frame))
            frame += math.ceil((length + 2 * radius) / speed) // 2
    return things


def clip(seed: int = 0, frames: int = 300, size: tuple[int, int] = (192, 192)) -> Iterator[Frame]:
    """Yield the frames of a clip; with one seed always the same."""
    things = movers(seed, frames, size)
    rng = np.random.default_rng(seed)
    below = paint_stuff(rng, "grass", size)
    half = size[0] // 3
    below[:half] = paint_stuff(rng, "sky", size)[:half]
    for frame in range(frames):
        image = below.copy()
        owner = np.zeros(size, dtype=np.int64)
        for identity, thing in enumerate(things, start=1):
            if frame >= thing.first:
                _paint(image, owner, identity, thing, frame)
        noise = np.random.default_rng((seed, frame)).normal(0, 3, image.shape)
        masks = {
            int(identity): owner == identity
            for identity in np.flatnonzero(np.bincount(owner.ravel()) >= MIN_PIXELS)
            if identity
        }
        labels = {identity: things[identity - 1].label for identity in masks}
        yield Frame(np.clip(image + noise, 0, 255).astype(np.uint8), masks, labels)


def _paint(image: np.ndarray, owner: np.ndarray, identity: int, thing: Mover, frame: int) -> None:
    x, y, angle = thing.at(frame)
    rng = np.random.default_rng(thing.texture)
    reach = math.ceil(thing.radius) + 3
    x0, y0 = math.floor(x) - reach, math.floor(y) - reach
    columns = np.arange(x0, x0 + 2 * reach, dtype=np.float32)[None]
    rows = np.arange(y0, y0 + 2 * reach, dtype=np.float32)[:, None]
    inside_x = (columns[0] >= 0) & (columns[0] < image.shape[1])
    inside_y = (rows[:, 0] >= 0) & (rows[:, 0] < image.shape[0])
    if not inside_x.any() or not inside_y.any():
        return
    dx, dy = columns + np.float32(0.5 - x), rows + np.float32(0.5 - y)
    cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    u, v = cos * dx + sin * dy, cos * dy - sin * dx
    kind = KINDS[thing.label]
    field = outline(kind, u, v, thing.radius, 0.9, 0.5)
    colors = paint_object(rng, kind, u, v, field, thing.radius, random_color(rng, kind))
    window = np.ix_(inside_y, inside_x)
    place = np.ix_(rows[inside_y, 0].astype(int), columns[0, inside_x].astype(int))
    alpha = np.clip(0.5 - field[window], 0, 1)[..., None]
    image[place] = image[place] * (1 - alpha) + colors[window] * alpha
    owner[place] = np.where(field[window] <= 0, identity, owner[place])


def result_of(
    frame: Frame,
    rng: np.random.Generator | None = None,
    *,
    drop: float = 0.0,
    jitter: int = 0,
    with_masks: bool = True,
) -> tuple[Result, list[int]]:
    """A frame's truth as a result, and the identity of each instance, in a random order.

    With noise (`rng`): instances are missing with probability `drop`, and masks are moved by up to
    `jitter` pixels and lose or gain a rim.
    """
    identities = sorted(frame.masks)
    if rng is not None:
        identities = [n for n in rng.permutation(identities).tolist() if rng.random() >= drop]
    masks = [frame.masks[n] for n in identities]
    if rng is not None and jitter:
        masks = [_jittered(rng, mask, jitter) for mask in masks]
    size = frame.image.shape[:2]
    stack = torch.from_numpy(np.array(masks, dtype=bool).reshape(len(masks), *size))
    labels = [frame.labels[n] for n in identities]
    result = Result(
        image_size=(size[0], size[1]),
        categories=CATEGORIES,
        scores=torch.full((len(masks),), 0.9),
        labels=torch.tensor(labels, dtype=torch.int64),
        boxes=masks_to_boxes(stack),
        packed_masks=pack_bits(stack) if with_masks else None,
    )
    return result, identities


def _jittered(rng: np.random.Generator, mask: np.ndarray, jitter: int) -> np.ndarray:
    moved = np.zeros_like(mask)
    dy, dx = rng.integers(-jitter, jitter + 1, 2).tolist()
    height, width = mask.shape
    rows, columns = np.nonzero(mask)
    rows, columns = rows + dy, columns + dx
    kept = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    moved[rows[kept], columns[kept]] = True
    # Within a frame, since numpy.roll would carry a rim to the other side of the image.
    framed = np.pad(moved, 1)
    shifted = [np.roll(framed, step, axis)[1:-1, 1:-1] for axis in (0, 1) for step in (-1, 1)]
    choice = rng.integers(3)
    if choice == 0 and (rim := moved & np.logical_and.reduce(shifted)).any():
        return rim
    return moved | np.logical_or.reduce(shifted) if choice == 1 else moved
