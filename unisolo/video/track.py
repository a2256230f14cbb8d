"""Track ids for the results of a video's frames, by how far masks (or boxes) overlap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unisolo.results import Result

__all__ = ["Tracker"]

_Floats: TypeAlias = npt.NDArray[np.float64]

_NEW_SPEED = 0.1
"""Least weight of the newest step in a track's speed: at first it is the mean of all steps."""
_FADE = 0.9
"""A track that was not seen for n frames counts this to the power of n against one that was."""
_SAME_SIZE = 1.3
"""A step says something about speed only if the area changed by less than this factor: an object
that goes behind another seems to move as its visible part shrinks."""


@dataclass(frozen=True)
class _Shape:
    """The pixels of an object: packed bits of a window, whose left side is a multiple of 8.

    Attributes:
        bits: [h, ceil(w / 8)] uint8; None = the whole window, of an object with a box alone.
        window: (left, top, right, bottom), half-open, whole pixels.
        area: Number of pixels.
        centre: (x, y) of their mean, which a stray pixel moves less than the middle of a box.
    """

    bits: npt.NDArray[np.uint8] | None
    window: tuple[int, int, int, int]
    area: int
    centre: _Floats

    def iou(self, other: _Shape, shift: tuple[int, int]) -> float:
        """Intersection over union with `other`, after a move by `shift` (right, down)."""
        ours, theirs = self.window, other.window
        left, top = max(ours[0] + shift[0], theirs[0]), max(ours[1] + shift[1], theirs[1])
        right, bottom = min(ours[2] + shift[0], theirs[2]), min(ours[3] + shift[1], theirs[3])
        if left >= right or top >= bottom:
            return 0.0
        part = (left, top, right, bottom)
        moved = (left - shift[0], top - shift[1], right - shift[0], bottom - shift[1])
        common = int(np.count_nonzero(self._pixels(moved) & other._pixels(part)))
        return common / max(self.area + other.area - common, 1)

    def _pixels(self, part: tuple[int, int, int, int]) -> npt.NDArray[np.uint8]:
        """0 or 1 for each pixel of a part of the window."""
        left, top, right, bottom = part
        if self.bits is None:
            return np.ones((bottom - top, right - left), dtype=np.uint8)
        x, y = self.window[:2]
        rows = self.bits[top - y : bottom - y, (left - x) // 8 : -(-(right - x) // 8)]
        skipped = (left - x) % 8
        return np.unpackbits(rows, axis=1)[:, skipped : skipped + right - left]


@dataclass
class _Track:
    id: int
    label: int
    shape: _Shape
    speed: _Floats
    steps: int = 0
    age: int = 0
    """Frames since it was last seen."""

    def shift(self) -> tuple[int, int]:
        """Where it should have moved since it was last seen: pixels right and down."""
        x, y = np.rint(self.speed * (self.age + 1)).astype(int).tolist()
        return x, y

    def see(self, shape: _Shape) -> None:
        if max(shape.area, self.shape.area) < _SAME_SIZE * min(shape.area, self.shape.area):
            step = (shape.centre - self.shape.centre) / (self.age + 1)
            self.steps += 1
            self.speed = self.speed + (step - self.speed) * max(1 / self.steps, _NEW_SPEED)
        self.shape, self.age = shape, 0


class Tracker:
    """Gives the instances of consecutive frames ids that stay with their objects.

        tracker = Tracker()
        for frame in frames:
            result = predictor.predict(frame)
            ids = tracker.update(result)  # ids[n] belongs to instance n

    In each category the new instances are assigned to the tracks so that the sum of the IoU of
    masks is greatest (boxes, where there are no masks); a track is first moved on by its speed.
    What is left is assigned by distance, for objects too small and fast to overlap. A track that
    finds no instance waits, and moves on, for `max_age` frames. The same frames give the same ids.

    Args:
        min_iou: Least IoU of a track's mask, moved on, and an instance's for a match.
        reach: What is left may match within this many times the object's own size (square root
            of its area); 0 = by overlap alone.
        min_score: Instances scored lower are not tracked: their id is 0.
        max_age: Frames after which a track that was not seen ends.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        *,
        min_iou: float = 0.1,
        reach: float = 1.5,
        min_score: float = 0.0,
        max_age: int = 30,
    ) -> None:
        if not 0 < min_iou <= 1:
            raise ValueError(f"min_iou must be above 0 and at most 1, got {min_iou}")
        if not 0 <= min_score <= 1:
            raise ValueError(f"min_score must be in 0..1, got {min_score}")
        if reach < 0 or max_age < 0:
            raise ValueError(f"reach and max_age may not be negative, got {reach} and {max_age}")
        self.min_iou = min_iou
        self.reach = reach
        self.min_score = min_score
        self.max_age = max_age
        self.reset()

    def reset(self) -> None:
        """Forget all tracks, for another video; ids begin at 1 again."""
        self._tracks: list[_Track] = []
        self._next = 1
        self._image_size: tuple[int, int] | None = None

    def update(self, result: Result) -> Tensor:
        """Take the next frame's result.

        Args:
            result: Of the frame after that of the last call; from any task.

        Returns:
            [N] int64, on the CPU: the track id of each instance, from 1; 0 for those below
            `min_score` or with an empty mask. No two instances of a frame share an id.

        Raises:
            ValueError: If the frame has another size than those before.
        """
        if self._image_size not in (None, result.image_size):
            raise ValueError(
                f"a frame of {result.image_size} after frames of {self._image_size} (H, W); for "
                "another video make a new Tracker or call reset()"
            )
        self._image_size = result.image_size
        host = result.cpu()
        shapes = _shapes(host)
        labels, scores = host.labels.tolist(), host.scores.tolist()
        ids = np.zeros(len(host), dtype=np.int64)
        tracked = [
            n for n, shape in enumerate(shapes) if shape.area and scores[n] >= self.min_score
        ]
        seen: set[int] = set()
        for label in sorted({labels[n] for n in tracked}):
            tracks = [track for track in self._tracks if track.label == label]
            found = [n for n in tracked if labels[n] == label]
            pairs = self._match(tracks, [shapes[n] for n in found])
            for row, column in pairs:
                track, n = tracks[row], found[column]
                track.see(shapes[n])
                ids[n] = track.id
                seen.add(track.id)
        for track in self._tracks:
            track.age += track.id not in seen
        self._tracks = [track for track in self._tracks if track.age <= self.max_age]
        for n in tracked:
            if ids[n] == 0:
                ids[n] = self._next
                self._next += 1
                track = _Track(int(ids[n]), labels[n], shapes[n], np.zeros(2))
                self._tracks.append(track)
        return torch.from_numpy(ids)

    def _match(self, tracks: list[_Track], shapes: list[_Shape]) -> list[tuple[int, int]]:
        """Pairs (track, instance) of one category: by overlap, then by distance."""
        shifts = [track.shift() for track in tracks]
        iou = np.zeros((len(tracks), len(shapes)))
        near = np.zeros_like(iou)
        for row, (track, shift) in enumerate(zip(tracks, shifts, strict=True)):
            for column, shape in enumerate(shapes):
                iou[row, column] = track.shape.iou(shape, shift)
                distance = np.hypot(*(shape.centre - track.shape.centre - shift))
                size = np.sqrt(min(track.shape.area, shape.area)) * self.reach
                near[row, column] = max(1 - distance / size, 0) if size > 0 else 0
        iou[iou < self.min_iou] = 0
        fade = _FADE ** np.array([track.age for track in tracks], dtype=np.float64)[:, None]
        iou, near = iou * fade, near * fade
        pairs = _assign(iou)
        for row, column in pairs:
            near[row] = near[:, column] = 0
        return pairs + _assign(near)


def _assign(gain: _Floats) -> list[tuple[int, int]]:
    """The one-to-one pairs (row, column) of greatest total gain; only pairs that gain."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(gain, maximize=True)
    pairs = zip(rows.tolist(), columns.tolist(), strict=True)
    return [(row, column) for row, column in pairs if gain[row, column] > 0]


def _shapes(result: Result) -> list[_Shape]:
    """The pixels of each instance; those of its box where there are no masks."""
    if result.packed_masks is None:
        return [_box_shape(box) for box in result.boxes.round().int().tolist()]
    return [_mask_shape(packed, result.image_size[1]) for packed in result.packed_masks.numpy()]


def _box_shape(box: list[int]) -> _Shape:
    left, top, right, bottom = box
    area = max(right - left, 0) * max(bottom - top, 0)
    centre = np.array([left + right, top + bottom]) / 2
    return _Shape(None, (left, top, right, bottom), area, centre)


def _mask_shape(packed: npt.NDArray[np.uint8], width: int) -> _Shape:
    rows = np.flatnonzero(packed.any(axis=1))
    columns = np.flatnonzero(packed.any(axis=0))
    if not len(rows):
        return _Shape(None, (0, 0, 0, 0), 0, np.zeros(2))
    left, top, bottom = 8 * int(columns[0]), int(rows[0]), int(rows[-1]) + 1
    bits = packed[top:bottom, columns[0] : columns[-1] + 1].copy()  # a view would keep all masks
    pixels = np.unpackbits(bits, axis=1)
    across, down = pixels.sum(axis=0, dtype=np.int64), pixels.sum(axis=1, dtype=np.int64)
    area = int(down.sum())
    centre = np.array([across @ np.arange(len(across)), down @ np.arange(len(down))]) / area
    window = (left, top, min(left + 8 * bits.shape[1], width), bottom)
    return _Shape(bits, window, area, centre + np.array([left + 0.5, top + 0.5]))
