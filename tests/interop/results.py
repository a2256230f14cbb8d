"""Results that formats find hard: empty, one pixel, holes, parts, touching corners, crowds."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from unisolo.categories import Categories, Category
from unisolo.ops.boxes import masks_to_boxes
from unisolo.ops.masks import pack_bits
from unisolo.results import Result, Segment

CATEGORIES = Categories(
    [
        Category(7, "cat", color=(10, 200, 30)),
        Category(90, 'dog & "friend"', color=(1, 2, 3)),
        Category(3, "sky", isthing=False),
    ]
)


def make(masks: np.ndarray, labels: Any = None, scores: Any = None, **fields: Any) -> Result:
    """Result of masks [N, H, W]; labels take turns, scores fall from 1."""
    count = len(masks)
    tensor = torch.from_numpy(masks.astype(bool))
    labels = [n % 2 for n in range(count)] if labels is None else labels
    scores = [1 - n / (count + 1) for n in range(count)] if scores is None else scores
    return Result(
        image_size=(masks.shape[1], masks.shape[2]),
        categories=CATEGORIES,
        scores=torch.tensor(scores, dtype=torch.float32),
        labels=torch.tensor(labels, dtype=torch.int64),
        boxes=masks_to_boxes(tensor),
        packed_masks=pack_bits(tensor),
        **fields,
    )


def hard_masks() -> np.ndarray:
    """A ring, one pixel in the last corner, two parts, two parts with a hole, a whole image."""
    masks = np.zeros((5, 41, 53), bool)
    masks[0, 5:30, 8:40] = True
    masks[0, 12:20, 15:30] = False
    masks[1, -1, -1] = True
    masks[2, 2:12, 2:12] = masks[2, 20:36, 30:50] = True
    masks[3, 2:20, 2:22] = masks[3, 20:38, 22:50] = True  # they touch at a corner
    masks[3, 8:10, 9:14] = masks[3, 30, 30] = False
    masks[4] = True
    return masks


def panoptic_result() -> Result:
    masks = hard_masks()[:2]
    ids = np.zeros(masks.shape[1:], np.int32)
    ids[:3] = 70_000  # needs all three bytes of the PNG
    ids[masks[0]], ids[masks[1]] = 1, 300
    segments = (
        Segment(1, 7, 0, True, 0.9, int(masks[0].sum())),
        Segment(70_000, 3, 2, False, 1.0, int((ids == 70_000).sum())),
        Segment(300, 90, 1, True, float(np.float32(0.3)), 1),
    )
    return make(masks, panoptic_seg=torch.from_numpy(ids), segments_info=segments)


def crowd(count: int = 200) -> Result:
    rng = np.random.default_rng(0)
    masks = np.zeros((count, 120, 150), bool)
    for mask in masks:
        top, left = rng.integers(0, 110), rng.integers(0, 140)
        mask[top : top + rng.integers(1, 12), left : left + rng.integers(1, 12)] = True
    return make(masks, scores=rng.random(count))


@st.composite
def random_masks(draw: st.DrawFn, most: int = 4) -> np.ndarray:
    shape = draw(st.integers(0, most)), draw(st.integers(1, 20)), draw(st.integers(1, 35))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    return rng.random(shape) < draw(st.floats(0, 1))


def assert_same(one: Result, other: Result) -> None:
    for name in ("scores", "labels", "boxes", "packed_masks", "panoptic_seg"):
        first, second = getattr(one, name), getattr(other, name)
        assert (first is None) == (second is None), name
        assert first is None or (first.dtype == second.dtype and torch.equal(first, second)), name
    assert one.image_size == other.image_size
    assert one.categories == other.categories
    assert one.segments_info == other.segments_info


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())
