"""Result -> COCO -> Result and panoptic PNG -> Result lose nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from results import (
    CATEGORIES,
    assert_same,
    crowd,
    hard_masks,
    make,
    panoptic_result,
    random_masks,
)

from unisolo.results import Result, Segment


def through_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def back(result: Result) -> Result:
    return Result.from_coco(through_json(result.to_coco(5)), CATEGORIES, result.image_size)


@given(random_masks(), st.integers(0, 99))
def test_any_masks_come_back(masks: np.ndarray, seed: int) -> None:
    rng = np.random.default_rng(seed)
    result = make(masks, rng.integers(0, 2, len(masks)), rng.random(len(masks)))
    assert_same(back(result), result)


@given(st.lists(st.tuples(*[st.floats(0, 5000, width=32)] * 4), max_size=5))
def test_boxes_with_fractions_come_back(boxes: list[tuple[float, ...]]) -> None:
    sides = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    sides[:, 2:] += sides[:, :2]
    count = len(sides)
    labels, scores = torch.zeros(count, dtype=torch.int64), torch.rand(count)
    result = Result((9, 9), CATEGORIES, scores, labels, sides)
    again = back(result)
    assert torch.equal(again.boxes, result.boxes)
    assert torch.equal(again.scores, result.scores)
    assert again.packed_masks is None or count == 0


def test_empty_hard_and_crowded_results_come_back() -> None:
    for result in (make(np.zeros((0, 3, 9))), make(hard_masks()), crowd()):
        assert_same(back(result), result)


def test_ground_truth_is_read_too() -> None:
    """Polygons, plain RLE, no score, no box, crowd."""
    entries = [
        {"category_id": 7, "segmentation": [[2, 1, 6, 1, 6, 3, 2, 3]], "id": 1},
        {"category_id": 90, "segmentation": {"size": [4, 9], "counts": [5, 2, 29]}},
        {"category_id": 7, "iscrowd": 1, "segmentation": {"size": [4, 9], "counts": [36]}},
        {"category_id": 7, "segmentation": [[1, 1, 2, 2]]},
    ]
    result = Result.from_coco(entries, CATEGORIES, (4, 9))
    masks = result.numpy()["masks"]
    assert result.boxes.tolist() == [[2, 1, 6, 3], [1, 1, 2, 3], [0, 0, 0, 0]]
    assert masks.sum((1, 2)).tolist() == [8, 2, 0]
    assert masks[0, 1:3, 2:6].all()
    assert result.scores.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"category_id": 8}, "entry 1: category id 8 is not one"),
        ({"category_id": [1]}, r"entry 1: category id \[1\]"),
        ({"category_id": 3}, "entry 1: .* is stuff"),
        ({"score": "high"}, "entry 1: .*high"),
        ({"bbox": [1, 2, 3]}, "entry 1: 'bbox'"),
        ({"bbox": [1, 2, 3, None]}, "entry 1"),
        ({"segmentation": None}, "entry 1 has no 'segmentation'"),
        ({"segmentation": "x"}, "entry 1: .* RLE mapping or a list of polygons"),
        ({"segmentation": {"size": [9, 4], "counts": [36]}}, "entry 1: .*size"),
        ({"segmentation": {"size": [4, 9], "counts": [99]}}, "entry 1: .*"),
        ({"segmentation": {"size": [4, 9], "counts": "~~"}}, "entry 1: .*"),
        ({"segmentation": {"size": [4, 9]}}, "entry 1: .*"),
        ({"segmentation": [[0, 0, 4, 0, 4, float("nan")]]}, "entry 1: a polygon"),
        ({"segmentation": [[0, 0, 4, 0, 4, 4, 1]]}, "entry 1: a polygon"),
        ({"image_id": 6}, "2 images"),
    ],
)
def test_entries_that_cannot_be_used(change: dict[str, Any], words: str) -> None:
    good = make(np.ones((1, 4, 9))).to_coco(5)[0]
    with pytest.raises(ValueError, match=words):
        Result.from_coco([good, {**good, **change}], CATEGORIES, (4, 9))


def test_panoptic_map_comes_back(tmp_path: Path) -> None:
    result = panoptic_result()
    annotation = through_json(result.save_panoptic(tmp_path, image_id=5, file_name="a/b.png"))
    rgb, _ = result.to_panoptic(5)
    for source in (tmp_path / "a" / "b.png", rgb, result.panoptic_seg.numpy()):
        again = Result.from_panoptic(source, annotation, CATEGORIES)
        assert torch.equal(again.panoptic_seg, result.panoptic_seg)
        assert again.segments_info == result.segments_info
        assert again.labels.tolist() == [0, 1]
        assert again.scores.tolist() == pytest.approx([0.9, 0.3])
        assert torch.equal(again.masks, result.masks)
        assert torch.equal(again.boxes, result.boxes)


@given(st.integers(1, 20), st.integers(1, 30), st.integers(0, 6), st.integers(0, 10**6))
def test_any_panoptic_map_comes_back(height: int, width: int, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    numbers = rng.choice(2**24 - 1, count, replace=False) + 1
    ids = np.concatenate([[0], numbers])[rng.integers(0, count + 1, (height, width))]
    segments = []
    for number in numbers.tolist():
        label = int(rng.integers(0, 3))
        category, area = CATEGORIES[label], int((ids == number).sum())
        if area:
            score = float(rng.random())
            segments.append(Segment(number, category.id, label, category.isthing, score, area))
    result = make(
        np.zeros((0, height, width)),
        panoptic_seg=torch.from_numpy(ids.astype(np.int32)),
        segments_info=tuple(segments),
    )
    rgb, annotation = result.to_panoptic(1)
    again = Result.from_panoptic(rgb, through_json(annotation), CATEGORIES)
    assert torch.equal(again.panoptic_seg, result.panoptic_seg)
    assert again.segments_info == result.segments_info
    assert len(again) == sum(segment.isthing for segment in segments)


def test_panoptic_files_that_cannot_be_used(tmp_path: Path) -> None:
    rgb, good = panoptic_result().to_panoptic(1)

    def fails(words: str, png: Any = rgb, **change: Any) -> None:
        with pytest.raises(ValueError, match=words):
            Result.from_panoptic(png, {**good, **change}, CATEGORIES)

    first = good["segments_info"][0]
    fails(r"ids \[300, 70000\] are not listed", segments_info=[first])
    fails("appears twice", segments_info=[first, first])
    fails("have no pixel", segments_info=[*good["segments_info"], {**first, "id": 9}])
    fails("segment id 0", segments_info=[{**first, "id": 0}])
    fails("category id 4", segments_info=[{**first, "category_id": 4}])
    fails("score 'x'", segments_info=[{**first, "score": "x"}])
    fails("not a mapping", segments_info=[5])
    fails("no list 'segments_info'", segments_info=None)
    fails("no such panoptic PNG", png=tmp_path / "none.png")
    fails("must be .* RGB", png=rgb.astype(float))
    grey, damaged = tmp_path / "grey.png", tmp_path / "damaged.png"
    Image.fromarray(rgb[:, :, 0]).save(grey)
    fails("grey.png: .* this one is L", png=grey)
    damaged.write_bytes(b"\x89PNG nothing")
    fails("damaged.png: damaged", png=damaged)
