"""Ground truth beside prediction, drawn as each task answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_coco import CROWDED, DOT, EMPTY, MIXED, SPLIT, write_tiny_coco
from tiny_model import lively_model

from unisolo import Categories, Category, Predictor
from unisolo.compare import comparison_data, comparison_sheet
from unisolo.data import CocoInstance, CocoPanoptic
from unisolo.data.images import read_image
from unisolo.visualize import draw_annotations, draw_panoptic, draw_result


@pytest.mark.parametrize("task", ["panoptic", "instance", "detection"])
def test_each_task_is_beside_its_own_ground_truth(task: str, tmp_path: Path) -> None:
    tiny = write_tiny_coco(tmp_path / "data")
    predictor = Predictor(lively_model(), task=task)
    dataset = comparison_data(predictor, tiny.root, SPLIT)
    assert isinstance(dataset, CocoPanoptic if task == "panoptic" else CocoInstance)
    sheet = np.asarray(comparison_sheet(predictor, dataset, limit=9, columns=1))
    scale, gap = 10, 8  # 36 pixels wide, at least 360 wanted
    high, wide = 24 * scale, 36 * scale
    assert sheet.shape == (5 * (high + gap) + gap, 3 * (wide + gap) + gap, 3)
    row = [3, 12, 70, 501, 900000].index(MIXED) * (high + gap) + gap
    cells = [
        sheet[row : row + high, left : left + wide]
        for left in range(gap, sheet.shape[1], wide + gap)
    ]
    image = read_image(tiny.image(MIXED))
    plain = Image.fromarray(image).resize((wide, high), Image.Resampling.LANCZOS)
    entries = [e for e in tiny.instances["annotations"] if e["image_id"] == MIXED]
    if task == "panoptic":
        segments = tiny.segments(MIXED)
        truth = draw_panoptic(image, tiny.pngs[MIXED], segments, dataset.categories, scale=scale)
    else:
        truth = draw_annotations(
            image, entries, dataset.categories, boxes=task == "detection", scale=scale
        )
    found = draw_result(image, predictor.predict(image), scale=scale)
    for cell, expected in zip(cells, (plain, truth, found), strict=True):
        assert np.array_equal(cell, np.asarray(expected))


def test_annotations_are_drawn_where_they_are(tmp_path: Path) -> None:
    tiny = write_tiny_coco(tmp_path)
    dataset = CocoInstance.from_root(tmp_path, SPLIT)
    tree = dataset.coco_ground_truth()
    for image_id in (EMPTY, CROWDED, DOT):
        image = read_image(tiny.image(image_id))
        entries = [entry for entry in tree["annotations"] if entry["image_id"] == image_id]
        picture = np.asarray(draw_annotations(image, entries, dataset.categories))
        expected = np.zeros(image.shape[:2], bool)
        for entry in entries:
            expected |= tiny.masks[entry["id"]]
        assert np.array_equal((picture != image).any(axis=2), expected)


def test_boxes_are_those_of_the_file_and_crowds_are_named() -> None:
    categories = Categories([Category(1, "cat")])
    entry = {"category_id": 1, "segmentation": None, "bbox": [10, 20, 30, 40], "iscrowd": 0}
    image = np.zeros((120, 200, 3), np.uint8)
    picture = np.asarray(draw_annotations(image, [entry], categories, boxes=True))
    frame = np.zeros((120, 200), bool)
    frame[20:60, 10:40] = True
    frame[21:59, 11:39] = False
    assert picture[frame].any(axis=1).all()
    assert not picture[45:55, 15:35].any()  # the label is above
    crowd = draw_annotations(image, [{**entry, "iscrowd": 1}], categories, boxes=True)
    assert not np.array_equal(picture, np.asarray(crowd))
