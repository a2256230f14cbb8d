"""Masks as polygons that lose nothing.

Polygons run along the edges of pixels: pixel (x, y) covers [x, x + 1) x [y, y + 1), as boxes are
half-open. A rasteriser that asks whether a pixel's centre is inside (COCO's, ours) gives back the
very mask. One that draws the outline as well (OpenCV's `fillPoly`, Pillow's `polygon`) adds a
column on the right and a row below.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Part", "Ring", "join_rings", "trace_mask"]

Ring = NDArray[np.int64]
"""[M, 2] x, y of the corners; the last is joined to the first."""


class Part(NamedTuple):
    """One connected part of a mask (pixels that touch at a corner are connected).

    Attributes:
        outer: Its outline.
        holes: Outlines of its holes, in the other direction of turning.
    """

    outer: Ring
    holes: list[Ring]


def trace_mask(mask: NDArray[np.bool_]) -> list[Part]:
    """Trace the outlines of a mask.

    OpenCV traces the centres of border pixels, which says nothing of an object one pixel wide. On
    a mask of twice the size the border pixels of both sides of an edge are told apart, and halving
    gives the edge.

    Args:
        mask: [H, W] bool.

    Returns:
        The parts; none for an empty mask.
    """
    import cv2

    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return []
    top, left = int(rows[0]), int(columns[0])
    cut = mask[top : rows[-1] + 1, left : columns[-1] + 1].astype(np.uint8)
    double = np.ascontiguousarray(cut.repeat(2, axis=0).repeat(2, axis=1))
    contours, tree = cv2.findContours(double, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    origin = np.array([left, top])
    rings = [
        _corners((contour.reshape(-1, 2).astype(np.int64) + 1) // 2) + origin
        for contour in contours
    ]
    parents = np.asarray(tree).reshape(-1, 4)[:, 3]  # -1: an outer outline, else whose hole it is
    parts = {n: Part(rings[n], []) for n in np.flatnonzero(parents < 0).tolist()}
    for number in np.flatnonzero(parents >= 0).tolist():
        parts[int(parents[number])].holes.append(rings[number])
    return list(parts.values())


def join_rings(parts: list[Part]) -> Ring:
    """Make one ring of all outlines, for formats that know one polygon an object.

    Each further ring is entered and left by the same line from the nearest corner, so that the
    line encloses nothing: holes and separate parts survive a rasteriser that asks for centres.

    Args:
        parts: From `trace_mask`, at least one.

    Returns:
        The ring; corners at both ends of a line appear twice.
    """
    joined, *others = [ring for part in parts for ring in (part.outer, *part.holes)]
    for ring in others:
        apart = np.abs(joined[:, None] - ring[None]).sum(axis=2)
        here, there = divmod(int(apart.argmin()), len(ring))
        joined = np.concatenate(
            [joined[: here + 1], ring[there:], ring[: there + 1], joined[here:]]
        )
    return joined


def _corners(points: Ring) -> Ring:
    """Leave out repeated points, then those on a straight line."""
    points = points[(points != np.roll(points, 1, axis=0)).any(axis=1)]
    before = points - np.roll(points, 1, axis=0)
    after = np.roll(points, -1, axis=0) - points
    corners: Ring = points[(before != after).any(axis=1)]
    return corners
